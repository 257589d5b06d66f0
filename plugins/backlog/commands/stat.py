"""How much is in a backlog's file."""

import argparse
import json
import sqlite3
from collections import Counter
from typing import Any

from core.delivery.wire import chunk
from core.events.event import position_in
from plugins.backlog.block import Block, Damaged, Summary, counted_paths, size_of_chunks
from plugins.backlog.commands.moments import iso
from plugins.backlog.commands.opening import bytes_of, reading, snapshot
from plugins.backlog.commands.walking import walk
from plugins.backlog.finding import newest
from plugins.backlog.schema import KINDS

_MOST_TOPICS = 20  # that are shown
NO_TOPIC, UNKNOWN = "(none)", "(damaged)"


def run(arguments: argparse.Namespace) -> int:
    """Print what is known of it."""
    with reading(arguments.file) as connection:
        found = _facts(connection)
    size = bytes_of(arguments.file)
    events = sum(found[kind]["events"] for kind in KINDS)
    each = round(size / events, 1) if events else None
    found = {"file": str(arguments.file), "bytes": size, "bytes_per_event": each, **found}
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    return 0


def _facts(connection: sqlite3.Connection) -> dict[str, Any]:
    with snapshot(connection):
        began, from_the_start = connection.execute(
            "SELECT began_timestamp, from_the_start FROM life"
        ).fetchone()
        left = dict(connection.execute("SELECT kind, lost_timestamp FROM kinds WHERE lost_position > 0"))
        ends = {kind: newest(connection, kind) for kind in KINDS}
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        end = ends[kind]
        kinds[kind] = _Kind(connection, kind, end.position).facts() if end else _Kind.none()
        kinds[kind]["last_that_left"] = iso(left[kind]) if kind in left else None
    return {"memory_began": iso(began), "from_the_start": bool(from_the_start), **kinds}


class _Kind:
    """What is found of the public events, or of the private ones, up to a position."""

    def __init__(self, connection: sqlite3.Connection, kind: str, upto: int) -> None:
        self._topics: Counter[str] = Counter()
        self._blocks = self._rows = self._in_blocks = self._damaged = self._size = 0
        self._times: tuple[float, float] | None = None
        self._after = -1  # position of the last row
        for part in walk(connection, kind, upto):
            if isinstance(part, tuple):
                self._add_block(*part)
                continue
            for position, timestamp, path, line, _ in part:
                self._topics[first_topic(path)] += 1
                self._size += len(chunk(line))
                self._note(timestamp, timestamp)
                self._after = position
            self._rows += len(part)

    def _add_block(self, summary: Summary, data: bytes | None) -> None:
        try:
            if self._after >= 0:  # it has been sealed meanwhile
                block = Block(summary, data or b"")
                new = [(path, line) for path, line in block if position_in(line) > self._after]
                paths = Counter(path for path, _ in new)
                self._size += sum(len(chunk(line)) for _, line in new)
            else:
                paths = counted_paths(summary, data or b"")
                self._size += size_of_chunks(summary, data or b"")
        except Damaged:
            paths = Counter()
            self._damaged += 1
            if summary.is_whole:
                self._topics[UNKNOWN] += summary.events
                self._in_blocks += summary.events
        for path, count in paths.items():
            self._topics[first_topic(path)] += count
            self._in_blocks += count
        self._blocks += 1
        if summary.is_whole:
            self._note(summary.first_timestamp, summary.last_timestamp)

    def _note(self, first: float, last: float) -> None:
        self._times = (self._times[0] if self._times else first, last)

    def facts(self) -> dict[str, Any]:
        """By name, as they are printed."""
        oldest, latest = self._times or (None, None)
        return {
            "events": self._in_blocks + self._rows,
            "bytes_as_sent": self._size,
            "oldest": oldest if oldest is None else iso(oldest),
            "newest": latest if latest is None else iso(latest),
            "blocks": self._blocks,
            "damaged_blocks": self._damaged,
            "rows": self._rows,
            "topics": dict(self._topics.most_common()),
        }

    @staticmethod
    def none() -> dict[str, Any]:
        """The same where there are no events."""
        keys = ("events", "bytes_as_sent", "oldest", "newest", "blocks", "damaged_blocks", "rows", "topics")
        return dict.fromkeys(keys, 0) | {"oldest": None, "newest": None, "topics": {}}


def first_topic(path: str) -> str:
    """By which events are counted: the first, but for `private`."""
    return next(iter(path.removeprefix("/private").split("/")[1:2]), "") or NO_TOPIC


def _print(found: dict[str, Any]) -> None:
    each = f", {found['bytes_per_event']} an event" if found["bytes_per_event"] else ""
    print(f"{found['file']}: {found['bytes']} bytes{each}")
    known = ", and nothing was published before" if found["from_the_start"] else ""
    print(f"its memory began {found['memory_began']}{known}")
    print(f"{'':18}{'public':>26}{'private':>26}")
    for key in ("events", "bytes_as_sent", "oldest", "newest", "blocks", "rows", "last_that_left"):
        values = (found[kind][key] for kind in KINDS)
        shown = "".join(f"{'-' if value is None else value:>26}" for value in values)
        print(f"{key.replace('_', ' '):18}{shown}")
    if damaged := sum(found[kind]["damaged_blocks"] for kind in KINDS):
        print(f"{damaged} blocks are damaged: `backlog check` tells which")
    for kind in KINDS:
        topics = found[kind]["topics"]
        if topics:
            print(f"{kind} events by their first topic:")
        for topic in list(topics)[:_MOST_TOPICS]:
            print(f"{topics[topic]:12}  {json.dumps(topic)[1:-1]}")  # a terminal would obey some characters
        if len(topics) > _MOST_TOPICS:
            others = sum(list(topics.values())[_MOST_TOPICS:])
            print(f"{others:12}  of {len(topics) - _MOST_TOPICS} others")
