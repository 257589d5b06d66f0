"""A daemon with a backlog in a file, the file itself, and the disk it is on."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.events.cursor import MAX_POSITION
from core.events.event import position_in
from daemon import DEFAULT_CONFIG, ROOT, Daemon, StartDaemon, merged
from plugins.backlog import blocks
from plugins.backlog.block import Summary
from plugins.backlog.finding import checked
from wire import EVERYTHING, free_port

HELD = 60  # events in a backlog that a test begins with
WIDE = 40  # the one of them that fills pages of its own
Trouble = Callable[[Daemon, Path], contextlib.AbstractContextManager[None]]
CUT = (asyncio.IncompleteReadError, ConnectionError)


def config(storage: Path, size: int = 1000) -> dict[str, Any]:
    """Settings with a backlog in a file, and with quick pings."""
    return {"server": {"ping_interval": 0.2, "backlog": {"size": size, "storage": str(storage)}}}


def failed_start(directory: Path, storage: Path, size: int = 1000) -> str:
    """Start a daemon that must not come up: status 1, and one line that names the setting and the path."""
    daemon = Daemon(directory, config(storage, size))
    with contextlib.suppress(AssertionError):
        daemon.start()
        daemon.stop()
        pytest.fail("it has started")
    status = daemon.wait()
    lines = [line for line in daemon.log if " WARNING " not in line]
    assert (status, len(lines)) == (1, 1), daemon.log
    assert " ERROR " in lines[0]
    assert "server.backlog.storage" in lines[0]
    assert str(storage) in lines[0]
    return lines[0]


def started(start_daemon: StartDaemon, storage: Path) -> Daemon | None:
    """A daemon on a file, or None if it does not come up."""
    try:
        return start_daemon(config(storage))
    except AssertionError:
        return None


@contextlib.contextmanager
def disk(where: Path, size: str, *options: str) -> Iterator[Path]:
    """A small disk of its own."""
    where.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", where], check=True
    )
    try:
        yield where
    finally:  # lazy: a daemon may still have files open there
        subprocess.run(["umount", "--lazy", where], check=True)


def remount(where: Path, option: str) -> None:
    """Let a disk be written, "rw", or not, "ro"."""
    subprocess.run(["mount", "-o", f"remount,{option}", where], check=True)


def fill(where: Path) -> Path:
    """Use up a disk of at most 16 MiB; the file that has to go to make room again."""
    assert where.is_mount(), "not the machine's own disk"
    filler = where / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for _ in range(4096):
            file.write(bytes(4096))
    return filler


def files_of(storage: Path) -> list[Path]:
    """The database, and what SQLite keeps beside it."""
    return [
        path for path in (storage, *(Path(f"{storage}-{end}") for end in ("wal", "shm"))) if path.exists()
    ]


def payload(number: int) -> dict[str, Any]:
    """Of an event: two of them fill a page of the database."""
    return {"n": number, "filling": "x" * (20_000 if number == WIDE else 1500)}


async def publish(daemon: Daemon, number: int, key: str = "") -> int:
    """Publish an event; the status. A refusal must be a whole one."""
    headers = {"Idempotency_Key": key} if key else {}
    answer = await daemon.put("/fruits", payload(number), **headers)
    if answer.status != 202:
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.text.count("\n") == 1
        assert answer.text.endswith("\n")
    return answer.status


async def replay(daemon: Daemon, headers: dict[str, str] | None = None) -> tuple[str, list[dict[str, Any]]]:
    """What X-Replay says, and the events of a replay to its end, which the first ping marks."""
    events = []
    async with daemon.subscriber("/", headers or EVERYTHING) as stream:
        assert stream.status == 200
        while (event := await stream.object()).keys() != {"stillalive"}:
            events.append(event)
        return stream.headers["X-Replay"], events


async def numbers(daemon: Daemon, headers: dict[str, str] | None = None) -> list[int]:
    """The numbers of the events in a replay that is complete."""
    verdict, events = await replay(daemon, headers)
    assert verdict == "complete"
    return [event["n"] for event in events]


def all_events(
    connection: sqlite3.Connection, kind: str, after: int = 0, upto: int = MAX_POSITION
) -> Iterator[tuple[str, bytes]]:
    """The paths and lines of all events after a position, up to one. Raises Damaged."""
    select = f"SELECT * FROM {kind}_blocks WHERE last > ? ORDER BY last"  # noqa: S608
    summaries = connection.execute(select, (after,))
    for summary in map(Summary._make, summaries):
        for path, line in blocks.read(connection, kind, summary):
            if after < position_in(line) <= upto:
                yield path, line
        if summary.last >= upto:
            return
    rows = connection.execute(
        f"SELECT position, path, line, crc FROM {kind} WHERE position > ? AND position <= ? ORDER BY 1",  # noqa: S608
        (after, upto),
    )
    for row in rows:
        yield checked(row)


def stored(storage: Path, table: str = "public") -> list[dict[str, Any]]:
    """The events that a daemon would find in the file."""
    with contextlib.closing(sqlite3.connect(storage)) as connection:
        return [json.loads(line) for _, line in all_events(connection, table)]


def killed_when(storage: Path, happened: Callable[[], bool]) -> None:
    """Start a daemon, and kill it as soon as something has happened."""
    path = storage.with_name("killed.yaml")
    port = {"server": {"port": free_port()}}
    path.write_text(yaml.safe_dump(merged(DEFAULT_CONFIG, merged(config(storage, 100_000), port))))
    command = [sys.executable, "pypubsub.py", "--config", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not happened():
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()


def with_level(daemon: Daemon, level: str) -> list[str]:
    """The lines of the log of that level."""
    return [line for line in daemon.log if f" {level} " in line]


def content(path: Path) -> bytes:
    """All of a file."""
    return path.read_bytes()


def pages(storage: Path, table: str, kind: str = "leaf") -> list[int]:
    """The numbers of a table's pages that hold rows, in their order."""
    select = "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = ? ORDER BY path"
    with contextlib.closing(sqlite3.connect(storage)) as connection:
        return [number for (number,) in connection.execute(select, (table, kind))]


def overwrite(storage: Path, page: int, damage: bytes, offset: int = 0) -> None:
    """Damage a page of the database."""
    with storage.open("r+b") as file:
        file.seek((page - 1) * 4096 + offset)
        file.write(damage)


# What keeps a daemon from writing


@contextlib.contextmanager
def full_disk(daemon: Daemon, storage: Path) -> Iterator[None]:
    """The disk is full."""
    filler = fill(storage.parent)
    yield
    filler.unlink()


@contextlib.contextmanager
def size_limit(daemon: Daemon, storage: Path) -> Iterator[None]:
    """The process may not make files any longer."""
    limit = ["prlimit", f"--pid={daemon.pid}"]
    subprocess.run([*limit, "--fsize=1:"], check=True)
    yield
    subprocess.run([*limit, "--fsize=unlimited:"], check=True)


@contextlib.contextmanager
def read_only(daemon: Daemon, storage: Path) -> Iterator[None]:
    """No file may be changed, by nobody, and none be made beside them.

    Except for the -shm: it is mapped into memory, where such a thing is no error but a SIGBUS.
    """
    files = [*(path for path in files_of(storage) if not path.name.endswith("-shm")), storage.parent]
    subprocess.run(["chattr", "+i", *files], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", *files], check=True)


@contextlib.contextmanager
def locked(daemon: Daemon, storage: Path) -> Iterator[None]:
    """Another program writes in the database, for long."""
    with contextlib.closing(sqlite3.connect(storage, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@contextlib.contextmanager
def moved_away(daemon: Daemon, storage: Path) -> Iterator[None]:
    """The database has another name."""
    other = storage.with_name("elsewhere")
    storage.rename(other)
    yield
    other.rename(storage)


@contextlib.contextmanager
def all_moved_away(daemon: Daemon, storage: Path) -> Iterator[None]:
    """The database is in another directory, with the files beside it."""
    other = storage.parent / "elsewhere"
    other.mkdir()
    moved = [path.rename(other / path.name) for path in files_of(storage)]
    yield
    for path in moved:
        if path.exists():  # the daemon may have cleared away what it had no more use for
            path.rename(storage.parent / path.name)


@contextlib.contextmanager
def wal_moved_away(daemon: Daemon, storage: Path) -> Iterator[None]:
    """The -wal has another name, in which is what has not been moved into the database yet."""
    wal, other = Path(f"{storage}-wal"), storage.with_name("elsewhere")
    wal.rename(other)
    yield
    other.rename(wal)


@contextlib.contextmanager
def replaced(daemon: Daemon, storage: Path) -> Iterator[None]:
    """A copy is in the place of the database, and later the database again."""
    other = storage.with_name("elsewhere")
    storage.rename(other)
    shutil.copy(other, storage)
    yield
    other.rename(storage)
