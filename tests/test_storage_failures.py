"""A backlog's file that cannot be written or read: what is promised is kept, what cannot be is refused."""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from daemon import Daemon, StartDaemon, merged
from storage import (
    CUT,
    HELD,
    Trouble,
    all_moved_away,
    config,
    content,
    disk,
    failed_start,
    files_of,
    fill,
    full_disk,
    killed_when,
    locked,
    moved_away,
    numbers,
    overwrite,
    pages,
    payload,
    publish,
    read_only,
    remount,
    replaced,
    replay,
    size_limit,
    started,
    stored,
    wal_moved_away,
    with_level,
)
from wire import EVERYTHING

# Nothing can be written

UNWRITABLE = [full_disk, size_limit, read_only, locked]
GONE = [moved_away, all_moved_away, wal_moved_away, replaced]


def named(troubles: Sequence[Trouble]) -> pytest.MarkDecorator:
    """The test with each of these troubles, which say by their names what is wrong."""
    return pytest.mark.parametrize("trouble", troubles, ids=lambda trouble: trouble.__name__)


@pytest.fixture(scope="module")
def held_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backlog with events, made by a daemon that has been stopped."""
    directory = tmp_path_factory.mktemp("held")
    daemon = Daemon(
        directory, merged(config(directory / "backlog.db"), {"server": {"max_payload_size": 500_000}})
    )
    daemon.start()
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
    body = "\n".join(json.dumps(payload(number)) for number in range(HELD))
    connection.request("PUT", "/fruits", body, {"Content-Type": "application/x-ndjson"})
    assert connection.getresponse().status == 202
    connection.close()
    daemon.stop()
    return directory / "backlog.db"


@pytest.fixture
def storage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where a backlog is to be: in a directory of its own, which is a small disk if it is to be filled."""
    directory = tmp_path / "backlog"
    directory.mkdir()
    call = getattr(request.node, "callspec", None)
    to_be_filled = call and call.params.get("trouble") is full_disk
    with disk(directory, "1m") if to_be_filled else contextlib.nullcontext():
        yield directory / "backlog.db"


@pytest.fixture
def held(storage: Path, held_file: Path) -> Path:
    """A backlog with events in it, in a file of its own."""
    shutil.copy2(held_file, storage)
    return storage


@named([*UNWRITABLE, *GONE])
async def test_publishers_are_refused_and_nobody_else_is_disturbed(
    storage: Path, start_daemon: StartDaemon, trouble: Trouble
) -> None:
    """503 and Retry-After; streams stay open, new ones too; it recovers by itself, nothing is lost."""
    daemon = start_daemon(config(storage))
    assert [await publish(daemon, number) for number in range(3)] == [202] * 3
    async with daemon.subscriber("/") as live:
        start = {"X-Fetch-Since-Cursor": live.headers["X-Cursor"]}
        assert await publish(daemon, 3) == 202
        assert (await live.event())["n"] == 3
        with trouble(daemon, storage):
            refused = asyncio.gather(*(publish(daemon, number, f"key-{number}") for number in (4, 5, 6)))
            pings = 0
            while not refused.done() or pings < 3:
                assert (await live.object()).keys() == {"stillalive"}
                pings += 1
            assert await refused == [503] * 3
            assert await publish(daemon, 4) == 503
            assert await numbers(daemon, start) == [3]
        assert await publish(daemon, 5, "key-5") == 202
        await daemon.until_logged(f"INFO pypubsub.backlog: .*{storage}")
        assert await publish(daemon, 7) == 202
        assert [(await live.event())["n"] for _ in range(2)] == [5, 7]
    assert len(with_level(daemon, "ERROR")) == 1
    assert str(storage) in with_level(daemon, "ERROR")[0]
    daemon.stop()
    assert [event["n"] for event in stored(storage)] == [0, 1, 2, 3, 5, 7]


@named(UNWRITABLE)
async def test_what_is_held_can_still_be_read(
    held: Path, start_daemon: StartDaemon, trouble: Trouble
) -> None:
    """Also what is in the file only, from an earlier life, and after publishers have been refused."""
    daemon = start_daemon(config(held))
    with trouble(daemon, held):
        for _ in range(2):
            assert await publish(daemon, HELD) == 503
            assert await numbers(daemon) == list(range(HELD))
    assert await publish(daemon, HELD) == 202
    daemon.stop()
    daemon.start()
    assert await numbers(daemon) == list(range(HELD + 1))


async def test_a_lock_does_not_hold_up_the_streams(storage: Path, start_daemon: StartDaemon) -> None:
    """While a publisher waits for the lock, pings go out in time; the wait is a short one."""
    daemon = start_daemon(config(storage))
    assert await publish(daemon, 0) == 202
    async with daemon.subscriber("/") as live:
        with locked(daemon, storage):
            began = time.monotonic()
            refused = asyncio.create_task(publish(daemon, 1))
            times = []
            while not refused.done():
                times.append((await live.object())["stillalive"])
            assert await refused == 503
            assert time.monotonic() - began < 5
    assert max(later - earlier for earlier, later in pairwise(times)) < 1


async def test_a_lock_that_is_given_up_in_time_costs_no_publisher_anything(
    storage: Path, start_daemon: StartDaemon
) -> None:
    """It is waited for."""
    daemon = start_daemon(config(storage))
    async with daemon.subscriber("/") as live:
        with locked(daemon, storage):
            accepted = asyncio.create_task(publish(daemon, 0))
            for _ in range(3):
                assert (await live.object()).keys() == {"stillalive"}
            assert not accepted.done()
        assert await accepted == 202
    assert not with_level(daemon, "ERROR")


@named([full_disk, locked, read_only])
async def test_a_start_while_nothing_can_be_written(
    held: Path, start_daemon: StartDaemon, tmp_path: Path, trouble: Trouble
) -> None:
    """It comes up and serves what is held, or says in one line why not; later all is there."""
    with trouble(Daemon(tmp_path), held):
        if daemon := started(start_daemon, held):
            assert await publish(daemon, HELD) == 503
            assert await numbers(daemon) == list(range(HELD))
        else:
            failed_start(tmp_path, held)
    daemon = daemon or start_daemon(config(held))
    assert await numbers(daemon) == list(range(HELD))


async def test_a_disk_that_is_mounted_read_only(
    tmp_path: Path, held_file: Path, start_daemon: StartDaemon
) -> None:
    """The start is refused in one line, and nothing of the backlog is lost."""
    with disk(tmp_path / "disk", "1m") as where:
        shutil.copy2(held_file, where / "backlog")
        remount(where, "ro")
        assert "Read-only file system" in failed_start(tmp_path, where / "backlog")
        remount(where, "rw")
        assert await numbers(start_daemon(config(where / "backlog"))) == list(range(HELD))


async def test_a_full_disk_at_the_first_start(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """One line says so, and once there is room the backlog begins."""
    with disk(tmp_path / "disk", "1m") as where:
        filler = fill(where)
        failed_start(tmp_path, where / "backlog")
        filler.unlink()
        assert await publish(start_daemon(config(where / "backlog")), 0) == 202


# The file is gone


async def test_another_file_in_its_place_is_not_read(held: Path, start_daemon: StartDaemon) -> None:
    """A replay from it would have a hole that nobody is told of."""
    start_daemon(config(held.with_name("other"))).stop()
    daemon = start_daemon(config(held))
    for path in files_of(held):
        path.rename(path.with_name(f"kept-{path.name}"))
    shutil.copy(held.with_name("other"), held)
    assert await cut_or_refused(daemon)


async def test_an_emptied_file_is_noticed(storage: Path, start_daemon: StartDaemon) -> None:
    """By `: > backlog.db`, say: what would be written then would not be found again."""
    daemon = start_daemon(config(storage))
    assert [await publish(daemon, number) for number in range(3)] == [202] * 3
    os.truncate(storage, 0)
    assert await publish(daemon, 3) == 503
    assert str(storage) in await daemon.until_logged(" ERROR ")


async def test_a_file_taken_away_while_the_daemon_is_stopped(
    storage: Path, start_daemon: StartDaemon
) -> None:
    """It begins a new one, and does not say that nothing was there before."""
    daemon = start_daemon(config(storage))
    daemon.stop()
    os.remove(storage)
    daemon.start()
    assert await replay(daemon) == ("partial", [])


# Damage


async def cut_or_refused(daemon: Daemon, headers: dict[str, str] | None = None) -> bool:
    """Whether a replay is refused, or cut before the ping that would mark its end. It must have no hole."""
    expected = 0
    async with daemon.subscriber("/", headers or EVERYTHING) as stream:
        if stream.status == 503:
            assert int(stream.headers["Retry-After"]) > 0
            return True
        try:
            while "stillalive" not in (event := await stream.object()):
                assert {key: event[key] for key in ("n", "filling")} == payload(expected)
                expected += 1
        except CUT:
            return True
    return False


DAMAGES = {
    "zeros": (bytes(4096), 0),
    "noise": (bytes(range(256)) * 16, 0),
    "a head that says there is nothing in it": (b"\x0d\0\0\0\0", 0),
    "other bytes in an event": (b'"\n\xff', 3500),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_page_is_never_skipped_in_silence(
    held: Path, start_daemon: StartDaemon, damage: str
) -> None:
    """The replay over it is cut or refused; what is published is still stored and streamed."""
    overwrite(held, pages(held, "public")[15], *DAMAGES[damage])
    size = len(content(held))
    daemon = start_daemon(config(held))
    assert await cut_or_refused(daemon)
    async with daemon.subscriber("/") as live:
        assert await publish(daemon, HELD) == 202
        assert (await live.event())["n"] == HELD
    daemon.stop()
    assert len(content(held)) >= size


async def test_a_damaged_event_is_not_sent(held: Path, start_daemon: StartDaemon) -> None:
    """One that fills pages of its own, which hold no structure that could be broken."""
    overwrite(held, pages(held, "public", "overflow")[1], b'"\n\xff', 100)
    daemon = start_daemon(config(held))
    assert await cut_or_refused(daemon)


async def test_a_damaged_page_that_publishing_needs(held: Path, start_daemon: StartDaemon) -> None:
    """The oldest events, which have to make room: publishers are refused, and streams stay open."""
    overwrite(held, pages(held, "public")[0], bytes(4096))
    daemon = start_daemon(config(held, size=HELD))
    async with daemon.subscriber("/") as live:
        assert [await publish(daemon, HELD) for _ in range(3)] == [503] * 3
        for _ in range(3):
            assert (await live.object()).keys() == {"stillalive"}
    assert len(with_level(daemon, "ERROR")) == 1


@pytest.mark.parametrize("table", ["sqlite_schema", "life", "kinds"])
def test_damage_with_which_it_cannot_start(held: Path, tmp_path: Path, table: str) -> None:
    """One line says so, and the file is left as it is, for somebody to mend."""
    page = pages(held, table)[0]
    overwrite(held, page, bytes(3000), offset=1000 if page == 1 else 0)
    before = held.read_bytes()
    failed_start(tmp_path, held)
    assert held.read_bytes() == before


async def test_a_file_cut_short(held: Path, start_daemon: StartDaemon, tmp_path: Path) -> None:
    """The start is refused, or a replay is; what is left of the file is not overwritten."""
    os.truncate(held, len(content(held)) // 2)
    before = content(held)
    if daemon := started(start_daemon, held):
        assert await cut_or_refused(daemon)
        daemon.stop()
    else:
        failed_start(tmp_path, held)
    assert content(held) == before


# A file that is none of ours


def foreign_database(path: Path) -> None:
    """The database of another program."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE accounts (name TEXT); INSERT INTO accounts VALUES ('joe');")


FOREIGN: dict[str, Callable[[Path], object]] = {
    "noise": lambda path: path.write_bytes(bytes(range(255, -1, -1)) * 64),
    "text": lambda path: path.write_text("server:\n  port: 2069\n"),
    "JSON": lambda path: path.write_text('{"name": "package", "version": 1}\n'),
    "JSON on several lines": lambda path: path.write_text('{\n  "name": "package"\n}\n'),
    "another program's database": foreign_database,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, kind: str) -> None:
    """The start is refused, and the file is byte for byte what it was."""
    path = tmp_path / "precious"
    FOREIGN[kind](path)
    before = path.read_bytes()
    failed_start(tmp_path, path)
    assert path.read_bytes() == before
    assert {other.name for other in tmp_path.iterdir()} <= {"precious", "precious-lock", "pypubsub.yaml"}


def test_a_directory_is_no_backlog(tmp_path: Path) -> None:
    """The start is refused."""
    (tmp_path / "directory").mkdir()
    failed_start(tmp_path, tmp_path / "directory")


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """The start is refused, and the directory is not made."""
    failed_start(tmp_path, tmp_path / "nowhere" / "backlog")
    assert not (tmp_path / "nowhere").exists()


def test_a_format_from_the_future(held: Path, tmp_path: Path) -> None:
    """The start is refused, the file is as it was: the newer PyPubSub can go on with it."""
    with contextlib.closing(sqlite3.connect(held)) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = held.read_bytes()
    assert "99" in failed_start(tmp_path, held)
    assert held.read_bytes() == before


async def test_two_daemons_do_not_share_a_file(
    storage: Path, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """The second is refused in one line, and the first goes on."""
    daemon = start_daemon(config(storage))
    assert "in use" in failed_start(tmp_path, storage)
    assert await publish(daemon, 0) == 202
    assert await numbers(daemon) == [0]


# Beginnings and ends


async def test_an_empty_file_is_a_new_backlog(storage: Path, start_daemon: StartDaemon) -> None:
    """But not one before which nothing was: a crash of 0.7 could leave such a file."""
    os.mknod(storage)
    daemon = start_daemon(config(storage))
    assert await publish(daemon, 0) == 202
    verdict, events = await replay(daemon)
    assert (verdict, len(events)) == ("partial", 1)


async def test_only_the_owner_can_read_it(storage: Path, start_daemon: StartDaemon) -> None:
    """It holds private events: mode 0600, and so for all files beside it, whatever the umask."""
    before = os.umask(0)
    try:
        daemon = start_daemon(config(storage))
    finally:
        os.umask(before)
    assert await publish(daemon, 0) == 202
    files = list(storage.parent.iterdir())
    assert storage in files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


async def test_kill_9_costs_nothing_that_was_accepted(storage: Path, start_daemon: StartDaemon) -> None:
    """While many publish at once: each event that was answered 202 is in the replay, in order and once."""
    daemon = start_daemon(config(storage))
    accepted: list[int] = []

    async def publisher(number: int, until: int) -> None:
        with contextlib.suppress(OSError):
            while await publish(daemon, number) == 202:
                accepted.append(number)
                if len(accepted) == until:
                    daemon.signal(signal.SIGKILL)
                number += 1

    for life, until in enumerate((1, 10, 50)):
        await asyncio.gather(*(publisher(1000 * (10 * life + each), until) for each in range(8)))
        daemon.wait()
        daemon.start()
        found = await numbers(daemon)
        assert set(accepted) <= set(found)
        for first in {number // 1000 * 1000 for number in found}:
            own = [number for number in found if number // 1000 * 1000 == first]
            assert own == list(range(first, first + len(own)))


@pytest.mark.parametrize("ending", ["", "-wal"])
async def test_kill_9_while_the_file_is_made(storage: Path, start_daemon: StartDaemon, ending: str) -> None:
    """When either of its files appears: the next start makes it whole."""
    killed_when(storage, Path(f"{storage}{ending}").exists)
    daemon = start_daemon(config(storage))
    assert await publish(daemon, 0) == 202
    assert [event["n"] for event in (await replay(daemon))[1]] == [0]


# SQLite's log, which is moved into the file now and then


@contextlib.asynccontextmanager
async def failing_file(daemon: Daemon, storage: Path) -> AsyncIterator[None]:
    """The database cannot be forced to the disk; its log can."""
    failure = "inject=fsync,fdatasync:error=EIO"
    strace = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-P", str(storage), "-e", "trace=fsync,fdatasync", "-e", failure),
        *("-o", f"{storage}.trace", "-p", str(daemon.pid)),
        stderr=asyncio.subprocess.PIPE,
    )
    assert strace.stderr is not None
    assert b"attached" in await strace.stderr.readline()
    yield
    strace.terminate()
    await strace.communicate()


async def test_a_log_that_cannot_be_moved_into_the_file(storage: Path, start_daemon: StartDaemon) -> None:
    """It is told, once, and when it is over; publishers and readers notice nothing, and nothing is lost."""
    large = {"server": {"max_payload_size": 500_000, "backlog": {"max_age": "80s"}}}
    daemon = start_daemon(merged(config(storage), large))
    filling = "x" * 450_000
    count = 0

    async def publish_until(pattern: str) -> str:
        nonlocal count
        told = asyncio.create_task(daemon.until_logged(pattern))
        while not told.done():
            assert (await daemon.put("/a", {"n": count, "filling": filling})).status == 202
            count += 1
        return await told

    async with failing_file(daemon, storage):
        line = await publish_until(" ERROR .*-wal")
        assert str(storage) in line
        for _ in range(5):
            assert (await daemon.put("/a", {"n": count, "filling": filling})).status == 202
            count += 1
        assert await numbers(daemon) == list(range(count))
    await publish_until(f"INFO pypubsub.backlog: can move .*-wal.*{storage}")
    assert len(with_level(daemon, "ERROR")) == 1
    await asyncio.to_thread(daemon.stop, signal.SIGKILL)
    daemon.start()
    assert await numbers(daemon) == list(range(count))
