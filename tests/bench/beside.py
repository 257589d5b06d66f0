"""How fast many clients at once read the backlog from its file, and what a publisher feels of them."""

import time

from bench.clients import Round, body, clients, put
from bench.figures import Figures, figure
from bench.readers import Background, Reading, replayed
from bench.replay import FILE_SIZE, fill
from bench.rounds import percentile
from bench.servers import DISK, running, start

_QUIET = 3.0  # seconds that the publisher is measured without replays, before and after


def beside(events: int, readers: int, size: int, directory: str = DISK) -> Figures:
    """Many clients read a backlog file at once, beside one who publishes what they do not follow."""
    request = put("/elsewhere", body(0, size))
    with running(directory, FILE_SIZE, storage=True) as daemon:
        fill(daemon, events, size)
        daemon.stop()
        start(daemon)  # and has no event in memory
        with clients(daemon, lambda _: request) as publisher:

            def quiet() -> list[Round]:
                end = time.monotonic() + _QUIET
                rounds = []
                while time.monotonic() < end:
                    rounds.append(publisher.run(1))
                return rounds

            without = quiet()
            background = Background(replayed, daemon.port, readers, events)
            during = []
            while not background.ready():
                during.append(publisher.run(1))
            reading: Reading = background.result()
            without += quiet()
    return {
        "events_per_second": figure([readers * events / reading.seconds]),
        "mb_per_second": figure([reading.size / reading.seconds / 1e6]),
        "readers_cpu_percent": figure([100 * reading.cpu_seconds / reading.seconds]),
        **{f"answered_ms_p{part}": _answered(part, during, without) for part in (50, 99)},
    }


def _answered(part: int, during: list[Round], without: list[Round]) -> dict[str, object]:
    values, base = (
        percentile([each.answered_ms[0] for each in rounds], part) for rounds in (during, without)
    )
    return figure([values], [base], "without")
