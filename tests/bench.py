#!/usr/bin/env python3
"""What the daemon bears, in figures.

    make bench                                    # fan-out, publish and replay, some two minutes
    .venv/bin/python tests/bench.py fanout        # to a crowd of subscribers, some of whom do not read
    .venv/bin/python tests/bench.py publish       # publishes a second, without a backlog and with one
    .venv/bin/python tests/bench.py replay        # how fast the backlog is read, and what a publisher feels
    .venv/bin/python tests/bench.py sqs           # items of a queue a second
    .venv/bin/python tests/bench.py idle          # what subscribers cost who get pings only

Run by hand: it takes a while, and its figures are those of the machine. The daemon gets the first CPU,
subscribers and publishers share the last. Prints JSON, a line for each measurement. Exit 1 if a subscriber
that reads misses an event, gets one twice or out of order.
"""

import argparse
import os
import resource
import sys

from bench_fanout import fan_out, idle
from bench_publish import publish_rates
from bench_replay import replays
from bench_sqs import queues
from bench_tools import CPUS, DISK

ALL = ("fanout", "publish", "replay")


def main() -> int:
    """Run what is asked for, or all of it."""
    parser = command_line()
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, CPUS[-1:])
    runs = [arguments] if arguments.what else [parser.parse_args([what]) for what in ALL]
    statuses: list[int] = [run.measure(run) for run in runs]
    return max(statuses)


def command_line() -> argparse.ArgumentParser:
    """The measurements, each with options of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measurements = parser.add_subparsers(dest="what", metavar="WHAT", help="/".join((*ALL, "sqs", "idle")))

    crowd = measurements.add_parser("fanout", description=fan_out.__doc__)
    crowd.add_argument("--subscribers", type=int, default=2000)
    crowd.add_argument("--stalled", type=int, default=20, help="how many of them do not read")
    crowd.add_argument("--events", type=int, default=1000)
    crowd.set_defaults(measure=fan_out)

    rates = measurements.add_parser("publish", description=publish_rates.__doc__)
    rates.add_argument("--rounds", type=int, default=7)
    rates.add_argument("--seconds", type=float, default=1.5, help="that each variant has in each round")
    rates.set_defaults(measure=publish_rates)

    past = measurements.add_parser("replay", description=replays.__doc__)
    past.add_argument("--events", type=int, default=100_000)
    past.add_argument("--clients", type=int, default=50, help="how many read at once")
    past.set_defaults(measure=replays)

    pings = measurements.add_parser("idle", description=idle.__doc__)
    pings.add_argument("--subscribers", type=int, default=5000)
    pings.add_argument("--seconds", type=float, default=30)
    pings.set_defaults(measure=idle)

    items = measurements.add_parser("sqs", description=queues.__doc__)
    items.add_argument("--items", type=int, default=2000)
    items.add_argument("--rounds", type=int, default=5)
    items.set_defaults(measure=queues)

    for measurement in (crowd, rates, past, items):
        measurement.add_argument("--size", type=int, default=200, help="bytes of an event as it is published")
    for measurement in (rates, past, items):
        measurement.add_argument(
            "--directory", default=DISK, help="on the disk to use (default: %(default)s)"
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
