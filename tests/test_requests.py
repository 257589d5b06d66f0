"""Requests as they come over a connection: their versions, several at a time, and an end on one side only."""

import asyncio
import os
import random
import socket
import subprocess
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from daemon import Daemon, StartDaemon
from storage import locked
from wire import TIMEOUT, answer_head

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
WEBSOCKET = b"Connection: upgrade\r\nUPGRADE: websocket\r\n"
LONG_WAY = b"X-Long-Way: 1\r\n"
LAST = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"  # whose answer, of status 204, is the last that is waited for


def publish(number: int, fields: bytes = b"", version: bytes = b" HTTP/1.1") -> bytes:
    """A publish whose event has this number."""
    body = b'{"n": %d, "upgrade":\r\n\r\n0}' % number
    return b"PUT /row%b\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (version, fields, len(body), body)


def chunked(number: int, fields: bytes = b"") -> bytes:
    """The same, in two chunks."""
    head = b"PUT /row HTTP/1.1\r\nHost: x\r\n%bTransfer-Encoding: chunked\r\n\r\n" % fields
    return head + b'5\r\n{"n":\r\n%x\r\n%d}\r\n0\r\n\r\n' % (len(str(number)) + 1, number)


class Row:
    """A connection on which requests are sent without waiting for their answers."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> "Row":
        self._reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def statuses(self) -> list[int]:
        """Of all answers, up to that to LAST or to the end of the connection."""
        found: list[int] = []
        async with asyncio.timeout(TIMEOUT):
            while 204 not in found:
                head = await self._reader.readline()
                if not head:
                    break
                head += await self._reader.readuntil(b"\r\n\r\n")
                version, status, _ = head.split(maxsplit=2)
                assert version == b"HTTP/1.1"
                found.append(int(status))
                size = head.partition(b"Content-Length: ")[2].partition(b"\r")[0]
                await self._reader.readexactly(int(size or 0))
        return found


# What is sent -> the statuses of the answers
ROWS = {
    "one that would upgrade": ([publish(1, H2C), publish(2), LAST], [202, 202, 204]),
    "several that would": ([publish(1, H2C), publish(2, H2C), publish(3), LAST], [202, 202, 202, 204]),
    "websockets": ([publish(1, WEBSOCKET), publish(2, WEBSOCKET), LAST], [202, 202, 204]),
    "CONNECT": ([b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", publish(2), LAST], [405, 202, 204]),
    "a refused one that would": (
        [b"DELETE / HTTP/1.1\r\nHost: x\r\n" + H2C + b"\r\n", publish(2), LAST],
        [405, 202, 204],
    ),
    "chunks": ([chunked(1), chunked(2), publish(3, H2C), publish(4), LAST], [202] * 4 + [204]),
    "many": ([publish(n, H2C if n % 3 else b"") for n in range(100)] + [LAST], [202] * 100 + [204]),
    "blank lines": ([publish(1, H2C), b"\r\n\r\n", publish(2, H2C), b"\r\n", LAST], [202, 202, 204]),
    "garbage": ([publish(1), b"garbage\r\n\r\n"], [202, 400]),
    "garbage behind several": ([publish(1), publish(2, LONG_WAY), chunked(3), b"\0"], [202, 202, 202, 400]),
    "garbage behind many": ([publish(n) for n in range(100)] + [b"\0"], [202] * 100 + [400]),
    "garbage behind an upgrade": ([publish(1, H2C), b"upgrade\r\n\r\n"], [202, 400]),
    "another request behind the last": ([publish(1, b"Connection: close\r\n"), publish(2)], [202]),
    "a chunk that is broken": ([publish(1), chunked(2).replace(b"\r\n2\r\n", b"\r\nx\r\n")], [202, 400]),
}


@pytest.mark.parametrize("row", ROWS)
async def test_each_request_of_a_row_is_answered(server: Daemon, row: str) -> None:
    """In their order, whatever comes behind; one that asks for another protocol is answered in HTTP/1.1."""
    requests, statuses = ROWS[row]
    async with Row(server.port) as connection:
        connection.writer.write(b"".join(requests))
        assert await connection.statuses() == statuses


@pytest.mark.parametrize("row", ["one that would upgrade", "several that would", "chunks", "websockets"])
async def test_so_it_is_however_the_row_is_cut(server: Daemon, row: str) -> None:
    """Within heads, between head and body, and within bodies."""
    requests, statuses = ROWS[row]
    sent = b"".join(requests)
    for seed in range(8):
        cuts = sorted(random.Random(seed).sample(range(1, len(sent)), 3))
        async with Row(server.port) as connection:
            for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
                connection.writer.write(sent[start:end])
                await server.request("OPTIONS", "/")  # what was sent before has been read by then
            assert await connection.statuses() == statuses, cuts


async def test_a_large_body_that_would_upgrade_loses_nothing(server: Daemon) -> None:
    """Nor what is behind it, though it comes in many pieces."""
    body = b'{"n": "%b"}' % (b"x" * 90_000)
    large = b"PUT /row HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (H2C, len(body), body)
    async with Row(server.port) as connection:
        connection.writer.write(2 * (large + publish(1, H2C)) + LAST)
        assert await connection.statuses() == [202, 202, 202, 202, 204]


@pytest.mark.parametrize(
    ("version", "status"),
    [
        (b"", 505),
        (b" HTTP/0.9", 505),
        (b" HTTP/2.0", 505),
        (b" HTTP/1.2", 400),
        (b" HTTP/3", 400),
        (b" RTSP/1.0", 400),
        (b" ICE/1.0", 400),
        (b" http/1.1", 400),
        (b" ", 400),
    ],
)
@pytest.mark.parametrize("method", [b"PUT", b"GET"])
async def test_what_is_not_http_1_0_or_1_1_is_never_carried_out(
    server: Daemon, method: bytes, version: bytes, status: int
) -> None:
    """Refused, in HTTP/1.1, and the connection is closed."""
    async with server.subscriber("/row") as stream:
        async with Row(server.port) as connection:
            connection.writer.write(publish(1, version=version).replace(b"PUT", method) + publish(2))
            assert await connection.statuses() in ([status], [505])
        await server.put("/row", {"n": 3})
        assert (await stream.event())["n"] == 3


# An end on one side


@pytest.mark.parametrize("fields", [b"", LONG_WAY, H2C, b"Idempotency-Key: 1\r\n", b"Connection: close\r\n"])
async def test_a_publisher_who_half_closes_is_answered(server: Daemon, fields: bytes) -> None:
    """Whichever way the publish takes; then the connection is closed, and its place is free."""
    for _ in range(20):
        async with Row(server.port) as connection:
            connection.writer.write(publish(1, fields))
            connection.writer.write_eof()
            assert await connection.statuses() == [202]


async def test_all_requests_before_a_half_close_are_answered(server: Daemon) -> None:
    """A part of one behind them is dropped."""
    for part in (b"", b"PUT /ro"):
        async with Row(server.port) as connection:
            connection.writer.write(b"".join(publish(n, H2C if n % 2 else b"") for n in range(50)) + part)
            connection.writer.write_eof()
            assert await connection.statuses() == [202] * 50


async def test_a_half_close_before_the_end_of_a_body_publishes_nothing(server: Daemon) -> None:
    """Though what has come were an event."""
    async with server.subscriber("/row") as stream:
        for sent in (publish(1)[:-1], publish(1).replace(b"Length: ", b"Length: 1"), b"PUT /row", b""):
            async with Row(server.port) as connection:
                connection.writer.write(sent)
                connection.writer.write_eof()
                assert await connection.statuses() == []
        await server.put("/row", {"n": 2})
        assert (await stream.event())["n"] == 2


async def test_a_half_closed_publisher_is_answered_when_its_event_is_stored(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """However the publish was taken, while others are served."""
    storage = tmp_path / "backlog"
    daemon = start_daemon({"server": {"backlog": {"size": 100, "storage": str(storage)}}})
    async with Row(daemon.port) as quick, Row(daemon.port) as long_way:
        with locked(daemon, storage):
            for connection, fields in ((quick, b""), (long_way, LONG_WAY)):
                connection.writer.write(publish(1, fields))
                connection.writer.write_eof()
            for _ in range(5):
                await daemon.request("HEAD", "/")
        assert await quick.statuses() == await long_way.statuses() == [202]


async def test_a_refusal_reaches_who_has_half_closed(start_daemon: StartDaemon) -> None:
    """One that is held back as well, and one of what is no request."""
    server = start_daemon({"server": {"refusal_delay": 0.5}})
    for sent, status in (
        (publish(1).replace(b"/row", b"/,"), 400),
        (b"GET /, HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ):
        async with Row(server.port) as connection:
            connection.writer.write(sent)
            connection.writer.write_eof()
            assert await connection.statuses() == [status]
    async with Row(server.port) as connection:
        connection.writer.write(b"garbage\r\n\r\n")
        connection.writer.write_eof()
        assert await connection.statuses() == [400]


async def test_a_connection_that_is_half_closed_does_not_last(start_daemon: StartDaemon) -> None:
    """It may be closed altogether: nobody can tell. After 5 seconds without an answer its place is free."""
    server = start_daemon({"server": {"refusal_delay": "1h"}})
    async with Row(server.port) as connection:
        connection.writer.write(b"GET /, HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.writer.write_eof()
        assert await connection.statuses() == []


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_subscriber_who_half_closes_with_its_request_follows(server: Daemon, version: str) -> None:
    """As nc -N does; its end is noticed when events or pings come."""
    for n in range(20):
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            connection = writer.get_extra_info("socket")
            os.write(connection.fileno(), f"GET /halves HTTP/{version}\r\nHost: x\r\n\r\n".encode())
            connection.shutdown(socket.SHUT_WR)
            await reader.readuntil(b"stillalive")
            await server.put("/halves", {"n": n})
            await reader.readuntil(b'"n": %d' % n)
            writer.close()


async def test_a_subscriber_who_closes_with_its_request_is_noticed(start_daemon: StartDaemon) -> None:
    """Without a ping or an event."""
    server = start_daemon({"server": {"ping_interval": "1h"}})
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(b"GET /gone HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(TIMEOUT):
        while (await server.request("HEAD", "/")).headers["X-Subscribers"] != "0":
            pass


def nc(port: int, sent: bytes, *options: str) -> bytes:
    """What nc prints, which ends when its connection does."""
    command = ["nc", *options, "127.0.0.1", str(port)]
    return subprocess.run(command, input=sent, capture_output=True, check=True, timeout=TIMEOUT).stdout


async def test_nc_publishes_and_follows(server: Daemon) -> None:
    """`nc -N` closes its side behind what it has read."""
    answer = await asyncio.to_thread(nc, server.port, publish(1), "-N")
    assert answer.startswith(b"HTTP/1.1 202 ")
    assert answer.endswith(b"accepted\n")
    command = ["nc", "-N", "127.0.0.1", str(server.port)]
    reader = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
    assert reader.stdin is not None
    assert reader.stdout is not None
    reader.stdin.write(b"GET /nc HTTP/1.1\r\nHost: x\r\n\r\n")
    reader.stdin.close()
    async with asyncio.timeout(TIMEOUT):
        await reader.stdout.readuntil(b"stillalive")
        await server.put("/nc", {"n": 1})
        await reader.stdout.readuntil(b'{"n": 1, ')
    reader.kill()
    await reader.wait()


@pytest.mark.parametrize("option", ["--http2", "--http1.0", "--http1.1"])
async def test_curl_publishes_twice_over_a_connection(server: Daemon, option: str) -> None:
    """With --http2 it asks for an upgrade to h2c, and goes on in HTTP/1.1."""
    url = f"{server.url}/row"
    command = ["curl", "-sS", option, "-d", "{}", url, url]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True, timeout=TIMEOUT)
    assert done.stdout == b"accepted\naccepted\n"


async def test_a_head_of_two_pieces_is_one_request(server: Daemon) -> None:
    """Though the name of a field that asks for an upgrade is cut."""
    sent = publish(1, H2C)
    async with Row(server.port) as connection:
        connection.writer.write(sent[: sent.index(b"grade: h2c")])
        assert b" 204 " in await answer_head(server.port, LAST)
        connection.writer.write(sent[sent.index(b"grade: h2c") :])
        assert b" 204 " in await answer_head(server.port, LAST)
        connection.writer.write(LAST)
        assert await connection.statuses() == [202, 204]


REFUSED = b"DELETE / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("ahead", [7, 15, 16, 31, 32, 33])
@pytest.mark.parametrize("last", ["upgrade", "chunks"])
async def test_what_comes_behind_as_many_as_may_wait_is_answered(
    server: Daemon, ahead: int, last: str
) -> None:
    """Whatever it is, in one piece with those before it."""
    large = b"PUT /row HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    body = b'{"x": "' + b"x" * 60_000 + b'"}'
    requests = [publish(1, H2C), publish(2)] if last == "upgrade" else [large % (len(body), body), publish(2)]
    async with Row(server.port) as row:
        row.writer.write(b"".join([*[REFUSED] * ahead, *requests, LAST]))
        assert await row.statuses() == [405] * ahead + [202, 202, 204]


async def test_thousands_of_requests_at_once_are_answered(server: Daemon) -> None:
    """What waits is not taken for a head that does not end."""
    count = 8000
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(3 * TIMEOUT):
        for _ in range(2):
            writer.write(LAST * count)
            for _ in range(count):
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
    writer.close()


@pytest.mark.parametrize("size", [10, 5_000, 20_000, 90_000])
async def test_a_body_in_chunks_may_be_the_last_that_comes(server: Daemon, size: int) -> None:
    """Its publisher closes its own side behind it, and is answered."""
    body = b'{"x": "' + b"x" * size + b'"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"PUT /row HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    writer.write_eof()
    async with asyncio.timeout(TIMEOUT):
        assert (await reader.read()).startswith(b"HTTP/1.1 202 ")
    writer.close()


async def test_a_late_head_takes_no_answer_from_a_publish_that_is_stored(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """The publish before it is answered first, with 202; then it is refused."""
    storage = tmp_path / "backlog.db"
    daemon = start_daemon({"server": {"head_timeout": 0.3, "backlog": {"size": 10, "storage": str(storage)}}})
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
    with locked(daemon, storage):
        writer.write(publish(1))
        await asyncio.sleep(0.1)  # so that it comes alone
        writer.write(b"PUT /ro")
        await asyncio.sleep(0.6)  # past head_timeout
    async with asyncio.timeout(TIMEOUT):
        answers = await reader.read()
    assert answers.startswith(b"HTTP/1.1 202 ")
    assert answers.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 408 " in answers
    writer.close()
