"""The events in the file of a durable backlog. Blocking, so called in threads of their own.

What is stored in one call is committed together, or not at all: see plugins.backlog.sqlite_file.
Events are filed by their position, public and private ones in a table each.
"""

import contextlib
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from core.counters import counters
from core.events.cursor import TICKS_PER_SECOND, Mark, position_at
from core.events.event import Event
from core.events.idempotency import IdempotencyKey, QueueItem
from core.events.replay import NOTHING, Gone
from core.events.store import PAGE_BYTES, PAGE_EVENTS, Accepted, Line, Page, RememberedReply, StoreError
from plugins.backlog import remembered, schema
from plugins.backlog.schema import KINDS
from plugins.backlog.sqlite_file import SqliteFile

RESERVED_AHEAD = TICKS_PER_SECOND  # positions
_PRUNED_AT_ONCE = 1000  # so that no commit waits for long
_INSERTED_AT_ONCE = (100, 10, 1)  # events in a statement

_NEXT = "SELECT position, path, line, crc FROM {kind} WHERE position > :after AND position <= :upto"
_FIRST_SINCE = """
SELECT min(position) FROM (
    SELECT position FROM {kind} WHERE position >= :from AND position <= :upto AND timestamp >= :timestamp
    ORDER BY position LIMIT 1
)
"""


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
    """An open file. size: events of each kind that are kept; window: seconds that answers are remembered.

    Every method raises StoreError if the file cannot be read or written.
    """

    def __init__(self, path: Path, size: int, window: float) -> None:
        super().__init__(path)
        self._size = size
        self._window = window
        # by kind: the latest event that has left. It is known here before it is committed: who is about to be
        # told how much of a replay is held must not be told too much
        self.lost = dict.fromkeys(KINDS, NOTHING)

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
            self._store_answers(connection, writes, now)
            items = [(item, write.accepted.last.position) for write in writes for item in write.items]
            remembered.keep_items(connection, items, now)
            _reserve(connection, last)
            self.lost = self.lost | lost
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
            remembered.forget_answers(connection, now, self._window)
            if not more:  # it looks at all of them, and will be called again
                remembered.forget_items(connection, now)
            self.lost = self.lost | lost
        return more

    def remembered(self, now: float) -> list[RememberedReply]:
        """The answers that are still good, the oldest first. now: seconds that the file has lived."""
        with self._database_errors():
            return remembered.answers(self._writing(), now, self._window)

    # Reading

    def remembered_items(self, queue: str, now: float) -> list[tuple[bytes, float]]:
        """The items of a queue, the oldest first, and for how many seconds each is remembered yet."""
        with self._reading() as connection:
            return remembered.items(connection, queue, now)

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

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        lost, began = self.lost, time.perf_counter_ns()
        try:
            with super()._transaction() as connection:
                yield connection
        except BaseException:
            self.lost = lost
            counters.failed_commits += 1
            raise
        counters.commits += 1  # by the one thread that writes
        counters.commit_ns += time.perf_counter_ns() - began


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
    remembered.forget_beyond(connection, end)


def _reserve(connection: sqlite3.Connection, position: int) -> None:
    connection.execute("UPDATE life SET reserved = max(reserved, ?)", (position + RESERVED_AHEAD,))
