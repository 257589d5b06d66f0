"""The blocks in a backlog's file: which of them may hold what somebody looks for, and what is in them.

Summaries and data are in tables of their own, so that looking for a topic reads little.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import lru_cache

from core.events.subscription import Alternative
from plugins.backlog.block import Block, Summary
from plugins.backlog.departed import topic_key

_MOST_UNPACKED = 8  # blocks that are kept unpacked for others who read them, too: some 300 KiB each
_MOST_TESTS = 500  # of a summary: for somebody who asks for more, each block is unpacked
_MOST_TESTS_OF_A_SET = 8  # topics of a set that are looked for
_TESTS_AT_ONCE = 20_000  # of summaries: 10 to 20 ms


def add(connection: sqlite3.Connection, kind: str, summary: Summary, data: bytes) -> None:
    """Put a block into the file, perhaps in the place of what it was before."""
    places = ", ".join("?" * len(summary))
    connection.execute(f"INSERT OR REPLACE INTO {kind}_blocks VALUES ({places})", summary)
    connection.execute(f"INSERT OR REPLACE INTO {kind}_data VALUES (?, ?)", (summary.last, data))


def drop(connection: sqlite3.Connection, kind: str, last: int) -> None:
    """Take a block out of the file."""
    for table in ("blocks", "data"):
        connection.execute(f"DELETE FROM {kind}_{table} WHERE last = ?", (last,))


def oldest(connection: sqlite3.Connection, kind: str) -> Summary | None:
    """The oldest block."""
    row = connection.execute(f"SELECT * FROM {kind}_blocks ORDER BY last LIMIT 1").fetchone()
    return row and Summary(*row)


def end(connection: sqlite3.Connection, kind: str) -> int:
    """The position up to which events are in blocks; those after it are rows."""
    (last,) = connection.execute(f"SELECT max(last) FROM {kind}_blocks").fetchone()
    return last or 0


@lru_cache(100)
def test_of(alternatives: frozenset[Alternative]) -> tuple[str, Sequence[bytes]]:
    """What tells, in SQL, whether a block may hold an event that has all topics of one of these sets."""
    sets = [sorted(topics, key=len)[-_MOST_TESTS_OF_A_SET:] for topics in alternatives]
    if not all(sets) or not 0 < sum(map(len, sets)) <= _MOST_TESTS:
        return "1", ()
    # four bytes of which two topics have a part each may be found too: then the block is unpacked for nothing
    test = " OR ".join(" AND ".join(["instr(topics, ?)"] * len(topics)) for topics in sets)
    return f"({test} OR topics = x'')", [topic_key(topic).to_bytes(4) for topics in sets for topic in topics]


def next_of(
    connection: sqlite3.Connection, kind: str, after: int, alternatives: Collection[Alternative], most: int
) -> tuple[list[int], int]:
    """Which of the next blocks may hold what is looked for, and up to which position they were looked for."""
    test, keys = test_of(frozenset(alternatives))
    window = _TESTS_AT_ONCE // max(len(keys), 1)
    rows = connection.execute(
        f"SELECT last FROM (SELECT last, topics FROM {kind}_blocks WHERE last > ? ORDER BY last LIMIT ?) "
        f"WHERE {test} LIMIT ?",
        (after, window, *keys, most),
    ).fetchall()
    found = [last for (last,) in rows]
    if len(found) == most:
        return found, found[-1]
    row = connection.execute(
        f"SELECT last FROM {kind}_blocks WHERE last > ? ORDER BY last LIMIT 1 OFFSET ?",
        (after, window - 1),
    ).fetchone()
    return found, row[0] if row else end(connection, kind)


def previous_of(
    connection: sqlite3.Connection, kind: str, upto: int, alternatives: Collection[Alternative], most: int
) -> tuple[list[int], int]:
    """Which blocks may hold what is looked for, backwards, and after which position they were looked for.

    upto: a position in the first of them, at most end().
    """
    test, keys = test_of(frozenset(alternatives))
    window = _TESTS_AT_ONCE // max(len(keys), 1)
    backwards = (
        f"FROM {kind}_blocks WHERE last <= (SELECT min(last) FROM {kind}_blocks WHERE last >= ?) "
        "ORDER BY last DESC LIMIT ?"
    )
    rows = connection.execute(
        f"SELECT last FROM (SELECT last, topics {backwards}) WHERE {test} LIMIT ?",
        (upto, window, *keys, most),
    ).fetchall()
    found = [last for (last,) in rows]
    if len(found) == most:
        (after,) = connection.execute(
            f"SELECT max(last) FROM {kind}_blocks WHERE last < ?", (found[-1],)
        ).fetchone()
        return found, after or 0
    row = connection.execute(f"SELECT last {backwards} OFFSET ?", (upto, 1, window)).fetchone()
    return found, row[0] if row else 0


def read(connection: sqlite3.Connection, kind: str, summary: Summary) -> Block:
    """Unpack a block. Raises Damaged if it is damaged."""
    row = connection.execute(f"SELECT data FROM {kind}_data WHERE last = ?", (summary.last,)).fetchone()
    return Block(summary, row[0] if row else b"")


def first_since(connection: sqlite3.Connection, kind: str, after: int, timestamp: float) -> Summary | None:
    """The first block, of those that go beyond a position, with an event at that time or later."""
    row = connection.execute(
        f"SELECT * FROM {kind}_blocks WHERE last >= ? AND last_timestamp >= ? ORDER BY last LIMIT 1",
        (after, timestamp),
    ).fetchone()
    return row and Summary(*row)


def mark_damaged(connection: sqlite3.Connection, kind: str) -> int:
    """Have blocks whose summaries are damaged be found by whatever is looked for. How many there are new."""
    rows = connection.execute(f"SELECT * FROM {kind}_blocks")
    damaged = [summary.last for row in rows if not (summary := Summary(*row)).is_whole and summary.topics]
    connection.executemany(
        f"UPDATE {kind}_blocks SET topics = x'' WHERE last = ?",
        [(last,) for last in damaged],
    )
    return len(damaged)


class Unpacked:
    """Blocks that were unpacked last."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[str, int, int], Block] = OrderedDict()

    def block(self, connection: sqlite3.Connection, kind: str, last: int) -> Block:
        """The block that goes up to a position. Raises Damaged if it is damaged."""
        row = connection.execute(f"SELECT * FROM {kind}_blocks WHERE last = ?", (last,)).fetchone()
        summary = Summary(*row)
        key = (kind, last, summary.summary_crc)
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = read(connection, kind, summary)
            if len(self._blocks) > _MOST_UNPACKED:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(key)
        return block
