"""What was acknowledged survives a crash: kill -9 with publishers at full speed, again and again."""

import asyncio
import contextlib
import json
import random
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon, StartDaemon
from wire import Stream

pytestmark = pytest.mark.timeout(180)  # on a machine that others use too
ROUNDS = 12
PUBLISHERS = 8


class Witness:
    """What publishers were told, and what a subscriber saw, in order."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, tuple[int, int]] = {}  # by cursor: which publisher, its number
        self.seen: list[str] = []  # cursors
        self._kill_at = 0  # acknowledged events
        self._kill = asyncio.Event()

    async def publish(self, daemon: Daemon, publisher: int, numbers: "Numbers") -> None:
        """Publish one event after the other until the connection breaks."""
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            while True:
                number = numbers.next(publisher)
                body = json.dumps({"publisher": publisher, "number": number})
                request = f"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
                writer.write(request.encode())
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                assert head.startswith("HTTP/1.1 202 "), head
                await reader.readexactly(len("accepted\n"))
                cursor = head.partition("X-Cursor: ")[2][:36]
                self.acknowledged[cursor] = (publisher, number)
                if len(self.acknowledged) >= self._kill_at:
                    self._kill.set()

    async def watch(self, stream: Stream) -> None:
        """Note what a stream shows until it breaks."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                self.seen.append((await stream.event())["pubsub_cursor"])

    async def until_more_are_acknowledged(self, count: int) -> None:
        """Wait for so many events."""
        self._kill_at = len(self.acknowledged) + count
        self._kill.clear()
        await self._kill.wait()


class Numbers:
    """Counts each publisher's attempts."""

    def __init__(self) -> None:
        self._last = dict.fromkeys(range(PUBLISHERS), 0)

    def next(self, publisher: int) -> int:
        """A number that the publisher has not used."""
        self._last[publisher] += 1
        return self._last[publisher]


async def test_every_event_acknowledged_or_seen_survives(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """Each 202 is in the replay once, in order, and so is all that a subscriber saw, over many crashes."""
    storage = {"size": 1_000_000, "storage": str(tmp_path / "backlog.db")}
    daemon = start_daemon({"server": {"backlog": storage}})
    witness, numbers, dice = Witness(), Numbers(), random.Random(4)
    for _ in range(ROUNDS):
        async with daemon.subscriber("/a") as stream, asyncio.TaskGroup() as tasks:
            tasks.create_task(witness.watch(stream))
            for publisher in range(PUBLISHERS):
                tasks.create_task(witness.publish(daemon, publisher, numbers))
            await witness.until_more_are_acknowledged(dice.randrange(1, 600))
            await asyncio.to_thread(daemon.stop, signal.SIGKILL)
        daemon.start()
    async with daemon.subscriber("/a", {"X-Fetch-Since": "-1"}) as stream:
        assert stream.headers["X-Replay"] == "complete"
        replayed = await stream.replay()
    check(replayed, witness)
    assert len(witness.acknowledged) > ROUNDS


async def test_an_answer_is_sent_after_the_write_is_forced_out(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """So that it survives a crash of the machine too: each 202 follows an fdatasync that has returned."""
    daemon = start_daemon({"server": {"backlog": {"size": 10, "storage": str(tmp_path / "backlog.db")}}})
    trace = tmp_path / "trace"
    calls = "--trace=fsync,fdatasync,sendto,sendmsg,write,writev"
    strace = await asyncio.create_subprocess_exec(
        "strace", "-f", calls, "-s", "16", "-o", trace, "-p", str(daemon.pid), stderr=asyncio.subprocess.PIPE
    )
    assert strace.stderr is not None
    assert b"attached" in await strace.stderr.readline()
    for n in range(5):
        assert (await daemon.put("/a", {"n": n})).status == 202
    await asyncio.to_thread(daemon.stop)
    await strace.communicate()
    told = re.findall(r"sync(?:\(\d+| resumed>).* = 0|HTTP/1.1 202", trace.read_text())
    answers = [place for place, call in enumerate(told) if "202" in call]
    assert len(answers) == 5
    assert all("sync" in told[place - 1] for place in answers)


def check(replayed: list[dict[str, Any]], witness: Witness) -> None:
    """Check a replay against what was seen before the crashes."""
    cursors = [event["pubsub_cursor"] for event in replayed]
    assert cursors == sorted(set(cursors))
    by_cursor = {event["pubsub_cursor"]: (event["publisher"], event["number"]) for event in replayed}
    assert len(set(by_cursor.values())) == len(by_cursor)
    assert witness.acknowledged.items() <= by_cursor.items()
    assert set(witness.seen) <= set(cursors)
    assert witness.seen == sorted(set(witness.seen))
    for publisher in range(PUBLISHERS):
        in_order = [number for of, number in by_cursor.values() if of == publisher]
        assert in_order == sorted(in_order)
