"""The daemon itself, searched like its stores (test_model.py): over sockets, stopped and killed.

What it published is known by the answers, so what each reader must get is known without a look inside.
For longer searches see searching.py.
"""

import asyncio
import contextlib
import itertools
import json
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import aiohttp
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from core.auth.rights import EVERY_EVENT, NO_RIGHTS, Rights, is_for
from core.events.subscription import parse_subscription
from core.events.topics import publish_path
from daemon import Daemon, basic
from searching import search

PATHS = ["/a", "/b", "/a/b", "/private/a", "/private/b"]
ASKED_PATHS = ["/", "/a", "/b", "/a/b", "/private", "/b,private/a"]
ACL = {
    "alice": {"password": "secret", "acl": {"every": "all"}},
    "bob": {"password": "secret", "acl": {"some": ["a"]}},
}
RIGHTS = {
    "": NO_RIGHTS,
    "alice": Rights(frozenset({EVERY_EVENT})),
    "bob": Rights(frozenset({frozenset({"a"})})),
}
FILLINGS = (0, 0, 40_000)  # bytes: four of them fill a page
PATIENCE = 20.0  # seconds; a guard, nothing waits for it to pass
NEVER = "0171c41a-3000-4d5f-8a5f-0f4c8a1e6f9b"  # a cursor that nobody gave away

steps: Counter[str] = Counter()


class Reader:
    """A stream over a socket that takes little by itself."""

    def __init__(self, port: int, path: str, user: str, asked: dict[str, str]) -> None:
        self.subscription, self.rights, self.asked = parse_subscription(path), RIGHTS[user], asked
        self.must_be_complete = False
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))
        headers = asked | (basic(user) if user else {})
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode())
        while b"\r\n\r\n" not in self._received():
            pass
        head, _, self.body = self.body.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        assert " 200 " in status, head
        self.headers = dict(line.split(": ", 1) for line in lines)
        self.head, self.verdict = self.headers["X-Cursor"], self.headers.get("X-Replay")
        self.objects: list[dict[str, Any]] = []
        self.ended = False
        self._parse()

    body = b""

    def _received(self) -> bytes:
        data = self.socket.recv(1 << 16)
        assert data, "the connection ended in the head"
        self.body += data
        return self.body

    def read(self, size: int, patience: float = 0.0) -> None:
        """Take up to so many bytes, if there are any within so many seconds."""
        self.socket.settimeout(patience)
        try:
            data = self.socket.recv(size)
        except (BlockingIOError, TimeoutError):
            return
        except ConnectionError:
            data = b""
        self.ended = self.ended or not data
        self.body += data
        self._parse()

    def _parse(self) -> None:
        """Turn chunks into objects, each of which is one."""
        while b"\r\n" in self.body:
            size_line, _, rest = self.body.partition(b"\r\n")
            size = int(size_line, 16)
            if len(rest) < size + 2:
                return
            assert rest[size - 1 : size + 2] == b"\n\r\n"
            self.objects.append(json.loads(rest[:size]))
            self.body = rest[size + 2 :]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it has got, without pings."""
        return [thing for thing in self.objects if thing.keys() != {"stillalive"}]

    def wants(self, event: dict[str, Any]) -> bool:
        """Whether an event is for it, and comes after its place."""
        if not is_for(publish_path(event["pubsub_path"]), self.subscription, self.rights):
            return False
        if event["pubsub_cursor"] > self.head:
            return True
        if since := self.asked.get("X-Fetch-Since"):
            return bool(event["pubsub_timestamp"] >= float(since))
        cursor = self.asked.get("X-Fetch-Since-Cursor")
        return (
            cursor is not None
            and cursor[14] == "7"
            and cursor < event["pubsub_cursor"]
            and cursor <= self.head
        )


class Machine(RuleBasedStateMachine):
    """Any lives of a daemon, with its readers."""

    in_file = False

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = Path(mkdtemp(prefix="pypubsub-model-"))
        self.numbers = itertools.count()
        self.history: dict[int, dict[str, Any]] = {}  # by n; as events, of which some lack what is not known
        self.maybe: set[int] = set()  # what was being published when the daemon was killed
        self.readers: list[Reader] = []
        self.cursors: list[str] = []
        self.lives: list[str] = []  # the last cursor before each
        self.daemon: Daemon | None = None

    @initialize(
        size=st.sampled_from([2, 5, 40]),
        max_age=st.sampled_from([0, 0, 1]),
        memory=st.sampled_from([1, 2**26]),
    )
    def begin(self, size: int, max_age: int, memory: int) -> None:
        """Choose the settings, and start."""
        backlog: dict[str, Any] = {"size": size, "max_age": max_age}
        if self.in_file:
            backlog |= {"storage": str(self.directory / "backlog.db"), "memory": memory}
        self.size, self.max_age = size, max_age
        self.daemon = Daemon(
            self.directory,
            {"server": {"ping_interval": 0.1, "subscriber_buffer": 20_000, "backlog": backlog}},
        )
        self.daemon.write_acl(ACL)
        self.daemon.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something that publishes."""
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, PATIENCE))

    async def put(self, path: str, numbers: Sequence[int], filling: int) -> None:
        """Publish, and note what the answer says."""
        lines = [json.dumps({"n": n, "x": "x" * filling}) + "\n" for n in numbers]
        assert self.daemon is not None
        async with (
            aiohttp.ClientSession() as session,
            session.put(
                self.daemon.url + path,
                data="".join(lines),
                headers={"Content-Type": "application/x-ndjson", "Accept": "application/json"},
            ) as response,
        ):
            assert response.status == 202, await response.text()
            cursor = (await response.json())["cursor"]
        for place, n in enumerate(numbers):
            # those before the last of a batch have a cursor that sorts just before it
            self.history[n] = {"n": n, "pubsub_path": path, "order": (cursor, place)}
        self.history[numbers[-1]]["pubsub_cursor"] = cursor
        self.cursors.append(cursor)

    @rule(
        path=st.sampled_from(PATHS), count=st.sampled_from([1, 1, 3, 12]), filling=st.sampled_from(FILLINGS)
    )
    def publish(self, path: str, count: int, filling: int) -> None:
        """Publish one event, or a batch."""
        steps["publish"] += 1
        self.run(self.put(path, [next(self.numbers) for _ in range(count)], filling if count == 1 else 0))

    @rule(paths=st.lists(st.sampled_from(PATHS), min_size=2, max_size=8), filling=st.sampled_from(FILLINGS))
    def publish_at_the_same_time(self, paths: list[str], filling: int) -> None:
        """Several publishers."""
        steps["publish at once"] += 1

        async def all_of_them() -> None:
            await asyncio.gather(*(self.put(path, [next(self.numbers)], filling) for path in paths))

        self.run(all_of_them())

    @rule()
    def stop_and_start(self) -> None:
        """A clean restart."""
        steps["restart"] += 1
        assert self.daemon is not None
        self.check_all()
        assert self.daemon.stop() == 0
        self.start_again()

    @rule(path=st.sampled_from(PATHS), count=st.sampled_from([0, 1, 6]))
    def kill_and_start(self, path: str, count: int) -> None:
        """Kill it while it is being published to."""
        steps["kill"] += 1
        daemon = self.daemon
        assert daemon is not None
        numbers = [[next(self.numbers)] for _ in range(count)]

        async def publish_and_kill() -> None:
            tasks = [asyncio.create_task(self.put(path, n, 0)) for n in numbers]
            if tasks:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.to_thread(daemon.stop, signal.SIGKILL)
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert result is None or isinstance(result, aiohttp.ClientError), result

        self.run(publish_and_kill())
        self.maybe |= {n for (n,) in numbers if n not in self.history}
        self.start_again()

    def start_again(self) -> None:
        """The next life."""
        for reader in self.readers:
            reader.read(1 << 24)
        self.check_each(final=False)
        for reader in self.readers:
            reader.socket.close()
        self.readers.clear()
        self.lives.append(self.cursors[-1] if self.cursors else "")
        assert self.daemon is not None
        self.daemon.start()

    @rule(
        path=st.sampled_from(ASKED_PATHS),
        user=st.sampled_from(["", "", "alice", "bob"]),
        how=st.sampled_from(["cursor", "cursor", "last", "last", "since", "all", "live", "never"]),
        which=st.integers(0, 30),
        share=st.integers(1, 3),
    )
    def subscribe(self, path: str, user: str, how: str, which: int, share: int) -> None:
        """Somebody comes, perhaps with others who ask for the same in other words."""
        steps["subscribe"] += 1
        assert self.daemon is not None
        asked: dict[str, str] = {}
        if how == "all":
            asked = {"X-Fetch-Since": "0"}
        elif how == "since":
            asked = {"X-Fetch-Since": repr(time.time() - which / 10)}
        elif how != "live":
            cursors = self.cursors or [NEVER]
            cursor = cursors[-1] if how == "last" else cursors[-1 - which % len(cursors)]
            asked = {"X-Fetch-Since-Cursor": NEVER if how == "never" else cursor}
        complete = self.must_be_complete(asked, user)
        for number in range(share):
            other = f"{path},others/{number}" if path != "/" and number else path
            reader = Reader(self.daemon.port, other, user, asked)
            assert reader.verdict == "complete" or not complete, reader.headers
            self.cursors.append(reader.head)
            self.readers.append(reader)

    def must_be_complete(self, asked: dict[str, str], user: str) -> bool:
        """Whether a replay after a cursor must be: there has been too little for anything to have left."""
        cursor = asked.get("X-Fetch-Since-Cursor", NEVER)
        if (
            self.max_age
            or cursor == NEVER
            or self.maybe
            or (not self.in_file and cursor <= "".join(self.lives[-1:]))
        ):
            return False
        kinds = Counter(
            publish_path(event["pubsub_path"]).private
            for event in self.history.values()
            if event["order"][0] >= cursor
        )
        return all(kinds[private] <= self.size for private in ((False, True) if user else (False,)))

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, 30), size=st.sampled_from([1, 3000, 1 << 20]))
    def read(self, which: int, size: int) -> None:
        """A reader takes something."""
        steps["read"] += 1
        self.readers[which % len(self.readers)].read(size)

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, 30))
    def come_back(self, which: int) -> None:
        """A reader leaves, and may come back with the last cursor that it has got."""
        steps["leave"] += 1
        reader = self.readers.pop(which % len(self.readers))
        self.learn([reader])
        self.check(reader, final=False)
        if reader.events:
            self.cursors.append(reader.events[-1]["pubsub_cursor"])
        reader.socket.close()

    @rule()
    def settle(self) -> None:
        """Everybody has read all there is."""
        steps["settle"] += 1
        self.check_all()

    def check_all(self) -> None:
        """Everybody gets what it must, and nothing else by the next ping."""
        patience = time.monotonic() + PATIENCE
        for reader in self.readers:
            while not reader.ended and (time.monotonic() < patience and self.missing(reader)):
                reader.read(1 << 20, 0.05)
            pings = len(reader.objects) - len(reader.events)
            while not reader.ended and len(reader.objects) - len(reader.events) == pings:
                assert time.monotonic() < patience + PATIENCE
                reader.read(1 << 20, 0.2)
        self.check_each(final=True)

    def check_each(self, *, final: bool) -> None:
        """What is known of one reader is to be known of the others."""
        self.learn(self.readers)
        for reader in self.readers:
            self.check(reader, final=final and not reader.ended)

    def learn(self, readers: list[Reader]) -> None:
        """Of events of which nobody knew the cursor, or whether they had been published."""
        for reader in readers:
            for event in reader.events:
                known = self.history.setdefault(
                    event["n"], {"n": event["n"], "order": (event["pubsub_cursor"], 0)}
                )
                assert known.get("pubsub_cursor", event["pubsub_cursor"]) == event["pubsub_cursor"]
                known |= {key: event[key] for key in ("pubsub_path", "pubsub_cursor", "pubsub_timestamp")}
                self.maybe.discard(event["n"])

    def known(self) -> list[dict[str, Any]]:
        """All events of which the cursor is known, in their order; of a batch that may be the last alone."""
        return sorted(
            (event for event in self.history.values() if "pubsub_cursor" in event),
            key=lambda event: event["pubsub_cursor"],
        )

    def missing(self, reader: Reader) -> list[dict[str, Any]]:
        """What it should have got, as far as that is known."""
        got = {event["n"] for event in reader.events}
        by_time = "X-Fetch-Since" in reader.asked
        return [
            event
            for event in self.known()
            if event["n"] not in got
            and (not by_time or "pubsub_timestamp" in event or event["pubsub_cursor"] > reader.head)
            and reader.wants(event)
        ]

    def check(self, reader: Reader, *, final: bool) -> None:
        """Whether a reader has what it must have, and nothing else."""
        events = reader.events
        cursors = [event["pubsub_cursor"] for event in events]
        assert cursors == sorted(set(cursors)), "twice, or out of order"
        for n, group in itertools.groupby(sorted(event["n"] for event in events)):
            assert len(list(group)) == 1, n
        assert all(map(reader.wants, events)), "not asked for, no right to it, or from before its place"
        pings = [place for place, thing in enumerate(reader.objects) if "stillalive" in thing]
        assert pings or not final
        replay = reader.objects[: pings[0]] if pings else reader.objects
        assert all(event["pubsub_cursor"] <= reader.head for event in replay)
        assert all(event["pubsub_cursor"] > reader.head for event in events[len(replay) :])
        missing = self.missing(reader)
        if not final:
            missing = [event for event in missing if cursors and event["pubsub_cursor"] < cursors[-1]]
        if reader.verdict in ("complete", None):
            assert not missing, f"not sent, though {reader.verdict}: {missing}"
        if cursors:  # it knows of a hole before its first event
            live_after = max(reader.head, cursors[0])
            assert not any(event["pubsub_cursor"] > live_after for event in missing), (
                f"live, and not sent: {missing}"
            )
        for private in (False, True):
            of_kind = [
                event["pubsub_cursor"]
                for event in events
                if publish_path(event["pubsub_path"]).private == private
            ]
            for event in missing:
                if publish_path(event["pubsub_path"]).private == private:
                    assert not of_kind or event["pubsub_cursor"] < of_kind[0], "a hole in the middle"

    def teardown(self) -> None:
        """See what everybody has got in the end."""
        try:
            if self.daemon and self.daemon.running:
                self.check_all()
                assert self.daemon.stop() == 0
                assert not [line for line in self.daemon.log if "Traceback" in line], self.daemon.log
        finally:
            if self.daemon and self.daemon.running:
                self.daemon.stop(signal.SIGKILL)
            for reader in self.readers:
                with contextlib.suppress(OSError):
                    reader.socket.close()
            self.loop.close()
            shutil.rmtree(self.directory)


class FileMachine(Machine):
    """The same with a file."""

    in_file = True


@pytest.mark.parametrize("machine", [Machine, FileMachine], ids=["memory", "file"])
@pytest.mark.timeout(4 * 3600)
def test_every_reader_of_a_daemon_gets_what_it_was_promised(machine: type[Machine]) -> None:
    """Whoever is told complete gets everything after its place, once and in order, then the live events."""
    search(machine, 3, 20, steps)
