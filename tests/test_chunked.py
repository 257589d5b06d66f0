"""Bodies in chunks: parsed bit by bit, and not at all where nobody asks for them."""

import asyncio
import json
import random
from collections.abc import Sequence

import pytest

from attack import LISTED, UNLISTED, all_answers, answer, request
from daemon import Daemon, StartDaemon
from hostile import chunks
from wire import TIMEOUT

HEAD = b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(number: int, size: int) -> bytes:
    """A payload of about so many bytes, in which there is a word of the head."""
    return json.dumps({"n": number, "chunked": "x" * size}).encode()


def publishes() -> Sequence[bytes]:
    """One after the other on a connection: in chunks of one byte, of any size, and whole."""
    return [
        HEAD + chunks(event(0, 10_000), 1),
        request("PUT", "/a", body=event(1, 10)),
        HEAD + chunks(event(2, 50_000), 999),
        HEAD + chunks(event(3, 10), 1),
        request("PUT", "/a", body=event(4, 20_000)),
        HEAD + chunks(event(5, 50_000), 50_100),
        HEAD + chunks(event(6, 5_000), 2, b";a=b"),
        request("PUT", "/a", body=event(7, 90_000)),
    ]


@pytest.mark.parametrize("most", [100, 3000, 5000, 70_000, 10**6])
async def test_chunks_arrive_however_the_network_cuts_them(server: Daemon, most: int) -> None:
    """Each request is answered, and its event published, in order: packets end where they will."""
    sizes = random.Random(most)
    sent = b"".join(publishes())
    async with server.subscriber("/a") as stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while sent:
            size = sizes.randint(1, most)
            writer.write(sent[:size])
            await writer.drain()
            await asyncio.sleep(0)
            sent = sent[size:]
        for number in range(len(publishes())):
            assert (await answer(reader)).status == 202
            assert (await stream.event())["n"] == number
        writer.close()


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> Daemon:
    """One that not every address of this machine may publish to."""
    return start_daemon({"clients": {"payloaders": [LISTED]}})


async def test_a_body_that_nobody_asks_for_ends_the_connection(daemon: Daemon) -> None:
    """The answer says so, and arrives although the client goes on sending for a while."""
    for method, status in (("PUT", b"403"), ("HEAD", b"204"), ("DELETE", b"405")):
        head = HEAD.replace(b"PUT", method.encode())
        came = await all_answers(daemon, head + b"1\r\n \r\n" * 200_000, UNLISTED)
        assert came.startswith(b"HTTP/1.1 " + status)
        assert b"\r\nConnection: close\r\n" in came
        assert came.count(b"HTTP/1.1 ") == 1


async def test_a_refused_body_that_came_with_its_head_costs_no_connection(daemon: Daemon) -> None:
    """The next request is answered over the same one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port, local_addr=(UNLISTED, 0))
    for _ in range(2):
        writer.write(HEAD + chunks(b"{}", 1))
        refused = await answer(reader)
        assert refused.status == 403
        assert "connection" not in refused.headers
    writer.close()


async def test_who_waits_for_an_answer_to_begin_a_body_may_send_it_in_chunks(server: Daemon) -> None:
    """The body comes after the answer 100, in as many packets as chunks."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEAD[:-2] + b"Expect: 100-continue\r\n\r\n")
    async with asyncio.timeout(TIMEOUT):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    for piece in (b"2\r\n{}\r\n", b"0\r\n", b"\r\n"):
        writer.write(piece)
        await writer.drain()
    assert (await answer(reader)).status == 202
    writer.close()
