"""Subscribers and publishers of one server, in one loop, who check what they get.

Publisher p of P publishes the events p, p + P, p + 2 P, ... An event tells its number and when it was sent.
"""

import re
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from bench.servers import Server, cpu_seconds

NDJSON = "application/x-ndjson"
_EVENT = re.compile(rb'"n": (\d+), "t": (\d+)')
_STREAM = b"HTTP/1.1 200 "
_ACCEPTED = b"HTTP/1.1 202 "
_PATIENCE = 20.0  # seconds without anything, after which it will not come any more
_AT_ONCE = 50  # streams asked for before their beginnings are read: a server's queue of connections is short

Request = Callable[[int], bytes]  # from the number of an event


class WrongError(Exception):
    """A subscriber missed an event, or got one twice or out of order."""


class Tls(NamedTuple):
    """How subscribers connect, if not in the clear."""

    port: int
    context: ssl.SSLContext


class Round(NamedTuple):
    """What a round took."""

    events: int
    deliveries: int
    seconds: float
    cpu_seconds: float  # of the server
    delivered_ms: list[float]  # from each event's sending to each of its deliveries
    answered_ms: list[float]  # from each event's sending to its 202


class _Publisher:
    """A connection over which one request follows the other."""

    def __init__(self, port: int, number: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = number  # of its next event
        self._answer = b""
        self._begin = 0.0

    def send(self, request: bytes) -> None:
        self._begin = time.monotonic()
        self._answer = b""
        self.connection.sendall(request)

    def take(self) -> float | None:
        """Take what has come. The ms since the request if that was all of the answer."""
        received = self.connection.recv(4096)
        self._answer += received
        head, _, line = self._answer.partition(b"\r\n\r\n")
        assert received, "the server closed a publisher's connection"
        assert head.startswith(_ACCEPTED[: len(head)]), self._answer
        return 1000 * (time.monotonic() - self._begin) if line.endswith(b"\n") else None


class _Subscriber:
    """A stream. expected: the number of each publisher's first event; step: to that of its next one."""

    def __init__(self, connection: socket.socket, name: str, expected: list[int], step: int) -> None:
        self.connection = connection
        self._name = name
        self._expected = expected
        self._step = step
        self._tail = b""
        self.received = 0
        self.order = 0  # the same for those who got the same events in the same order

    def take(self, delivered_ms: list[float]) -> int:
        """Take what has come. How many events that was; of each, how long it was on its way."""
        try:
            received = self.connection.recv(1 << 18)
            while isinstance(self.connection, ssl.SSLSocket) and self.connection.pending():
                received += self.connection.recv(1 << 18)
        except ConnectionResetError:
            received = b""
        now = time.monotonic_ns()
        if not received:
            raise WrongError(f"{self._name}: the server ended the stream after {self.received} events")
        complete, newline, self._tail = (self._tail + received).rpartition(b"\n")
        events: list[tuple[bytes, bytes]] = _EVENT.findall(complete + newline)
        expected = self._expected
        for number, sent in events:
            n = int(number)
            publisher = n % len(expected)
            if n != expected[publisher]:
                raise WrongError(f"{self._name}: event {n} came where {expected[publisher]} was due")
            expected[publisher] = n + self._step
            self.order = hash((self.order, n))
            delivered_ms.append((now - int(sent)) / 1e6)
        self.received += len(events)
        return len(events)


class Clients:
    """The subscribers and publishers of a server. request: what is sent to publish the event of a number.

    headers: of each subscriber's request; tls: the port for them, and what they believe.
    in_turn: an event is for one subscriber, the next in turn; otherwise each event is for all.
    """

    def __init__(
        self,
        server: Server,
        request: Request,
        *,
        publishers: int = 1,
        paths: Sequence[str] = (),
        headers: Sequence[str] = (),
        tls: Tls | None = None,
        in_turn: bool = False,
    ) -> None:
        self._server = server
        self._request = request
        self._selector = selectors.DefaultSelector()
        self._in_turn = in_turn
        streams = open_streams(server.port, paths, headers, tls)
        self._subscribers = [
            _Subscriber(
                stream,
                f"subscriber {n} of {type(server).__name__}",
                [n] if in_turn else list(range(publishers)),
                len(streams) if in_turn else publishers,
            )
            for n, stream in enumerate(streams)
        ]
        self._publishers = [_Publisher(server.port, number) for number in range(publishers)]
        for client in self._all():
            self._selector.register(client.connection, selectors.EVENT_READ, client)

    def _all(self) -> list[_Subscriber | _Publisher]:
        return [*self._subscribers, *self._publishers]

    def run(self, each: int, *, in_step: bool = False) -> Round:
        """Have every publisher publish so many events, the next as soon as the answer has come.

        in_step: the next when all publishers have their answers and all subscribers all events.
        """
        events = each * len(self._publishers)
        per_event = min(1, len(self._subscribers)) if self._in_turn else len(self._subscribers)
        delivered_ms: list[float] = []
        answered_ms: list[float] = []
        begin, cpu_before = time.monotonic(), cpu_seconds(self._server)
        if in_step:
            together = len(self._publishers) * per_event
            for _ in range(each):
                self._pass_on(self._publishers, 1, together, delivered_ms, answered_ms)
        else:
            self._pass_on(self._publishers, each, events * per_event, delivered_ms, answered_ms)
        cpu, seconds = cpu_seconds(self._server) - cpu_before, time.monotonic() - begin
        if not self._in_turn and len({subscriber.order for subscriber in self._subscribers}) > 1:
            raise WrongError(f"subscribers of {type(self._server).__name__} got events in different orders")
        return Round(events, events * per_event, seconds, cpu, delivered_ms, answered_ms)

    def _pass_on(
        self,
        publishers: list[_Publisher],
        each: int,
        deliveries: int,
        delivered_ms: list[float],
        answered_ms: list[float],
    ) -> None:
        """Publish, and read until all answers and all deliveries are there."""
        left = each * len(publishers)
        last = {publisher: publisher.number + each * len(publishers) for publisher in publishers}
        for publisher in publishers:
            publisher.send(self._request(publisher.number))
        while left or deliveries > 0:
            ready = self._selector.select(_PATIENCE)
            if not ready:
                raise WrongError(f"{deliveries} deliveries and {left} answers have not come")
            for key, _ in ready:
                if isinstance(key.data, _Subscriber):
                    deliveries -= key.data.take(delivered_ms)
                    continue
                publisher = key.data
                if (answer_ms := publisher.take()) is None:
                    continue
                answered_ms.append(answer_ms)
                left -= 1
                publisher.number += len(publishers)
                if publisher.number < last[publisher]:
                    publisher.send(self._request(publisher.number))
        if deliveries < 0:
            raise WrongError("more events came than were published")

    def check_rest(self) -> None:
        """Look for events that should not come."""
        time.sleep(0.05)
        for key, _ in self._selector.select(0):
            if isinstance(key.data, _Subscriber) and key.data.take([]):
                raise WrongError("more events came than were published")

    def close(self) -> None:
        """Hang up."""
        for client in self._all():
            client.connection.close()
        self._selector.close()


@contextmanager
def clients(
    server: Server,
    request: Request,
    *,
    publishers: int = 1,
    paths: Sequence[str] = (),
    headers: Sequence[str] = (),
    tls: Tls | None = None,
    in_turn: bool = False,
) -> Iterator[Clients]:
    """Clients, as long as they are needed."""
    connected = Clients(
        server, request, publishers=publishers, paths=paths, headers=headers, tls=tls, in_turn=in_turn
    )
    try:
        yield connected
        connected.check_rest()
    finally:
        connected.close()


def open_streams(
    port: int, paths: Sequence[str], headers: Sequence[str] = (), tls: Tls | None = None
) -> list[socket.socket]:
    """Streams that have begun, one for each path."""
    streams: list[socket.socket] = []
    asked = list(zip(paths, headers or [""] * len(paths), strict=True))
    for first in range(0, len(asked), _AT_ONCE):
        some = [
            open_stream(port, header, path=path, tls=tls) for path, header in asked[first : first + _AT_ONCE]
        ]
        for stream in some:
            wait_for_beginning(stream)
        streams += some
    return streams


def open_stream(
    port: int, header: str = "", *, path: str = "/bench", stalled: bool = False, tls: Tls | None = None
) -> socket.socket:
    """A stream that has been asked for."""
    stream = socket.socket()
    if stalled:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stream.connect(("127.0.0.1", tls.port if tls else port))
    if tls:
        stream = tls.context.wrap_socket(stream, server_hostname="localhost")
    stream.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n{header}\r\n".encode())
    return stream


def wait_for_beginning(stream: socket.socket) -> None:
    """Read the head of a stream, and its first ping."""
    head = b""
    while b"stillalive" not in head:
        received = stream.recv(4096)
        head += received
        assert received, f"the server ended a stream as it began: {head!r}"
        assert head.startswith(_STREAM[: len(head)]), f"a stream was refused: {head!r}"


def body(n: int, size: int) -> bytes:
    """An event with that number, sent now, of that many bytes."""
    beginning = f'{{"n": {n}, "t": {time.monotonic_ns()}, "filling": "'
    return f'{beginning}{"x" * (size - len(beginning) - 2)}"}}'.encode()


def put(path: str, content: bytes, content_type: str = "application/json") -> bytes:
    """A request that publishes."""
    head = f"PUT {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
