"""What the adversarial tests send: requests byte by byte, from any address of 127.0.0.0/8."""

import asyncio
import itertools

from daemon import Answer, Daemon
from wire import TIMEOUT

LISTED = "127.0.0.0/16"  # the addresses that may publish, where a test says nothing else
UNLISTED = "127.9.0.1"

_number = itertools.count(1)


def fresh_address() -> str:
    """A listed address that nobody has guessed from yet."""
    number = next(_number)
    return f"127.0.{number // 250 + 1}.{number % 250 + 1}"


def authorization(*values: bytes) -> bytes:
    """The header, once or several times."""
    return b"".join(b"Authorization: %s\r\n" % value for value in values)


def request(method: str, target: str | bytes, headers: bytes = b"", body: bytes | None = b"{}") -> bytes:
    """A request in which nothing is tidied up. body: None for one that is announced and does not come."""
    target = target.encode() if isinstance(target, str) else target
    length = b"" if method in ("GET", "HEAD") else b"Content-Length: %d\r\n" % len(body or b"{}")
    start = b"%s %s HTTP/1.1\r\nHost: pubsub.example:2069\r\n" % (method.encode(), target)
    return start + headers + length + b"\r\n" + (body or b"" if length else b"")


async def send(server: Daemon, sent: bytes, source: str = "127.0.0.1") -> Answer:
    """Send bytes over a connection of their own; the answer, without the body if that is a stream's."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=(source, 0))
    try:
        writer.write(sent)
        return await answer(reader)
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> Answer:
    """The next answer on a connection."""
    async with asyncio.timeout(TIMEOUT):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status_line, *lines = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Answer(int(status_line.split()[1]), headers, body.decode())


async def all_answers(server: Daemon, sent: bytes, source: str = "127.0.0.1") -> bytes:
    """All that comes until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, local_addr=(source, 0))
    try:
        writer.write(sent)
        async with asyncio.timeout(TIMEOUT):
            return await reader.read()
    finally:
        writer.close()


async def publish(server: Daemon, target: str, body: bytes = b"{}") -> str:
    """Publish on a path as it stands (a client library resolves dots in it); the event's cursor."""
    accepted = await send(server, request("PUT", target, body=body))
    assert accepted.status == 202, accepted.text
    return accepted.headers["x-cursor"]
