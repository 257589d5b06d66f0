"""What leaves a backlog's file: the oldest events when there are too many, others when they are too old.

Events that are rows leave one by one. Of a block all leave together when there is no room; if some of it is
too old it is written anew without them.
"""

import contextlib
import math
import sqlite3
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from core.events.cursor import Mark
from core.events.event import position_in, timestamp_in
from core.events.topics import PRIVATE
from plugins.backlog import blocks
from plugins.backlog.block import Damaged, Summary, pack
from plugins.backlog.departed import Departed, keys_of
from plugins.backlog.retention import Retention

_ROWS_AT_ONCE = 1000  # so that no commit waits for long
_BLOCKS_AT_ONCE = 20
_ROW_SIZE = "length(line)"  # which says the path, too; of text, SQLite's length() ends at a NUL
_MOST_MEASURED = 10_000  # rows at a start; the others are taken to be like them


@dataclass
class Holdings:
    """How much of a kind the file holds."""

    rows: int
    row_size: int  # bytes, about; of those that came in this life, unless max_bytes asks for it
    sealed: int  # events in blocks
    sealed_size: int

    @property
    def events(self) -> int:
        """All of them."""
        return self.rows + self.sealed

    @property
    def size(self) -> int:
        """Bytes."""
        return self.row_size + self.sealed_size


class Leaving:
    """What leaves of one kind, and what is remembered of it. Its methods are called within transactions.

    size, max_bytes: how many events are kept, and how many bytes they may take.
    """

    def __init__(self, kind: str, size: int, max_bytes: float, retention: Retention) -> None:
        self.kind = kind
        self._size = size
        self._max_bytes = max_bytes
        self._retention = retention
        self.departed = Departed()
        self.held = Holdings(0, 0, 0, 0)
        self.pushed_out = 0  # position up to which all have left, since there were too many
        # by rule: the position up to which all events that are kept by it, and are too old, have left
        self._swept = [0] * len(retention.rules)

    # As the file has it

    def load(self, connection: sqlite3.Connection, *, with_rules: bool) -> None:
        """Begin with what the file has, or begin anew with it after an error.

        with_rules: whether what it knows of rules is of these.
        """
        self.departed.load(connection, self.kind)
        self.held = self._held(connection)
        self.pushed_out = 0  # what left in a transaction that failed is still there
        self._swept = [0] * len(self._retention.rules)
        if with_rules:
            rows = connection.execute("SELECT rule, swept FROM rules WHERE kind = ?", (self.kind,))
            for rule, swept in rows.fetchall():
                self._swept[rule] = swept

    def _held(self, connection: sqlite3.Connection) -> Holdings:
        (held,) = connection.execute("SELECT held FROM kinds WHERE kind = ?", (self.kind,)).fetchone()
        sealed, sealed_size = connection.execute(
            f"SELECT ifnull(sum(events), 0), ifnull(sum(size), 0) FROM {self.kind}_blocks"
        ).fetchone()
        rows = held - sealed
        size = 0
        if rows and self._max_bytes < math.inf:
            with contextlib.suppress(sqlite3.DatabaseError):  # a damaged page is for those who need it
                (size,) = connection.execute(
                    f"SELECT sum(size) FROM (SELECT {_ROW_SIZE} AS size FROM {self.kind} LIMIT ?)",
                    (_MOST_MEASURED,),
                ).fetchone()
        return Holdings(rows, int(size * max(1, rows / _MOST_MEASURED)), sealed, sealed_size)

    def forget_beyond(self, connection: sqlite3.Connection, end: int) -> None:
        """Take out rows after a position, which were never told to anybody."""
        beyond = connection.execute(
            f"SELECT count(*), ifnull(sum({_ROW_SIZE}), 0) FROM {self.kind} WHERE position > ?", (end,)
        ).fetchall()
        connection.execute(f"DELETE FROM {self.kind} WHERE position > ?", (end,))
        self._count_rows_out(connection, beyond)

    # Too many

    def push_out(self, connection: sqlite3.Connection) -> None:
        """Let go of the oldest events, if there are more than `size`, or if they take more than max_bytes.

        A block leaves if `size` events remain without it.
        """
        while self.held.events > self._size or self.held.size > self._max_bytes:
            block = blocks.oldest(connection, self.kind) if self.held.sealed else None
            if block is None:
                self._push_out_rows(connection)
                return
            if self.held.size <= self._max_bytes and self.held.events - block.events < self._size:
                return
            self._drop_block(connection, block)
            self.pushed_out = block.last

    def _push_out_rows(self, connection: sqlite3.Connection) -> None:
        surplus, surplus_size = self.held.events - self._size, self.held.size - self._max_bytes
        rows = connection.execute(
            f"SELECT position, timestamp, {_ROW_SIZE} FROM {self.kind} ORDER BY position"
        )
        mark = None
        for position, timestamp, row_bytes in rows:
            if surplus <= 0 and surplus_size <= 0:
                break
            mark = Mark(position, timestamp)
            surplus -= 1
            surplus_size -= row_bytes
        rows.close()
        if mark:
            self._drop_rows(connection, mark.position)
            self.pushed_out = mark.position

    def _drop_block(self, connection: sqlite3.Connection, block: Summary) -> None:
        mark = Mark(block.last, block.last_timestamp)
        if block.is_whole:
            self.departed.leave(block.topic_keys, mark)
        else:
            self.departed.leave_unknown(mark)
        blocks.drop(connection, self.kind, block.last)
        self.held.sealed -= block.events
        self.held.sealed_size -= block.size
        self._count_out(connection, block.events)

    def _drop_rows(self, connection: sqlite3.Connection, upto: int) -> int:
        """Let go of all rows up to a position. How many."""
        left = connection.execute(
            f"SELECT path, max(position), max(timestamp), count(*), sum({_ROW_SIZE}) FROM {self.kind} "
            "WHERE position <= ? GROUP BY path",
            (upto,),
        ).fetchall()
        for path, position, timestamp, _, _ in left:
            self.departed.leave(keys_of(path), Mark(position, timestamp))
        connection.execute(f"DELETE FROM {self.kind} WHERE position <= ?", (upto,))
        return self._count_rows_out(connection, [(count, size) for *_, count, size in left])

    def _count_rows_out(self, connection: sqlite3.Connection, left: Sequence[tuple[int, int]]) -> int:
        count = sum(count for count, _ in left)
        self.held.rows -= count
        self.held.row_size = max(0, self.held.row_size - sum(size for _, size in left))
        self._count_out(connection, count)
        return count

    def _count_out(self, connection: sqlite3.Connection, count: int) -> None:
        connection.execute("UPDATE kinds SET held = held - ? WHERE kind = ?", (count, self.kind))

    # Too old

    def sweep(self, connection: sqlite3.Connection, before: Sequence[float]) -> bool:
        """Let go of some events that are too old. Whether there may be more.

        before: by rule, the timestamp that an event has at least if it is kept.
        """
        more = False
        for rule, timestamp in enumerate(before):
            swept = self._swept[rule]
            more = self._sweep(connection, rule, timestamp) or more
            if self._swept[rule] != swept:
                connection.execute(
                    "INSERT OR REPLACE INTO rules VALUES (?, ?, ?)", (self.kind, rule, self._swept[rule])
                )
        return more

    def _sweep(self, connection: sqlite3.Connection, rule: int, before: float) -> bool:
        # a private event's own `private` is not among a block's topics
        topics = self._retention.rules[rule].topics - ({PRIVATE} if self.kind == "private" else set())
        test, keys = blocks.test_of(frozenset({topics}))
        for _ in range(_BLOCKS_AT_ONCE):
            row = connection.execute(
                f"SELECT * FROM {self.kind}_blocks WHERE last > ? AND first_timestamp < ? AND {test} "
                "ORDER BY last LIMIT 1",
                (self._swept[rule], before, *keys),
            ).fetchone()
            if row is None:
                return self._sweep_rows(connection, rule, before)
            block = Summary(*row)
            is_old = block.last_timestamp < before
            if is_old:
                self._swept[rule] = block.last
            if not is_old or len(self._retention.rules) > 1:  # it has to be unpacked: one at a time
                self._thin_out(connection, block, rule, before)
                return is_old
            self._drop_block(connection, block)
        return True

    def _thin_out(self, connection: sqlite3.Connection, summary: Summary, rule: int, before: float) -> None:
        """Write a block anew without events that are too old."""
        try:
            block = blocks.read(connection, self.kind, summary)
        except Damaged:  # nobody can read the others in it either
            if summary.last_timestamp < before:
                self._drop_block(connection, summary)
            return
        events = list(block)
        old = bisect_left(block.lines, before, key=timestamp_in)
        left = [event for event in events[:old] if self._retention.rule_of[event[0]] == rule]
        if not left:
            return
        for path, line in left:
            self.departed.leave(keys_of(path), Mark(position_in(line), timestamp_in(line)))
        gone = {line for _, line in left}
        remaining = [event for event in events if event[1] not in gone]
        size = 0
        if remaining:
            thinner, data = pack(remaining, summary.last)
            blocks.add(connection, self.kind, thinner, data)
            size = thinner.size
        else:
            blocks.drop(connection, self.kind, summary.last)
        self.held.sealed -= len(left)
        self.held.sealed_size += size - summary.size
        self._count_out(connection, len(left))

    def _sweep_rows(self, connection: sqlite3.Connection, rule: int, before: float) -> bool:
        rows = connection.execute(
            f"SELECT position, timestamp, path, {_ROW_SIZE} FROM {self.kind} "
            "WHERE position > ? AND timestamp < ? ORDER BY position LIMIT ?",
            (self._swept[rule], before, _ROWS_AT_ONCE),
        ).fetchall()
        if not rows:
            return False
        self._swept[rule] = rows[-1][0]
        if len(self._retention.rules) == 1:
            self._drop_rows(connection, self._swept[rule])
        else:
            old = [row for row in rows if self._retention.rule_of[row[2]] == rule]
            for position, timestamp, path, _ in old:
                self.departed.leave(keys_of(path), Mark(position, timestamp))
            connection.executemany(
                f"DELETE FROM {self.kind} WHERE position = ?",
                [row[:1] for row in old],
            )
            self._count_rows_out(connection, [(1, row[3]) for row in old])
        return len(rows) == _ROWS_AT_ONCE
