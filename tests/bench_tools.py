"""What the measurements share: a daemon on the first CPU, readers, publishers, figures.

Publishers run in this process. Readers run in another one that is nicer, so that on the CPU they share no
publisher has to wait for them.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import re
import selectors
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from daemon import Daemon

CPUS = sorted(os.sched_getaffinity(0))
DISK = "/var/tmp"  # noqa: S108 (a directory of one's own is made in it; /tmp may be no disk)
NDJSON = "application/x-ndjson"
_NUMBER = re.compile(rb'"n": (\d+),')
_ACCEPTED = b"HTTP/1.1 202 "


# The daemon


@contextlib.contextmanager
def running(
    where: str | None = None,
    size: int = 0,
    *,
    storage: bool = False,
    queues: Mapping[str, Any] | None = None,
) -> Iterator[Daemon]:
    """A daemon with a backlog of that size, in memory or in a file beneath `where`. queues: of SQS."""
    with tempfile.TemporaryDirectory(prefix="pypubsub-bench-", dir=where) as directory:
        backlog = {"size": size, "storage": f"{directory}/backlog" if storage else None}
        daemon = Daemon(Path(directory), {"server": {"backlog": backlog}, "sqs": dict(queues or {})})
        start(daemon)
        try:
            yield daemon
        except AssertionError:
            print(*daemon.log[-5:], sep="\n", file=sys.stderr)  # it may say why
            raise
        finally:
            daemon.stop()


def start(daemon: Daemon) -> None:
    """Start it, with all its threads on the first CPU."""
    daemon.start()
    for thread in Path(f"/proc/{daemon.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), CPUS[:1])


def cpu_seconds(daemon: Daemon) -> float:
    """CPU time the daemon has used."""
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_kib(daemon: Daemon) -> int:
    """Memory the daemon holds."""
    line = next(
        line for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1])


# Publishers


class Published(NamedTuple):
    """What became of some publishes."""

    answers_ms: list[float]  # that each answer took
    seconds: float
    cpu_seconds: float  # of the publishers

    @property
    def rate(self) -> float:
        """Publishes a second."""
        return len(self.answers_ms) / self.seconds


class _Publisher:
    """A connection over which one request follows the other."""

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._begin = 0.0
        self._answer = b""

    def send(self, request: bytes) -> None:
        self._begin = time.monotonic()
        self._answer = b""
        self.connection.sendall(request)

    def receive(self) -> float | None:
        """Take what has come. The ms since the request if that was all of the answer."""
        received = self.connection.recv(4096)
        self._answer += received
        head, _, line = self._answer.partition(b"\r\n\r\n")
        assert received, "the daemon closed the connection"
        assert head.startswith(_ACCEPTED[: len(head)]), self._answer
        return 1000 * (time.monotonic() - self._begin) if line.endswith(b"\n") else None


def publish(port: int, publishers: int, requests: Iterator[bytes]) -> Published:
    """Send all requests, over so many connections at once, each the next as soon as its 202 has come."""
    connected = [_Publisher(port) for _ in range(publishers)]
    answers_ms: list[float] = []
    selector = selectors.EpollSelector()
    begin, cpu_before = time.monotonic(), time.process_time()
    for publisher, request in zip(connected, requests, strict=False):
        publisher.send(request)
        selector.register(publisher.connection, selectors.EVENT_READ, publisher)
    while selector.get_map():
        for key, _ in selector.select():
            publisher = key.data
            if (answer_ms := publisher.receive()) is None:
                continue
            answers_ms.append(answer_ms)
            if request := next(requests, b""):
                publisher.send(request)
            else:
                selector.unregister(publisher.connection)
    published = Published(answers_ms, time.monotonic() - begin, time.process_time() - cpu_before)
    for publisher in connected:
        publisher.connection.close()
    return published


def body(n: int, size: int) -> bytes:
    """An event with that number, of that many bytes."""
    beginning = f'{{"n": {n}, "filling": "'
    return f'{beginning}{"x" * (size - len(beginning) - 2)}"}}'.encode()


def put(path: str, content: bytes, content_type: str = "application/json") -> bytes:
    """A request that publishes."""
    head = f"PUT {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def repeat_for(seconds: float, request: bytes) -> Iterator[bytes]:
    """The same request again and again."""
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda _: time.monotonic() < end, itertools.repeat(request))


# Readers


class Reading(NamedTuple):
    """What readers got."""

    wrong: int  # how many of them did not get each event once and in order
    size: int  # bytes of all streams together
    seconds: float
    cpu_seconds: float  # of the readers


def in_background(target: Callable[..., None], *arguments: Any, nicer: int = 10) -> Connection:
    """Have target(connection, *arguments) run in a process that is nicer; what comes over the connection."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(
        target=_nicely, args=(nicer, here, there, target, *arguments), daemon=True
    )
    process.start()
    there.close()  # so that either process sees the other one's end
    return here


def _nicely(
    nicer: int, here: Connection, there: Connection, target: Callable[..., None], *arguments: Any
) -> None:
    here.close()
    os.nice(nicer)
    target(there, *arguments)


def open_stream(port: int, header: str = "", *, path: str = "/bench", stalled: bool = False) -> socket.socket:
    """A stream that has been asked for."""
    subscriber = socket.socket()
    if stalled:
        subscriber.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    subscriber.connect(("127.0.0.1", port))
    subscriber.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n{header}\r\n".encode())
    return subscriber


def subscribe(port: int, *, stalled: bool) -> socket.socket:
    """A stream that has begun."""
    subscriber = open_stream(port, stalled=stalled)
    head = b""
    while b"stillalive" not in head:
        head += subscriber.recv(4096)
    return subscriber


def read_all(sockets: list[socket.socket], events: int, end: bytes) -> Reading:
    """Read every stream up to the line that holds `end`; until then come the events from number 0 on."""
    selector = selectors.EpollSelector()
    expected = dict.fromkeys(sockets, 0)  # the number of the next event
    tails = dict.fromkeys(sockets, b"")
    wrong = set()
    size = 0
    begin, cpu_before = time.monotonic(), time.process_time()
    for reader in sockets:
        selector.register(reader, selectors.EVENT_READ, data=reader)
    while selector.get_map():
        for key, _ in selector.select():
            subscriber: socket.socket = key.data
            try:
                received = subscriber.recv(1 << 20)
            except ConnectionResetError:
                received = b""  # dropped, as too slow for this publisher
            size += len(received)
            complete, newline, tails[subscriber] = (tails[subscriber] + received).rpartition(b"\n")
            numbers = [int(number) for number in _NUMBER.findall(complete + newline)]
            first, expected[subscriber] = expected[subscriber], expected[subscriber] + len(numbers)
            if numbers != list(range(first, expected[subscriber])):
                wrong.add(subscriber)
            if end in complete or not received:
                selector.unregister(subscriber)
                subscriber.close()
    seconds, cpu = time.monotonic() - begin, time.process_time() - cpu_before
    wrong |= {reader for reader in sockets if expected[reader] != events}
    return Reading(len(wrong), size, seconds, cpu)


# Figures


def report(**figures: Any) -> None:
    """Print figures, one line."""
    print(json.dumps(figures), flush=True)


def spread(name: str, values: Sequence[float], digits: int = 0) -> dict[str, float]:
    """The middle of some rounds, and how far they lie apart."""
    figures = {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    return {key: rounded(value, digits) for key, value in figures.items()}


def quantiles(name: str, values: Sequence[float]) -> dict[str, float]:
    """The middle, the 99th percentile and the worst."""
    ordered = sorted(values)
    worst = {"p50": statistics.median(ordered), "p99": ordered[len(ordered) * 99 // 100], "max": ordered[-1]}
    return {f"{name}_{which}": rounded(value, 1) for which, value in worst.items()}


def rounded(value: float, digits: int) -> float:
    """Without a decimal point if there are no digits to follow it."""
    return round(value, digits) if digits else round(value)
