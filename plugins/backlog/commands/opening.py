"""A backlog's file, for those that read beside a running server, and for those that must have it alone."""

import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from core.errors import StartError
from plugins.backlog import schema
from plugins.backlog.file import check_directory, lock
from plugins.backlog.import_0_7 import is_old_backlog

_PATIENCE = 10.0  # seconds that a lock is waited for
_PROGRESS_EVERY = 0.1  # seconds
_WIDTH = 40  # characters of a bar


class CommandError(Exception):
    """What keeps a command from doing what it was asked for. One line."""


def check_file(path: Path) -> None:
    """Raise CommandError, StartError or OSError if there is no backlog's file of a format that is known."""
    if not path.exists():
        raise CommandError(f"{path}: there is no such file")
    if not path.is_file():
        raise CommandError(f"{path}: is no file")
    with path.open("rb"):  # says best who may not read it
        pass
    with database_errors(path):
        if is_old_backlog(path):
            raise CommandError(
                f"{path}: is a backlog of PyPubSub 0.7: it is imported by the server's first start, or by "
                "`backlog import`"
            )
        with contextlib.closing(_connect(path)) as connection:
            if schema.is_empty(connection, path):
                raise CommandError(f"{path}: is no backlog: it is empty")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that changes nothing, beside a running server. Raises as check_file() does."""
    check_file(path)
    with database_errors(path), contextlib.closing(_connect(path)) as connection:
        if not schema.is_complete(connection):
            raise CommandError(
                f"{path}: is of an earlier version: start the server with it once, or run `backlog compact`"
            )
        yield connection


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is read in the block is of one moment. To be kept short: see docs/backlog.md."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep servers, and other commands, off a file. Raises CommandError, StartError, OSError."""
    check_directory(path)
    lock_path = Path(f"{path}-lock")
    new, new_file = not lock_path.exists(), not path.exists()
    try:
        descriptor = lock(path, lock_path)
    except StartError as error:
        if "is in use" in str(error):
            raise CommandError(f"{path}: is in use: stop the server first") from error
        raise
    # where it has room, and who may read it is the same: SQLite's temporary files have what is in it
    os.environ.setdefault("SQLITE_TMPDIR", str(path.parent))
    try:
        if new:
            give_to_owner_of(path if path.exists() else path.parent, lock_path)
        yield
    except BaseException:
        if new and new_file and not path.exists():  # or a first start would think of a life before
            lock_path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def give_to_owner_of(other: Path, path: Path) -> None:
    """Have a file that root makes belong to the user that the server runs as."""
    if os.geteuid() == 0:
        owner = other.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


@contextlib.contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Say which file an error of SQLite's is about."""
    try:
        yield
    except sqlite3.Error as error:
        reason = "is no database" if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB else str(error)
        raise CommandError(f"{path}: {reason}") from error


def _connect(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=_PATIENCE, isolation_level=None)


def bytes_of(path: Path) -> int:
    """What a file takes, with SQLite's log beside it."""
    files = (path, Path(f"{path}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


class Progress:
    """A bar on stderr, if that is a terminal. total: bytes, 0 if nobody knows."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._shown = sys.stderr.isatty()
        self._next = 0.0

    def at(self, done: int, events: int) -> None:
        """So many bytes are done, and events."""
        if self._shown and (now := time.monotonic()) >= self._next:
            self._next = now + _PROGRESS_EVERY
            bar = ""
            if self._total:
                share = min(done / self._total, 1.0)
                bar = f"[{'#' * int(share * _WIDTH):.<{_WIDTH}}] {share:4.0%}  "
            print(f"\r{bar}{events} events ", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take it away."""
        if self._shown and self._next:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
