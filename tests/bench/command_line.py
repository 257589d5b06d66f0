"""What the daemon costs, in figures, beside a bare asyncio server that does the least that could be done.

Daemon and reference share the first CPU and take turns in short rounds; subscribers and publishers have the
last one. A figure is the median of its rounds (least..most), a ratio that of the rounds' own ratios; CPU time
is the server's. Exit 1 if a subscriber misses an event, gets one twice or out of order.
"""

import argparse
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.beside import beside
from bench.clients import WrongError
from bench.durable import durable
from bench.fanout import bursts, one_at_a_time
from bench.figures import Figures, line
from bench.idle import idle
from bench.match import match, rights
from bench.publish import batches, publish
from bench.replay import replay
from bench.results import comparison, machine, read, write
from bench.servers import CPUS, DISK
from bench.stalled import stalled
from bench.tls import over_tls
from bench.years import years

Settings = Mapping[str, float]


class Measurement(NamedTuple):
    """What is measured, with what settings if no others are asked for; short: those that --short changes.

    places: what it is told of --directory and --file.
    """

    measure: Callable[..., Figures]
    usual: Settings
    short: Settings
    places: Sequence[str] = ()


def queues(**settings: Any) -> Figures:
    """Empty a queue, in turn by a bare loop of the library and by the daemon with a backlog in a file."""
    from bench.sqs import queues as measure  # noqa: PLC0415 (it takes a second, for AWS's libraries)

    return measure(**settings)


DEFAULT = {
    "fanout": Measurement(
        one_at_a_time,
        {"subscribers": 1000, "events": 25, "rounds": 5, "size": 200},
        {"subscribers": 100, "events": 10, "rounds": 1},
    ),
    "bursts": Measurement(
        bursts,
        {"publishers": 64, "subscribers": 1000, "events": 4, "rounds": 5, "size": 200},
        {"subscribers": 100, "events": 2, "rounds": 1},
    ),
    "publish": Measurement(
        publish,
        {"publishers": 64, "events": 40, "rounds": 5, "size": 200},
        {"events": 5, "rounds": 1},
    ),
    "batches": Measurement(
        batches,
        {"batch": 1000, "requests": 10, "rounds": 5, "size": 200},
        {"requests": 5, "rounds": 1},
    ),
    "match": Measurement(
        match,
        {"fewest": 500, "connections": 5000, "events": 250, "rounds": 5, "size": 200},
        {"fewest": 20, "connections": 100, "events": 50, "rounds": 1},
    ),
    "rights": Measurement(
        rights,
        {"fewest": 100, "events": 250, "rounds": 5, "size": 200},
        {"fewest": 5, "events": 50, "rounds": 1},
    ),
    "tls": Measurement(
        over_tls,
        {"subscribers": 200, "events": 10, "rounds": 5, "size": 200},
        {"subscribers": 20, "events": 2, "rounds": 1},
    ),
    "idle": Measurement(
        idle,
        {"subscribers": 2000, "ping": 0.5, "seconds": 2, "rounds": 3},
        {"subscribers": 100, "ping": 0.2, "seconds": 1, "rounds": 1},
    ),
    "replay": Measurement(
        replay,
        {"events": 30_000, "rounds": 5, "size": 200},
        {"events": 2000, "rounds": 1},
        places=("directory",),
    ),
    "durable": Measurement(
        durable,
        {"events": 640, "rounds": 5, "size": 200},
        {"events": 128, "rounds": 1},
        places=("directory",),
    ),
}
OTHERS = {
    "stalled": Measurement(
        stalled,
        {"subscribers": 2000, "unread": 20, "events": 1000, "size": 200},
        {"subscribers": 100, "unread": 5, "events": 50},
    ),
    "beside": Measurement(
        beside,
        {"events": 100_000, "readers": 50, "size": 200},
        {"events": 2000, "readers": 5},
        places=("directory",),
    ),
    "years": Measurement(
        years,
        {"events": 1_000_000, "replayed": 300_000, "rounds": 3},
        {"events": 2000, "replayed": 1000, "rounds": 1},
        places=("directory", "file"),
    ),
    "sqs": Measurement(
        queues,
        {"events": 2000, "rounds": 5, "size": 200},
        {"events": 100, "rounds": 1},
        places=("directory",),
    ),
}
ALL = DEFAULT | OTHERS


def main(words: Sequence[str] | None = None) -> int:
    """Measure, or compare. words: of the command line, if others than the program's."""
    parser = command_line()
    arguments = parser.parse_args(words)
    if arguments.compare:
        try:
            before, after = (read(path) for path in arguments.compare)
        except (OSError, ValueError) as error:
            parser.error(f"--compare: {error}")
        print(*comparison(before, after), sep="\n")
        return 0
    if unknown := [name for name in arguments.what if name not in ALL]:
        parser.error(f"there is no measurement {unknown[0]!r}, but there are {', '.join(ALL)}")
    asked = {name: value for name in _all_settings() if (value := getattr(arguments, name)) is not None}
    chosen = {name: ALL[name] for name in arguments.what or DEFAULT}
    for name, value in asked.items():
        if value <= 0 and name != "unread":
            parser.error(f"--{name}: more than 0")
        if not any(name in each.usual for each in chosen.values()):
            parser.error(f"--{name}: none of {', '.join(chosen)} has that")
    _prepare()
    results: dict[str, Any] = {"machine": machine(), "short": arguments.short, "measurements": {}}
    print(results["machine"])
    for name, each in chosen.items():
        settings = {**each.usual, **(each.short if arguments.short else {})}
        settings |= {key: value for key, value in asked.items() if key in settings}
        print(name, *(f"{key}={value:g}" for key, value in settings.items()), flush=True)
        places = {place: getattr(arguments, place) for place in each.places}
        try:
            figures = each.measure(**settings, **places)
        except (WrongError, AssertionError, OSError) as error:
            print(f"{name} failed: {error}", file=sys.stderr)
            return 1
        print(*(line(*item) for item in figures.items()), sep="\n", flush=True)
        results["measurements"][name] = {"settings": settings, "figures": figures}
    if arguments.out:
        write(arguments.out, results)
    return 0


def _prepare() -> None:
    """Stop what has been started when this is stopped; as many files as there may be; the last CPU."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, CPUS[-1:])


def command_line() -> argparse.ArgumentParser:
    """What may be asked for."""
    described = [f"  {name:8} {_first_line(each.measure)}" for name, each in ALL.items()]
    parser = argparse.ArgumentParser(
        prog="tests/bench",
        description=__doc__,
        epilog="\n".join(["measurements:", *described]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        help=f"{', '.join(DEFAULT)}, which are the default; {', '.join(OTHERS)}",
    )
    parser.add_argument("--short", action="store_true", help="only see that it works, in some twenty seconds")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures, as JSON")
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("A", "B"), help="two such files; nothing is measured"
    )
    parser.add_argument("--directory", default=DISK, help="on the disk to use (default: %(default)s)")
    parser.add_argument(
        "--file", type=Path, metavar="FILE", help="for `years`: made if it is not there, and kept"
    )
    settings = parser.add_argument_group("settings of measurements, for those that have them")
    for name in _all_settings():
        kind = float if name in {"ping", "seconds"} else int
        settings.add_argument(f"--{name}", type=kind, metavar="N")
    return parser


def _first_line(measure: Callable[..., Figures]) -> str:
    return (measure.__doc__ or "").splitlines()[0]


def _all_settings() -> list[str]:
    return list(dict.fromkeys(name for each in ALL.values() for name in each.usual))
