"""An SQLite database in a file: its connections, its transactions, and its write-ahead log. Blocking.

One thread writes, another reads; in WAL mode neither waits for the other. COMMIT returns once what was
written is on the disk (synchronous=FULL). SQLite appends it to the log beside the file, and moves it into the
file later on.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from core.events.store import StoreError

_LOCK_TIMEOUT = 2.0  # seconds that a lock of another program is waited for
_LOG_SIZE = 16 * 1024**2  # bytes to which SQLite's log is cut back after a burst
_LOG_GROWTH = 8 * 1024**2  # bytes: twice what SQLite lets come together before it moves them
_LONGEST_LOG = 64 * 1024**2  # bytes that are no matter while another program reads


_ENDINGS = ("", "-wal", "-shm", "-journal")  # of SQLite's files


def remove_database(path: Path) -> None:
    """Take a database away, that nobody uses, with what SQLite keeps beside it."""
    for ending in _ENDINGS:
        Path(f"{path}{ending}").unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make names in a directory outlast a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SqliteFile:
    """An open database.

    Every method raises StoreError if the file cannot be read or written. After that the file is opened again,
    so that all goes on once the cause is gone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._inode = 0
        # whether a COMMIT has failed: its publishers were refused, but SQLite may find it in its log again
        self.has_failed = False
        self._wal_inode: int | None = None  # of the file beside it, once that is there
        self._wal_size = 0  # bytes, before the last write
        self._wal_size_seen = 0  # when it was last moved

    def _make(self) -> None:
        """Make the file if there is none. Raises OSError."""
        # for the eyes of this user only, since it holds private events
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL, 0o600))
        self._inode = self._path.stat().st_ino

    @property
    def log_has_grown(self) -> bool:
        """Whether SQLite's log is so much longer that moving it into the file may have failed."""
        return self._wal_size > self._wal_size_seen + _LOG_GROWTH

    def move_log(self) -> None:
        """Move what is in SQLite's log into the file.

        COMMIT does that too, now and then, but does not say so when it cannot.
        """
        wal = Path(f"{self._path}-wal")
        with self._database_errors():
            row = self._writing().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            _, pages, moved = row
            self._wal_size_seen = self._wal_size = wal.stat().st_size if wal.exists() else 0
            if moved < pages and self._wal_size > _LONGEST_LOG:
                raise StoreError(f"{wal}: another program has been reading for long: {self._wal_size} bytes")

    def complete(self) -> None:
        """Move all into the one file, so that it can be given another name."""
        with self._database_errors():
            (busy, _, _) = self._writing().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise StoreError(f"{self._path}: is in use by another program")
        self.close_writer()

    def close_writer(self) -> None:
        """Close the connection of the thread that writes."""
        if self._writer:
            self._writer.close()
            self._writer = None
            if self._reader is None:  # SQLite takes the log away with its last connection
                self._wal_inode = None

    def close_reader(self) -> None:
        """Close the connection of the thread that reads."""
        if self._reader:
            self._reader.close()
            self._reader = None

    def _writing(self) -> sqlite3.Connection:
        """The connection of the thread that writes."""
        if self._writer is None:
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            self._writer.execute(f"PRAGMA journal_size_limit = {_LOG_SIZE}")
            self._wal_inode = None
        return self._writer

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The connection of the thread that reads, which is opened anew after an error."""
        with self._database_errors():
            self._check_in_place()
            if self._reader is None:
                self._reader = self._connect()
            try:
                yield self._reader
            except sqlite3.Error:
                self.close_reader()
                raise

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",  # makes no file in the place of one that is gone
            uri=True,
            timeout=_LOCK_TIMEOUT,
            isolation_level=None,
        )

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """What is written in the block is committed at its end; after an error nothing of it is.

        durable: whether it is on the disk by then. If not, a power cut undoes it, unless a durable one came
        later; and what is deleted is not overwritten, which Debian's SQLite does otherwise.
        """
        with self._database_errors():
            self._check_in_place()
            try:
                connection = self._writing()
                if not durable:
                    connection.executescript("PRAGMA synchronous = NORMAL; PRAGMA secure_delete = OFF")
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
                if not durable:
                    connection.executescript("PRAGMA synchronous = FULL; PRAGMA secure_delete = ON")
                if self._wal_inode is None:
                    with contextlib.suppress(FileNotFoundError):
                        self._wal_inode = Path(f"{self._path}-wal").stat().st_ino
            except BaseException:
                self.has_failed = True
                self.close_writer()  # rolls back; the next one opens the file anew
                raise

    def _check_in_place(self) -> None:
        """Raises StoreError if a later start would not find the files that are written and read here."""
        wal = Path(f"{self._path}-wal")
        try:
            found = self._path.stat()
            wal_found = wal.stat() if self._wal_inode else None
        except OSError as error:
            raise StoreError(f"{error.filename}: {error.strerror}") from error
        if found.st_ino != self._inode:
            raise StoreError(f"{self._path}: has been replaced by another file")
        if wal_found and wal_found.st_ino != self._wal_inode:
            raise StoreError(f"{wal}: has been replaced by another file")
        self._wal_size = wal_found.st_size if wal_found else 0
        if not found.st_size:
            raise StoreError(f"{self._path}: has been emptied")

    @contextlib.contextmanager
    def _database_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error
