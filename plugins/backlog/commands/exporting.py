"""The events in a backlog's file, as lines, as they are streamed."""

import argparse
import math
import sqlite3
import sys

from core.auth.rights import EVERY_EVENT, NO_RIGHTS, Rights
from core.delivery.channel import selection_of
from core.delivery.wire import BARE
from core.events.replay import Gone
from core.events.selection import Selection
from plugins.backlog.blocks import Unpacked
from plugins.backlog.commands.moments import Moment
from plugins.backlog.commands.opening import reading, snapshot
from plugins.backlog.finding import find, first_since, newest
from plugins.backlog.pages import page_of
from plugins.backlog.schema import KINDS


def run(arguments: argparse.Namespace) -> int:
    """Write them to stdout."""
    rights = NO_RIGHTS if arguments.public else Rights(frozenset({EVERY_EVENT}))
    selection = selection_of(arguments.path, rights, BARE)
    with reading(arguments.file) as connection:
        _export(connection, selection, arguments.since, arguments.until)
    return 0


def _export(
    connection: sqlite3.Connection, selection: Selection, since: Moment | None, until: Moment | None
) -> None:
    kinds = {"public": selection.public, "private": selection.private}
    asked = {kind: alternatives for kind, alternatives in kinds.items() if alternatives}
    unpacked = Unpacked()
    with snapshot(connection):
        ends = [mark.position for kind in asked if (mark := newest(connection, kind))]
        upto = max(ends, default=0)
        after = 0 if since is None else _before(connection, unpacked, since, upto)
        if until is not None:
            upto = min(upto, _before(connection, unpacked, until, upto))
    while after < upto:
        with snapshot(connection):
            found = [
                find(connection, unpacked, kind, after, upto, alternatives, selection.wanted)
                for kind, alternatives in asked.items()
            ]
        page = page_of(found, selection.frames, Gone())
        sys.stdout.buffer.write(page.data)
        after = page.end


def _before(connection: sqlite3.Connection, unpacked: Unpacked, moment: Moment, end: int) -> int:
    """The position up to which events are from before a time, or up to a cursor."""
    if moment.position is not None:
        return moment.position
    timestamp = moment.timestamp if moment.timestamp is not None else math.inf
    found = [first_since(connection, unpacked, kind, max(timestamp, 0.0)) for kind in KINDS]
    return min((position - 1 for position in found if position is not None), default=end)
