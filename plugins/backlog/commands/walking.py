"""All that is in a backlog's file, a piece at a time, each read in a moment of its own.

So a server goes on beside it. What is sealed meanwhile may come twice, as rows and in a block.
"""

import sqlite3
from collections.abc import Iterator, Sequence

from core.events.cursor import MAX_POSITION
from plugins.backlog.block import Summary
from plugins.backlog.commands.opening import snapshot

Row = tuple[int, float, str, bytes, int]  # position, timestamp, path, line, crc
_BLOCKS_AT_ONCE = 16
_ROWS_AT_ONCE = 1000


def walk(
    connection: sqlite3.Connection, kind: str, upto: int = MAX_POSITION
) -> Iterator[tuple[Summary, bytes | None] | Sequence[Row]]:
    """Each block, with its data if there are any, and the rows, up to a position."""
    end = after = -1
    while True:
        rows: list[Row] = []
        with snapshot(connection):
            found = connection.execute(
                f"SELECT {kind}_blocks.*, data FROM {kind}_blocks LEFT JOIN {kind}_data USING (last) "
                "WHERE last > ? ORDER BY last LIMIT ?",
                (end, _BLOCKS_AT_ONCE),
            ).fetchall()
            if not found:
                rows = connection.execute(
                    f"SELECT position, timestamp, path, line, crc FROM {kind} "
                    "WHERE position > ? AND position <= ? ORDER BY position LIMIT ?",
                    (max(end, after), upto, _ROWS_AT_ONCE),
                ).fetchall()
        for *summary, data in found:
            yield Summary(*summary), data
        if found:
            end = found[-1][0]
        elif rows:
            yield rows
            after = rows[-1][0]
        else:
            return
