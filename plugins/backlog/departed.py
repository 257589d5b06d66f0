"""Up to where events have left a backlog, by topic: what decides whether a replay is complete.

It is an upper bound: that of a set of topics is the least of its topics', and topics whose events left long
ago are remembered together. So a reader may be told that something is missing that it did not ask for, and
never the other way round.
"""

import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable

from core.events.cursor import Mark
from core.events.replay import NOTHING
from core.events.subscription import Alternative
from core.events.topics import ByPath, PublishPath

MOST_TOPICS = 20_000  # of each kind that are remembered
_TOO_MANY = 1.1  # of them, from which on some are let go of


def topic_key(topic: str) -> int:
    """What a topic is remembered by: 32 bits. It shares its bound with other topics of the same key."""
    return zlib.crc32(topic.encode())


def _keys_of(path: PublishPath) -> frozenset[int]:
    return frozenset(map(topic_key, path.topics))


# those of the topics of an event's path; the `private` that it begins with is none
keys_of: Callable[[str], frozenset[int]] = ByPath(_keys_of).__getitem__


class Departed:
    """The latest event of one kind that has left; of all, and of each topic.

    One thread may change it while others ask: no bound is ever lower than it must be, but for undo().
    """

    def __init__(self) -> None:
        self.latest = NOTHING
        self._floor = NOTHING  # of the topics that are not remembered
        self._topics: dict[int, Mark] = {}
        self._before: dict[int, Mark | None] = {}  # topics that have changed since the last save()
        self._saved = (NOTHING, NOTHING)

    def leave(self, topics: Iterable[int], mark: Mark) -> None:
        """Note that an event has left, or several up to one; by the keys of its topics."""
        self.latest = max(self.latest, mark)
        for topic in topics:
            before = self._topics.get(topic)
            if before is None or before < mark:
                self._before.setdefault(topic, before)
                self._topics[topic] = mark
        if len(self._topics) > MOST_TOPICS * _TOO_MANY:
            self._forget_some()

    def leave_unknown(self, mark: Mark) -> None:
        """Note that events up to one have left, of which nobody knows the topics."""
        self.latest = max(self.latest, mark)
        self._floor = max(self._floor, mark)

    def _forget_some(self) -> None:
        by_age = sorted(self._topics.items(), key=lambda item: item[1])
        surplus = by_age[: len(by_age) - MOST_TOPICS]
        self._floor = max(self._floor, surplus[-1][1])
        for topic, mark in surplus:
            self._before.setdefault(topic, mark)
            del self._topics[topic]

    def of(self, alternatives: Collection[Alternative]) -> Mark:
        """The latest that may have had all topics of one of these sets. NOTHING if none has left."""
        latest = NOTHING
        for alternative in alternatives:
            if self.latest <= latest:
                break
            marks = (max(self._topics.get(topic_key(topic), NOTHING), self._floor) for topic in alternative)
            latest = max(latest, min(marks, default=self.latest))
        return latest

    # In a file

    def load(self, connection: sqlite3.Connection, kind: str) -> None:
        """Begin with what a file has of a kind."""
        lost = connection.execute(
            "SELECT lost_position, lost_timestamp FROM kinds WHERE kind = ?", (kind,)
        ).fetchone()
        floor = connection.execute(
            "SELECT position, timestamp FROM floors WHERE kind = ?", (kind,)
        ).fetchone()
        rows = connection.execute("SELECT topic, position, timestamp FROM departed WHERE kind = ?", (kind,))
        self._topics = {topic: Mark(position, timestamp) for topic, position, timestamp in rows}
        self.latest = Mark(*lost) if lost[0] else NOTHING
        self._floor = Mark(*floor) if floor[0] else NOTHING
        self.saved()

    def save(self, connection: sqlite3.Connection, kind: str) -> None:
        """Write what has changed, in a transaction; then call saved() once it is committed, or undo()."""
        if (self.latest, self._floor) == self._saved and not self._before:
            return
        connection.execute(
            "UPDATE kinds SET lost_position = ?, lost_timestamp = ? WHERE kind = ?",
            (*_row(self.latest), kind),
        )
        connection.execute(
            "UPDATE floors SET position = ?, timestamp = ? WHERE kind = ?", (*_row(self._floor), kind)
        )
        changed = {topic: self._topics.get(topic) for topic in self._before}
        connection.executemany(
            "INSERT OR REPLACE INTO departed VALUES (?, ?, ?, ?)",
            [(kind, topic, *mark) for topic, mark in changed.items() if mark],
        )
        connection.executemany(
            "DELETE FROM departed WHERE kind = ? AND topic = ?",
            [(kind, topic) for topic, mark in changed.items() if not mark],
        )

    def saved(self) -> None:
        """It is as the file has it."""
        self._saved = self.latest, self._floor
        self._before.clear()

    def undo(self) -> None:
        """Be again as the file has it: nothing has left since."""
        self.latest, self._floor = self._saved
        for topic, mark in self._before.items():
            if mark is None:
                self._topics.pop(topic, None)
            else:
                self._topics[topic] = mark
        self._before.clear()


def _row(mark: Mark) -> tuple[int, float]:
    return mark if mark.position else (0, 0.0)
