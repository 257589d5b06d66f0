"""A stream read byte by byte off the socket: chunk borders and ends are what many promises are about."""

import asyncio
import base64
import contextlib
import json
import secrets
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

TIMEOUT = 20.0  # seconds; a guard, no test waits for it to pass
EVERYTHING = {"X-Fetch-Since": "-1"}  # asks for all that the backlog holds
CURSOR = "01a20b7f-d3af-74d1-a23e-780b7e8b7f37"  # such as the daemon gives
CURSOR_PATTERN = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
START_NS = 1_795_489_256_376_269_300  # a time of day, of clocks that tests set
PORTS = range(20_000, 32_000)  # below those that the kernel gives to outgoing connections


def free_port() -> int:
    """A port that nobody listens on, and that stays free while a server of a test is restarted."""
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def basic_of(content: bytes) -> bytes:
    """The value of Authorization for such content, which may be anything."""
    return b"Basic " + base64.b64encode(content)


def credentials(user: str | bytes, password: str | bytes = b"secret") -> bytes:
    """The value of Authorization for a user and a password of any bytes."""
    return basic_of(b":".join(part.encode() if isinstance(part, str) else part for part in (user, password)))


class Stream:
    """A subscription over a raw socket."""

    def __init__(self, host: str, port: int, path: str, headers: Mapping[str, str], version: str) -> None:
        self._address = (host, port)
        self._path = path
        self._request_headers = headers
        self._version = version
        self.status = 0
        self.headers: dict[str, str] = {}
        self.raw_head = b""

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection(*self._address, limit=2**24)
        lines = [f"GET {self._path} HTTP/{self._version}", f"Host: {self._address[0]}"]
        lines += [f"{name}: {value}" for name, value in self._request_headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        async with asyncio.timeout(TIMEOUT):
            self.raw_head = await self.reader.readuntil(b"\r\n\r\n")
        status_line, *header_lines = self.raw_head.decode().rstrip("\r\n").split("\r\n")
        self.status = int(status_line.split()[1])
        self.headers = dict(line.split(": ", 1) for line in header_lines)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.writer.close()

    def stop_reading(self) -> None:
        """Leave what comes in the kernel."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def read_on(self) -> None:
        """Undo stop_reading()."""
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def chunk(self) -> bytes:
        """The content of the next HTTP chunk. Raises IncompleteReadError when the stream ends early."""
        async with asyncio.timeout(TIMEOUT):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            content = await self.reader.readexactly(size + 2)
        assert content.endswith(b"\r\n")
        return content[:-2]

    async def line(self) -> bytes:
        """The next line, where there are no chunks."""
        async with asyncio.timeout(TIMEOUT):
            return await self.reader.readuntil(b"\n")

    async def object(self) -> dict[str, Any]:
        """The next event or ping."""
        value = json.loads(await self.chunk())
        assert isinstance(value, dict)
        return value

    async def event(self) -> dict[str, Any]:
        """The next event, past any pings."""
        while (value := await self.object()).keys() == {"stillalive"}:
            pass
        return value

    async def replay(self) -> list[dict[str, Any]]:
        """All events before the first ping."""
        events = []
        while (value := await self.object()).keys() != {"stillalive"}:
            events.append(value)
        return events

    async def rest(self) -> bytes:
        """Whatever else comes until the connection ends."""
        async with asyncio.timeout(TIMEOUT):
            return await self.reader.read()


async def answer_head(port: int, request: bytes) -> bytes:
    """Send bytes, as they are, over a connection of their own; the head of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        async with asyncio.timeout(TIMEOUT):
            return await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.close()


def ending(raw: bytes) -> str:
    """How a chunked stream ended: "clean", with the closing chunk, or "early"."""
    return "clean" if raw.endswith(b"0\r\n\r\n") else "early"
