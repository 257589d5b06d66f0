"""Publishes that are answered where they are read (core.quick): as all others are."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from daemon import Daemon

StartDaemon = Callable[..., Daemon]

REQUESTS = {
    "plain": ("/a", "", b'{"n": 1}'),
    "private": ("/private/a", "", b'{"n": 1}'),
    "a query": ("/a?x=1", "", b'{"n": 1}'),
    "JSON is asked for": ("/a", "Accept: application/json\r\n", b'{"n": 1}'),
    "a batch": ("/a", "Content-Type: application/x-ndjson\r\n", b"{}\n{}\n"),
    "an origin": ("/a", "Origin: http://elsewhere.example\r\n", b"{}"),
    "a key": ("/a", "Idempotency-Key: 1\r\n", b"{}"),
    "not JSON": ("/a", "", b"{"),
    "no body": ("/a", "", b""),
    "a comma": ("/a,b", "", b"{}"),
    "not UTF-8": ("/%ff", "", b"{}"),
}
CHANGING = (b"X-Requests", b"X-Cursor", b"Date", b"Idempotency-Replayed")


def request(path: str, fields: str, body: bytes) -> bytes:
    """On a connection that stays open."""
    return f"PUT {path} HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[list[bytes], bytes]:
    """The lines of its head that do not change from one to the next, sorted, and its body."""
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    (size,) = (int(line.split(b":")[1]) for line in lines if line.startswith(b"Content-Length"))
    body = await reader.readexactly(size)
    if body.startswith(b"{"):  # with a cursor in it, and a time of a length that varies
        lines, body = [line for line in lines if not line.startswith(b"Content-Length")], b""
    return sorted(line for line in lines if not line.startswith(CHANGING)), body


@pytest.mark.parametrize("settings", [{}, {"cors_origins": ["http://localhost"]}], ids=["", "CORS"])
async def test_a_second_request_is_answered_as_the_first(
    start_daemon: StartDaemon, settings: dict[str, Any]
) -> None:
    """The first of a connection never is a quick one; in one piece or two, after quick ones and before."""
    daemon = start_daemon({"server": settings, "clients": {"payloaders": ["127.0.0.1/32"]}})
    for name, (path, fields, body) in REQUESTS.items():
        sent = request(path, fields, body)
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
        writer.write(sent)
        first = await answer(reader)
        for _ in range(3):
            writer.write(sent)
            assert await answer(reader) == first, name
        for cut in (1, 20, len(sent) - 1):  # which the daemon reads in one piece or in two
            writer.write(sent[:cut])
            await writer.drain()
            writer.write(sent[cut:] + 2 * sent)
            assert [await answer(reader) for _ in range(3)] == 3 * [first], name
        writer.close()
