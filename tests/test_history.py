"""A part of the past, of which the stream then ends, and the newest events before the live ones."""

import asyncio
import contextlib
import itertools
import json
import signal
import socket
import sqlite3
import subprocess
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.auth.networks import Networks
from core.auth.rights import EVERY_EVENT, NO_RIGHTS, Rights
from core.delivery.catch_up import CatchUpContext, Follower
from core.delivery.channel import selection_of
from core.delivery.fanout import Fanout
from core.delivery.subscriber import Subscriber
from core.delivery.wire import BARE, CHUNKED, CLOSING_CHUNK, chunk
from core.events import turns
from core.events.cursor import MAX_POSITION, TICKS_PER_SECOND, Mark, Stamps, stamp_at
from core.events.event import Draft, Event
from core.events.replay import ReplayRequest
from core.events.selection import Selection
from core.events.store import Page
from core.events.subscription import parse_subscription
from core.events.topics import publish_path
from core.http.limits import Connections
from core.http.stream import Stream
from core.settings import ServerConfig
from daemon import Daemon, StartDaemon, basic
from documents import skip_without
from plugins.backlog import blocks, database, finding, leaving, recent, sealing
from plugins.backlog.file import StoredBacklog
from plugins.backlog.memory import Backlog
from plugins.backlog.settings import BacklogConfig
from stores import IN_MEMORY
from wire import CURSOR, START_NS, TIMEOUT, ending

STORES = ("memory", "file")
IN_FILE = pytest.mark.parametrize("in_file", [False, True], ids=STORES)
ACL = {"alice": {"password": "secret", "acl": {"all": "all"}}}
ALICE = basic("alice")
OF_0_7 = "1c4a1ac8-1b22-4d5f-8a5f-0f4c8a1e6f9b"
PING = b'{"stillalive": 0.0}\n'


# Over the wire


@pytest.fixture(params=STORES)
def daemon(request: pytest.FixtureRequest, start_daemon: StartDaemon, tmp_path: Path) -> Daemon:
    """One with a backlog, in memory or in a file; its pings come quickly."""
    backlog = {"size": 20_000}
    if request.param == "file":
        backlog |= {"storage": str(tmp_path / "backlog.db")}  # type: ignore[dict-item]
    return start_daemon({"server": {"ping_interval": 0.2, "backlog": backlog}}, acl=ACL)


async def publish(daemon: Daemon, path: str, numbers: range) -> list[dict[str, Any]]:
    """Publish {"n": …} for each number, one after the other: the events."""
    events = []
    for n in numbers:
        answer = await daemon.request("PUT", path, {"n": n}, {"Accept": "application/json"})
        events.append(json.loads(answer.text) | {"n": n})
    return events


async def history(
    daemon: Daemon, query: str, path: str = "/a", **headers: str
) -> tuple[str | None, list[int]]:
    """What X-Replay says, and the "n" of each event, of a stream that has its clean end, and no ping."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with daemon.subscriber(f"{path}?{query}", named) as stream:
        assert stream.status == 200, await stream.rest()
        assert stream.headers["Connection"] == "close"
        verdict = stream.headers.get("X-Replay")
        raw = await stream.rest()
    assert ending(raw) == "clean"
    assert b"stillalive" not in raw
    return verdict, [json.loads(line)["n"] for line in raw.split(b"\r\n") if line.startswith(b"{")]


async def newest(daemon: Daemon, query: str, path: str = "/a") -> tuple[str | None, list[int]]:
    """The same of a stream that goes on."""
    async with daemon.subscriber(f"{path}?{query}") as stream:
        assert stream.status == 200
        events = await stream.replay()
        await publish(daemon, path, range(1000, 1001))
        assert (await stream.event())["n"] == 1000
        return stream.headers.get("X-Replay"), [event["n"] for event in events]


async def test_a_part_of_the_past_has_an_end(daemon: Daemon) -> None:
    """By times, from the first to before the second; by cursors, from after the first up to the second."""
    before = repr(time.time())
    events = await publish(daemon, "/a", range(6))
    times = [repr(event["timestamp"]) for event in events]
    cursors = [event["cursor"] for event in events]
    assert await history(daemon, f"since={times[1]}&until={times[4]}") == ("complete", [1, 2, 3])
    assert await history(daemon, f"cursor={cursors[1]}&until={cursors[4]}") == ("complete", [2, 3, 4])
    assert await history(daemon, f"cursor={cursors[1]}&until={times[4]}") == ("complete", [2, 3])
    assert await history(daemon, f"since={times[1]}&until={cursors[1]}") == ("complete", [1])
    assert await history(daemon, f"until={cursors[3]}", X_Fetch_Since=before) == ("complete", [0, 1, 2, 3])
    for name in ("X_Fetch_Since_Cursor", "Last_Event_ID"):
        assert await history(daemon, f"until={times[3]}", **{name: cursors[0]}) == ("complete", [1, 2])
    assert await history(daemon, f"since={times[1]}&until=0s&limit=2") == ("complete", [1, 2])
    assert await history(daemon, f"since={times[1]}&limit=2") == ("complete", [1, 2])
    assert await history(daemon, f"cursor={cursors[3]}&limit=9") == ("complete", [4, 5])


async def test_windows_that_tile_give_each_event_once(daemon: Daemon) -> None:
    """By time, by cursor, and by as many at a time as somebody likes."""
    events = await publish(daemon, "/a", range(30))
    for key in ("timestamp", "cursor"):
        marks = [str(events[n][key]) for n in (0, 7, 8, 20, 29)]
        first = "since=-1" if key == "timestamp" else f"cursor={stamp_at(1, 0.0).cursor}"
        got = (await history(daemon, f"{first}&until={marks[0]}"))[1]
        begins = "since" if key == "timestamp" else "cursor"
        for begin, end in itertools.pairwise(marks):
            got += (await history(daemon, f"{begins}={begin}&until={end}"))[1]
        got += (await history(daemon, f"{begins}={marks[-1]}&until={int(time.time()) + 3600}"))[1]
        assert got == list(range(30))
    got, at = [], stamp_at(1, 0.0).cursor
    while (page := (await history(daemon, f"cursor={at}&limit=7"))[1]) and len(got) < 99:
        got += page
        at = events[got[-1]]["cursor"]
    assert got == list(range(30))


async def test_an_end_that_is_still_to_come_is_that_of_the_head(daemon: Daemon) -> None:
    """What is published later is not sent, and the head's X-Cursor is where to go on."""
    future = stamp_at(int((time.time() + 9000) * TICKS_PER_SECOND), 0.0).cursor
    for number, until in enumerate((f"until={time.time() + 3600}", f"until={future}", "limit=1000000")):
        path = f"/a/{number}"
        await publish(daemon, path, range(3))
        async with daemon.subscriber(f"{path}?since=-1&{until}") as stream:
            assert [(await stream.object())["n"] for _ in range(3)] == [0, 1, 2]
            assert ending(await stream.rest()) == "clean"
        head = stream.headers["X-Cursor"]
        await publish(daemon, path, range(3, 4))
        assert await history(daemon, f"since=-1&until={head}", path) == (
            stream.headers["X-Replay"],
            [0, 1, 2],
        )
        assert await history(daemon, f"cursor={head}&limit=9", path) == ("complete", [3])


async def test_an_end_before_the_beginning_ends_at_once(daemon: Daemon) -> None:
    """Nothing lies between them."""
    events = await publish(daemon, "/a", range(3))
    for until in ("2001-01-01", "-1", "0", stamp_at(1, 0.0).cursor):
        assert (await history(daemon, f"since=-1&until={until}"))[1] == []
    begin, end = events[2], events[0]
    assert await history(daemon, f"since={begin['timestamp']!r}&until={end['timestamp']!r}") == (
        "complete",
        [],
    )
    assert await history(daemon, f"cursor={begin['cursor']}&until={end['cursor']}") == ("complete", [])


async def test_cursors_that_nobody_knows_give_nothing(daemon: Daemon) -> None:
    """Neither as a beginning nor as an end, and that is said."""
    await publish(daemon, "/a", range(3))
    assert await history(daemon, f"since=-1&until={OF_0_7}") == ("unknown", [])
    assert await history(daemon, f"cursor={OF_0_7}&limit=3") == ("unknown", [])
    assert await history(daemon, f"last=3&until={OF_0_7}") == ("unknown", [])


async def test_the_newest_events_come_before_the_live_ones(daemon: Daemon) -> None:
    """Of those that match, in order; with an end they are the newest before it."""
    events = await publish(daemon, "/a", range(5))
    await publish(daemon, "/other", range(5, 9))
    assert await newest(daemon, "last=2") == ("complete", [3, 4])
    of_all = "complete" if "storage" in daemon.config["server"]["backlog"] else "partial"
    assert await newest(daemon, "last=10000") == (of_all, [0, 1, 2, 3, 4, 1000])
    assert await history(daemon, f"last=2&until={events[4]['timestamp']!r}") == ("complete", [2, 3])
    assert await history(daemon, f"last=2&until={events[3]['cursor']}") == ("complete", [2, 3])
    assert await history(daemon, f"last=9&until={events[3]['cursor']}") == (of_all, [0, 1, 2, 3])
    assert await newest(daemon, "last=1", "/a/never") == (of_all, [])


async def test_a_long_history_in_blocks(daemon: Daemon) -> None:
    """Thousands of events, of which most are sealed."""
    for start in range(0, 6000, 2000):
        await daemon.put_all(f"/a/{start}", [{"n": n} for n in range(start, start + 2000)])
    await publish(daemon, "/a/rare", range(6000, 6001))
    verdict, everything = await history(daemon, "since=-1&until=0s")
    assert everything == list(range(6001))
    assert (await history(daemon, "since=-1&limit=2500"))[1] == everything[:2500]
    assert await history(daemon, "last=4321&until=0s") == ("complete", everything[-4321:])
    assert await history(daemon, "last=2&until=0s", "/a/0") == ("complete", [1998, 1999])
    assert await history(daemon, "last=2&until=0s", "/rare") == (verdict, [6000])


async def test_without_a_backlog_history_ends_at_once(server: Daemon) -> None:
    """And who asks for the newest gets the live events."""
    await publish(server, "/a", range(3))
    assert await history(server, "since=-1&until=0s") == ("none", [])
    assert await history(server, "since=-1&limit=1") == ("none", [])
    assert await history(server, f"last=1&until={CURSOR}") == ("none", [])
    assert await newest(server, "last=3") == ("none", [])


async def test_over_http_1_0_the_end_is_that_of_the_connection(daemon: Daemon) -> None:
    """Lines, and nothing behind them."""
    await publish(daemon, "/a", range(3))
    async with daemon.subscriber("/a?since=-1&until=0s", {"User-Agent": "x"}, "1.0") as stream:
        assert [json.loads(line)["n"] for line in (await stream.rest()).splitlines()] == [0, 1, 2]
    async with daemon.subscriber("/a?last=1&until=0s", version="1.0") as stream:  # with a NUL
        assert (await stream.rest()).endswith(b"}\n\0")


@pytest.mark.parametrize("program", ["curl", "curl --http1.0", "node"])
async def test_other_programs_see_a_clean_end(daemon: Daemon, program: str) -> None:
    """What they print is whole, and their exit status is 0."""
    skip_without(program.split(maxsplit=1)[0])
    await publish(daemon, "/a", range(3))
    url = f"{daemon.url}/a?since=-1&until=0s"
    command = [*program.split(), "-sS", url]
    if program == "node":
        command = [
            "node",
            "-e",
            f"fetch('{url}').then(a => a.text()).then(t => process.stdout.write(t))",
        ]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=TIMEOUT, check=True)
    assert [json.loads(line)["n"] for line in done.stdout.splitlines()] == [0, 1, 2]
    assert done.stderr == b""
    assert (await daemon.request("GET", "/a?since=-1&until=0s")).text.count("\n") == 3  # aiohttp
    await daemon.until_logged("left after .*: it has had all that it asked for")


async def wide(daemon: Daemon, path: str = "/a", count: int = 100) -> None:
    """Publish more than the operating system holds for a reader."""
    for n in range(count):
        await daemon.put(path, {"n": n, "x": "x" * 100_000})


async def test_a_reader_who_takes_its_time_gets_all_of_it_and_no_ping(daemon: Daemon) -> None:
    """Whatever is published meanwhile, and however many pings others get."""
    await wide(daemon)
    async with daemon.subscriber("/a?since=-1&until=0s") as stream, daemon.subscriber("/") as other:
        stream.stop_reading()
        for _ in range(3):
            assert (await other.object()).keys() == {"stillalive"}
        await publish(daemon, "/a", range(100, 103))
        stream.read_on()
        raw = await stream.rest()
        assert ending(raw) == "clean"
        assert raw.count(b'{"n": ') == 100
        assert b"stillalive" not in raw


async def cut(stream: Any) -> bytes:
    """What comes until a connection is closed, or reset."""
    raw = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(TIMEOUT):
            while piece := await stream.reader.read(2**16):
                raw += piece
    return raw


async def test_a_reader_who_takes_nothing_is_cut_off(start_daemon: StartDaemon) -> None:
    """As any other is, and it sees no clean end."""
    daemon = start_daemon({"server": {"write_timeout": 1, "backlog": {"size": 1000}}})
    await wide(daemon)
    async with daemon.subscriber("/a?since=-1&until=0s") as stream:
        stream.stop_reading()
        await daemon.until_logged("left after .*: took nothing for 1 seconds")
        stream.read_on()
        assert ending(await cut(stream)) == "early"


async def test_a_stop_cuts_history_short_and_shows_it(daemon: Daemon) -> None:
    """What is queued is sent, and then no closing chunk."""
    await wide(daemon)
    async with daemon.subscriber("/a?since=-1&until=0s") as stream:
        stream.stop_reading()
        daemon.signal(signal.SIGTERM)
        await daemon.until_logged("SIGTERM")
        stream.read_on()
        raw = await cut(stream)
        assert ending(raw) == "early"
        assert 0 < raw.count(b'{"n": ') < 100
        await daemon.until_logged("the server stops")


async def test_rights_that_are_taken_away_apply_to_the_rest_of_history(daemon: Daemon) -> None:
    """What waits for a reader is not sent to it either."""
    await wide(daemon, "/private/a")
    async with daemon.subscriber("/a?since=-1&until=0s", ALICE) as stream:
        stream.stop_reading()
        await daemon.reload({"alice": {"password": "secret"}})
        stream.read_on()
        assert (await cut(stream)).count(b'{"n": ') < 100


async def test_private_events_leave_no_trace_in_history(daemon: Daemon) -> None:
    """Who may not see them gets what it would get without them, by time, by cursor, by number."""
    public = []
    private = []
    for n in range(5):
        private += await publish(daemon, "/private/a", range(100 + n, 101 + n))
        public += await publish(daemon, "/a", range(n, n + 1))
    private += await publish(daemon, "/private/a", range(105, 106))
    everything = [n for pair in zip(range(100, 105), range(5), strict=True) for n in pair] + [105]
    end = f"until={private[5]['cursor']}"
    assert (await history(daemon, f"since=-1&{end}", **ALICE))[1] == everything
    assert (await history(daemon, f"since=-1&{end}"))[1] == [0, 1, 2, 3, 4]
    assert await history(daemon, f"last=3&{end}", **ALICE) == ("complete", [104, 4, 105])
    assert await history(daemon, f"last=3&{end}") == ("complete", [2, 3, 4])
    place = f"cursor={private[1]['cursor']}"
    assert await history(daemon, f"{place}&limit=3", **ALICE) == ("complete", [1, 102, 2])
    assert await history(daemon, f"{place}&limit=3") == ("complete", [1, 2, 3])
    assert await history(daemon, f"{place}&until={private[3]['timestamp']!r}") == ("complete", [1, 2])


# Against a plain list

PATHS = ["/a", "/b", "/a/b", "/private/a", "/private/b", "/private/a/b"]
ASKED = {
    "/": [set[str]()],
    "/a": [{"a"}],
    "/a/b": [{"a", "b"}],
    "/private": [{"private"}],
    "/b,private/a": [{"b"}, {"private", "a"}],
    "/c": [{"c"}],
}
RIGHTS = [
    NO_RIGHTS,
    Rights(frozenset({frozenset({"a"})})),
    Rights(frozenset({frozenset({"a", "b"}), frozenset({"b"})})),
    Rights(frozenset({EVERY_EVENT})),
]
SMALL = {
    "PAGE_EVENTS": 3,
    "BLOCK_EVENTS": 3,
    "_MOST_BLOCKS": 2,
    "_MOST_ROWS": 4,
    "_TESTS_AT_ONCE": 6,  # no set of topics here has more
    "_SEALED_FROM": 1,
}
MODULES = (blocks, database, finding, leaving, recent, sealing)


class Got(NamedTuple):
    """What a reader got."""

    verdict: str | None
    events: list[Event]
    raw: bytes
    word: str


class Archive:
    """A store, its publisher, and the readers who come to it one after the other."""

    def __init__(self, config: BacklogConfig) -> None:
        self.ns = START_NS
        self.published: list[Event] = []
        self.fanout = Fanout(backlog=True)
        deliver = self.fanout.deliver

        def noted(event: Event) -> None:
            self.published.append(event)
            deliver(event)

        self.fanout.deliver = noted  # type: ignore[method-assign]
        self.store = (
            StoredBacklog(config, ServerConfig(), Path(config.storage), self.fanout, self.seconds)
            if config.storage
            else Backlog(config, self.fanout, self.seconds)
        )
        self.store._stamps = Stamps(lambda: self.ns, lambda: self.ns)
        self.reader: Subscriber

    def seconds(self) -> float:
        """The time."""
        return self.ns / 1e9

    async def publish(self, paths: Sequence[str], later: int = 10**6) -> None:
        """Publish an event on each path, in one batch, so many nanoseconds later; then seal what can be."""
        self.ns += later
        if paths:
            await self.store.append([Draft(publish_path(path), '{"a": "x"') for path in paths])
        if isinstance(self.store, StoredBacklog):
            while await self.store._in(self.store._writing, self.store._file.seal):
                pass

    async def read(
        self,
        asked: ReplayRequest,
        path: str = "/",
        rights: Rights = NO_RIGHTS,
        meanwhile: Sequence[str] = (),
    ) -> Got:
        """What somebody gets who asks for that, until its stream ends, or its replay does.

        meanwhile: paths of events that are published when its head has been sent.
        """
        private = bool(rights.readable)
        subscription = parse_subscription(path)
        now = await self.store.now(private=private)
        await self.store.settle(now.position, private=private)
        selection = selection_of(subscription, rights, CHUNKED)
        placement = await self.store.place(asked, Mark(now.position, now.timestamp), selection)
        if meanwhile:
            await self.publish(meanwhile)
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=there)
        stream = Stream(Connections(1, 0, 0, Networks([])), None, "closed", writing_paused=False)
        here.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(lambda: stream, here)
        self.reader = Subscriber("", subscription, CHUNKED, transport, stream, stream.drain, 2**20)
        self.reader.rights = rights
        self.fanout.add(self.reader)
        context = CatchUpContext(self.fanout, self.store, 0.0, lambda: 0.0)  # pings as often as may be
        serving = stream.serve(Follower(self.reader, now.position, context).begin(placement))
        raw = b""
        async with asyncio.timeout(TIMEOUT):
            with contextlib.suppress(ConnectionResetError):
                raw = await (reader.read() if asked.is_history else reader.readuntil(chunk(PING)))
        assert self.reader.ping_turn is None or not asked.is_history, "it has joined the fan-out"
        transport.abort()
        writer.close()
        await asyncio.wait([serving])
        self.fanout.remove(self.reader)
        by_frame = {chunk(event.line): event for event in self.published}
        events = [by_frame[frame] for frame in frames_of(raw) if frame != chunk(PING)]
        return Got(placement.verdict, events, raw, self.reader.end_word)

    async def held(self) -> list[Event]:
        """All that is held."""
        selection = selection_of(parse_subscription("/"), RIGHTS[-1], BARE)
        data, after = b"", 0
        while after < (end := self.store.end(private=True)):
            page = await self.store.read(after, end, selection)
            data, after = data + page.data, page.end
        by_line = {event.line: event for event in self.published}
        return [by_line[line] for line in data.splitlines(keepends=True)]


def frames_of(raw: bytes) -> list[bytes]:
    """The chunks of a stream, without the closing one."""
    return [frame + b"}\n\r\n" for frame in raw.removesuffix(CLOSING_CHUNK).split(b"}\n\r\n")[:-1]]


@contextlib.asynccontextmanager
async def archive(directory: str | Path | None, size: int = 1000, memory: int = 1) -> AsyncIterator[Archive]:
    """One that keeps its events in a file in that directory, or in memory. Pages, rows and blocks are few."""
    with pytest.MonkeyPatch.context() as patch:
        for module in MODULES:
            for name, value in SMALL.items():
                if hasattr(module, name):
                    patch.setattr(module, name, value)
        storage = f"{directory}/backlog.db" if directory else None
        here = Archive(BacklogConfig(size=size, storage=storage, memory=memory))
        await here.store.open()
        running = asyncio.create_task(here.store.run())
        try:
            yield here
        finally:
            running.cancel()
            await asyncio.wait([running])
            await here.store.stop()


def may_get(event: Event, path: str, rights: Rights) -> bool:
    """Whether an event is for somebody."""
    topics = set(event.path.topics)
    if event.path.private and not any(segment <= topics for segment in rights.readable):
        return False
    topics |= {"private"} if event.path.private else set()
    return any(alternative <= topics for alternative in ASKED[path])


def part_of(events: Sequence[Event], asked: ReplayRequest) -> list[Event]:
    """What is asked for, of a list of events in order."""
    part = list(events)
    if asked.since is not None:
        part = [event for event in part if event.stamp.timestamp >= asked.since]
    if asked.cursor is not None:
        part = [event for event in part if event.stamp.cursor > asked.cursor]
    if isinstance(asked.until, str):
        part = [event for event in part if event.stamp.cursor <= asked.until]
    elif asked.until is not None:
        part = [event for event in part if event.stamp.timestamp < asked.until]
    if asked.last is not None:
        part = part[-asked.last :]
    return part if asked.limit is None else part[: asked.limit]


@st.composite
def asked_of(draw: st.DrawFn, here: Archive, heads: Sequence[str]) -> ReplayRequest:
    """Any question. heads: cursors of no event."""
    stamps = [event.stamp for event in here.published]
    times = st.sampled_from(
        [-1.0, 0.0, here.seconds() + 100, here.seconds() - 1e-6]
        + [stamp.timestamp + off for stamp in stamps for off in (-2e-7, 0, 2e-7)]
    )
    cursors = st.sampled_from([*heads, *(stamp.cursor for stamp in stamps)])
    counts = st.integers(1, len(stamps) + 2)
    until = draw(st.none() | times | cursors)
    if (how := draw(st.sampled_from(["since", "cursor", "last"]))) == "last":
        return ReplayRequest(last=draw(counts), until=until)
    limit = draw((st.none() | counts) if until is not None else counts)
    if how == "since":
        return ReplayRequest(since=draw(times), until=until, limit=limit)
    return ReplayRequest(cursor=draw(cursors), until=until, limit=limit)


BATCHES = st.lists(
    st.tuples(
        st.lists(st.sampled_from(PATHS), min_size=1, max_size=6), st.sampled_from([0, 1, 10**6, 10**9])
    ),
    max_size=12,
)


def check_form(got: Got, asked: ReplayRequest) -> None:
    """Whether history has its end and no ping, and everything else neither."""
    assert got.word == ("done" if asked.is_history else "client")
    assert (ending(got.raw) == "clean") == asked.is_history
    assert got.raw.count(PING) == (not asked.is_history)


@IN_FILE
@given(BATCHES, st.sampled_from([1, 1500, 100_000]), st.data())
@settings(max_examples=60, deadline=None)
def test_any_part_is_that_of_a_list(
    in_file: bool, batches: list[tuple[list[str], int]], memory: int, data: st.DataObject
) -> None:
    """By any beginning, end and number, for any subscription and rights; and it is known to be complete."""

    async def check() -> None:
        with TemporaryDirectory(dir=IN_MEMORY) as directory:
            async with archive(directory if in_file else None, memory=memory) as here:
                heads = []
                for paths, later in batches:
                    heads.append((await here.store.now(private=True)).cursor)
                    await here.publish(paths, later)
                here.ns += 10**6
                for _ in range(6):
                    await check_one(here, heads or [CURSOR])

    async def check_one(here: Archive, heads: list[str]) -> None:
        asked = data.draw(asked_of(here, heads))
        path, rights = data.draw(st.sampled_from(list(ASKED))), data.draw(st.sampled_from(RIGHTS))
        got = await here.read(asked, path, rights)
        wanted = [event for event in here.published if may_get(event, path, rights)]
        if CURSOR in (asked.cursor, asked.until):  # there is no cursor of its own yet
            assert got.events == []
            return
        assert got.events == part_of(wanted, asked)
        assert got.verdict == verdict_of(here, asked, len(got.events))
        check_form(got, asked)

    def verdict_of(here: Archive, asked: ReplayRequest, found: int) -> str:
        if asked.last is not None:
            return "complete" if in_file or found == asked.last else "partial"
        if asked.since is None or asked.since >= here.store._began.timestamp:
            return "complete"
        return "complete" if in_file and asked.since < 1e9 else "partial"

    asyncio.run(check())


@IN_FILE
@given(st.lists(st.sampled_from(PATHS), max_size=40), st.integers(1, 12), st.data())
@settings(max_examples=60, deadline=None)
def test_what_has_left_is_not_passed_over(
    in_file: bool, paths: list[str], size: int, data: st.DataObject
) -> None:
    """What is held of a part is sent; if that is not all of it, it is not complete."""

    async def check() -> None:
        with TemporaryDirectory(dir=IN_MEMORY) as directory:
            async with archive(directory if in_file else None, size=size) as here:
                for path in paths:
                    await here.publish([path])
                here.ns += 10**6
                held = await here.held()
                for _ in range(6):
                    await check_one(here, held)

    async def check_one(here: Archive, held: list[Event]) -> None:
        asked = data.draw(asked_of(here, [(await here.store.now(private=True)).cursor]))
        path, rights = data.draw(st.sampled_from(list(ASKED))), data.draw(st.sampled_from(RIGHTS))
        got = await here.read(asked, path, rights)
        assert got.events == part_of([event for event in held if may_get(event, path, rights)], asked)
        check_form(got, asked)
        all_of_it = part_of([event for event in here.published if may_get(event, path, rights)], asked)
        assert got.verdict in ("complete", "partial")
        if got.verdict == "complete":
            assert got.events == all_of_it

    asyncio.run(check())


@IN_FILE
@given(BATCHES, st.lists(st.integers(0, 80), max_size=6), st.booleans(), st.data())
@settings(max_examples=40, deadline=None)
def test_windows_tile(
    in_file: bool, batches: list[tuple[list[str], int]], cuts: list[int], by_time: bool, data: st.DataObject
) -> None:
    """Whatever they are cut at, and whoever reads them, and however many at a time, each event comes once."""
    path, rights = data.draw(st.sampled_from(list(ASKED))), data.draw(st.sampled_from(RIGHTS))
    limit = data.draw(st.integers(1, 5))

    async def check() -> None:
        with TemporaryDirectory(dir=IN_MEMORY) as directory:
            async with archive(directory if in_file else None) as here:
                for paths, later in batches:
                    await here.publish(paths, later)
                wanted = [event for event in here.published if may_get(event, path, rights)]
                assert await windows(here) == wanted
                assert await pages(here) == wanted

    async def windows(here: Archive) -> list[Event]:
        stamps = [here.published[cut].stamp for cut in sorted(cuts) if cut < len(here.published)]
        marks: list[Any] = [stamp.timestamp if by_time else stamp.cursor for stamp in stamps]
        marks = [0.0 if by_time else stamp_at(here.store._began.position, 0.0).cursor, *marks]
        marks.append(here.seconds() + 1 if by_time else (await here.store.now(private=True)).cursor)
        begin = "since" if by_time else "cursor"
        found = []
        for first, end in itertools.pairwise(marks):
            found += (await here.read(ReplayRequest(until=end, **{begin: first}), path, rights)).events
        return found

    async def pages(here: Archive) -> list[Event]:
        found: list[Event] = []
        at = stamp_at(here.store._began.position, 0.0).cursor
        while page := (await here.read(ReplayRequest(cursor=at, limit=limit), path, rights)).events:
            assert len(page) <= limit
            found += page
            at = found[-1].stamp.cursor
        return found

    asyncio.run(check())


@IN_FILE
@pytest.mark.parametrize(
    "asked",
    [
        ReplayRequest(since=0.0, until=2e9),
        ReplayRequest(since=0.0, until=stamp_at(MAX_POSITION, 0.0).cursor),
        ReplayRequest(since=0.0, limit=9),
        ReplayRequest(last=9, until=2e9),
        ReplayRequest(last=9),
    ],
    ids=["a time", "a cursor", "a number", "the newest before a time", "the newest"],
)
async def test_what_is_published_while_it_is_read_is_not_part_of_it(
    in_file: bool, tmp_path: Path, asked: ReplayRequest
) -> None:
    """However far its end lies in the future: it is what was published before its head was sent."""
    async with archive(tmp_path if in_file else None) as here:
        await here.publish(["/a"] * 5)
        got = await here.read(asked, meanwhile=["/a"] * 5)
        assert got.events == here.published[:5]
        check_form(got, asked)


@IN_FILE
async def test_the_newest_are_found_however_far_back_they_are(in_file: bool, tmp_path: Path) -> None:
    """Before each event in turn; behind blocks that hold only other topics, or the right ones apart."""
    async with archive(tmp_path if in_file else None) as here:
        private = ["/private/a"] * 9
        for path in [*["/a/b"] * 4, *["/a", "/b", "/a"] * 7, *private, *["/c"] * 33, *["/a", "/b"] * 5]:
            await here.publish([path])
        for event in here.published[::2]:
            for path, rights, last in [
                ("/a/b", NO_RIGHTS, 2),
                ("/a", NO_RIGHTS, 4),
                ("/", RIGHTS[1], 5),
                ("/private", RIGHTS[1], 5),
            ]:
                asked = ReplayRequest(last=last, until=event.stamp.cursor)
                wanted = [each for each in here.published if may_get(each, path, rights)]
                got = await here.read(asked, path, rights)
                assert got.events == part_of(wanted, asked)
                assert in_file or got.verdict == ("complete" if len(got.events) == last else "partial")


@IN_FILE
async def test_the_newest_may_be_few_of_one_kind_and_many_of_the_other(in_file: bool, tmp_path: Path) -> None:
    """Public events come last, and most of what is asked for lies before them, or the other way round."""
    for paths in (["/private/a"] * 9 + ["/a"] * 2, ["/a"] * 9 + ["/private/a"] * 2):
        directory = tmp_path / paths[0].replace("/", "-")
        directory.mkdir()
        async with archive(directory if in_file else None) as here:
            for path in paths:
                await here.publish([path])
            for last in range(1, 12):
                got = await here.read(ReplayRequest(last=last), "/a", RIGHTS[-1])
                assert (got.verdict, got.events) == ("complete", here.published[-last:])


async def test_what_was_refused_and_is_in_the_file_all_the_same_is_not_sent(tmp_path: Path) -> None:
    """As after a commit that failed: it lies before the head, and behind all that was delivered."""
    async with archive(tmp_path) as here:
        await here.publish(["/a"] * 2)
        at = here.published[-1].stamp.position + 5
        refused = Event(publish_path("/a"), '{"a": "x"', stamp_at(at, here.seconds()))
        with contextlib.closing(sqlite3.connect(tmp_path / "backlog.db")) as connection:
            row = (at, here.seconds(), "/a", refused.line, zlib.crc32(refused.line))
            connection.execute("INSERT INTO public VALUES (?, ?, ?, ?, ?)", row)
            connection.commit()
        here.ns += 10**6
        for asked in (ReplayRequest(since=0.0, until=2e9), ReplayRequest(last=9, until=2e9)):
            assert (await here.read(asked)).events == here.published


@IN_FILE
async def test_what_leaves_before_it_is_read_is_known_to_be_missing(in_file: bool, tmp_path: Path) -> None:
    """History that is partial has its clean end, also if by then nothing of it is held any more."""
    async with archive(tmp_path if in_file else None, size=3) as here:
        for _ in range(5):
            await here.publish(["/a"])
        asked = ReplayRequest(since=here.published[0].stamp.timestamp, until=2e9)
        got = await here.read(asked, meanwhile=["/a"] * 20)
        assert (got.verdict, got.events) == ("partial", [])
        check_form(got, asked)
        asked = ReplayRequest(cursor=here.published[-3].stamp.cursor, until=2e9)
        got = await here.read(asked, meanwhile=["/a"] * 20)  # it has been told complete
        assert (got.verdict, got.events, got.word) == ("complete", [], "backlog")
        assert ending(got.raw) == "early"


@IN_FILE
async def test_the_newest_are_not_complete_with_a_gap_among_them(in_file: bool, tmp_path: Path) -> None:
    """Where public events have left, and private ones from before them are held; what is held is sent."""
    async with archive(tmp_path if in_file else None, size=3) as here:
        await here.publish(["/private/a"])
        for _ in range(6):
            await here.publish(["/a"])
        held = await here.held()
        assert len(held) == 4
        for last, verdict in ((3, "complete"), (4, "partial")):
            got = await here.read(ReplayRequest(last=last), "/a", RIGHTS[-1])
            assert (got.verdict, got.events) == (verdict, held[-last:])


@IN_FILE
async def test_the_newest_are_not_complete_from_before_the_memory_began(
    in_file: bool, tmp_path: Path
) -> None:
    """As after a copy of a file was put back: something may have been published in between."""
    async with archive(tmp_path if in_file else None) as here:
        await here.publish(["/a"] * 5)
        here.store._began = Mark(here.published[2].stamp.position, here.published[2].stamp.timestamp)
        for last, verdict in ((2, "complete"), (3, "partial")):
            got = await here.read(ReplayRequest(last=last))
            assert (got.verdict, got.events) == (verdict, here.published[-last:])


@IN_FILE
@pytest.mark.parametrize("most", [1, 2, 5, 1000])
async def test_a_page_has_no_more_events_than_are_wanted(in_file: bool, tmp_path: Path, most: int) -> None:
    """And ends with the last of them, where the next one goes on."""
    async with archive(tmp_path if in_file else None) as here:
        for _ in range(10):
            await here.publish(["/a", "/private/a", "/a"])
        selection = selection_of(parse_subscription("/"), RIGHTS[-1], BARE)
        lines: list[bytes] = []
        after, end = 0, here.store.end(private=True)
        while after < end:
            page = await here.store.read(after, end, selection, most)
            lines += bytes(page.data).splitlines(keepends=True)
            assert page.events <= most
            after = page.end
        assert lines == [event.line for event in here.published]


@IN_FILE
@pytest.mark.parametrize("asked", [ReplayRequest(since=0.0, until=2e9), ReplayRequest(cursor="", limit=40)])
async def test_rights_that_change_apply_to_what_comes_then(
    in_file: bool, tmp_path: Path, asked: ReplayRequest
) -> None:
    """Private events stop in the middle, the public ones go on to the clean end."""
    async with archive(tmp_path if in_file else None) as here:
        for _ in range(20):
            await here.publish(["/a", "/private/a"])
        if asked.cursor is not None:
            asked = asked._replace(cursor=stamp_at(here.store._began.position, 0.0).cursor)
        read, reads = here.store.read, 0

        async def read_twice(after: int, upto: int, selection: Selection, most: int | None = None) -> Page:
            nonlocal reads
            reads += 1
            page = await read(after, upto, selection, most)
            if reads == 3:
                here.fanout.change_rights(here.reader, NO_RIGHTS)
            return page

        here.store.read = read_twice  # type: ignore[method-assign]
        got = await here.read(asked, "/a", RIGHTS[-1])
        check_form(got, asked)
        last_private = max(n for n, event in enumerate(got.events) if event.path.private)
        assert 2 <= last_private < 10
        both = got.events[: last_private + 1]
        assert both == here.published[: last_private + 1]
        assert [event for event in got.events if not event.path.private] == here.published[::2]


@IN_FILE
async def test_a_search_for_the_newest_leaves_others_their_turn(
    in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it has to look through: the event loop is not held for long, the reader thread neither."""
    async with archive(tmp_path if in_file else None) as here:
        for _ in range(30):
            await here.publish(["/b"] * 5)
        monkeypatch.setattr(turns, "_SLICE", 0.0)
        others = 0

        async def have_turns() -> None:
            nonlocal others
            while True:
                others += 1
                await here.store.now(private=False)
                await asyncio.sleep(0)

        task = asyncio.create_task(have_turns())
        placement = await here.store.place(
            ReplayRequest(last=1),
            Mark(MAX_POSITION, 0.0),
            selection_of(parse_subscription("/a"), NO_RIGHTS, BARE),
        )
        task.cancel()
        assert placement.verdict == ("complete" if in_file else "partial")
        assert others >= 15
