"""Readers in a process of their own, beside which others publish or the daemon is measured.

They are nicer, so that on the CPU they share no publisher has to wait for them.
"""

import multiprocessing
import os
import re
import selectors
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from bench.clients import WrongError, open_stream

_NUMBER = re.compile(rb'"n": (\d+),')
_FORK = multiprocessing.get_context("fork")


class Reading(NamedTuple):
    """What readers got."""

    size: int  # bytes of all streams together
    seconds: float
    cpu_seconds: float  # of the readers


class Background:
    """target(connection, *arguments) in another process."""

    def __init__(self, target: Callable[..., None], *arguments: Any, nicer: int = 10) -> None:
        self._connection, there = _FORK.Pipe()
        process = _FORK.Process(
            target=_nicely, args=(nicer, self._connection, there, target, *arguments), daemon=True
        )
        process.start()
        there.close()  # so that either process sees the other one's end

    def ready(self) -> bool:
        """Whether it has said something."""
        return self._connection.poll()

    def result(self) -> Any:
        """What it says next. Raises what it raised."""
        try:
            result = self._connection.recv()
        except EOFError:
            raise WrongError("the readers have come to a bad end") from None
        if isinstance(result, Exception):
            raise result
        return result


def _nicely(
    nicer: int, here: Connection, there: Connection, target: Callable[..., None], *arguments: Any
) -> None:
    here.close()
    os.nice(nicer)
    try:
        target(there, *arguments)
    except (WrongError, AssertionError, OSError) as error:
        there.send(error)


def replayed(result: Connection, port: int, clients: int, events: int) -> None:
    """Have so many clients read the backlog from its beginning."""
    begin = time.monotonic()
    streams = [open_stream(port, "X-Fetch-Since: -1\r\n") for _ in range(clients)]
    reading = read_all(streams, events, b"stillalive")
    result.send(reading._replace(seconds=time.monotonic() - begin))


def read_all(streams: list[socket.socket], events: int, end: bytes) -> Reading:
    """Read every stream up to the line that holds `end`; until then come the events from number 0 on."""
    selector = selectors.DefaultSelector()
    expected = dict.fromkeys(streams, 0)  # the number of the next event
    tails = dict.fromkeys(streams, b"")
    size = 0
    begin, cpu_before = time.monotonic(), time.process_time()
    for stream in streams:
        selector.register(stream, selectors.EVENT_READ)
    while selector.get_map():
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            stream = key.fileobj
            try:
                received = stream.recv(1 << 20)
            except ConnectionResetError:
                received = b""  # dropped, as too slow for its publisher
            size += len(received)
            complete, newline, tails[stream] = (tails[stream] + received).rpartition(b"\n")
            numbers = [int(number) for number in _NUMBER.findall(complete + newline)]
            first, expected[stream] = expected[stream], expected[stream] + len(numbers)
            if numbers != list(range(first, expected[stream])):
                raise WrongError(f"{numbers[:10]}... came where {first} and the following were due")
            if end in complete or not received:
                selector.unregister(stream)
                stream.close()
    seconds, cpu = time.monotonic() - begin, time.process_time() - cpu_before
    if short := [number for number in expected.values() if number != events]:
        raise WrongError(f"{len(short)} readers had a different number of events than {events}: {short[:5]}")
    return Reading(size, seconds, cpu)
