"""Sealing: the oldest rows of a backlog's file become a block."""

import sqlite3

from plugins.backlog import blocks
from plugins.backlog.block import BLOCK_BYTES, BLOCK_EVENTS, pack
from plugins.backlog.finding import checked
from plugins.backlog.leaving import Holdings


def is_to_seal(held: Holdings) -> bool:
    """Whether there are enough rows for a block, and as many again, which are read most, besides."""
    return held.rows >= 2 * BLOCK_EVENTS or (held.rows > 1 and held.row_size >= 2 * BLOCK_BYTES)


def seal(connection: sqlite3.Connection, kind: str, held: Holdings) -> None:
    """Make a block of the oldest rows, in a transaction. Raises Damaged if one of them is damaged."""
    rows = connection.execute(
        f"SELECT position, path, line, crc FROM {kind} ORDER BY position LIMIT ?",
        (BLOCK_EVENTS,),
    )
    events: list[tuple[str, bytes]] = []
    size = row_size = last = 0
    for row in rows:
        path, line = checked(row)
        size += len(line)
        if events and size > BLOCK_BYTES:
            break
        events.append((path, line))
        row_size += len(line)
        last = row[0]
    rows.close()
    summary, data = pack(events, last)
    blocks.add(connection, kind, summary, data)
    connection.execute(f"DELETE FROM {kind} WHERE position <= ?", (last,))
    held.rows -= len(events)
    held.row_size = max(0, held.row_size - row_size)
    held.sealed += len(events)
    held.sealed_size += summary.size
