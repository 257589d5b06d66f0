"""Where events are in a backlog's file, of one kind: in blocks, and the newest of them in rows."""

import sqlite3
import zlib
from bisect import bisect_left
from collections.abc import Collection, Mapping

from core.events.cursor import Mark, position_at
from core.events.event import position_in, timestamp_in
from core.events.store import PAGE_BYTES, PAGE_EVENTS
from core.events.subscription import Alternative
from plugins.backlog import blocks
from plugins.backlog.block import Damaged
from plugins.backlog.blocks import Unpacked
from plugins.backlog.pages import Found, LookedBack

_MOST_BLOCKS = 8  # that are unpacked for a page
_MOST_ROWS = 2000  # that are looked at for a page


def find(
    connection: sqlite3.Connection,
    unpacked: Unpacked,
    kind: str,
    after: int,
    upto: int,
    alternatives: Collection[Alternative],
    wanted: Mapping[str, bool],
) -> Found:
    """The next lines of events that are wanted, about a page of them at most.

    alternatives: sets of topics, of which an event that is wanted has one. wanted: by path.
    """
    if after >= blocks.end(connection, kind):
        return _find_rows(connection, kind, after, upto, wanted)
    lasts, end = blocks.next_of(connection, kind, after, alternatives, _MOST_BLOCKS)
    lines: list[bytes] = []
    size = 0
    before = after
    for last in lasts:
        block = unpacked.block(connection, kind, last)
        if not lines and block.is_whole(after, upto, wanted):
            return Found([], last, block)
        more = block.select(after, upto, wanted)
        size += sum(map(len, more))
        if lines and (size > PAGE_BYTES or len(lines) + len(more) > PAGE_EVENTS):
            return Found(lines, before)
        lines += more
        if last >= upto:
            return Found(lines, upto)
        before = last
    return Found(lines, min(end, upto))


def _find_rows(
    connection: sqlite3.Connection, kind: str, after: int, upto: int, wanted: Mapping[str, bool]
) -> Found:
    rows = connection.execute(
        f"SELECT position, path, line, crc FROM {kind} WHERE position > ? AND position <= ? "
        "ORDER BY position LIMIT ?",
        (after, upto, _MOST_ROWS),
    )
    lines: list[bytes] = []
    size = looked = 0
    for looked, row in enumerate(rows, 1):  # noqa: B007 (it is used behind the loop)
        path, line = checked(row)
        if wanted[path]:
            size += len(line)
            if lines and (size > PAGE_BYTES or len(lines) == PAGE_EVENTS):
                rows.close()
                return Found(lines, after)
            lines.append(line)
        after = row[0]
    return Found(lines, upto if looked < _MOST_ROWS else after)


def find_back(
    connection: sqlite3.Connection,
    unpacked: Unpacked,
    kind: str,
    upto: int,
    alternatives: Collection[Alternative],
    wanted: Mapping[str, bool],
) -> LookedBack:
    """Where events are that are wanted, of some up to a position: of rows, or of the next block with any."""
    end = blocks.end(connection, kind)
    if upto > end:
        rows = connection.execute(
            f"SELECT position, path FROM {kind} WHERE position <= ? ORDER BY position DESC LIMIT ?",
            (upto, _MOST_ROWS),
        ).fetchall()
        positions = [position for position, path in reversed(rows) if wanted[path]]
        return LookedBack(positions, end if len(rows) < _MOST_ROWS else rows[-1][0] - 1)
    lasts, after = blocks.previous_of(connection, kind, upto, alternatives, _MOST_BLOCKS)
    for last in lasts:
        if lines := unpacked.block(connection, kind, last).select(0, upto, wanted):
            positions = list(map(position_in, lines))
            return LookedBack(positions, positions[0] - 1)
    return LookedBack([], after)


def checked(row: tuple[int, str, bytes, int]) -> tuple[str, bytes]:
    """The path and line of a row (position, path, line, crc). Raises Damaged if the line is another."""
    position, path, line, crc = row
    if zlib.crc32(line) != crc:
        raise Damaged(f"the event at position {position} is damaged")
    return path, line


def first_since(
    connection: sqlite3.Connection, unpacked: Unpacked, kind: str, timestamp: float
) -> int | None:
    """The position of the first event at that time or later."""
    after = position_at(timestamp)
    if block := blocks.first_since(connection, kind, after, timestamp):
        lines = unpacked.block(connection, kind, block.last).lines
        return position_in(lines[bisect_left(lines, timestamp, key=timestamp_in)])
    row: tuple[int | None] = connection.execute(
        f"SELECT min(position) FROM (SELECT position FROM {kind} "
        "WHERE position >= ? AND timestamp >= ? ORDER BY position LIMIT 1)",
        (after, timestamp),
    ).fetchone()
    return row[0]


def newest(connection: sqlite3.Connection, kind: str) -> Mark | None:
    """The newest event that is held."""
    select = "SELECT {} FROM {} ORDER BY 1 DESC LIMIT 1"
    row = (
        connection.execute(select.format("position, timestamp", kind)).fetchone()
        or connection.execute(select.format("last, last_timestamp", f"{kind}_blocks")).fetchone()
    )
    return row and Mark(*row)
