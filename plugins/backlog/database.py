"""The events in the file of a durable backlog. Blocking, so called in threads of their own.

What is stored in one call is committed together, or not at all: see plugins.backlog.sqlite_file.
Public and private events are filed apart, by their positions: the newest as rows of a table, the older ones
sealed, a block at a time.
"""

import contextlib
import math
import sqlite3
import time
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from core.counters import counters
from core.events.cursor import TICKS_PER_SECOND, Mark
from core.events.event import Event
from core.events.idempotency import IdempotencyKey, QueueItem
from core.events.replay import NOTHING, Gone
from core.events.selection import Selection
from core.events.store import Accepted, Page, RememberedReply, StoreError
from core.events.subscription import Alternative
from plugins.backlog import blocks, remembered, schema
from plugins.backlog.block import BLOCK_EVENTS
from plugins.backlog.finding import find, find_back, first_since, newest
from plugins.backlog.leaving import Leaving
from plugins.backlog.pages import LookedBack, page_of
from plugins.backlog.retention import Retention
from plugins.backlog.schema import KINDS
from plugins.backlog.sealing import is_to_seal, seal
from plugins.backlog.settings import BacklogConfig
from plugins.backlog.sqlite_file import SqliteFile

RESERVED_AHEAD = TICKS_PER_SECOND  # positions
_INSERTED_AT_ONCE = (100, 10, 1)  # events in a statement

_SEALED_FROM = 10  # blocks that a backlog must have room for: a smaller one is exact to the event


class Write(NamedTuple):
    """Events to be stored together, and what is to be remembered with them: an answer, or their items.

    forgotten: answers that are not to be remembered any longer, by IdempotencyKey.name.
    """

    events: Sequence[Event]
    key: IdempotencyKey | None
    accepted: Accepted
    items: Sequence[QueueItem] = ()
    forgotten: Sequence[bytes] = ()


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


class BacklogFile(SqliteFile):
    """An open file.

    size: events of each kind that are kept. window: seconds that answers are remembered. max_bytes: that the
    events of each kind may take.

    Every method raises StoreError if the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        size: int,
        window: float,
        retention: Retention | None = None,
        max_bytes: float = math.inf,
    ) -> None:
        super().__init__(path)
        self._size = size
        self._window = window
        self._retention = retention or Retention(BacklogConfig())
        self._leaving = {kind: Leaving(kind, size, max_bytes, self._retention) for kind in KINDS}
        self._is_loaded = False  # what these know of the file is so
        self._unpacked = blocks.Unpacked()

    def gone(self, kind: str, alternatives: Collection[Alternative]) -> Mark:
        """The latest event that has left, of those that may have had all topics of one of these sets.

        It is known here before it is committed: who is about to be told how much of a replay is held must not
        be told too much.
        """
        return self._leaving[kind].departed.of(alternatives)

    def departed(self, kind: str) -> Mark:
        """The latest event of a kind that has left."""
        return self._leaving[kind].departed.latest

    def pushed_out(self, kind: str) -> int:
        """The position up to which all events of a kind have left, since there were too many."""
        return self._leaving[kind].pushed_out

    def open(self, now: Mark, *, from_the_start: bool) -> Life:
        """Open the file, or make it: its memory begins now. Raises OSError, StartError, StoreError.

        from_the_start: whether, if it is made, nothing is known to have been published before.
        """
        self._make()
        with self._database_errors():
            # a connection of its own: _writing() would turn another program's database to WAL mode, too
            with contextlib.closing(self._connect()) as connection:
                new = schema.is_empty(connection, self._path)
            if new:
                schema.create(self._writing(), now, from_the_start=from_the_start)
            schema.complete(self._writing())
            return self._read_life()

    def _read_life(self) -> Life:
        connection = self._writing()
        row = connection.execute("SELECT * FROM life").fetchone()
        (kinds,) = connection.execute("SELECT count(*) FROM kinds").fetchone()
        if row is None or kinds != len(KINDS):
            raise StoreError(f"{self._path}: is damaged: it lacks what it was made with")
        self._load(connection)
        began_position, began_timestamp, from_the_start, reserved = row
        newest_of = {kind: newest(connection, kind) for kind in KINDS}
        # by rules of retention, later events may have left than those that are held
        last = {kind: max(mark or NOTHING, self.departed(kind)) for kind, mark in newest_of.items()}
        ends = {kind: mark.position for kind, mark in last.items()}
        timestamp = max(0.0, *(mark.timestamp for mark in last.values()))
        return Life(
            Mark(began_position, began_timestamp),
            bool(from_the_start),
            Mark(max(reserved, *ends.values()), timestamp),
            ends,
            {kind: mark and mark.timestamp for kind, mark in newest_of.items()},
        )

    def _load(self, connection: sqlite3.Connection) -> None:
        known = connection.execute("SELECT text FROM retention").fetchone()
        for leaving in self._leaving.values():
            leaving.load(connection, with_rules=known == (self._retention.text,))
        self._is_loaded = True

    def open_reader(self) -> None:
        """Open the connection of the thread that reads.

        While it is there, a writer that is closed after a failure is not the last to close, so SQLite's files
        stay: on a full disk they could not be made again, and nothing could be read.
        """
        with self._reading() as connection:
            connection.execute("SELECT began_position FROM life").fetchone()

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
        """Keep the clock, and what was stamped when, for a later life."""
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
            if self.has_failed:  # what may have been found in SQLite's log of that COMMIT
                for leaving in self._leaving.values():
                    leaving.forget_beyond(connection, end)
                remembered.forget_beyond(connection, end)
            last = 0
            for kind, leaving in self._leaving.items():
                private = kind == "private"
                events = [
                    event for write in writes for event in write.events if event.path.private == private
                ]
                if events:
                    last = max(last, events[-1].stamp.position)
                    leaving.held.rows += len(events)
                    leaving.held.row_size += insert(connection, kind, events)
                    leaving.push_out(connection)
            self._store_answers(connection, writes, now)
            items = [(item, write.accepted.last.position) for write in writes for item in write.items]
            remembered.keep_items(connection, items, now)
            _reserve(connection, last)
        self.has_failed = False

    def _store_answers(self, connection: sqlite3.Connection, writes: Sequence[Write], now: float) -> None:
        """Keep answers, and let go of others, in the order of the writes: one that made room may be back."""
        answers: dict[bytes, tuple[IdempotencyKey, Accepted]] = {}  # by name
        for write in writes:
            for name in write.forgotten:
                answers.pop(name, None)
            if write.key and self._window:
                answers[write.key.name] = write.key, write.accepted
        remembered.let_go_of_answers(connection, (name for write in writes for name in write.forgotten))
        remembered.keep_answers(connection, answers.values(), now)

    def reserve(self, position: int) -> None:
        """Promise that no later life gives an event that position, or one up to RESERVED_AHEAD above it."""
        with self._transaction() as connection:
            _reserve(connection, position)

    def tidy_up(self) -> int:
        """Do what a life begins with. How many blocks are found to be damaged.

        What is more than `size` or max_bytes leaves, which may be less than in an earlier life. What was
        swept by other rules of retention does not count. Summaries are looked at: later on they are believed.
        """
        damaged = 0
        with self._transaction() as connection:
            self._name_rules(connection)
            for kind, leaving in self._leaving.items():
                damaged += blocks.mark_damaged(connection, kind)
                leaving.push_out(connection)
        return damaged

    def _name_rules(self, connection: sqlite3.Connection) -> None:
        """Have the file know of which rules it tells, and forget what was swept by others."""
        if connection.execute("SELECT text FROM retention").fetchone() != (self._retention.text,):
            connection.execute("DELETE FROM rules")
            connection.execute("DELETE FROM retention")
            connection.execute("INSERT INTO retention VALUES (?)", (self._retention.text,))

    def prune(self, before: Mapping[str, Sequence[float]], now: float) -> bool:
        """Let go of some events from before a time, and of what was remembered. Whether there is more.

        before: timestamps by kind, and by rule of retention; now: seconds that the file has lived.
        """
        more = False
        with self._transaction() as connection:
            self._name_rules(connection)  # which may have failed at the start
            for kind, leaving in self._leaving.items():
                more = leaving.sweep(connection, before[kind]) or more
            remembered.forget_answers(connection, now, self._window)
            if not more:  # it looks at all of them, and will be called again
                remembered.forget_items(connection, now)
        return more

    @property
    def rows(self) -> int:
        """How many events are not in blocks."""
        return sum(leaving.held.rows for leaving in self._leaving.values())

    @property
    def is_to_seal(self) -> bool:
        """Whether there is enough for a block, and as much as that besides, which is read most."""
        return self._size >= _SEALED_FROM * BLOCK_EVENTS and any(
            is_to_seal(leaving.held) for leaving in self._leaving.values()
        )

    def seal(self) -> bool:
        """Put the oldest of the rows into a block. Whether there is more to seal.

        It need not be on the disk at once: until it is, a power cut makes them rows again.
        """
        if self.has_failed or not self.is_to_seal:  # until a write tells what a failed one has left behind
            return False
        with self._transaction(durable=False) as connection:
            for leaving in self._leaving.values():
                if is_to_seal(leaving.held):
                    seal(connection, leaving.kind, leaving.held)
                    break
        return self.is_to_seal

    def remembered(self, now: float) -> list[RememberedReply]:
        """The answers that are still good, the oldest first. now: seconds that the file has lived."""
        with self._database_errors():
            return remembered.answers(self._writing(), now, self._window)

    # Reading

    def remembered_items(self, queue: str, now: float) -> list[tuple[bytes, float]]:
        """The items of a queue, the oldest first, and for how many seconds each is remembered yet."""
        with self._reading() as connection:
            return remembered.items(connection, queue, now)

    def read(self, after: int, upto: int, selection: Selection, most: int | None = None) -> Page:
        """The next events of a selection, up to a position, about a page at most, and so many of them."""
        kinds = {"public": selection.public, "private": selection.private}
        with self._reading() as connection:
            connection.execute("BEGIN")  # so that events that are sealed meanwhile are not missed
            lost = dict(connection.execute("SELECT kind, lost_position FROM kinds").fetchall())
            found = [
                find(connection, self._unpacked, kind, after, upto, alternatives, selection.wanted)
                for kind, alternatives in kinds.items()
                if alternatives
            ]
            connection.execute("COMMIT")  # or the file's log could not be cut back
        # asked behind that: what has left before is among it, and what left later is not, since it was found
        bounds = {kind: self.gone(kind, alternatives).position for kind, alternatives in kinds.items()}
        gone = Gone(*(min(position, lost[kind]) for kind, position in bounds.items()))
        return page_of(found, selection.frames, gone, most)

    def before(self, kind: str, selection: Selection, upto: int) -> LookedBack:
        """Where events of a kind are that are wanted, of some up to a position."""
        alternatives = selection.private if kind == "private" else selection.public
        with self._reading() as connection:
            connection.execute("BEGIN")
            looked = find_back(connection, self._unpacked, kind, upto, alternatives, selection.wanted)
            connection.execute("COMMIT")
        return looked

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
        """The position of the first event of those kinds at that time or later, up to a position."""
        with self._reading() as connection:
            connection.execute("BEGIN")
            found = [first_since(connection, self._unpacked, kind, timestamp) for kind in kinds]
            connection.execute("COMMIT")
        return min(
            (position for position in found if position is not None and position <= upto), default=None
        )

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        began = time.perf_counter_ns()
        try:
            with super()._transaction(durable=durable) as connection:
                if not self._is_loaded:
                    self._load(connection)
                yield connection
                for leaving in self._leaving.values():
                    leaving.departed.save(connection, leaving.kind)
        except BaseException:
            self._is_loaded = False
            for leaving in self._leaving.values():
                leaving.departed.undo()
            counters.failed_commits += 1
            raise
        for leaving in self._leaving.values():
            leaving.departed.saved()
        if durable:
            counters.commits += 1  # by the one thread that writes
            counters.commit_ns += time.perf_counter_ns() - began


def insert(connection: sqlite3.Connection, kind: str, events: Sequence[Event]) -> int:
    """Make events rows. Their size in bytes, as leaving.py has it."""
    # many in a statement: after each one, this thread waits for the event loop's if that is busy
    start = 0
    for count in _INSERTED_AT_ONCE:
        while len(events) - start >= count:
            connection.execute(_insertion(kind, count), _row_values(events[start : start + count]))
            start += count
    connection.execute("UPDATE kinds SET held = held + ? WHERE kind = ?", (len(events), kind))
    return sum(len(event.line) for event in events)


@cache
def _insertion(kind: str, count: int) -> str:
    return f"INSERT INTO {kind} VALUES {', '.join(['(?, ?, ?, ?, ?)'] * count)}"


def _row_values(events: Sequence[Event]) -> list[object]:
    values: list[object] = []
    for event in events:
        position, _, timestamp = event.stamp
        values += (position, timestamp, event.path.text, event.line, zlib.crc32(event.line))
    return values


def _reserve(connection: sqlite3.Connection, position: int) -> None:
    connection.execute("UPDATE life SET reserved = max(reserved, ?)", (position + RESERVED_AHEAD,))
