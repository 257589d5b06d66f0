"""The file of a durable backlog: an SQLite database. Blocking, so called in threads of their own.

One thread writes, another reads; in WAL mode neither waits for the other. What comes together is committed
together, and COMMIT returns once it is on the disk (synchronous=FULL).

Events are filed by their position, public and private ones in a table each.
"""

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from core.errors import StartError
from core.events.cursor import TICKS_PER_SECOND, Mark, Stamp, position_at, position_of, stamp_at
from core.events.event import Event
from core.events.idempotency import MAX_ITEMS, MAX_REMEMBERED, SCOPE_SIZE, Ask, Item, fair_share
from core.events.replay import NOTHING, Gone
from core.events.store import PAGE_BYTES, PAGE_EVENTS, Accepted, Line, Page, Remembered, StoreError

_APPLICATION_ID = 0x50505362  # "PPSb", in the file's header
_VERSION = 1
_LOCK_TIMEOUT = 2.0  # seconds that a lock of another program is waited for
RESERVED_AHEAD = TICKS_PER_SECOND  # positions
_LOG_SIZE = 16 * 1024**2  # bytes to which SQLite's log is cut back after a burst
_LOG_GROWTH = 8 * 1024**2  # bytes: twice what SQLite lets come together before it moves them
_LONGEST_LOG = 64 * 1024**2  # bytes that are no matter while another program reads
_PRUNED_AT_ONCE = 1000  # so that no commit waits for long
_MOST_ANSWERS = 1.1  # of those that are remembered: more only if writes have failed that would let go of some
_INSERTED_AT_ONCE = (100, 10, 1)  # events in a statement
KINDS = ("public", "private")

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE public (
    position INTEGER PRIMARY KEY, timestamp REAL NOT NULL, path TEXT NOT NULL, line BLOB NOT NULL,
    crc INTEGER NOT NULL  -- zlib.crc32 of the line
);
CREATE TABLE private (
    position INTEGER PRIMARY KEY, timestamp REAL NOT NULL, path TEXT NOT NULL, line BLOB NOT NULL,
    crc INTEGER NOT NULL  -- zlib.crc32 of the line
);
CREATE TABLE kinds (  -- how many events are held, and the latest that is not any more
    kind TEXT PRIMARY KEY, held INTEGER NOT NULL, lost_position INTEGER NOT NULL, lost_timestamp REAL NOT NULL
);
INSERT INTO kinds VALUES ('public', 0, 0, 0), ('private', 0, 0, 0);
CREATE TABLE life (  -- one row
    began_position INTEGER NOT NULL, began_timestamp REAL NOT NULL, from_the_start INTEGER NOT NULL,
    reserved INTEGER NOT NULL  -- no position above it has been given away
);
CREATE TABLE answers (  -- scope: Ask.name
    scope BLOB PRIMARY KEY, body BLOB NOT NULL, cursor TEXT NOT NULL, timestamp REAL NOT NULL,
    events INTEGER NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX answers_at ON answers (at);
"""

_LATER_TABLES = """
CREATE TABLE IF NOT EXISTS items (  -- of queues, that events came from; position: of the last event beside it
    queue TEXT NOT NULL, id BLOB NOT NULL, position INTEGER NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (queue, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_until ON items (queue, until);
CREATE TABLE IF NOT EXISTS imported (  -- the cursors of 0.7's, of events that came from its file
    cursor TEXT PRIMARY KEY, position INTEGER NOT NULL,
    whole INTEGER NOT NULL  -- whether all that 0.7 published after it came as well
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clock (  -- one row: class Clock
    boot TEXT NOT NULL, since_boot REAL NOT NULL, lived REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS ages (  -- the newest timestamp when the file had lived so long: see ages.py
    kind TEXT NOT NULL, lived REAL NOT NULL, timestamp REAL NOT NULL
);
"""

_PUBLISHER = f"substr(scope, 1, max(length(scope) - {SCOPE_SIZE}, 0))"  # of an answer
_NEXT = "SELECT position, path, line, crc FROM {kind} WHERE position > :after AND position <= :upto"
_FIRST_SINCE = """
SELECT min(position) FROM (
    SELECT position FROM {kind} WHERE position >= :from AND position <= :upto AND timestamp >= :timestamp
    ORDER BY position LIMIT 1
)
"""


class Write(NamedTuple):
    """Events to be stored together, and what is to be remembered with them: an answer, or their items.

    gone: answers that are not to be remembered any longer, by Ask.name.
    """

    events: Sequence[Event]
    ask: Ask | None
    accepted: Accepted
    items: Sequence[Item] = ()
    gone: Sequence[bytes] = ()


class Life(NamedTuple):
    """What a file knows of itself."""

    began: Mark
    from_the_start: bool
    last: Mark  # no later stamp has been given
    ends: dict[str, int]  # by kind: position of the last event
    newest: dict[str, float | None]  # by kind: timestamp of the newest event that is held


class Clock(NamedTuple):
    """How long a file had lived at a moment, by a clock that nobody sets."""

    boot: str  # of which machine, and since which start
    since_boot: float  # seconds
    lived: float  # seconds; of a new file, the time of day


class BacklogFile:
    """An open file. size: events of each kind that are kept; window: seconds that answers are remembered.

    Every method raises StoreError if the file cannot be read or written. After that the file is opened again,
    so that all goes on once the cause is gone.
    """

    def __init__(self, path: Path, size: int, window: float) -> None:
        self._path = path
        self._size = size
        self._window = window
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._inode = 0
        # whether a COMMIT has failed: its publishers were refused, but SQLite may find it in its log again
        self.has_failed = False
        self._wal_inode: int | None = None  # of the file beside it, once that is there
        self._wal_size = 0  # bytes, before the last write
        self._wal_size_seen = 0  # when it was last moved
        # by kind: the latest event that has left. It is known here before it is committed: who is about to be
        # told how much of a replay is held must not be told too much
        self.lost = dict.fromkeys(KINDS, NOTHING)

    def open(self, now: Mark, *, from_the_start: bool) -> Life:
        """Open the file, or make it: its memory begins now. Raises OSError, StartError, StoreError.

        from_the_start: whether, if it is made, nothing is known to have been published before.
        """
        # for the eyes of this user only, since it holds private events
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._path, os.O_CREAT | os.O_EXCL, 0o600))
        self._inode = self._path.stat().st_ino
        with self._database_errors():
            if self._is_empty():
                self._create(now, from_the_start)
            # which files of earlier versions lack, and do not miss
            self._writing().executescript(_LATER_TABLES)
            return self._read_life()

    def _is_empty(self) -> bool:
        # a connection of its own: _writing() would turn what may be another program's database to WAL mode
        with contextlib.closing(self._connect()) as connection:
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and application_id != _APPLICATION_ID:
            raise StartError(
                f"server.backlog.storage: {self._path}: is a database, but no backlog: name a file of its own"
            )
        if version > _VERSION:
            raise StartError(
                f"server.backlog.storage: {self._path}: was written by a newer PyPubSub (format {version}, "
                f"this one reads {_VERSION})"
            )
        return not tables

    def _create(self, now: Mark, from_the_start: bool) -> None:
        connection = self._writing()
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("INSERT INTO life VALUES (?, ?, ?, ?)", (*now, from_the_start, now.position))
        connection.execute("COMMIT")

    def _read_life(self) -> Life:
        connection = self._writing()
        row = connection.execute("SELECT * FROM life").fetchone()
        newest = {
            kind: connection.execute(
                f"SELECT position, timestamp FROM {kind} ORDER BY position DESC LIMIT 1"  # noqa: S608
            ).fetchone()
            for kind in KINDS
        }
        lost = connection.execute("SELECT kind, lost_position, lost_timestamp FROM kinds").fetchall()
        if row is None or len(lost) != len(KINDS):
            raise StoreError(f"{self._path}: is damaged: it lacks what it was made with")
        began_position, began_timestamp, from_the_start, reserved = row
        self.lost |= {kind: Mark(position, timestamp) for kind, position, timestamp in lost if position}
        last = {kind: Mark(*mark) if mark else self.lost[kind] for kind, mark in newest.items()}
        ends = {kind: mark.position for kind, mark in last.items()}
        timestamp = max(0.0, *(mark.timestamp for mark in last.values()))
        return Life(
            Mark(began_position, began_timestamp),
            bool(from_the_start),
            Mark(max(reserved, *ends.values()), timestamp),
            ends,
            {kind: mark and mark[1] for kind, mark in newest.items()},
        )

    def begin(self, began: Mark) -> None:
        """Say that the memory begins there, with events that are imported."""
        with self._transaction() as connection:
            connection.execute("UPDATE life SET began_position = ?, began_timestamp = ?", began)

    def name_imported(self, cursors: Mapping[str, int]) -> None:
        """Keep the cursors that 0.7 gave to events, with their positions."""
        with self._transaction() as connection:
            connection.executemany("INSERT OR REPLACE INTO imported VALUES (?, ?, 0)", cursors.items())

    def mark_whole(self, after: int) -> None:
        """Say that of what 0.7 published after that position everything has come."""
        with self._transaction() as connection:
            connection.execute("UPDATE imported SET whole = 1 WHERE position > ?", (after,))

    def clock(self) -> Clock | None:
        """What was kept by an earlier life."""
        with self._database_errors():
            row = self._writing().execute("SELECT boot, since_boot, lived FROM clock").fetchone()
            return row and Clock(*row)

    def ages(self, kind: str) -> list[tuple[float, float]]:
        """What was stamped when: see plugins.backlog.ages."""
        with self._database_errors():
            select = "SELECT lived, timestamp FROM ages WHERE kind = ? ORDER BY rowid"
            return self._writing().execute(select, (kind,)).fetchall()

    # Writing

    def keep_clock(self, clock: Clock, ages: Mapping[str, Sequence[tuple[float, float]]]) -> None:
        """Keep both for a later life."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM clock")
            connection.execute("INSERT INTO clock VALUES (?, ?, ?)", clock)
            for kind, points in ages.items():
                connection.execute("DELETE FROM ages WHERE kind = ?", (kind,))
                connection.executemany(
                    "INSERT INTO ages VALUES (?, ?, ?)", [(kind, *point) for point in points]
                )

    def store(self, writes: Sequence[Write], end: int, now: float) -> None:
        """Store all of it, or nothing. What is pushed out by it leaves in the same transaction.

        end: position of the last event that was delivered; now: seconds that the file has lived.
        """
        with self._transaction() as connection:
            if self.has_failed:
                _forget_beyond(connection, end)
            last = 0
            lost: dict[str, Mark] = {}
            for kind in KINDS:
                private = kind == "private"
                events = [
                    event for write in writes for event in write.events if event.path.private == private
                ]
                if events:
                    last = max(last, events[-1].stamp.position)
                    _insert(connection, kind, events)
                    lost |= self._push_out(connection, kind)
            answers = [
                (ask.name, ask.body, last.cursor, last.timestamp, events, now)
                for _, ask, (last, events), _, _ in writes
                if ask and self._window
            ]
            if answers:
                connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", answers)
            gone = [(name,) for write in writes for name in write.gone]
            if gone:
                connection.executemany("DELETE FROM answers WHERE scope = ?", gone)
            items = [
                (item.queue, item.id, accepted.last.position, now + item.window)
                for _, _, accepted, items, _ in writes
                for item in items
            ]
            if items:
                connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", items)
            _reserve(connection, last)
            self.lost = self.lost | lost
        self.has_failed = False

    def reserve(self, position: int) -> None:
        """Promise that no later life gives an event that position, or one up to RESERVED_AHEAD above it."""
        with self._transaction() as connection:
            _reserve(connection, position)

    def push_out(self) -> None:
        """Let go of what is more than `size`, which may be less than it was in an earlier life."""
        with self._transaction() as connection:
            for kind in KINDS:
                connection.execute(
                    f"UPDATE kinds SET held = (SELECT count(*) FROM {kind}) WHERE kind = ?",  # noqa: S608
                    (kind,),  # after a repair by hand
                )
                self.lost = self.lost | self._push_out(connection, kind)

    def _push_out(self, connection: sqlite3.Connection, kind: str) -> dict[str, Mark]:
        (held,) = connection.execute("SELECT held FROM kinds WHERE kind = ?", (kind,)).fetchone()
        if held <= self._size:
            return {}
        mark = connection.execute(
            f"SELECT position, timestamp FROM {kind} ORDER BY position LIMIT 1 OFFSET ?",  # noqa: S608
            (held - self._size - 1,),
        ).fetchone()
        return _forget(connection, kind, Mark(*mark))

    def prune(self, before: Mapping[str, float], now: float) -> bool:
        """Let go of some events from before a time, and of what was remembered. Whether there is more.

        before: timestamps by kind; now: seconds that the file has lived.
        """
        more = False
        lost: dict[str, Mark] = {}
        with self._transaction() as connection:
            for kind in KINDS:
                count, position, timestamp = connection.execute(
                    "SELECT count(*), max(position), max(timestamp) FROM ("  # noqa: S608
                    f"SELECT position, timestamp FROM {kind} ORDER BY position LIMIT ?) WHERE timestamp < ?",
                    (_PRUNED_AT_ONCE, before[kind]),
                ).fetchone()
                if count:
                    lost |= _forget(connection, kind, Mark(position, timestamp))
                    more = more or count == _PRUNED_AT_ONCE
            connection.execute("DELETE FROM answers WHERE at < ?", (now - self._window,))
            self._forget_surplus_answers(connection)
            if not more:  # it looks at all of them, and will be called again
                _forget_items(connection, now)
            self.lost = self.lost | lost
        return more

    def _forget_surplus_answers(self, connection: sqlite3.Connection) -> None:
        """Let go of the oldest answers of those publishers who have the most, if there are too many."""
        (count,) = connection.execute("SELECT count(*) FROM answers").fetchone()
        if count <= MAX_REMEMBERED * _MOST_ANSWERS:
            return
        counts = connection.execute(f"SELECT {_PUBLISHER}, count(*) FROM answers GROUP BY 1").fetchall()  # noqa: S608
        share = fair_share((count for _, count in counts), MAX_REMEMBERED)
        connection.executemany(
            "DELETE FROM answers WHERE scope IN (SELECT scope FROM answers "  # noqa: S608
            f"WHERE {_PUBLISHER} = ? ORDER BY at LIMIT ?)",
            [(publisher, count - share) for publisher, count in counts if count > share],
        )

    def remembered(self, now: float) -> list[Remembered]:
        """The answers that are still good, the oldest first. now: seconds that the file has lived."""
        with self._database_errors():
            rows = self._writing().execute(
                "SELECT scope, body, cursor, timestamp, events, at FROM answers WHERE at > ? ORDER BY at",
                (now - self._window,),
            )
            return [
                Remembered(
                    Ask(scope[-SCOPE_SIZE:], body, scope[:-SCOPE_SIZE]),
                    Accepted(Stamp(position_of(cursor) or 0, cursor, timestamp), events),
                    max(0.0, now - at),
                )
                for scope, body, cursor, timestamp, events, at in rows
            ]

    # Reading

    def remembered_items(self, queue: str, now: float) -> list[tuple[bytes, float]]:
        """The items of a queue, the oldest first, and for how many seconds each is remembered yet."""
        with self._reading() as connection:
            return connection.execute(
                "SELECT id, until - :now FROM items WHERE queue = :queue AND until > :now ORDER BY until",
                {"queue": queue, "now": now},
            ).fetchall()

    def read(self, after: int, upto: int, kinds: Sequence[str]) -> Page:
        """The next events of those kinds, up to a position."""
        select = " UNION ALL ".join(_NEXT.format(kind=kind) for kind in kinds)
        lines: list[Line] = []
        size = 0
        with self._reading() as connection:
            connection.execute("BEGIN")  # what has left is asked in the same moment
            lost = dict(connection.execute("SELECT kind, lost_position FROM kinds").fetchall())
            rows = connection.execute(f"{select} ORDER BY position", {"after": after, "upto": upto})
            for position, path, line, crc in rows:
                if zlib.crc32(line) != crc:
                    raise sqlite3.DatabaseError(f"the event at position {position} is damaged")
                size += len(line)
                if lines and (len(lines) == PAGE_EVENTS or size > PAGE_BYTES):
                    break
                lines.append(Line(position, path, line))
            rows.close()
            connection.execute("COMMIT")  # or the file's log could not be cut back
        end = lines[-1].position if lines else upto
        return Page(end, lines, Gone(*(lost[kind] for kind in kinds)))

    def imported(self, cursor: str) -> tuple[int, bool] | None:
        """Where an event is that came with this cursor of 0.7's, and whether all that followed it came too.

        None if there is no such event.
        """
        with self._reading() as connection:
            row = connection.execute(
                "SELECT position, whole FROM imported WHERE cursor = ?", (cursor,)
            ).fetchone()
        return (row[0], bool(row[1])) if row else None

    def first_since(self, timestamp: float, upto: int, kinds: Sequence[str]) -> int | None:
        """The position of the first event of those kinds at that time or later."""
        limits = {"from": position_at(timestamp), "upto": upto, "timestamp": timestamp}
        with self._reading() as connection:
            found = [
                connection.execute(_FIRST_SINCE.format(kind=kind), limits).fetchone()[0] for kind in kinds
            ]
        return min((position for position in found if position is not None), default=None)

    # The connections

    def open_reader(self) -> None:
        """Open the connection of the thread that reads.

        While it is there, a writer that is closed after a failure is not the last to close, so SQLite's files
        stay: on a full disk they could not be made again, and nothing could be read.
        """
        with self._reading() as connection:
            connection.execute("SELECT began_position FROM life").fetchone()

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
        if self._writer is None:
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._writer.execute("PRAGMA synchronous = FULL")
            self._writer.execute(f"PRAGMA journal_size_limit = {_LOG_SIZE}")
            self._wal_inode = None
        return self._writer

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
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
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._database_errors():
            self._check_in_place()
            lost = self.lost
            try:
                connection = self._writing()
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
                if self._wal_inode is None:
                    with contextlib.suppress(FileNotFoundError):
                        self._wal_inode = Path(f"{self._path}-wal").stat().st_ino
            except BaseException:
                self.lost = lost
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


def _insert(connection: sqlite3.Connection, kind: str, events: Sequence[Event]) -> None:
    # many in a statement: after each one, this thread waits for the event loop's if that is busy
    start = 0
    for count in _INSERTED_AT_ONCE:
        while len(events) - start >= count:
            connection.execute(_insertion(kind, count), _row_values(events[start : start + count]))
            start += count
    connection.execute("UPDATE kinds SET held = held + ? WHERE kind = ?", (len(events), kind))


@cache
def _insertion(kind: str, count: int) -> str:
    return f"INSERT INTO {kind} VALUES {', '.join(['(?, ?, ?, ?, ?)'] * count)}"  # noqa: S608


def _row_values(events: Sequence[Event]) -> list[object]:
    values: list[object] = []
    for event in events:
        position, _, timestamp = event.stamp
        values += (position, timestamp, event.path.text, event.line, zlib.crc32(event.line))
    return values


def _forget(connection: sqlite3.Connection, kind: str, mark: Mark) -> dict[str, Mark]:
    """Let go of the events of a kind up to that one."""
    count = connection.execute(f"DELETE FROM {kind} WHERE position <= ?", (mark.position,)).rowcount  # noqa: S608
    connection.execute(
        "UPDATE kinds SET held = held - ?, lost_position = ?, lost_timestamp = ? WHERE kind = ?",
        (count, *mark, kind),
    )
    return {kind: mark}


def _forget_beyond(connection: sqlite3.Connection, end: int) -> None:
    """Undo what may have been found in SQLite's log of a COMMIT that failed."""
    for kind in KINDS:
        count = connection.execute(f"DELETE FROM {kind} WHERE position > ?", (end,)).rowcount  # noqa: S608
        connection.execute("UPDATE kinds SET held = held - ? WHERE kind = ?", (count, kind))
    connection.execute("DELETE FROM answers WHERE cursor > ?", (stamp_at(end + 1, 0.0).cursor[:18],))
    connection.execute("DELETE FROM items WHERE position > ?", (end,))


def _forget_items(connection: sqlite3.Connection, now: float) -> None:
    """Let go of the items that are remembered long enough, or are too many."""
    for (queue,) in connection.execute("SELECT DISTINCT queue FROM items").fetchall():
        connection.execute(
            "DELETE FROM items WHERE queue = :queue AND until < max(:now, ifnull("
            "(SELECT until FROM items WHERE queue = :queue ORDER BY until DESC LIMIT 1 OFFSET :others), 0))",
            {"queue": queue, "now": now, "others": MAX_ITEMS - 1},
        )


def _reserve(connection: sqlite3.Connection, position: int) -> None:
    connection.execute("UPDATE life SET reserved = max(reserved, ?)", (position + RESERVED_AHEAD,))
