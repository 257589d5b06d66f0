"""The backlog file of PyPubSub 0.7, turned into one of this version at the first start.

It holds a JSON object a line, oldest first:
{"timestamp": float, "topics": [str], "json": payload, "private": bool}.
The new file is written beside it and takes its place in one step once it is complete, so an import that was
interrupted begins anew. The old one stays, under another name.
"""

import itertools
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import Refused, StartError
from core.events.cursor import TICKS_PER_SECOND, Mark, stamp_at
from core.events.event import MAX_DEPTH, MAX_INTEGER_DIGITS, Event, depth_of, opening_of
from core.events.replay import is_cursor
from core.events.store import Accepted
from core.events.topics import publish_path
from plugins.backlog.database import BacklogFile, Write
from plugins.backlog.sqlite_file import remove_database, sync_directory

log = logging.getLogger("pypubsub.backlog")

_BATCH = 1000  # events of a transaction
_HEAD = 64 * 1024  # bytes of a file by which it is told what it is
_OF_0_7 = re.compile(rb'^\{"timestamp": ', re.MULTILINE)  # how its lines begin


class OldEvent(NamedTuple):
    """An event of an old file."""

    event: Event
    cursor: str | None  # that 0.7 gave it, a random UUID


def is_old_backlog(path: Path) -> bool:
    """Whether there is a file that may be one of 0.7's: with a line that begins an object. Raises OSError."""
    if not path.is_file():
        return False
    head = _head(path)
    return not head.startswith(b"SQLite format 3\0") and re.search(rb"^\s*\{", head, re.MULTILINE) is not None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def import_old_backlog(path: Path, size: int, max_line_size: int, now: Mark) -> None:
    """Put a new backlog in the place of an old one. Raises OSError, StartError, StoreError.

    size: events of each kind that are kept; now: a moment before every event to come.
    """
    new_path = path.with_name(f"{path.name}.importing")
    remove_database(new_path)  # what is left of an import that was interrupted
    new = BacklogFile(new_path, size, window=0)
    try:
        new.open(now, from_the_start=False)
        count = _fill(new, _events(path, max_line_size, now), path, now)
        new.complete()
        kept = _keep(path)
        new_path.replace(path)
    except BaseException:
        new.close_writer()
        remove_database(new_path)
        raise
    sync_directory(path.parent)
    events = "event" if count == 1 else "events"
    log.info("%s: %d %s imported from a backlog of PyPubSub 0.7, which is now %s", path, count, events, kept)


def _fill(new: BacklogFile, olds: Iterator[OldEvent | None], path: Path, now: Mark) -> int:
    """Store events. How many.

    The new backlog knows the cursors of all of them, but for replays by time, and by cursors of 0.7's, it
    begins after the last line that was skipped. Raises StartError if there are none, and the old file does
    not look as if there ever had been.
    """
    count = 0
    began_position, began_timestamp = now
    whole_after = 0  # position of the last event before a line that was skipped
    skipped = True  # as what came before the first line
    while portion := list(itertools.islice(olds, _BATCH)):
        batch: list[Event] = []
        cursors: dict[str, int] = {}
        for old in portion:
            if old is None:
                skipped = True
                continue
            event, cursor = old
            batch.append(event)
            if skipped:
                whole_after = event.stamp.position - 1
                began_timestamp, skipped = event.stamp.timestamp, False
            if cursor is not None:
                cursors[cursor] = event.stamp.position
        if batch:
            began_position = min(began_position, batch[0].stamp.position - 1)
            accepted = Accepted(batch[-1].stamp, len(batch))
            new.store([Write(batch, None, accepted)], end=0, now=now.timestamp)
            new.name_imported(cursors)
            count += len(batch)
    new.mark_whole(after=now.position if skipped else whole_after)
    if not count and not _OF_0_7.search(_head(path)):
        raise StartError(f"server.backlog.storage: {path}: is no backlog: there is not one event in it")
    new.begin(Mark(began_position, now.timestamp if skipped else began_timestamp))
    return count


def _events(path: Path, max_line_size: int, now: Mark) -> Iterator[OldEvent | None]:
    """The events of an old file, stamped in their order.

    None where there is none to be had: the line's number is reported.
    """
    reader = OldLines(max_line_size, now)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield reader.read(line)
            except ValueError as error:
                log.warning("%s: line %d skipped: %s", path, number, error)
                yield None


class OldLines:
    """The lines of an old file, one after the other, as events that are stamped in their order.

    now: when there may be events of this version.
    """

    def __init__(self, max_line_size: int, now: Mark) -> None:
        self._max_line_size = max_line_size
        self._now = now
        self._position, self._timestamp = 0, 0.0

    def read(self, line: bytes) -> OldEvent:
        """The event of the next line. Raises ValueError, which says what is wrong with it."""
        try:
            at, event_path, payload = _read(line)
            cursor = payload.get("pubsub_cursor")
            opening = opening_of(payload, publish_path(event_path), self._max_line_size)
        except (Refused, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(_reason(error, line)) from error
        # never less than that of the event before
        self._timestamp = min(max(self._timestamp, at), self._now.timestamp)
        self._position = max(self._position + 1, int(self._timestamp * TICKS_PER_SECOND))
        event = Event(publish_path(event_path), opening, stamp_at(self._position, self._timestamp))
        return OldEvent(event, cursor if isinstance(cursor, str) and is_cursor(cursor) else None)


def _read(line: bytes) -> tuple[float, str, dict[str, Any]]:
    """Timestamp, path and payload. Raises what json.loads raises, KeyError, TypeError, ValueError."""
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise TypeError("no JSON object")
    timestamp, topics, payload = entry["timestamp"], entry["topics"], entry["json"]
    if isinstance(timestamp, bool) or not isinstance(timestamp, int | float) or not 0 <= timestamp < math.inf:
        raise ValueError('"timestamp" is no time')
    if not isinstance(topics, list) or not all(isinstance(topic, str) for topic in topics):
        raise TypeError('"topics" is no list of texts')
    if any("/" in topic or "," in topic for topic in topics):
        raise ValueError("a topic with a / or a comma, which nobody could follow")
    if not isinstance(payload, dict):
        raise TypeError('"json" is no JSON object')
    if depth_of(json.dumps(payload)) > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return float(timestamp), "/".join(["private", *topics] if entry["private"] else topics), payload


def _reason(error: Exception, line: bytes) -> str:
    reason = str(error)
    if not line.strip(b"\0 \t\r\n"):
        reason = "a line of NULs, as a crash of the machine leaves them"
    elif isinstance(error, KeyError):
        reason = f'"{error.args[0]}" is missing'
    elif isinstance(error, UnicodeDecodeError) or b"\0" in line:  # json takes NULs for UTF-16 or UTF-32
        reason = "not UTF-8"
    elif isinstance(error, json.JSONDecodeError):
        reason = f"not JSON from column {error.colno} on: perhaps cut short"
    elif isinstance(error, RecursionError):
        reason = f"nested more than {MAX_DEPTH} deep"
    elif reason.startswith("Exceeds the limit"):  # of int(), to which json leaves long integers
        reason = f"an integer of more than {MAX_INTEGER_DIGITS} digits"
    return reason


def _keep(path: Path) -> Path:
    """Give a file a second name, under which it stays. The name."""
    number = 0
    while True:
        kept = path.with_name(f"{path.name}.0.7{f'.{number}' if number else ''}")
        try:
            os.link(path, kept)
        except FileExistsError:
            if kept.samefile(path):  # from an import that was interrupted at its very end
                return kept
            number += 1
        except OSError:  # a file system without hard links
            shutil.copy2(path, kept)
            return kept
        else:
            return kept
