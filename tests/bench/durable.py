"""What it costs to have every event on the disk before its 202, beside a daemon without a backlog."""

import os
import tempfile
import time
from functools import partial

from bench.clients import body, clients, put
from bench.figures import Figures, figure
from bench.rounds import answered_ms, compared, cpu_us_per_event, events_per_second, in_turn
from bench.servers import DISK, running

_SIZE = 1_000_000  # events that the backlog may hold
_AT_ONCE = {"one": 1, "many": 64}  # publishers
_VALUES = {
    "publishes_per_second": events_per_second,
    "cpu_us_per_publish": cpu_us_per_event,
    "answered_ms_p50": answered_ms(50),
    "answered_ms_p99": answered_ms(99),
}


def durable(events: int, rounds: int, size: int, directory: str = DISK) -> Figures:
    """One publisher and 64, with a backlog in a file and without one; --events: those of a round."""
    request = put("/bench", body(0, size))
    figures: Figures = {"disk_sync_ms": figure(_syncs_ms(directory))}
    with running() as plain, running(directory, _SIZE, storage=True) as stored:
        for name, publishers in _AT_ONCE.items():
            each = max(1, events // publishers)
            with (
                clients(plain, lambda _: request, publishers=publishers) as without,
                clients(stored, lambda _: request, publishers=publishers) as with_file,
            ):
                none, file = in_turn(
                    rounds,
                    partial(without.run, each),
                    partial(with_file.run, each),
                )
            # by CPU time too: if the machine is busy, a daemon of two threads gets more of it than one
            for figure_name, value in _VALUES.items():
                figures[f"{figure_name}_{name}"] = compared(value, file, none, "without")
    return figures


def _syncs_ms(directory: str) -> list[float]:
    """What the disk takes to make a few KiB last: no commit is faster."""
    syncs_ms = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(100):
            begin = time.monotonic()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            syncs_ms.append(1000 * (time.monotonic() - begin))
    return syncs_ms
