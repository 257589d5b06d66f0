"""What a backlog's file remembers beside events: answers to publishers who may ask again, items of queues.

Times are seconds that the file has lived: see plugins.backlog.ages.
"""

import sqlite3
from collections.abc import Iterable

from core.events.cursor import Stamp, position_of, stamp_at
from core.events.idempotency import (
    MAX_ITEMS,
    MAX_REMEMBERED,
    SCOPE_SIZE,
    IdempotencyKey,
    QueueItem,
    fair_share,
)
from core.events.store import Accepted, RememberedReply

_MOST_ANSWERS = 1.1  # of those that are remembered: more only if writes have failed that would let go of some
_PUBLISHER = f"substr(scope, 1, max(length(scope) - {SCOPE_SIZE}, 0))"  # of an answer


def keep_answers(
    connection: sqlite3.Connection, answers: Iterable[tuple[IdempotencyKey, Accepted]], now: float
) -> None:
    """Remember answers from now on."""
    rows = [(key.name, key.body, last.cursor, last.timestamp, events, now) for key, (last, events) in answers]
    if rows:
        connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?)", rows)


def let_go_of_answers(connection: sqlite3.Connection, names: Iterable[bytes]) -> None:
    """Forget answers, by IdempotencyKey.name."""
    rows = [(name,) for name in names]
    if rows:
        connection.executemany("DELETE FROM answers WHERE scope = ?", rows)


def keep_items(connection: sqlite3.Connection, items: Iterable[tuple[QueueItem, int]], now: float) -> None:
    """Remember items from now on, each with the position of the last event that was stored beside its own."""
    rows = [(item.queue, item.id, position, now + item.window) for item, position in items]
    if rows:
        connection.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", rows)


def answers(connection: sqlite3.Connection, now: float, window: float) -> list[RememberedReply]:
    """The answers that are not older than the window, the oldest first."""
    rows = connection.execute(
        "SELECT scope, body, cursor, timestamp, events, at FROM answers WHERE at > ? ORDER BY at",
        (now - window,),
    )
    return [
        RememberedReply(
            IdempotencyKey(scope[-SCOPE_SIZE:], body, scope[:-SCOPE_SIZE]),
            Accepted(Stamp(position_of(cursor) or 0, cursor, timestamp), events),
            max(0.0, now - at),
        )
        for scope, body, cursor, timestamp, events, at in rows
    ]


def items(connection: sqlite3.Connection, queue: str, now: float) -> list[tuple[bytes, float]]:
    """The items of a queue, the oldest first, and for how many seconds each is remembered yet."""
    return connection.execute(
        "SELECT id, until - :now FROM items WHERE queue = :queue AND until > :now ORDER BY until",
        {"queue": queue, "now": now},
    ).fetchall()


def forget_answers(connection: sqlite3.Connection, now: float, window: float) -> None:
    """Let go of the answers that are older than the window.

    If there are too many, of the oldest of those publishers who have the most, too.
    """
    connection.execute("DELETE FROM answers WHERE at < ?", (now - window,))
    (count,) = connection.execute("SELECT count(*) FROM answers").fetchone()
    if count <= MAX_REMEMBERED * _MOST_ANSWERS:
        return
    counts = connection.execute(f"SELECT {_PUBLISHER}, count(*) FROM answers GROUP BY 1").fetchall()
    share = fair_share((count for _, count in counts), MAX_REMEMBERED)
    connection.executemany(
        "DELETE FROM answers WHERE scope IN (SELECT scope FROM answers "
        f"WHERE {_PUBLISHER} = ? ORDER BY at LIMIT ?)",
        [(publisher, count - share) for publisher, count in counts if count > share],
    )


def forget_items(connection: sqlite3.Connection, now: float) -> None:
    """Let go of the items that are remembered long enough, or are too many."""
    for (queue,) in connection.execute("SELECT DISTINCT queue FROM items").fetchall():
        connection.execute(
            "DELETE FROM items WHERE queue = :queue AND until < max(:now, ifnull("
            "(SELECT until FROM items WHERE queue = :queue ORDER BY until DESC LIMIT 1 OFFSET :others), 0))",
            {"queue": queue, "now": now, "others": MAX_ITEMS - 1},
        )


def forget_beyond(connection: sqlite3.Connection, end: int) -> None:
    """Let go of what was remembered with events after a position."""
    connection.execute("DELETE FROM answers WHERE cursor > ?", (stamp_at(end + 1, 0.0).cursor[:18],))
    connection.execute("DELETE FROM items WHERE position > ?", (end,))
