"""Whether a backlog's file is as it was written: all checksums, and what must hold between its parts."""

import argparse
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise

from core.events.event import event_of, position_in, timestamp_in
from core.events.topics import publish_path
from plugins.backlog.block import Block, Damaged, Summary
from plugins.backlog.commands.moments import iso, place
from plugins.backlog.commands.opening import reading, snapshot
from plugins.backlog.commands.walking import Row, walk
from plugins.backlog.departed import keys_of
from plugins.backlog.schema import KINDS

_MOST_SHOWN = 1000  # troubles
_UNREADABLE = (ValueError, KeyError, IndexError, struct.error, UnicodeError)  # what else bytes may bring


def run(arguments: argparse.Namespace) -> int:
    """Print what is wrong with it, one line each. 0 if it is as it was written."""
    count = 0
    with reading(arguments.file) as connection:
        for count, trouble in enumerate(_troubles(connection), 1):
            print(f"{arguments.file}: {trouble}")
            if count == _MOST_SHOWN:
                print(f"{arguments.file}: and so on")
                break
    if not count:
        print(f"{arguments.file}: is as it was written")
    return 1 if count else 0


def _troubles(connection: sqlite3.Connection) -> Iterator[str]:
    checks = [_structure(connection), _counts(connection)]
    checks += [check(connection, kind) for kind in KINDS for check in (_orphans, _contents)]
    for check in checks:
        try:
            yield from check
        except sqlite3.DatabaseError as error:  # the others may tell more
            yield f"cannot be read: {error}"


def _structure(connection: sqlite3.Connection) -> Iterator[str]:
    """What SQLite finds. It takes one long look, while which the -wal cannot be cut back."""
    for (text,) in connection.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield from (f"SQLite: {line}" for line in text.splitlines())


def _counts(connection: sqlite3.Connection) -> Iterator[str]:
    with snapshot(connection):
        life = connection.execute("SELECT began_position, reserved FROM life").fetchall()
        held = dict(connection.execute("SELECT kind, held FROM kinds"))
        found = {kind: _counted(connection, kind) for kind in KINDS}
    if len(life) != 1 or held.keys() != set(KINDS):
        yield "lacks what it was made with"
        return
    for kind, (events, end) in found.items():
        if events != held[kind]:
            yield f"{kind}: has {events} events, and should have {held[kind]}"
        if end > life[0][1]:
            yield f"{kind}: its last event, at {place(end)}, is later than any that was given a place"


def _counted(connection: sqlite3.Connection, kind: str) -> tuple[int, int]:
    """How many events there are of a kind, and the position of the last one."""
    row: tuple[int, int] = connection.execute(
        f"SELECT (SELECT count(*) FROM {kind}) + (SELECT ifnull(sum(events), 0) FROM {kind}_blocks), "
        f"max((SELECT ifnull(max(position), 0) FROM {kind}), "
        f"(SELECT ifnull(max(last), 0) FROM {kind}_blocks))"
    ).fetchone()
    return row


def _orphans(connection: sqlite3.Connection, kind: str) -> Iterator[str]:
    with snapshot(connection):
        found = connection.execute(
            f"SELECT last FROM {kind}_data EXCEPT SELECT last FROM {kind}_blocks"
        ).fetchall()
    for (last,) in found:
        yield f"{kind}: the block up to {place(last)} has data, and nothing else is known of it"


def _contents(connection: sqlite3.Connection, kind: str) -> Iterator[str]:
    """What is wrong with blocks and rows, and with their order."""
    end, newest = -1, 0.0  # of the last block
    newest_row = 0.0  # apart, since rows may be sealed meanwhile, and come again
    for part in walk(connection, kind):
        if not isinstance(part, tuple):
            for row in part:
                where = f"{kind}: the event at {place(row[0])}"
                yield from (f"{where} {trouble}" for trouble in trouble_of_row(row))
                newest_row = max(newest, newest_row)
                if row[1] < newest_row:
                    yield f"{where} is from before the one in front of it ({iso(newest_row)})"
                newest_row = row[1]
            continue
        summary, data = part
        where = f"{kind}: the block up to {place(summary.last)}"
        troubles = list(trouble_of_block(summary, data))
        yield from (f"{where} {trouble}" for trouble in troubles)
        if not troubles:
            first = Block(summary, data or b"").lines[0]
            if position_in(first) <= end or timestamp_in(first) < newest:
                yield f"{where} begins before the end of the one in front of it"
            newest = summary.last_timestamp
        end = summary.last


def trouble_of_row(row: Row) -> Iterator[str]:
    """What is wrong with a row, taken alone."""
    position, timestamp, path, line, crc = row
    if not isinstance(line, bytes) or zlib.crc32(line) != crc:
        yield "is damaged: its checksum is wrong"
        return
    try:
        event = event_of(publish_path(path), line)
    except _UNREADABLE as error:
        yield f"is damaged: {error}"
        return
    if (event.stamp.position, event.stamp.timestamp, event.path.text) != (position, timestamp, path):
        yield "is damaged: it is another one than its line says"


def trouble_of_block(summary: Summary, data: bytes | None) -> Iterator[str]:
    """What is wrong with a block, taken alone."""
    if not summary.is_whole:
        yield "is damaged: the checksum of its summary is wrong"
        return
    if data is None or len(data) != summary.size:
        yield "is damaged: its data are missing, or not all there"
        return
    try:
        block = Block(summary, data)
        events = [event_of(publish_path(path), line) for path, line in block]
    except Damaged:
        yield "is damaged: the checksum of its data is wrong"
        return
    except _UNREADABLE as error:
        yield f"is damaged: {error}"
        return
    stamps = [event.stamp for event in events]
    if len(events) != summary.events:
        yield f"has {len(events)} events, and should have {summary.events}"
    if any(
        one.position >= next_.position or one.timestamp > next_.timestamp for one, next_ in pairwise(stamps)
    ):
        yield "has events that are not in order"
    if stamps[-1].position > summary.last:
        yield "has events beyond its end"
    if (stamps[0].timestamp, stamps[-1].timestamp) != (summary.first_timestamp, summary.last_timestamp):
        yield "has events of other times than its summary says"
    if set(summary.topic_keys) != set().union(*map(keys_of, block.paths)):
        yield "has other topics than its summary says"
