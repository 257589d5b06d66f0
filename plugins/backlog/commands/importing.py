"""Lines become events of a backlog's file: all of them, in one transaction, or none.

A new file is written beside its place, and put there in one step.
"""

import argparse
import sqlite3
import sys
from pathlib import Path

from core.events.cursor import Mark
from core.events.event import Event
from plugins.backlog.ages import since_boot, this_boot
from plugins.backlog.block import Damaged
from plugins.backlog.commands.mending import UNBOUNDED, WAY_OUT, Mendable
from plugins.backlog.commands.merging import Merger
from plugins.backlog.commands.moments import now_mark
from plugins.backlog.commands.opening import (
    CommandError,
    Progress,
    check_file,
    give_to_owner_of,
    locked,
)
from plugins.backlog.commands.sources import Found, Source
from plugins.backlog.database import Clock
from plugins.backlog.schema import KINDS
from plugins.backlog.sqlite_file import remove_database, sync_directory

_MOST_REPORTED = 50  # bad lines


def run(arguments: argparse.Namespace) -> int:
    """Import SOURCE into FILE."""
    path: Path = arguments.file
    source = Source(arguments.source)
    with locked(path):
        if path.exists() and path.stat().st_size:
            check_file(path)
            if arguments.whole:
                raise CommandError(f"{path}: is there already: --whole is for a new file")
            imported = _import(path, source, arguments, new=False)
        else:
            imported = _import_into_new(path, source, arguments)
    print(f"{path}: {imported}")
    return 0


def _import_into_new(path: Path, source: Source, arguments: argparse.Namespace) -> str:
    wal = Path(f"{path}-wal")
    if wal.exists() and wal.stat().st_size:
        raise CommandError(f"{wal}: is left of another file: take it away first")
    new_path = path.with_name(f"{path.name}.importing")
    remove_database(new_path)  # what is left of an import that was interrupted
    try:
        imported = _import(new_path, source, arguments, new=True)
        give_to_owner_of(path.parent, new_path)
        new_path.replace(path)
    except BaseException:
        remove_database(new_path)
        raise
    sync_directory(path.parent)
    return imported


def _import(path: Path, source: Source, arguments: argparse.Namespace, *, new: bool) -> str:
    now = now_mark()
    file = Importing(path, UNBOUNDED, window=0)
    file.open(now, from_the_start=False)
    try:
        found = file.take(source, now, whole=arguments.whole, skip_bad=arguments.skip_bad)
        if new:
            file.complete()
    finally:
        file.close_writer()
    return found


class _Count:
    """What has become of the lines."""

    def __init__(self) -> None:
        self.held = self.bad = 0
        self.whole_since: Mark | None = None  # just before the first event after the last bad line


class Importing(Mendable):
    """A file that takes lines."""

    def take(self, source: Source, now: Mark, *, whole: bool, skip_bad: bool) -> str:
        """Take all events of a source that are not held. What there was, in words."""
        count = _Count()
        progress = Progress(source.size)
        with self._transaction() as connection:
            mergers = {kind: Merger(connection, kind, self._leaving[kind].held) for kind in KINDS}
            try:
                for found in source.events(now):
                    self._take(connection, mergers, found, count, source)
                    progress.at(source.done, sum(merger.added for merger in mergers.values()))
                for merger in mergers.values():
                    merger.finish()
            except Damaged as error:
                raise CommandError(f"{self._path}: {error}: {WAY_OUT}") from error
            except ValueError as error:
                raise CommandError(f"{source.name}: {error}: nothing is imported") from error
            finally:
                progress.end()
            if count.bad and not skip_bad:
                raise CommandError(
                    f"{source.name}: {count.bad} bad lines: nothing is imported (--skip-bad leaves them out)"
                )
            added = {kind: merger.added for kind, merger in mergers.items()}
            if not any(added.values()) and not count.held:
                raise CommandError(f"{source.name}: there is not one event in it")
            if any(added.values()):
                self._begin_life(connection, now, count, whole=whole)
        return (
            f"{sum(added.values())} events imported ({added['public']} public, {added['private']} private), "
            f"{count.held} were held already, {count.bad} bad lines left out"
        )

    def _take(
        self,
        connection: sqlite3.Connection,
        mergers: dict[str, Merger],
        found: Found,
        count: _Count,
        source: Source,
    ) -> None:
        number, event, reason, old_cursor = found
        if event:
            held = _line_in_place_of(mergers, event)
            if _is_known(connection, old_cursor) or (held and _is_same(held, event, of_0_7=source.is_of_0_7)):
                count.held += 1
                return
            reason = "another event is held in its place" if held else ""
        if not event or reason:
            count.bad += 1
            count.whole_since = None
            if count.bad <= _MOST_REPORTED:
                print(f"{source.name}: line {number}: {reason}", file=sys.stderr)
            return
        count.whole_since = count.whole_since or Mark(event.stamp.position - 1, event.stamp.timestamp)
        mergers["private" if event.path.private else "public"].add(event)
        if old_cursor:
            row = old_cursor, event.stamp.position
            connection.execute("INSERT INTO imported VALUES (?, ?, 0)", row)

    def _begin_life(self, connection: sqlite3.Connection, now: Mark, count: _Count, *, whole: bool) -> None:
        """Have the memory begin: now, or with the first event from which on nothing is missing."""
        self._begin_anew(connection, now)
        if whole and (since := count.whole_since):
            connection.execute("UPDATE imported SET whole = 1 WHERE position > ?", (since.position,))
            connection.execute("UPDATE life SET began_position = ?, began_timestamp = ?", since)
        connection.execute("DELETE FROM rules")  # what came now, and is too old, has not been looked at
        if connection.execute("SELECT count(*) FROM clock").fetchone() == (0,):
            # as old as the time of day says: SOURCE stays, as the file of 0.7's does
            clock = Clock(this_boot(), since_boot(), now.timestamp)
            connection.execute("INSERT INTO clock VALUES (?, ?, ?)", clock)
            points = [(kind, now.timestamp, now.timestamp) for kind in KINDS]
            connection.executemany("INSERT INTO ages VALUES (?, ?, ?)", points)


def _line_in_place_of(mergers: dict[str, Merger], event: Event) -> bytes | None:
    """The line that is held at an event's position, of either kind."""
    lines = (merger.line_at(event.stamp.position) for merger in mergers.values())
    return next((line for line in lines if line is not None), None)


def _is_same(line: bytes, event: Event, *, of_0_7: bool) -> bool:
    """Whether the line is that of an event: by its cursor. One of 0.7's gets another one each time."""
    if of_0_7:
        return line.rpartition(b', "pubsub_cursor": ')[0] == event.line.rpartition(b', "pubsub_cursor": ')[0]
    return line[-39:] == event.line[-39:]


def _is_known(connection: sqlite3.Connection, old_cursor: str | None) -> bool:
    """Whether an event of 0.7's with this cursor is held."""
    select = "SELECT 1 FROM imported WHERE cursor = ?"
    return old_cursor is not None and connection.execute(select, (old_cursor,)).fetchone() is not None
