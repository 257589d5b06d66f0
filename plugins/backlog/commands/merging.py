"""Events put in between those that a file has: among its rows, or into its blocks, which are written anew."""

import sqlite3
from bisect import bisect_left
from collections.abc import Sequence

from core.events.cursor import Mark
from core.events.event import Event, position_in, timestamp_in
from plugins.backlog import blocks
from plugins.backlog.block import BLOCK_BYTES, BLOCK_EVENTS, Summary, pack
from plugins.backlog.database import insert
from plugins.backlog.finding import checked
from plugins.backlog.leaving import Holdings
from plugins.backlog.sealing import is_to_seal, seal

_ADDED_AT_ONCE = 2 * BLOCK_EVENTS
_ADDED_BYTES_AT_ONCE = 4 * BLOCK_BYTES


class Merger:
    """Takes events of one kind, in the order of their positions, within one transaction."""

    def __init__(self, connection: sqlite3.Connection, kind: str, held: Holdings) -> None:
        self.added = 0
        self._connection = connection
        self._kind = kind
        self._held = held
        self._blocks_end = blocks.end(connection, kind)
        self._block: Summary | None = None  # the one that `_new` belong into; None: they are rows
        self._lines: list[bytes] = []  # of the block that was looked into last
        self._looked_into: int | None = None  # its end
        self._new: list[Event] = []
        self._new_bytes = 0

    def line_at(self, position: int) -> bytes | None:
        """The line of the event that is held there. Raises Damaged."""
        if position > self._blocks_end:
            row = self._connection.execute(
                f"SELECT position, path, line, crc FROM {self._kind} WHERE position = ?", (position,)
            ).fetchone()
            return checked(row)[1] if row else None
        block = self._block_at(position)
        if block.last != self._looked_into:
            self._lines = blocks.read(self._connection, self._kind, block).lines
            self._looked_into = block.last
        index = bisect_left(self._lines, position, key=position_in)
        found = self._lines[index : index + 1]
        return found[0] if found and position_in(found[0]) == position else None

    def _block_at(self, position: int) -> Summary:
        if self._block and position <= self._block.last:
            return self._block
        row = self._connection.execute(
            f"SELECT * FROM {self._kind}_blocks WHERE last >= ? ORDER BY last LIMIT 1", (position,)
        ).fetchone()
        return Summary(*row)

    def add(self, event: Event) -> None:
        """Hold another event. Raises Damaged."""
        position = event.stamp.position
        block = self._block_at(position) if position <= self._blocks_end else None
        if block != self._block or len(self._new) >= _ADDED_AT_ONCE or self._new_bytes > _ADDED_BYTES_AT_ONCE:
            self.flush()
            block = self._block_at(position) if position <= self._blocks_end else None
        self._block = block
        self._new.append(event)
        self._new_bytes += len(event.line)
        self.added += 1

    def flush(self) -> None:
        """Have all of them in the file."""
        if self._new and self._block:
            self._merge_into(self._block)
        elif self._new:
            self._held.row_size += insert(self._connection, self._kind, self._new)
            self._held.rows += len(self._new)
            self._seal(self._new[-1].stamp.position)
        self._block, self._new, self._new_bytes, self._looked_into = None, [], 0, None

    def _merge_into(self, block: Summary) -> None:
        events = [*blocks.read(self._connection, self._kind, block)]
        events += [(event.path.text, event.line) for event in self._new]
        events.sort(key=lambda event: position_in(event[1]))
        check_times([line for _, line in events])
        blocks.drop(self._connection, self._kind, block.last)
        *portions, rest = _portions(events)
        packed = [*map(pack, portions), pack(rest, block.last)]  # it may go on beyond its last event
        for summary, data in packed:
            blocks.add(self._connection, self._kind, summary, data)
        self._connection.execute(
            "UPDATE kinds SET held = held + ? WHERE kind = ?", (len(self._new), self._kind)
        )

    def _seal(self, upto: int) -> None:
        """Seal rows, of which none will come in between: those up to a position."""
        while is_to_seal(self._held):
            row = self._connection.execute(
                f"SELECT position FROM {self._kind} ORDER BY position LIMIT 1 OFFSET ?", (BLOCK_EVENTS,)
            ).fetchone()
            if row is not None and row[0] > upto:
                return
            seal(self._connection, self._kind, self._held)

    def finish(self) -> None:
        """Say that it was the last one. Raises ValueError if times do not grow with positions, Damaged."""
        self.flush()
        while is_to_seal(self._held):
            seal(self._connection, self._kind, self._held)
        before = Mark(0, 0.0)
        for first, last, position in self._connection.execute(
            f"SELECT first_timestamp, last_timestamp, last FROM {self._kind}_blocks "
            f"UNION ALL SELECT timestamp, timestamp, position FROM {self._kind} ORDER BY 3"
        ):
            if first < before.timestamp:
                raise _disorder(before.position)
            before = Mark(position, last)


def check_times(lines: Sequence[bytes]) -> None:
    """Raise ValueError if the times of events do not grow with their positions."""
    before = 0.0
    for line in lines:
        timestamp = timestamp_in(line)
        if timestamp < before:
            raise _disorder(position_in(line))
        before = timestamp


def _disorder(position: int) -> ValueError:
    return ValueError(
        f"its events and those that are held do not go together: times go back at position {position}"
    )


def _portions(events: Sequence[tuple[str, bytes]]) -> list[list[tuple[str, bytes]]]:
    """Them, a block's worth at a time."""
    portions: list[list[tuple[str, bytes]]] = []
    size = 0
    for path, line in events:
        size += len(line)
        if not portions or len(portions[-1]) == BLOCK_EVENTS or size > BLOCK_BYTES:
            portions.append([])
            size = len(line)
        portions[-1].append((path, line))
    return portions
