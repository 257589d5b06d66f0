"""Hostile requests, and what they cost the daemon: its CPU time, by the kernel's account, and its memory."""

import contextlib
import ctypes
import itertools
import math
import os
import re
import socket
import time
from pathlib import Path
from typing import Self

from daemon import Daemon
from wire import TIMEOUT

_number = itertools.count()
_LIBC = ctypes.CDLL(None, use_errno=True)


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has taken, in all its threads, to the nanosecond (clock_getcpuclockid(3))."""
    clock = ctypes.c_int()
    if error := _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) * 1024


class Client:
    """Sends requests byte for byte, over one connection for as long as the daemon keeps it open.

    source: the address it comes from; None: another one for each request.
    """

    def __init__(self, server: Daemon, source: str | None) -> None:
        self._server = server
        self._source = source
        self._connection: socket.socket | None = None
        self.fields: dict[str, str] = {}  # of the head of the last answer, in lower case

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hang_up()

    def ask(self, sent: bytes) -> int:
        """Send a request; the status of its answer, which is read to its end, but for a stream."""
        reused = self._connection is not None
        head, body = self._answer(sent)
        if not head and reused:  # closed after the answer before
            self._hang_up()
            head, body = self._answer(sent)
        assert head, "no answer"
        status_line, *lines = head.decode().lower().split("\r\n")
        self.fields = dict(line.split(": ", 1) for line in lines)
        while len(body) < int(self.fields.get("content-length", 0)):
            body += self._receive()
        if self._source is None or self.fields.get("connection") == "close":
            self._hang_up()
        return int(status_line.split()[1])

    def _answer(self, sent: bytes) -> tuple[bytes, bytes]:
        """The head of an answer, and what has come of its body; nothing if the connection is closed."""
        if self._connection is None:
            source = self._source or fresh_stranger()
            self._connection = socket.create_connection(
                ("127.0.0.1", self._server.port), TIMEOUT, source_address=(source, 0)
            )
        with contextlib.suppress(OSError):  # it has refused already, and may hang up: the answer is there
            self._connection.sendall(sent)
        came = b""
        while b"\r\n\r\n" not in came:
            if not (piece := self._receive()):
                return b"", b""
            came += piece
        head, _, body = came.partition(b"\r\n\r\n")
        return head, body

    def _receive(self) -> bytes:
        assert self._connection
        try:
            return self._connection.recv(65536)
        except ConnectionResetError:
            return b""

    def _hang_up(self) -> None:
        if self._connection:
            self._connection.close()
            self._connection = None


def fresh_stranger() -> str:
    """An address of this machine that may not publish, and from which nobody has asked yet."""
    number = next(_number)
    return f"127.{100 + number // 62_500}.{number // 250 % 250 + 1}.{number % 250 + 1}"


def cost(
    server: Daemon, sent: bytes, source: str | None, rounds: int = 5, repetitions: int = 20
) -> tuple[float, set[int]]:
    """CPU time (seconds) that the daemon takes for a request, and the statuses of its answers.

    The least of several rounds: what else this machine does makes a round dearer, never cheaper.
    """
    statuses = set()
    least = math.inf
    with Client(server, source) as client:
        for _ in range(rounds):
            before = cpu_seconds(server.pid)
            statuses |= {client.ask(sent) for _ in range(repetitions)}
            least = min(least, (cpu_seconds(server.pid) - before) / repetitions)
    return least, statuses


def chunks(body: bytes, size: int, extension: bytes = b"") -> bytes:
    """A body in chunks of so many bytes."""
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces) + b"0\r\n\r\n"
