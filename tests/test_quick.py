"""Publishes that are answered where they are read (core.http.plain_publish): as all others are."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from daemon import StartDaemon
from storage import locked

REQUESTS = {
    "plain": ("/a", "", b'{"n": 1}'),
    "private": ("/private/a", "", b'{"n": 1}'),
    "a query": ("/a?x=1", "", b'{"n": 1}'),
    "JSON is asked for": ("/a", "Accept: application/json\r\n", b'{"n": 1}'),
    "credentials": ("/a", "Authorization: Basic eDp5\r\n", b'{"n": 1}'),
    "a batch of another name": ("/a", "Content-Type: application/jsonl\r\n", b"{}\n{}\n"),
    "a byte order mark": ("/a", "", b"\xef\xbb\xbf{}"),
    "a form": ("/a", "Content-Type: application/x-www-form-urlencoded\r\n", b"payload=%7B%7D"),
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


@pytest.mark.parametrize("where", ["nowhere", "in memory", "in a file", "nowhere, with CORS"])
async def test_a_quick_answer_is_that_of_the_long_way(
    start_daemon: StartDaemon, tmp_path: Path, where: str
) -> None:
    """The first of a connection and others, in one piece or two, several at once, after others and before."""
    storage = str(tmp_path / "backlog") if where == "in a file" else None
    settings: dict[str, Any] = {"backlog": {"size": 0 if "nowhere" in where else 100, "storage": storage}}
    if "CORS" in where:
        settings["cors_origins"] = ["http://localhost"]
    daemon = start_daemon({"server": settings, "clients": {"payloaders": ["127.0.0.1/32"]}})
    for name, (path, fields, body) in REQUESTS.items():
        sent, long_way = (request(path, extra + fields, body) for extra in ("", "X-Long-Way: 1\r\n"))
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
        writer.write(sent)
        first = await answer(reader)
        writer.write(long_way)
        assert await answer(reader) == first, name
        for _ in range(3):
            writer.write(sent)
            assert await answer(reader) == first, name
        for cut in (1, 20, len(sent) - 1):  # which the daemon reads in one piece or in two
            writer.write(sent[:cut])
            await writer.drain()
            writer.write(sent[cut:] + sent + long_way + 2 * sent)
            assert [await answer(reader) for _ in range(5)] == 5 * [first], name
        writer.close()


async def test_quick_publishes_are_in_order_and_each_once(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """Sent without a wait for the answers, on several connections; a backlog in a file has them."""
    daemon = start_daemon(
        {
            "server": {"backlog": {"size": 10_000, "storage": str(tmp_path / "backlog")}},
            "clients": {"payloaders": ["127.0.0.1/32"]},
        }
    )
    publishers = [await asyncio.open_connection("127.0.0.1", daemon.port) for _ in range(8)]

    async def publish(number: int) -> list[bytes]:
        reader, writer = publishers[number]
        for n in range(100):
            writer.write(request(f"/{number}", "", b'{"n": %d}' % n))
            if not n % 7:
                await writer.drain()
        return [await cursor(reader) for _ in range(100)]

    cursors = await asyncio.gather(*(publish(number) for number in range(8)))
    async with daemon.subscriber("/", {"X-Fetch-Since": "-1"}) as stream:
        events = [await stream.event() for _ in range(800)]
    for number, (_, writer) in enumerate(publishers):
        own = [event for event in events if event["pubsub_path"] == f"/{number}"]
        assert [event["n"] for event in own] == list(range(100))
        assert [event["pubsub_cursor"].encode() for event in own] == cursors[number]
        writer.close()


async def test_a_request_behind_one_that_is_being_stored_waits_for_it(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """It is answered then, and so is the one before it, which is published once."""
    storage = tmp_path / "backlog"
    daemon = start_daemon(
        {
            "server": {"backlog": {"size": 100, "storage": str(storage)}},
            "clients": {"payloaders": ["127.0.0.1/32"]},
        }
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
    with locked(daemon, storage):
        for n in range(3):
            writer.write(request("/a", "", b'{"n": %d}' % n))
            await daemon.request("HEAD", "/")  # what was sent before has been read by then
    cursors = [await cursor(reader) for _ in range(3)]
    async with daemon.subscriber("/", {"X-Fetch-Since": "-1"}) as stream:
        events = [await stream.event() for _ in range(3)]
        assert "stillalive" in await stream.object()
    assert [(event["n"], event["pubsub_cursor"].encode()) for event in events] == list(enumerate(cursors))
    writer.close()


async def cursor(reader: asyncio.StreamReader) -> bytes:
    """That of the next answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(9) == b"accepted\n"
    (value,) = re.findall(rb"X-Cursor: (.*)\r", head)
    assert isinstance(value, bytes)
    return value
