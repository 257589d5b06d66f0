"""Nothing is lost by kill -9 while old events are sealed, or leave, or come from a file of version 1."""

import asyncio
import contextlib
import json
import math
import random
import signal
import sqlite3
import time
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import ClientError

from core.events.cursor import TICKS_PER_SECOND, stamp_at
from core.events.event import Event, opening_of
from core.events.topics import publish_path
from daemon import Daemon, StartDaemon
from plugins.backlog.block import BLOCK_EVENTS
from storage import config, failed_start, killed_when
from wire import EVERYTHING, Stream

pytestmark = pytest.mark.timeout(180)  # on a machine that others use too
ROUNDS = 18
ROUNDS_OF_UPGRADE = 12
SIZE = 10 * BLOCK_EVENTS  # the least of which old events are sealed
BATCH = 1500
OLD_ROWS = 30_000

VERSION_1 = """
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE public (
    position INTEGER PRIMARY KEY, timestamp REAL NOT NULL, path TEXT NOT NULL, line BLOB NOT NULL,
    crc INTEGER NOT NULL
);
CREATE TABLE private (
    position INTEGER PRIMARY KEY, timestamp REAL NOT NULL, path TEXT NOT NULL, line BLOB NOT NULL,
    crc INTEGER NOT NULL
);
CREATE TABLE kinds (
    kind TEXT PRIMARY KEY, held INTEGER NOT NULL, lost_position INTEGER NOT NULL, lost_timestamp REAL NOT NULL
);
INSERT INTO kinds VALUES ('public', 0, 0, 0), ('private', 0, 0, 0);
CREATE TABLE life (
    began_position INTEGER NOT NULL, began_timestamp REAL NOT NULL, from_the_start INTEGER NOT NULL,
    reserved INTEGER NOT NULL
);
CREATE TABLE answers (
    scope BLOB PRIMARY KEY, body BLOB NOT NULL, cursor TEXT NOT NULL, timestamp REAL NOT NULL,
    events INTEGER NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX answers_at ON answers (at);
PRAGMA application_id = 0x50505362;
PRAGMA user_version = 1;
COMMIT;
"""


class Sent(NamedTuple):
    """A batch that was sent: numbers of its events, up to one. acknowledged: with a 202."""

    path: str
    numbers: range
    acknowledged: bool


class Publisher:
    """Publishes one batch after the other until the connection breaks."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.acknowledged = asyncio.Semaphore(0)  # counts batches
        self._next = 0

    async def publish(self, daemon: Daemon, path: str) -> None:
        """Publish another batch. Raises ClientError if the connection breaks."""
        numbers = range(self._next, self._next + BATCH)
        self._next += BATCH
        self.sent.append(Sent(path, numbers, False))
        await daemon.put_all(path, [{"n": n} for n in numbers])
        self.sent[-1] = Sent(path, numbers, True)
        self.acknowledged.release()

    async def until_it_is_killed(self, daemon: Daemon) -> None:
        """Publish on two paths in turns, of which one is kept for a second only."""
        with contextlib.suppress(ClientError):
            while True:
                await self.publish(daemon, "/a/kept")
                await self.publish(daemon, "/a/brief")


class Watcher:
    """Sees the lines of events live."""

    def __init__(self) -> None:
        self.lines: dict[int, bytes] = {}  # by number

    async def watch(self, stream: Stream) -> None:
        """Note what a stream shows until it breaks."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                self.note(await stream.chunk())

    def note(self, line: bytes) -> int:
        """See a line, which must be the same each time."""
        if line.startswith(b'{"stillalive"'):
            return -1
        n: int = json.loads(line)["n"]
        assert self.lines.setdefault(n, line) == line, "it is not what it was"
        return n


async def replayed(daemon: Daemon, path: str, headers: dict[str, str]) -> tuple[str, list[bytes]]:
    """What X-Replay says, and the lines of a replay."""
    async with daemon.subscriber(path, headers) as stream:
        lines = []
        while not (line := await stream.chunk()).startswith(b'{"stillalive"'):
            lines.append(line)
        return stream.headers["X-Replay"], lines


async def test_kills_while_events_are_sealed_and_leave(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """What was acknowledged is there once, in order, byte for byte, unless it was to leave."""
    kept = {"brief": {"max_age": "1s"}}
    storage = {"size": SIZE, "storage": str(tmp_path / "backlog.db"), "keep": kept, "memory": "64 KiB"}
    daemon = start_daemon({"server": {"backlog": storage, "max_payload_size": "1 MiB"}})
    cursor = (await daemon.put("/a/brief", {"n": -1})).headers["X-Cursor"]
    publisher, watcher, dice = Publisher(), Watcher(), random.Random(5)
    for _ in range(ROUNDS):
        async with daemon.subscriber("/a") as stream, asyncio.TaskGroup() as tasks:
            tasks.create_task(watcher.watch(stream))
            tasks.create_task(publisher.until_it_is_killed(daemon))
            for _ in range(dice.randrange(1, 6)):
                await publisher.acknowledged.acquire()
            await asyncio.sleep(dice.uniform(0, 0.1))  # a random moment in what comes then
            await asyncio.to_thread(daemon.stop, signal.SIGKILL)
        daemon.start()
        assert await daemon.replay("/quiet", X_Fetch_Since_Cursor=cursor) == ("complete", [])
    verdict, lines = await replayed(daemon, "/a", EVERYTHING)
    assert verdict == "partial"
    numbers = [watcher.note(line) for line in lines]
    assert numbers == sorted(set(numbers)), "twice, or out of order"
    assert set(numbers) <= {n for batch in publisher.sent for n in batch.numbers}
    last = publisher.sent[-1].numbers.stop
    held = set(numbers)
    for path, batch, acknowledged in publisher.sent:
        if path == "/a/kept" and batch.start > min(numbers):
            assert held.issuperset(batch) or held.isdisjoint(batch), "half of a batch"
            assert held.issuperset(batch) or not acknowledged, "it was acknowledged, and is gone"
        if acknowledged and path == "/a/kept":
            assert held.issuperset(batch) or batch.start < last - SIZE, "it was acknowledged, and is gone"
    assert len(numbers) < SIZE + BLOCK_EVENTS
    cursor = json.loads(lines[0])["pubsub_cursor"]
    assert await replayed(daemon, "/kept", {"X-Fetch-Since-Cursor": cursor}) == (
        "complete",
        [line for line in lines[1:] if b'"/a/kept"' in line],
    )
    assert blocks_in(tmp_path / "backlog.db"), "nothing was sealed"
    assert sum(batch.acknowledged for batch in publisher.sent) > ROUNDS


def blocks_in(storage: Path) -> int:
    """How many blocks a file has; 0 if it cannot be told yet."""
    with contextlib.closing(sqlite3.connect(storage)) as connection, contextlib.suppress(sqlite3.Error):
        count: int = connection.execute("SELECT count(*) FROM public_blocks").fetchone()[0]
        return count
    return 0


def version_1(storage: Path, held: int = OLD_ROWS, lost: int = 0) -> list[bytes]:
    """Make a file of version 1, of which some events have left. The lines of those that it holds."""
    began = int((time.time() - 1000) * TICKS_PER_SECOND)
    rows = []
    for n in range(held + lost):
        path = publish_path(f"/old/{n % 7}")
        stamp = stamp_at(began + 1 + n * 10_000, (began + n * 10_000) / TICKS_PER_SECOND)
        line = Event(path, opening_of({"n": n, "x": "é\n"}, path, 1000), stamp).line
        rows.append((stamp.position, stamp.timestamp, path.text, line, zlib.crc32(line)))
    with contextlib.closing(sqlite3.connect(storage, isolation_level=None)) as connection:
        connection.executescript(VERSION_1)
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO public VALUES (?, ?, ?, ?, ?)", rows[lost:])
        connection.execute(
            "INSERT INTO life VALUES (?, ?, 1, ?)", (began, began / TICKS_PER_SECOND, rows[-1][0])
        )
        connection.execute("UPDATE kinds SET held = ? WHERE kind = 'public'", (held,))
        if lost:
            connection.execute(
                "UPDATE kinds SET lost_position = ?, lost_timestamp = ? WHERE kind = 'public'",
                rows[lost - 1][:2],
            )
        connection.execute("COMMIT")
    return [line for *_, line, _ in rows[lost:]]


def is_time(storage: Path, blocks: float, deadline: float) -> bool:
    """Whether a file has so many blocks, or a moment has come."""
    return time.monotonic() > deadline or blocks_in(storage) >= blocks


async def test_kills_while_a_file_of_version_1_is_taken_over(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """From the first look at it to its last block: each event stays, once, in order, byte for byte."""
    storage = tmp_path / "backlog.db"
    lines = version_1(storage)
    dice = random.Random(6)
    most = OLD_ROWS // BLOCK_EVENTS - 1  # blocks, of which the next round has some to make yet
    for n in range(ROUNDS_OF_UPGRADE):
        deadline = time.monotonic() + dice.uniform(0.3, 1.5)
        blocks = min(blocks_in(storage) + dice.randrange(1, 4), most) if n % 2 else math.inf
        killed_when(storage, partial(is_time, storage, blocks, deadline + 5 * (n % 2)))
    daemon = start_daemon(config(storage, 100_000))
    before = stamp_at(int((time.time() - 999.99) * TICKS_PER_SECOND), 0.0).cursor
    assert await replayed(daemon, "/", EVERYTHING) == ("complete", lines)
    of_three = [line for n, line in enumerate(lines) if n % 7 == 3]
    assert await replayed(daemon, "/3", EVERYTHING) == ("complete", of_three)
    assert (await replayed(daemon, "/new", {"X-Fetch-Since-Cursor": before}))[0] == "complete"
    while blocks_in(storage) < OLD_ROWS // BLOCK_EVENTS - 1:
        await daemon.put("/new", {"n": 0})
    assert await replayed(daemon, "/old", EVERYTHING) == ("complete", lines)


async def test_what_a_file_of_version_1_had_lost_is_not_forgotten(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """It did not note of which topics: nobody is told complete who asks for what came before."""
    storage = tmp_path / "backlog.db"
    lines = version_1(storage, 2500, lost=1000)
    first, last = (json.loads(line) for line in (lines[0], lines[-1]))
    daemon = start_daemon(config(storage, 100_000))
    for _ in range(2):
        for path in ("/", "/old", "/3", "/never", "/old/never,3/4"):
            assert (await replayed(daemon, path, EVERYTHING))[0] == "partial"
            earlier = {"X-Fetch-Since": str(first["pubsub_timestamp"] - 1)}
            assert (await replayed(daemon, path, earlier))[0] == "partial"
            later = {"X-Fetch-Since-Cursor": first["pubsub_cursor"]}
            assert (await replayed(daemon, path, later))[0] == "complete"
            newest = {"X-Fetch-Since-Cursor": last["pubsub_cursor"]}
            assert await replayed(daemon, path, newest) == ("complete", [])
        assert await replayed(daemon, "/", EVERYTHING) == ("partial", lines)
        assert await asyncio.to_thread(daemon.stop) == 0
        daemon.start()


async def test_a_server_serves_while_it_seals(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """Events are published, sent on and replayed, from what is sealed already and from what is not."""
    storage = tmp_path / "backlog.db"
    lines = version_1(storage)
    daemon = start_daemon(config(storage, 100_000))
    seen = []
    async with daemon.subscriber("/new") as stream:
        for n in range(1000):
            seen.append(blocks_in(storage))
            assert (await daemon.put("/new", {"n": n})).status == 202
            assert (await stream.event())["n"] == n
            first = n * 70 % len(lines)
            cursor = json.loads(lines[first])["pubsub_cursor"]
            later = [line for line in lines[first + 1 :] if b'"/old/3"' in line]
            assert await replayed(daemon, "/3", {"X-Fetch-Since-Cursor": cursor}) == ("complete", later)
            if seen[-1] >= OLD_ROWS // BLOCK_EVENTS - 1:
                break
    assert len(set(seen)) > 1, seen
    assert seen[0] < OLD_ROWS // BLOCK_EVENTS - 1, "all was sealed before it was asked"


def test_a_file_of_a_newer_version_is_refused(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """It is left as it is, and the log says why."""
    storage = tmp_path / "backlog.db"
    assert start_daemon(config(storage)).stop() == 0
    with contextlib.closing(sqlite3.connect(storage)) as connection:
        connection.execute("PRAGMA user_version = 3")
    before = storage.read_bytes()
    assert "newer PyPubSub (format 3, this one reads 2)" in failed_start(tmp_path, storage)
    assert storage.read_bytes() == before
