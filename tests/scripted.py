"""A web server that does as it is told: each connection plays a script of bytes, and ends as that says."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Sequence
from enum import Enum, auto
from types import TracebackType
from typing import NamedTuple, Self

from wire import TIMEOUT

PING = b'{"stillalive": 1588132959.6066568}\n'
LAST_CHUNK = b"0\r\n\r\n"


class Do(Enum):
    """What a script does beside sending bytes. At its end a connection is closed in any case."""

    CLOSE = auto()
    RESET = auto()  # a TCP reset: what was not yet read is lost
    HOLD = auto()  # nothing, until the client leaves
    BREATHE = auto()  # a moment, so that what follows comes in a packet of its own


class Forever(NamedTuple):
    """The same bytes again and again, with so many seconds between them, until the client leaves."""

    content: bytes
    pause: float = 0.0


Step = bytes | Do | Forever | asyncio.Event  # an event: nothing, until the test sets it
Script = Sequence[Step]


class Request(NamedTuple):
    """A request as it came. The names of the headers are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def head(*headers: str) -> bytes:
    """The head of a stream, with headers such as `X-Replay: none`."""
    lines = ["HTTP/1.1 200 OK", "Content-Type: application/vnd.pypubsub-stream", "Transfer-Encoding: chunked"]
    return "".join(f"{line}\r\n" for line in (*lines, *headers, "")).encode()


HEAD = head()


def chunk(content: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def answer(status: str, body: bytes = b"", headers: str = "") -> bytes:
    """A whole response; `status` such as `403 Forbidden`, `headers` each ended by CR LF."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def byte_by_byte(content: bytes) -> list[Step]:
    """The script that sends each byte as a chunk and a packet of its own."""
    return [step for n in range(len(content)) for step in (chunk(content[n : n + 1]), Do.BREATHE)]


class Scripted:
    """The server, on a free port of 127.0.0.1. Connections play the scripts in turn; more are held open."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self.scripts = list(scripts)
        self.requests: list[Request] = []
        self.port = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Condition()
        self._connections: set[asyncio.Task[None]] = set()
        self._left = 0

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def start(self) -> None:
        """Listen; on the same port as before, if there was one."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections. Those that are open go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def request(self, number: int) -> Request:
        """Wait for the request of that number, counted from 0."""
        async with asyncio.timeout(TIMEOUT), self._changed:
            await self._changed.wait_for(lambda: len(self.requests) > number)
        return self.requests[number]

    async def left(self, number: int = 1) -> None:
        """Wait until so many connections on HOLD, or on a Forever, were closed by the client."""
        async with asyncio.timeout(TIMEOUT), self._changed:
            await self._changed.wait_for(lambda: self._left >= number)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._play(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left before the script was over, as some are meant to
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()
            self._connections.discard(task)

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        script = self.scripts.pop(0) if self.scripts else [Do.HOLD]
        async with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        for step in script:
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            elif step is Do.BREATHE:
                await asyncio.sleep(0.002)
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, Forever):
                await repeat(step, writer)
                await self._was_left()
                return
            elif step is Do.HOLD:
                await reader.read()
                await self._was_left()
            elif step is Do.RESET:
                reset_on_close(writer)
                writer.transport.abort()
                return
            else:
                return

    async def _was_left(self) -> None:
        async with self._changed:
            self._left += 1
            self._changed.notify_all()


async def repeat(step: Forever, writer: asyncio.StreamWriter) -> None:
    """Send these bytes until nobody is there to take them."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(step.content)
            await writer.drain()
            await asyncio.sleep(step.pause)


async def read_request(reader: asyncio.StreamReader) -> Request:
    """One request with its body, whose length has to be given."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    request_line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    method, path, _ = request_line.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


def reset_on_close(writer: asyncio.StreamWriter) -> None:
    """Make the end of this connection a reset instead of a close."""
    linger = struct.pack("ii", 1, 0)  # l_onoff, l_linger
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
