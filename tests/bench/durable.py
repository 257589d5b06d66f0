"""What it costs to have every event on the disk before its 202, beside a daemon without a backlog."""

import os
import tempfile
import time

from bench.clients import Round, body, clients, put
from bench.figures import Figures, figure, percentile
from bench.servers import DISK, running

_SIZE = 1_000_000  # events that the backlog may hold
_AT_ONCE = {"one": 1, "many": 64}  # publishers


def durable(events: int, rounds: int, size: int, directory: str = DISK) -> Figures:
    """One publisher and many, each as fast as it gets answers; events: those of a round."""
    request = put("/bench", body(0, size))
    figures = {"disk_sync_ms": figure(_syncs_ms(directory))}
    with running() as plain, running(directory, _SIZE, storage=True) as stored:
        for name, publishers in _AT_ONCE.items():
            with (
                clients(plain, lambda _: request, publishers=publishers) as without,
                clients(stored, lambda _: request, publishers=publishers) as with_file,
            ):
                none: list[Round] = []
                file: list[Round] = []
                for _ in range(rounds):
                    none.append(without.run(events // publishers))
                    file.append(with_file.run(events // publishers))
            figures |= _figures(name, file, none)
    return figures


def _figures(name: str, file: list[Round], none: list[Round]) -> Figures:
    """By CPU time too: if the machine is busy, a daemon of two threads gets more of the time than one."""

    def compared(values: list[float], base: list[float]) -> dict[str, object]:
        return figure(values, base, "without")

    return {
        f"publishes_per_second_{name}": compared(
            [each.events_per_second for each in file], [each.events_per_second for each in none]
        ),
        f"cpu_us_per_publish_{name}": compared(
            [each.cpu_us_per_event for each in file], [each.cpu_us_per_event for each in none]
        ),
        **{
            f"answered_ms_p{part}_{name}": compared(
                [percentile(each.answered_ms, part) for each in file],
                [percentile(each.answered_ms, part) for each in none],
            )
            for part in (50, 99)
        },
    }


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
