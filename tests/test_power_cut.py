"""What was acknowledged survives power cuts: a disk keeps what was forced out, and anything of the rest.

After kill -9 the kernel still writes what it was given. Here it does not: see power_cut.c.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from daemon import Daemon, StartDaemon, merged
from storage import CUT, config
from wire import EVERYTHING, Stream

pytestmark = pytest.mark.timeout(180)  # on a machine that others use too
ROUNDS = 10
PUBLISHERS = 6


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """power_cut.c, compiled."""
    compiler = shutil.which("gcc")
    assert compiler, "the packages gcc and libc6-dev are not installed"
    library = tmp_path_factory.mktemp("power_cut") / "power_cut.so"
    source = Path(__file__).with_name("power_cut.c")
    subprocess.run(
        [
            compiler,
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O2",
            "-shared",
            "-fPIC",
            "-pthread",
            "-o",
            library,
            source,
        ],
        check=True,
    )
    return library


class Disk:
    """What is kept of the files whose paths begin like that of `storage`, when the power is cut."""

    def __init__(self, library: Path, directory: Path) -> None:
        self.storage = directory / "files" / "backlog.db"
        self._library = library
        self._durable = directory / "disk"
        self.storage.parent.mkdir()
        self._durable.mkdir()

    def environment(
        self, cut_at: int = 0, early: float = 0.0, seed: int = 0, *, lies: bool = False
    ) -> dict[str, str]:
        """For a program that begins with the files that are there, which are on the disk.

        cut_at: cut the power in front of so manieth change of a file; 0: never.
        early: how likely it is at each write that something reaches the disk before it is forced out.
        lies: the disk confirms what it has not written.
        """
        shutil.rmtree(self._durable)
        shutil.copytree(self.storage.parent, self._durable)
        return {
            "LD_PRELOAD": str(self._library),
            "POWER_CUT_FILES": str(self.storage),
            "POWER_CUT_DISK": str(self._durable),
            "POWER_CUT_AT": str(cut_at),
            "POWER_CUT_EARLY": str(early),
            "POWER_CUT_SEED": str(seed),
            "POWER_CUT_LIES": str(int(lies)),
        }

    def lose_power(self) -> None:
        """Put what is on the disk in the place of the files, of which the kernel knew more."""
        shutil.rmtree(self.storage.parent)
        shutil.copytree(self._durable, self.storage.parent)


@pytest.fixture
def disk(library: Path, tmp_path: Path) -> Disk:
    """An empty disk whose power can be cut."""
    return Disk(library, tmp_path)


class Request(NamedTuple):
    """Events that one request publishes: a batch, or one event."""

    publisher: int
    numbers: range

    def payloads(self) -> list[str]:
        """The same each time. Now and then one has 200 KB, which take 50 pages of the database."""
        payloads = []
        for number in self.numbers:
            dice = random.Random(f"{self.publisher} {number}")
            large = len(self.numbers) == 1 and dice.random() < 0.06
            filling = dice.randbytes(100_000 if large else dice.randrange(300)).hex()
            payloads.append(json.dumps({"publisher": self.publisher, "number": number, "filling": filling}))
        return payloads


class Publisher:
    """Publishes one request after the other. With keys, it repeats what it got no answer to."""

    def __init__(self, name: int, *, keys: bool) -> None:
        self.keys = keys
        self.sent: list[Request] = []
        self.acknowledged: dict[str, Request] = {}  # by the cursor of its last event
        self._name = name
        self._answered = True
        self._dice = random.Random(name)

    async def publish(self, daemon: Daemon) -> None:
        """Go on until the connection breaks."""
        with contextlib.suppress(*CUT):
            reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
            with contextlib.closing(writer):
                while True:
                    request = self._next()
                    cursor = await self._cursor(request, reader, writer)
                    self.acknowledged[cursor] = request
                    self._answered = True

    def _next(self) -> Request:
        if self._answered or not self.keys:
            start = self.sent[-1].numbers.stop if self.sent else 0
            events = self._dice.choice([1, 1, 1, self._dice.randrange(2, 100)])
            self.sent.append(Request(self._name, range(start, start + events)))
        self._answered = False
        return self.sent[-1]

    async def _cursor(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        body = "\n".join(request.payloads())
        head = ["PUT /a HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        if len(request.numbers) > 1:
            head.append("Content-Type: application/x-ndjson")
        if self.keys:
            head.append(f"Idempotency-Key: {self._name}-{request.numbers.start}")
        writer.write("\r\n".join([*head, "", body]).encode())
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        assert status.startswith("HTTP/1.1 202 "), status
        headers = dict(line.split(": ", 1) for line in lines)
        await reader.readexactly(int(headers["Content-Length"]))
        return headers["X-Cursor"]


class Witness:
    """What publishers were told, and what a subscriber saw."""

    def __init__(self) -> None:
        self.publishers = [Publisher(name, keys=name % 2 == 1) for name in range(PUBLISHERS)]
        self.seen: dict[str, bytes] = {}  # by cursor: hash of the line

    @property
    def acknowledged(self) -> dict[str, Request]:
        """All requests that were answered, by the cursors in the answers."""
        return {
            cursor: request
            for publisher in self.publishers
            for cursor, request in publisher.acknowledged.items()
        }

    async def live(self, daemon: Daemon, size: int | None) -> None:
        """Check what the daemon has, then publish and watch until the power is cut."""
        with contextlib.suppress(*CUT):
            async with daemon.subscriber("/", EVERYTHING) as stream:
                assert stream.status == 200, stream.raw_head
                self.check(stream.headers["X-Replay"], await replay(stream), size)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._watch(stream))
                    for publisher in self.publishers:
                        tasks.create_task(publisher.publish(daemon))

    async def _watch(self, stream: Stream) -> None:
        with contextlib.suppress(*CUT):
            while True:
                line = await stream.chunk()
                if not is_ping(line):
                    self.seen[json.loads(line)["pubsub_cursor"]] = digest(line)

    def check(self, verdict: str, lines: Sequence[bytes], size: int | None) -> None:
        """Check a replay of all that is held, which is not complete if there was more than `size`.

        size: None for a backlog that is bounded in bytes.
        """
        events = [json.loads(line) for line in lines]
        cursors = [event["pubsub_cursor"] for event in events]
        assert cursors == sorted(set(cursors))
        assert verdict == "complete" or (verdict, size or len(events)) == ("partial", len(events))
        first = "" if verdict == "complete" else cursors[0]  # what was published before has been pushed out

        held = dict(zip(cursors, map(digest, lines), strict=True))
        assert not [cursor for cursor in self.acknowledged if cursor >= first and cursor not in held]
        assert not [
            cursor for cursor, line in self.seen.items() if cursor >= first and held.get(cursor) != line
        ]
        self.seen |= held

        places = {(event["publisher"], event["number"]): place for place, event in enumerate(events)}
        assert len(places) == len(events)
        for publisher in self.publishers:
            end = None  # of what is held of the publisher's earlier requests
            for request in publisher.sent:
                found = [
                    places.pop((request.publisher, number))
                    for number in request.numbers
                    if (request.publisher, number) in places
                ]
                if not found:
                    gone = end is None and verdict == "partial"
                    assert gone or not publisher.keys or request is publisher.sent[-1]
                    continue
                assert found[0] >= (end or 0)
                end = found[-1] + 1
                assert found == list(range(found[0], end))
                assert len(found) == len(request.numbers) or (found[0], verdict) == (0, "partial")
                for place, payload in zip(reversed(found), reversed(request.payloads()), strict=False):
                    assert lines[place].startswith(payload[:-1].encode() + b', "pubsub_topics": ')
                assert publisher.acknowledged.get(cursors[end - 1], request) is request
        assert not places  # nothing that nobody published


def digest(line: bytes) -> bytes:
    """Short for a line."""
    return hashlib.sha256(line).digest()


def is_ping(line: bytes) -> bool:
    """Whether it is no event."""
    return line.startswith(b'{"stillalive": ')


async def replay(stream: Stream) -> list[bytes]:
    """The lines before the first ping."""
    lines = []
    while not is_ping(line := await stream.chunk()):
        lines.append(line)
    return lines


def has_started(daemon: Daemon) -> bool:
    """Start a daemon: whether it comes up before the power is cut."""
    try:
        daemon.start()
    except AssertionError:
        assert daemon.wait() == -signal.SIGKILL, daemon.log
        return False
    return True


def settings(disk: Disk, size: int | None) -> dict[str, Any]:
    """With room for large events."""
    backlog = {} if size else {"backlog": {"max_bytes": "1 MiB"}}
    bounds = {"server": {"max_payload_size": 500_000} | backlog}
    return merged(config(disk.storage, size or 1_000_000), bounds)


def sealed(storage: Path) -> int:
    """How many events are in blocks."""
    with contextlib.closing(sqlite3.connect(storage)) as connection:
        (events,) = connection.execute("SELECT ifnull(sum(events), 0) FROM public_blocks").fetchone()
    assert isinstance(events, int)
    return events


@pytest.mark.parametrize(
    "size", [1_000_000, 300, None], ids=["all is kept", "the oldest are pushed out", "blocks are pushed out"]
)
async def test_what_was_acknowledged_or_seen_is_there_after_each_power_cut(
    disk: Disk, start_daemon: StartDaemon, size: int | None
) -> None:
    """Once, in its place, byte for byte; batches as a whole; and keys tell what is published already."""
    daemon = start_daemon(settings(disk, size))
    daemon.stop()
    witness, dice = Witness(), random.Random(size or 0)
    for seed in range(ROUNDS):
        cut_at = int(10 ** dice.uniform(1.5, 3.8))  # in some rounds while the daemon starts
        daemon.environment |= disk.environment(cut_at, dice.choice([0, 0.1, 0.5]), seed)
        if await asyncio.to_thread(has_started, daemon):
            await witness.live(daemon, size)
            assert await asyncio.to_thread(daemon.wait) == -signal.SIGKILL
        disk.lose_power()
    daemon.environment |= disk.environment()
    daemon.start()
    async with daemon.subscriber("/", EVERYTHING) as stream:
        witness.check(stream.headers["X-Replay"], await replay(stream), size)
    assert len(witness.acknowledged) > 10 * ROUNDS
    daemon.stop()
    assert bool(sealed(disk.storage)) == (size != 300)  # large events are soon in blocks of their own


@pytest.mark.parametrize("cut_at", [4, 8, 10, 20, 40])
async def test_a_power_cut_in_the_first_start(disk: Disk, start_daemon: StartDaemon, cut_at: int) -> None:
    """Costs nothing but that start."""
    daemon = Daemon(disk.storage.parent.parent, settings(disk, 10))
    daemon.environment |= disk.environment(cut_at)
    assert not has_started(daemon)
    disk.lose_power()
    daemon.environment |= disk.environment()
    daemon.start()
    try:
        assert (await daemon.put("/a", {"n": 1})).status == 202
        assert (await daemon.replay("/a", **EVERYTHING))[1] == [1]
    finally:
        daemon.stop()


async def test_a_disk_that_confirms_what_it_has_not_written(disk: Disk, start_daemon: StartDaemon) -> None:
    """Loses what it confirmed, and this is found out here: so the others of these tests can fail."""
    size = 1_000_000
    daemon = start_daemon(settings(disk, size))
    daemon.stop()
    witness, kept = Witness(), set[str]()
    for lies in (False, True):
        kept = set(witness.acknowledged)
        daemon.environment |= disk.environment(3000, lies=lies)
        daemon.start()
        await witness.live(daemon, size)
        daemon.wait()
        disk.lose_power()
    daemon.environment |= disk.environment()
    daemon.start()
    async with daemon.subscriber("/", EVERYTHING) as stream:
        verdict, lines = stream.headers["X-Replay"], await replay(stream)
    with pytest.raises(AssertionError):
        witness.check(verdict, lines, size)
    lost = witness.acknowledged.keys() - {json.loads(line)["pubsub_cursor"] for line in lines}
    assert lost
    assert kept
    assert not kept & lost


@pytest.mark.parametrize(
    ("done", "left"),
    [
        ("", b"old"),
        ("os.pwrite(file, b'new', 0)", b"old"),
        ("os.pwrite(file, b'new', 0); os.fsync(file)", b"new"),
        ("os.pwrite(file, b'new', 0); os.fsync(other)", b"old"),
        ("os.ftruncate(file, 1)", b"old"),
        ("os.ftruncate(file, 1); os.ftruncate(file, 2); os.fdatasync(file)", b"o\0"),
        ("os.unlink(path)", b"old"),
        ("os.unlink(path); os.fsync(other)", None),
        ("os.rename(path + '-other', path)", b"old"),
        ("os.rename(path + '-other', path); os.fsync(other)", b"other"),
    ],
)
def test_what_a_power_cut_leaves_of_a_file(disk: Disk, done: str, left: bytes | None) -> None:
    """What was forced out, with the names that it had then."""
    disk.storage.write_bytes(b"old")
    other = "os.pwrite(other, b'other', 0); os.fsync(other)"
    run(f"{other}; {done}", disk, disk.environment())
    disk.lose_power()
    assert (disk.storage.read_bytes() if disk.storage.exists() else None) == left


def test_a_power_cut_leaves_anything_of_what_was_not_forced_out(disk: Disk) -> None:
    """Any sectors of it, and no part of one."""
    disk.storage.write_bytes(bytes(100 * 1024))
    run("for at in range(100): os.pwrite(file, b'x' * 1024, at * 1024)", disk, disk.environment(early=0.5))
    disk.lose_power()
    content = disk.storage.read_bytes()
    sectors = [content[at : at + 512] for at in range(0, len(content), 512)]
    assert set(sectors) == {bytes(512), b"x" * 512}
    assert len(set(zip(sectors[::2], sectors[1::2], strict=True))) == 4


def run(statements: str, disk: Disk, environment: dict[str, str]) -> None:
    """Have a program of its own do something with a file, and with another one."""
    program = f"""
import os, sys
path = sys.argv[1]
file, other = os.open(path, os.O_RDWR), os.open(path + "-other", os.O_RDWR | os.O_CREAT)
{statements}
"""
    subprocess.run([sys.executable, "-c", program, disk.storage], env=os.environ | environment, check=True)
