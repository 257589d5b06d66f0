"""How fast one client reads the backlog: from its file, and from memory."""

import math
from functools import partial

from bench.clients import NDJSON, body, clients, put
from bench.figures import Figures, figure
from bench.readers import Background, Reading, replayed
from bench.rounds import in_turn
from bench.servers import DISK, Server, bare, cpu_seconds, running, start

_BATCH = 100  # events published in a request
FILE_SIZE = 1_000_000  # events that the file may hold


def replay(events: int, rounds: int, size: int, directory: str = DISK) -> Figures:
    """One client reads a backlog, in turn from a file, from memory, and from the reference."""
    with (
        running(directory, FILE_SIZE, storage=True) as file,
        running(directory, events) as memory,
        bare("kept") as reference,
    ):
        sides: dict[str, Server] = {"file": file, "memory": memory, "bare": reference}
        for server in sides.values():
            fill(server, events, size)
        file.stop()
        start(file)  # and has no event in memory
        runs = [partial(_one_client, server, events) for server in sides.values()]
        taken = dict(zip(sides, in_turn(rounds, *runs), strict=True))
    us = {side: [1e6 * cpu / events for _, cpu in readings] for side, readings in taken.items()}
    rate = {side: [events / reading.seconds for reading, _ in readings] for side, readings in taken.items()}
    figures: Figures = {}
    for source in ("file", "memory"):
        figures[f"cpu_us_per_event_{source}"] = figure(us[source], us["bare"])
        figures[f"events_per_second_{source}"] = figure(rate[source], rate["bare"])
    return figures


def fill(server: Server, events: int, size: int) -> None:
    """Publish so many events, many in a request."""

    def request(n: int) -> bytes:
        numbers = range(n * _BATCH, min(events, (n + 1) * _BATCH))
        return put("/bench", b"\n".join(body(number, size) for number in numbers), NDJSON)

    with clients(server, request) as publisher:
        publisher.run(math.ceil(events / _BATCH))


def _one_client(server: Server, events: int) -> tuple[Reading, float]:
    """What it read, and the server's CPU seconds."""
    cpu_before = cpu_seconds(server)
    reading: Reading = Background(replayed, server.port, 1, events).result()
    return reading, cpu_seconds(server) - cpu_before
