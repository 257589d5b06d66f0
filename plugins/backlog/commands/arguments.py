"""The command line of `pypubsub.py backlog`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from core.errors import Refused
from core.events.subscription import EVERYTHING, Subscription, parse_subscription
from plugins.backlog.commands import backup, checking, exporting, importing, mending, stat
from plugins.backlog.commands.moments import moment

_ABOUT = """
Look into a backlog's file, copy it, move its events, mend it. FILE is what server.backlog.storage names.
stat, export, check and backup work beside a running server; for the others it must be stopped. Run them as
the server's user.
"""
_MORE = """
T is a time as a replay's `since` takes it: Unix seconds, an ISO 8601 time (2026-11-24T08:00:00Z), a duration
back from now (10m); or a cursor. docs/backlog.md says more, and how to restore a backup.
"""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command, as a function `run` of all that is parsed."""
    parser = argparse.ArgumentParser(prog="pypubsub.py backlog", description=_ABOUT, epilog=_MORE)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, about: str, run: object) -> argparse.ArgumentParser:
        sentence = f"{about[0].upper()}{about[1:]}."
        added = commands.add_parser(name, help=about, description=sentence, epilog=_MORE)
        added.add_argument("file", metavar="FILE", type=_file, help="what server.backlog.storage names")
        added.set_defaults(run=run)
        return added

    stat_ = command("stat", "say how much is in FILE, from when, and on which topics", stat.run)
    stat_.add_argument("--json", action="store_true", help="say it in JSON")

    export = command(
        "export", "print the events in FILE as lines, as they are streamed, oldest first", exporting.run
    )
    export.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        type=_subscription,
        default=EVERYTHING,
        help="what a subscriber would ask for: /git,jira/x (default: all)",
    )
    export.add_argument("--since", metavar="T", type=moment, help="from then on, or after a cursor")
    export.add_argument("--until", metavar="T", type=moment, help="before then, or up to a cursor")
    export.add_argument("--public", action="store_true", help="leave private events out")

    import_ = command(
        "import",
        "put lines that were exported, or a file of PyPubSub 0.7, into FILE, all or none of them; what is "
        "in it already is skipped, and a new FILE is made",
        importing.run,
    )
    import_.add_argument("source", metavar="SOURCE", help="lines, or a file of PyPubSub 0.7; - for stdin")
    import_.add_argument(
        "--whole",
        action="store_true",
        help="these are all events since the first of them, as you know: the memory of FILE, which is new, "
        "begins with it",
    )
    import_.add_argument("--skip-bad", action="store_true", help="leave out lines that cannot be imported")

    command("check", "look at every checksum in FILE, and print what is wrong", checking.run)

    copy = command("backup", "make a copy of FILE, of one moment", backup.run)
    copy.add_argument("target", metavar="TARGET", type=Path, help="the copy, which must not be there yet")

    restored = command(
        "restored",
        "have the memory of FILE begin anew: after a backup was put in its place, or when the server ran "
        "without it",
        mending.restored,
    )
    restored.add_argument(
        "--after",
        metavar="T",
        type=moment,
        help="not before that: the last time or cursor that a client knows, if the clock was ahead",
    )

    command("compact", "seal old events of FILE and give back what it does not use", mending.compact)

    forget = command("forget", "take events out of FILE", mending.forget)
    which = forget.add_mutually_exclusive_group(required=True)
    which.add_argument("--after", metavar="T", type=moment, help="those that were stamped later")
    which.add_argument("--damaged", action="store_true", help="those that cannot be read any more")
    return parser.parse_args(arguments)


def _file(text: str) -> Path:
    """As the server has it, whatever links lead to it: its lock is beside it."""
    try:
        return Path(text).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _subscription(text: str) -> Subscription:
    try:
        return parse_subscription(text)
    except Refused as refused:
        raise argparse.ArgumentTypeError(refused.message) from None
