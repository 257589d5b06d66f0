"""What a long backlog in a file costs: its start, searches for what is rare in it, its size on the disk."""

import contextlib
import selectors
import socket
import sqlite3
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from bench.clients import NDJSON, WrongError, body, clients, open_stream, put
from bench.figures import Figures, figure
from bench.organization import FEWEST, RARE, RARE_EVENTS, Organization, backlog_file
from bench.readers import Background
from bench.rounds import percentile
from bench.servers import DISK, Server, cpu_seconds, resident_kib, running

_PATIENCE = 600.0  # seconds that a start may take
_QUIET = 1000  # events that are published without readers, before and after
_WHOLE = -1.0  # since the beginning
_EVENT = b'"pubsub_cursor": "'
_REPLAY_FIGURES = ("replayed_per_second", "replayed_cpu_us_per_event")
_RARE_PATHS = [f"/rare/{n}" for n in range(RARE)]


class Reading(NamedTuple):
    """What a reader got, and when: seconds since the first of those who read at once began to ask."""

    events: int
    last_event: float
    ping: float  # the first one after as many events as were due: the search is through


class _Rounds:
    """One value a round of each figure, and of what it is compared to."""

    def __init__(self) -> None:
        self._values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self._bases: defaultdict[tuple[str, str], list[float]] = defaultdict(list)

    def note(self, name: str, value: float, base: float | None = None, against: str = "") -> None:
        self._values[name, against].append(value)
        if base is not None:
            self._bases[name, against].append(base)

    def figures(self) -> Figures:
        return {
            name: figure(values, self._bases.get((name, against)), against)
            for (name, against), values in self._values.items()
        }


def years(
    events: int, replayed: int, rounds: int, directory: str = DISK, file: Path | None = None
) -> Figures:
    """A file of a year's events is searched for rare topics; --replayed: the newest are read by one client.

    file: used if it is there, with as many events from an earlier run; else made, and kept.
    """
    if events < FEWEST:
        raise WrongError(f"{FEWEST} events are of rare topics: there must be as many")
    replayed = min(replayed, events)
    size = 2 * events + 1_000_000  # there is room for what is published beside the readers
    noted = _Rounds()
    with tempfile.TemporaryDirectory(prefix="pypubsub-bench-", dir=directory) as own:
        path = file or Path(own, "backlog")
        organization, filled_per_second = backlog_file(path, events, size)
        if filled_per_second:
            noted.note("filled_per_second", filled_per_second)
        since = organization.since(events - replayed)
        with running(directory, replayed) as memory:
            line_bytes = _publish(memory, organization, events - replayed) / replayed
            for _ in range(rounds):
                begin = time.monotonic()
                with running(directory, size, storage=path.resolve(), patience=_PATIENCE) as daemon:
                    _head(daemon)
                    noted.note("start_seconds", time.monotonic() - begin)
                    noted.note("start_cpu_seconds", cpu_seconds(daemon))
                    _note_memory(daemon, "started", noted)
                    _search(daemon, noted)
                    sides = [_replay(daemon, since, replayed), _replay(memory, _WHOLE, replayed)]
                    for name, ours, theirs in zip(_REPLAY_FIGURES, *sides, strict=True):
                        noted.note(name, ours, theirs, "memory")
                    _search_all(daemon, noted)
                    _note_memory(daemon, "measured", noted)
        disk, in_use = _bytes_per_event(path)
        noted.note("disk_bytes_per_event", disk, line_bytes, "lines")
        noted.note("disk_bytes_per_event_in_use", in_use, line_bytes, "lines")
    return noted.figures()


def _publish(server: Server, organization: Organization, first: int) -> int:
    """Publish its events from that one on. Bytes of their lines."""
    batches = [b"".join(event.line for event in batch) for batch in organization.batches(first)]
    with clients(server, lambda n: put("/git/as-long-as-most", batches[n], NDJSON)) as publisher:
        publisher.run(len(batches))
    return sum(map(len, batches))


def _head(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"HEAD / HTTP/1.1\r\nHost: bench\r\n\r\n")
        answer = client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 20"), answer


def _note_memory(server: Server, when: str, noted: _Rounds) -> None:
    noted.note(f"memory_mib_{when}", resident_kib(server) / 1024)
    noted.note(f"memory_mib_{when}_peak", resident_kib(server, "VmHWM") / 1024)


def _search(server: Server, noted: _Rounds) -> None:
    """One reader of a rare topic."""
    cpu_before = cpu_seconds(server)
    (found,) = _found(Background(_read, server.port, _RARE_PATHS[:1], _WHOLE, RARE_EVENTS))
    noted.note("rare_seconds_to_last_event", found.last_event)
    noted.note("rare_seconds", found.ping)
    noted.note("rare_cpu_seconds", cpu_seconds(server) - cpu_before)


def _replay(server: Server, since: float, events: int) -> tuple[float, float]:
    """One reader of everything: events a second, and the server's CPU time for each in µs."""
    cpu_before = cpu_seconds(server)
    (reading,) = Background(_read, server.port, ["/"], since, 1).result()
    if reading.events < 0.9 * events:  # some are private, and others are published each round
        raise WrongError(f"{reading.events} events came where {events} were due, without private ones")
    return reading.events / reading.ping, 1e6 * (cpu_seconds(server) - cpu_before) / reading.events


def _search_all(server: Server, noted: _Rounds) -> None:
    """A reader of each rare topic at once, beside one who publishes what they do not follow."""
    request = put("/elsewhere", body(0, 200))
    during: list[float] = []
    with clients(server, lambda _: request) as publisher:
        without = publisher.run(_QUIET).answered_ms
        cpu_before = cpu_seconds(server)
        readers = Background(_read, server.port, _RARE_PATHS, _WHOLE, RARE_EVENTS)
        while not readers.ready() or not during:
            during += publisher.run(1).answered_ms
        noted.note("rare_all_seconds", max(found.ping for found in _found(readers)))
        noted.note("rare_all_cpu_seconds", cpu_seconds(server) - cpu_before)  # the publishes included
        without += publisher.run(_QUIET).answered_ms
    for part in (50, 99):
        values, base = (percentile(answered, part) for answered in (during, without))
        noted.note(f"answered_ms_p{part}", values, base, "without")
    noted.note("answered_ms_worst", max(during), max(without), "without")


def _found(readers: Background) -> list[Reading]:
    """What readers of rare topics got."""
    found: list[Reading] = readers.result()
    if wrong := [reading.events for reading in found if reading.events != RARE_EVENTS]:
        raise WrongError(f"{wrong[0]} events of a rare topic came where {RARE_EVENTS} were due")
    return found


class _Reader:
    def __init__(self) -> None:
        self._tail = b""
        self.events = 0
        self.last_event = 0.0

    def take(self, received: bytes, seconds: float, due: int) -> bool:
        """Count what has come. Whether there was a ping after so many events."""
        complete, _, self._tail = (self._tail + received).rpartition(b"\n")
        if count := complete.count(_EVENT):
            self.events += count
            self.last_event = seconds
        return self.events >= due and b"stillalive" in complete.rpartition(_EVENT)[2]


def _read(result: Connection, port: int, paths: Sequence[str], since: float, due: int) -> None:
    """Have a reader of each path read up to the first ping after so many events."""
    begin = time.monotonic()
    readings: list[Reading] = []
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as streams:
        for path in paths:
            stream = streams.enter_context(open_stream(port, f"X-Fetch-Since: {since!r}\r\n", path=path))
            selector.register(stream, selectors.EVENT_READ, (stream, _Reader()))
        while len(readings) < len(paths):
            for key, _ in selector.select():
                stream, reader = key.data
                received = stream.recv(1 << 20)
                seconds = time.monotonic() - begin
                if not received:
                    raise WrongError(f"the server ended a replay after {reader.events} events")
                if reader.take(received, seconds, due):
                    selector.unregister(stream)
                    readings.append(Reading(reader.events, reader.last_event, seconds))
    result.send(readings)


def _bytes_per_event(path: Path) -> tuple[float, float]:
    """What a file that nobody has open takes on the disk for an event, and of that what is in use."""
    wal = Path(f"{path}-wal")
    size = path.stat().st_size + (wal.stat().st_size if wal.exists() else 0)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (held,) = connection.execute("SELECT sum(held) FROM kinds").fetchone()
        pages, free, page_size = (
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
    return size / held, (pages - free) * page_size / held
