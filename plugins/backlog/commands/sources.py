"""Lines that are to be imported: as they were streamed, or those of PyPubSub 0.7's file."""

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from core.errors import Refused
from core.events.cursor import Mark, position_at, position_of
from core.events.event import RESERVED_KEYS, Event, event_of, json_object, opening_of
from core.events.topics import checked_publish_path
from plugins.backlog.commands.opening import CommandError
from plugins.backlog.import_0_7 import OldLines

_LONGEST = 64 * 1024**2  # bytes of a line: a server's max_line_size is not known here
_AHEAD = 86_400.0  # seconds that an event may lie in the future
_PING = re.compile(rb'\{"stillalive": [0-9.e+-]+\}\s*')  # what stands between events in a recorded stream
_KEYS_OF_0_7 = {"timestamp", "topics", "json", "private"}
_ENDS_A_LINE = b"\0\r\n"


class Found(NamedTuple):
    """What a line is, which has this number: an event, or the reason why it is none."""

    number: int
    event: Event | None
    reason: str = ""
    old_cursor: str | None = None  # that 0.7 gave it


class Source:
    """SOURCE: a file, or - for stdin."""

    def __init__(self, name: str) -> None:
        self.name = "stdin" if name == "-" else name
        self.file: IO[bytes] = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115 (the process reads it to its end)
        self.size = 0 if name == "-" else Path(name).stat().st_size
        self.done = 0  # bytes that were read
        self.is_of_0_7 = False

    def events(self, now: Mark) -> Iterator[Found]:
        """What its lines are. Raises CommandError if it is something else altogether, OSError."""
        lines = self._lines()
        first = next(lines, None)
        if first is None:
            return
        if first[1].startswith(b"SQLite format 3\0"):
            raise CommandError(f"{self.name}: is a database: `backlog export` makes lines of a backlog")
        self.is_of_0_7 = _is_of_0_7(first[1])
        yield from (_old_events if self.is_of_0_7 else _events)(_chained(first, lines), now)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Their numbers, and all that are not empty."""
        number = 0
        while line := self.file.readline(_LONGEST + 1):
            number += 1
            self.done += len(line)
            if len(line) > _LONGEST and not line.endswith(b"\n"):
                raise CommandError(f"{self.name}: line {number}: is longer than {_LONGEST} bytes")
            if line.strip() and not _PING.fullmatch(line.strip(_ENDS_A_LINE)):
                yield number, line


def _chained(first: tuple[int, bytes], others: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    yield first
    yield from others


def _is_of_0_7(line: bytes) -> bool:
    with suppress(ValueError, RecursionError):
        entry = json.loads(line)
        return isinstance(entry, dict) and entry.keys() >= _KEYS_OF_0_7 and "pubsub_cursor" not in entry
    return line.startswith(b'{"timestamp": ')


def _old_events(lines: Iterable[tuple[int, bytes]], now: Mark) -> Iterator[Found]:
    reader = OldLines(_LONGEST, now)
    for number, line in lines:
        try:
            event, old_cursor = reader.read(line)
        except ValueError as error:
            yield Found(number, None, str(error))
        else:
            yield Found(number, event, old_cursor=old_cursor)


def _events(lines: Iterable[tuple[int, bytes]], _: Mark) -> Iterator[Found]:
    before = Mark(0, 0.0)
    latest = time.time() + _AHEAD
    for number, line in lines:
        try:
            event = event_in(line if line.endswith(b"\n") else line + b"\n", latest)
        except Refused as refused:
            yield Found(number, None, refused.message)
            continue
        except ValueError as error:
            yield Found(number, None, str(error))
            continue
        if event.stamp.position <= before.position:
            yield Found(number, None, "out of order: its cursor is not after that of the line before")
        elif event.stamp.timestamp < before.timestamp:
            yield Found(number, None, "out of order: its pubsub_timestamp is before that of the line before")
        else:
            before = Mark(event.stamp.position, event.stamp.timestamp)
            yield Found(number, event)


def event_in(line: bytes, latest: float) -> Event:
    """The event that a line is, byte for byte. Raises Refused, ValueError, which say what is wrong with it.

    latest: the last pubsub_timestamp that it may have.
    """
    if not line.isascii():
        raise ValueError("has characters beyond ASCII, which are escaped in a line")
    payload = json_object(line.decode())
    for key in RESERVED_KEYS:
        if key not in payload:
            raise ValueError(f"{key} is missing")
    topics, text, timestamp, cursor = (payload[key] for key in RESERVED_KEYS)
    _check_stamp(timestamp, cursor, latest)
    if not isinstance(text, str):
        raise ValueError("pubsub_path is no path")  # noqa: TRY004 (it is the line that is wrong)
    path = checked_publish_path(text)
    opening = opening_of(payload, path, _LONGEST)
    if path.text != text:
        raise ValueError("pubsub_path is not as a server writes it: /fruits/apples")
    if topics != list(path.topics):
        raise ValueError("pubsub_topics are not those of pubsub_path")
    event = event_of(path, line)
    if Event(path, opening, event.stamp).line != line:
        raise ValueError("is not, byte for byte, as a server writes it: keys, order, spaces, escapes")
    return event


def _check_stamp(timestamp: object, cursor: object, latest: float) -> None:
    position = position_of(cursor) if isinstance(cursor, str) and cursor == cursor.lower() else None
    if position is None:
        raise ValueError("pubsub_cursor is none of this server's (a UUID of version 7)")
    if not isinstance(timestamp, float) or not timestamp >= 0:
        raise ValueError("pubsub_timestamp is no time")
    if timestamp > latest or position > position_at(latest):
        raise ValueError("lies more than a day in the future")
    if position < position_at(timestamp):
        raise ValueError("pubsub_cursor is from before pubsub_timestamp")
