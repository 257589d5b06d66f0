"""How fast the backlog is read, from its file and from memory, and what a publisher feels of many readers."""

import argparse
import itertools
import time
from multiprocessing.connection import Connection

from bench_tools import (
    NDJSON,
    Published,
    Reading,
    body,
    cpu_seconds,
    in_background,
    open_stream,
    publish,
    put,
    quantiles,
    read_all,
    repeat_for,
    report,
    running,
    spread,
    start,
)
from daemon import Daemon

_SIZE = 1_000_000  # events that the file may hold
_BATCH = 80_000  # bytes
_REPLAYS = 5  # by one client
_QUIET = 3.0  # seconds that a publisher is measured without replays, before and after


def replays(arguments: argparse.Namespace) -> int:
    """Read the backlog from its beginning: one client, then many while one publishes."""
    with running(arguments.directory, _SIZE, storage=True) as daemon:
        _fill(daemon, arguments)
        daemon.stop()
        start(daemon)  # and has no event in memory
        wrong = _one_client(daemon, "file", arguments.events)
        wrong += _many_clients(daemon, arguments)
    with running(arguments.directory, arguments.events) as daemon:
        _fill(daemon, arguments)
        wrong += _one_client(daemon, "memory", arguments.events)
    return 1 if wrong else 0


def _fill(daemon: Daemon, arguments: argparse.Namespace) -> None:
    """Publish the events, many in a request."""
    each = _BATCH // arguments.size
    starts = range(0, arguments.events, each)
    batches = (range(first, min(first + each, arguments.events)) for first in starts)
    requests = (
        put("/bench", b"\n".join(body(n, arguments.size) for n in batch), NDJSON) for batch in batches
    )
    published = publish(daemon.port, 1, requests)
    report(
        measured="batches",
        backlog="file" if daemon.config["server"]["backlog"]["storage"] else "memory",
        events_in_each=each,
        events_per_second=round(arguments.events / published.seconds),
    )


def _one_client(daemon: Daemon, source: str, events: int) -> int:
    cpu_before = cpu_seconds(daemon)
    readings: list[Reading] = [
        in_background(_clients, daemon.port, 1, events).recv() for _ in range(_REPLAYS)
    ]
    cpu = cpu_seconds(daemon) - cpu_before
    wrong = sum(reading.wrong for reading in readings)
    report(
        measured="replay",
        source=source,
        clients=1,
        clients_with_loss=wrong,
        **spread("events_per_second", [events / reading.seconds for reading in readings]),
        **spread("mb_per_second", [reading.size / reading.seconds / 1e6 for reading in readings], 1),
        server_cpu_us_per_event=round(cpu / events / len(readings) * 1e6, 1),
        client_cpu_percent=_percent(readings),
    )
    return wrong


def _many_clients(daemon: Daemon, arguments: argparse.Namespace) -> int:
    """Beside one who publishes what they do not follow, so that all of them read the same events."""
    request = put("/elsewhere", body(0, arguments.size))
    before = publish(daemon.port, 1, repeat_for(_QUIET, request))
    reader = in_background(_clients, daemon.port, arguments.clients, arguments.events)
    beside = publish(
        daemon.port, 1, itertools.takewhile(lambda _: not reader.poll(), itertools.repeat(request))
    )
    reading: Reading = reader.recv()
    after = publish(daemon.port, 1, repeat_for(_QUIET, request))
    events = arguments.clients * arguments.events
    report(
        measured="replay",
        source="file",
        clients=arguments.clients,
        clients_with_loss=reading.wrong,
        events_per_second=round(events / reading.seconds),
        mb_per_second=round(reading.size / reading.seconds / 1e6, 1),
        seconds=round(reading.seconds, 1),
        clients_cpu_percent=_percent([reading]),
    )
    _report_publisher(0, [before, after])
    _report_publisher(arguments.clients, [beside])
    return reading.wrong


def _report_publisher(replaying: int, phases: list[Published]) -> None:
    answers_ms = [answer_ms for phase in phases for answer_ms in phase.answers_ms]
    report(
        measured="publish beside replays",
        replaying=replaying,
        publishes_per_second=round(len(answers_ms) / sum(phase.seconds for phase in phases)),
        **quantiles("answer_ms", answers_ms),
    )


def _clients(result: Connection, port: int, clients: int, events: int) -> None:
    begin = time.monotonic()
    sockets = [open_stream(port, "X-Fetch-Since: -1\r\n") for _ in range(clients)]
    reading = read_all(sockets, events, b"stillalive")
    result.send(reading._replace(seconds=time.monotonic() - begin))


def _percent(readings: list[Reading]) -> int:
    """The share of a CPU that the clients used themselves."""
    cpu = sum(reading.cpu_seconds for reading in readings)
    return round(100 * cpu / sum(reading.seconds for reading in readings))
