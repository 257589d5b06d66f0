"""What changes a file for good: its memory begins anew, events leave that are stamped wrong or damaged."""

import argparse
import math
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from core.events.cursor import TICKS_PER_SECOND, Mark
from core.events.event import position_in
from plugins.backlog import blocks, remembered
from plugins.backlog.block import Block, Damaged, Summary, pack
from plugins.backlog.commands.checking import trouble_of_block, trouble_of_row
from plugins.backlog.commands.moments import Moment, iso, now_mark, place
from plugins.backlog.commands.opening import CommandError, bytes_of, check_file, locked
from plugins.backlog.commands.walking import Row, walk
from plugins.backlog.database import RESERVED_AHEAD, BacklogFile, Life
from plugins.backlog.finding import first_since
from plugins.backlog.schema import KINDS

WAY_OUT = "`backlog forget --damaged` takes it out"
UNBOUNDED = sys.maxsize  # events: what a server keeps is not known here
_INEXACT = 0.002  # seconds that a timestamp may be beyond its position, at most: see position_at()


def opened(arguments: argparse.Namespace) -> "Mendable":
    """FILE, which is there, and locked. Raises CommandError, StartError, StoreError, OSError."""
    check_file(arguments.file)
    return Mendable(arguments.file, UNBOUNDED, window=0)


def restored(arguments: argparse.Namespace) -> int:
    """Have the memory of FILE begin anew."""
    with locked(arguments.file):
        file = opened(arguments)
        try:
            began = file.restored(arguments.after)
        finally:
            file.close_writer()
    print(f"{arguments.file}: its memory begins {iso(began.timestamp)}")
    return 0


def forget(arguments: argparse.Namespace) -> int:
    """Take out of FILE what was stamped after a time, or what is damaged."""
    with locked(arguments.file):
        file = opened(arguments)
        try:
            lines = file.forget_damaged() if arguments.damaged else file.forget_after(arguments.after)
        finally:
            file.close_writer()
    for line in lines:
        print(f"{arguments.file}: {line}")
    return 0


def compact(arguments: argparse.Namespace) -> int:
    """Make FILE smaller, and one of this version."""
    with locked(arguments.file):
        file = opened(arguments)
        before = bytes_of(arguments.file)
        try:
            file.compact()
        finally:
            file.close_writer()
        after = bytes_of(arguments.file)
    print(f"{arguments.file}: {before} bytes before, {after} now")
    return 0


class Mendable(BacklogFile):
    """A file that no server has. Every method opens it."""

    def _open_now(self) -> tuple[Mark, Life]:
        now = now_mark()
        return now, self.open(now, from_the_start=False)

    # The beginning of its memory

    def restored(self, after: Moment | None) -> Mark:
        """Have the memory begin anew, and not before a moment. When it begins."""
        now, life = self._open_now()
        with self._transaction() as connection:
            return self._begin_anew(connection, now, life.last, *([after.mark] if after else []))

    def _begin_anew(self, connection: sqlite3.Connection, *not_before: Mark) -> Mark:
        """Have it begin, and stamps go on, behind all that is held and was given away."""
        (reserved,) = connection.execute("SELECT reserved FROM life").fetchone()
        marks = [Mark(reserved, reserved / TICKS_PER_SECOND), *not_before]
        for kind in KINDS:
            marks += connection.execute(
                f"SELECT ifnull(max(position), 0), ifnull(max(timestamp), 0) FROM {kind} UNION ALL "
                f"SELECT ifnull(max(last), 0), ifnull(max(last_timestamp), 0) FROM {kind}_blocks"
            ).fetchall()
        began = Mark(max(position for position, _ in marks), max(timestamp for _, timestamp in marks))
        self._begin_life_at(connection, began)
        return began

    def _begin_life_at(self, connection: sqlite3.Connection, began: Mark) -> None:
        connection.execute(
            "UPDATE life SET began_position = ?, began_timestamp = ?, from_the_start = 0, reserved = ?",
            (*began, began.position),
        )

    # What was stamped after a time

    def forget_after(self, moment: Moment) -> list[str]:
        """Have it be as if nothing had been stamped after a moment, with a memory that begins now."""
        now, life = self._open_now()
        with self._transaction() as connection:
            cuts = {kind: self._last_upto(connection, kind, moment) for kind in KINDS}
            gone = {kind: self._cut(connection, kind, cut) for kind, cut in cuts.items()}
            ahead = life.last.position - max(moment.mark.position, now.position)
            if not any(gone.values()) and ahead <= RESERVED_AHEAD:
                return [f"nothing was stamped after {iso(moment.mark.timestamp)}: nothing is changed"]
            left = [max(cut, 0) for cut in cuts.values() if cut < math.inf]
            end = int(min(left)) if left else now.position
            self._forget_what_goes_with(connection, end)
            # the end of what is left, which may be ahead, too
            connection.execute("UPDATE life SET reserved = 0")
            began = self._begin_anew(connection, now)
            self._bring_back_bounds(connection, began)
        return [
            f"{gone['public']} public and {gone['private']} private events, stamped after "
            f"{iso(moment.mark.timestamp)}, are taken out",
            f"its memory begins {iso(began.timestamp)}",
        ]

    def _last_upto(self, connection: sqlite3.Connection, kind: str, moment: Moment) -> float:
        """The position up to which events stay; math.inf if all do."""
        if moment.position is not None:
            return moment.position
        timestamp = math.nextafter(moment.mark.timestamp, math.inf)
        first = first_since(connection, self._unpacked, kind, timestamp)
        return math.inf if first is None else first - 1

    def _cut(self, connection: sqlite3.Connection, kind: str, after: float) -> int:
        """Take out all events of a kind after a position. How many."""
        if after == math.inf:
            return 0
        for row in connection.execute(f"SELECT * FROM {kind}_blocks"):
            if not Summary(*row).is_whole:
                raise CommandError(
                    f"{self._path}: the block of events up to {place(row[0])} is damaged: {WAY_OUT}"
                )
        connection.execute(f"DELETE FROM {kind} WHERE position > ?", (after,))
        rows = connection.execute(f"SELECT * FROM {kind}_blocks WHERE last > ? ORDER BY last", (after,))
        for number, summary in enumerate(map(Summary._make, rows.fetchall())):
            # only the first may begin before
            kept = [] if number else self._events_upto(connection, kind, summary, after)
            blocks.drop(connection, kind, summary.last)
            if kept:
                blocks.add(connection, kind, *pack(kept))
        return _count_anew(connection, kind)

    def _events_upto(
        self, connection: sqlite3.Connection, kind: str, summary: Summary, end: float
    ) -> list[tuple[str, bytes]]:
        try:
            block = blocks.read(connection, kind, summary)
        except Damaged as error:
            raise CommandError(f"{self._path}: {error}: {WAY_OUT}") from error
        return [(path, line) for path, line in block if position_in(line) <= end]

    def _forget_what_goes_with(self, connection: sqlite3.Connection, end: int) -> None:
        """Forget answers and cursors of 0.7's for events after a position, and how old stamps are.

        Items of queues stay known: their events were published, and they are not to come again.
        """
        connection.execute("UPDATE items SET position = 0 WHERE position > ?", (end,))
        remembered.forget_beyond(connection, end)
        connection.execute("DELETE FROM imported WHERE position > ?", (end,))
        connection.execute("DELETE FROM ages")

    def _bring_back_bounds(self, connection: sqlite3.Connection, end: Mark) -> None:
        """Have nothing have left after a moment: all that was stamped until then is before its memory."""
        named = {"position": end.position, "timestamp": end.timestamp}
        connection.execute(
            "UPDATE kinds SET lost_position = min(lost_position, :position), "
            "lost_timestamp = min(lost_timestamp, :timestamp)",
            named,
        )
        for table in ("floors", "departed"):
            connection.execute(
                f"UPDATE {table} SET position = min(position, :position), "
                "timestamp = min(timestamp, :timestamp)",
                named,
            )
        connection.execute("UPDATE rules SET swept = min(swept, :position)", named)

    # What is damaged

    def forget_damaged(self) -> list[str]:
        """Take out blocks and rows that are not what was written. What was found."""
        _, life = self._open_now()
        with self._transaction() as connection:
            found = [
                f"{kind}: {what} is taken out"
                for kind in KINDS
                for what in self._drop_damaged(connection, kind, life.last.position)
            ]
        return found or ["nothing is damaged that could be taken out"]

    def _drop_damaged(self, connection: sqlite3.Connection, kind: str, end: int) -> Iterator[str]:
        """end: no position above it has been given away."""
        departed = self._leaving[kind].departed
        damages = list(_damaged(connection, kind, end))
        for damage in damages:
            departed.leave_unknown(damage.upto)
            blocks.drop(connection, kind, damage.key)
            connection.execute(f"DELETE FROM {kind} WHERE position = ?", (damage.key,))
            yield f"what is damaged at {place(damage.key)}"
        if _count_anew(connection, kind) and not damages:  # something is gone, and nobody knows from where
            departed.leave_unknown(_mark_of(end))
            yield "a wrong count of events"

    # Its size

    def compact(self) -> None:
        """Seal what can be sealed, and give back what is not used."""
        self._open_now()
        while self.seal():
            pass
        with self._database_errors():
            self._writing().execute("VACUUM")
        self.complete()


class _Damage(NamedTuple):
    """What is damaged in the file at a position, and a moment up to which its events were."""

    key: int
    upto: Mark


def _damaged(connection: sqlite3.Connection, kind: str, end: int) -> Iterator[_Damage]:
    """Blocks and rows that are damaged, and data that belong to no block. end: of all events."""
    select = f"SELECT last FROM {kind}_data EXCEPT SELECT last FROM {kind}_blocks ORDER BY 1"
    orphans = [last for (last,) in connection.execute(select)]
    unsure: list[int] = []  # damages of which only what comes behind them tells where they end
    for part in walk(connection, kind):
        for key, upto, first in _looked_at(part):
            while orphans and orphans[0] < key:
                unsure.append(orphans.pop(0))
            if upto:
                yield _Damage(key, upto)
            elif first is None:
                unsure.append(key)
            else:
                yield from (_Damage(other, _mark_of(first - 1)) for other in unsure)
                unsure = []
    yield from (_Damage(key, _mark_of(end)) for key in unsure + orphans)


def _looked_at(
    part: tuple[Summary, bytes | None] | Sequence[Row],
) -> Iterator[tuple[int, Mark | None, int | None]]:
    """Of a block, or of each row: its key; if it is damaged, where it ends, if that is known; else its first.

    The last is the position of the first event in it.
    """
    if not isinstance(part, tuple):
        for row in part:
            if next(trouble_of_row(row), None):
                yield row[0], None, None
            else:
                yield row[0], None, row[0]
        return
    summary, data = part
    if not next(trouble_of_block(summary, data), None):
        yield summary.last, None, position_in(Block(summary, data or b"").lines[0])
    elif summary.is_whole:
        yield summary.last, Mark(summary.last, summary.last_timestamp), None
    else:
        yield summary.last, None, None


def _mark_of(position: int) -> Mark:
    """A position with a time that no event up to it is later than: see position_at()."""
    return Mark(position, position / TICKS_PER_SECOND + _INEXACT)


def _count_anew(connection: sqlite3.Connection, kind: str) -> int:
    """Note how many events are held. How many fewer these are."""
    (before,) = connection.execute("SELECT held FROM kinds WHERE kind = ?", (kind,)).fetchone()
    (held,) = connection.execute(
        f"SELECT (SELECT count(*) FROM {kind}) + (SELECT ifnull(sum(events), 0) FROM {kind}_blocks)"
    ).fetchone()
    connection.execute("UPDATE kinds SET held = ? WHERE kind = ?", (held, kind))
    return int(before) - int(held)
