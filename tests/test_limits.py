"""What one client can take from the others: connections, and what it hears when it is too much."""

import asyncio
import contextlib
import re
import resource
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from netaddr import IPNetwork

from core.auth.networks import Networks
from core.http.limits import MAX_SURPLUS, MIN_SURPLUS, Connections, room_for_connections
from core.http.refusals import LINES_A_SECOND, Refusals
from daemon import Daemon, StartDaemon, basic
from test_tls import tls_daemon
from wire import TIMEOUT

PUT = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


class Client:
    """A connection that sends what a test says, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, raw: bytes) -> None:
        """Send."""
        self.writer.write(raw)

    async def answer(self) -> tuple[int, str]:
        """The next answer: its status, and its head and body as they came."""
        async with asyncio.timeout(TIMEOUT):
            raw = await self.reader.readuntil(b"\r\n\r\n")
            length = raw.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            raw += await self.reader.readexactly(int(length or 0))
        return int(raw.split()[1]), raw.decode()

    async def put(self) -> int:
        """Publish over this connection; the status."""
        self.send(PUT)
        return (await self.answer())[0]

    async def rest(self) -> bytes:
        """All that comes until the connection ends."""
        async with asyncio.timeout(TIMEOUT):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def connected(server: Daemon, address: str = "127.0.0.1") -> AsyncIterator[Client]:
    """A connection to a daemon, from an address of this machine."""
    client = Client(*await asyncio.open_connection("127.0.0.1", server.port, local_addr=(address, 0)))
    try:
        yield client
    finally:
        client.writer.close()


# Connections


async def test_connections_over_the_limit_are_refused_and_others_served(start_daemon: StartDaemon) -> None:
    """503 for those that came too late, however long they stay; when one leaves, there is room for one."""
    server = start_daemon({"server": {"max_connections": 2}})
    async with connected(server) as first, connected(server) as late:
        async with connected(server) as second, connected(server) as later:
            assert [await first.put(), await late.put()] == [202, 202]
            for refused in (second, later):
                refused.send(PUT)
                status, answer = await refused.answer()
                assert status == 503
                assert "\r\nRetry-After: 5\r\n" in answer
                assert "\r\nConnection: close\r\n" in answer
                assert answer.endswith("\ntoo many connections (server.max_connections): ask again later\n")
                assert await refused.rest() == b""
        assert await first.put() == 202
        first.writer.close()
        await until_served(server)
        assert await late.put() == 202


async def until_served(server: Daemon) -> None:
    """Ask until a connection is not one too many."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            async with connected(server) as client:
                if await client.put() == 202:
                    return


async def test_an_address_may_have_so_many_connections(start_daemon: StartDaemon) -> None:
    """One more: 429, which limit it was, when to ask again. Other addresses are served."""
    server = start_daemon({"server": {"max_connections_per_address": 1}})
    async with connected(server) as first, connected(server) as second:
        assert await first.put() == 202
        second.send(PUT)
        status, answer = await second.answer()
        assert status == 429
        assert "\r\nRetry-After: 5\r\n" in answer
        assert "\r\nConnection: close\r\n" in answer
        assert "more than 1 connections from one address (server.max_connections_per_address)" in answer
        async with connected(server, "127.0.0.2") as other:
            assert await other.put() == 202
        assert await first.put() == 202
        first.writer.close()
        await until_served(server)


async def test_a_trusted_proxy_may_have_any_number_of_connections(start_daemon: StartDaemon) -> None:
    """As may the peers of a unix socket: who is behind them is not known before a request comes."""
    server = start_daemon({"server": {"max_connections_per_address": 1, "trusted_proxies": ["127.0.0.2"]}})
    async with connected(server, "127.0.0.2") as first, connected(server, "127.0.0.2") as second:
        assert [await first.put(), await second.put()] == [202, 202]


async def test_peers_of_a_unix_socket_may_have_any_number_of_connections(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """They have no address that could be counted."""
    path = tmp_path / "socket"
    limits = {"max_connections_per_address": 1, "bind": ["127.0.0.1", f"unix:{path}"]}
    server = start_daemon({"server": limits, "clients": {"payloaders": ["unix"]}})
    server.logged("serves unix:")
    clients = [Client(*await asyncio.open_unix_connection(path)) for _ in range(2)]
    assert [await client.put() for client in clients] == [202, 202]
    for client in clients:
        client.writer.close()


# The addresses of two connections, and whether they count as one
PAIRS = [
    ("192.0.2.1", "192.0.2.1", True),
    ("192.0.2.1", "192.0.2.2", False),
    ("2001:db8::1", "2001:db8::ffff:2", True),
    ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
    ("198.51.100.1", "198.51.100.1", False),
    (None, None, False),
    ("unix", "unix", False),
]


@pytest.mark.parametrize(("first", "second", "counted"), PAIRS)
def test_what_counts_as_one_address(first: str | None, second: str | None, counted: bool) -> None:
    """An IPv4 address, a /64 of IPv6; an exempt address, and what has none, is not counted."""
    limits = Connections(10, 10, 1, Networks([IPNetwork("198.51.100.0/24")]))
    assert limits.enter(first) == "admitted"
    assert limits.enter(second) == ("connections_per_address" if counted else "admitted")
    if counted:
        limits.leave(first, "admitted")
        assert limits.enter(second) == "admitted"


async def test_surplus_connections_are_bounded_too(start_daemon: StartDaemon) -> None:
    """One more than those who wait for their 503 waits to be accepted, and is told when there is room."""
    server = start_daemon({"server": {"max_connections": 1}}, files=64)
    async with connected(server) as first, contextlib.AsyncExitStack() as stack:
        assert await first.put() == 202
        surplus = [await stack.enter_async_context(connected(server)) for _ in range(15)]
        last = await stack.enter_async_context(connected(server))
        await server.until_logged("cannot accept connections: there are 1, and 15 more to be refused")
        assert await first.put() == 202
        surplus[0].writer.close()
        assert await last.put() == 503


async def test_an_address_beyond_its_limit_keeps_nobody_waiting(start_daemon: StartDaemon) -> None:
    """Its surplus connections are bounded: one more is closed at once, and others are admitted."""
    server = start_daemon({"server": {"max_connections_per_address": 1}}, files=64)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server)) for _ in range(1 + 4 + 1)]
        assert await clients[-1].rest() == b""
        await server.until_logged("refused a connection, without an answer, from 127.0.0.1: 429 ")
        async with connected(server, "127.0.0.2") as other:
            assert await other.put() == 202


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_more_connections_than_open_files_do_no_harm(start_daemon: StartDaemon, loop: str) -> None:
    """Those that came first are served, and the log stays short."""
    server = start_daemon(files=64, options=["--loop", loop])
    connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(150)]
    reader, writer = connections[0]
    async with asyncio.timeout(10):
        for _ in range(3):
            writer.write(PUT)
            assert b" 202 " in await reader.readline()
            await reader.readuntil(b"accepted\n")
    await server.until_logged("cannot accept connections: there are 12, and 4 more to be refused")
    for _, writer in connections:
        writer.close()
    while (await server.request("HEAD", "/")).status != 204:
        pass
    assert len(server.log) < 200
    assert not any("Traceback" in line for line in server.log)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_everybody_is_told_who_is_too_many_for_the_open_files(
    start_daemon: StartDaemon, loop: str
) -> None:
    """However many come at once: nobody is closed without a byte."""
    server = start_daemon(files=160, options=["--loop", loop])
    admitted = int(server.logged("the limit of open files allows for ").split()[-2])
    async with contextlib.AsyncExitStack() as stack:
        first = [await stack.enter_async_context(connected(server)) for _ in range(admitted)]
        assert {await client.put() for client in first} == {202}
        surplus = [await stack.enter_async_context(connected(server)) for _ in range(200)]
        assert set(await asyncio.gather(*(client.put() for client in surplus))) == {503}
        assert await first[0].put() == 202


def files_of(server: Daemon) -> int:
    """How many it has open."""
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_the_log_says_that_no_connection_can_be_accepted(start_daemon: StartDaemon, loop: str) -> None:
    """With the kernel's reason, once; what waits is served when it is over, and the log says that too."""
    server = start_daemon(options=["--loop", loop])
    async with connected(server) as first:
        assert await first.put() == 202
        usual = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        open_files = files_of(server)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (open_files, usual[1]))
        async with connected(server) as waiting:
            await server.until_logged("cannot accept connections: Too many open files")
            assert await first.put() == 202
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, usual)
            assert await waiting.put() == 202
        await server.until_logged("connections are accepted again")
    assert sum("cannot accept" in line for line in server.log) == 1


# open files, server.max_connections, those of others -> connections that are admitted, and that are refused
ROOM = [
    (64, 50_000, 0, 12, MIN_SURPLUS),
    (64, 50_000, 5, 7, MIN_SURPLUS),
    (64, 5, 0, 5, 11),
    (600, 200, 0, 200, 352),
    (1024, 50_000, 0, 915, 61),
    (65_536, 50_000, 0, 50_000, MAX_SURPLUS),
    (resource.RLIM_INFINITY, 50_000, 0, 50_000, MAX_SURPLUS),
]


@pytest.mark.parametrize(("limit", "configured", "of_others", "admitted", "refused"), ROOM)
def test_there_is_room_for_refusals_and_for_files(
    monkeypatch: pytest.MonkeyPatch, limit: int, configured: int, of_others: int, admitted: int, refused: int
) -> None:
    """Whatever may be open: some connections are for refusals, and some files are no connections."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert room_for_connections(configured, of_others) == (admitted, refused)


def test_a_limit_of_open_files_that_leaves_none_for_connections_stops_the_start(tmp_path: Path) -> None:
    """One line: what it is, and what it should be."""
    server = Daemon(tmp_path, files=40)
    with pytest.raises(AssertionError, match=r"the limit of open files \(ulimit -n\) is 40: expected 53 or"):
        server.start()
    assert server.wait() == 1


# Connections over TLS


async def silent(port: int, number: int, address: str) -> list[asyncio.StreamWriter]:
    """Connections to a TLS port whose handshakes never begin."""
    return [
        (await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))[1] for _ in range(number)
    ]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_tls_handshakes_are_within_every_limit(
    start_daemon: StartDaemon, tmp_path: Path, loop: str
) -> None:
    """Silent sockets from one address take neither the places of others nor the server's own files."""
    limits = {"max_connections": 40, "max_connections_per_address": 5, "head_timeout": "1h"}
    daemon = partial(start_daemon, files=150, acl={"alice": {"password": "secret"}}, options=["--loop", loop])
    server, port, context = tls_daemon(daemon, tmp_path, limits)
    silent_ones = await silent(port, 300, "127.0.0.2")
    async with server.subscriber("/a", basic("alice")) as stream:
        await server.until_logged("refused a connection, without an answer, from 127.0.0.2: 429 ")
        assert await server.reload({"bob": {"password": "secret"}})
        await stream.rest()
    assert (await server.put("/a", {})).status == 202
    assert await (await tls_connection(port, context)).put() == 202
    assert files_of(server) <= 150
    assert not any("Too many open files" in line for line in server.log)
    for writer in silent_ones:
        writer.close()


async def tls_connection(port: int, context: ssl.SSLContext, address: str = "127.0.0.1") -> Client:
    """A connection whose handshake has ended."""
    async with asyncio.timeout(TIMEOUT):
        connection = asyncio.open_connection("127.0.0.1", port, ssl=context, local_addr=(address, 0))
        return Client(*await connection)


async def test_a_surplus_connection_is_told_over_tls(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """429 or 503, as over the other port: each counts on both."""
    limits = {"max_connections": 3, "max_connections_per_address": 1, "head_timeout": "1h"}
    server, port, context = tls_daemon(start_daemon, tmp_path, limits)
    first = await tls_connection(port, context)
    assert await first.put() == 202
    assert await (await tls_connection(port, context)).put() == 429
    async with connected(server) as plain:
        assert await plain.put() == 429
    others = await silent(port, 1, "127.0.0.2") + await silent(port, 1, "127.0.0.3")
    assert await (await tls_connection(port, context, "127.0.0.4")).put() == 503
    assert await first.put() == 202
    for writer in others:
        writer.close()


async def test_a_surplus_handshake_that_does_not_end_is_given_up_soon(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """It has not the time that others have."""
    limits = {"max_connections": 1, "head_timeout": "1h"}
    server, port, _ = tls_daemon(start_daemon, tmp_path, limits)
    async with connected(server) as first:
        assert await first.put() == 202
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(TIMEOUT):
            assert await reader.read() == b""
        writer.close()


async def test_a_handshake_that_fails_leaves_its_place(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """As one that ended does when its client hangs up."""
    server, port, context = tls_daemon(start_daemon, tmp_path, {"max_connections": 1})
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"no TLS at all\r\n\r\n")
        async with asyncio.timeout(TIMEOUT):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()
        async with asyncio.timeout(TIMEOUT):
            while await (client := await tls_connection(port, context)).put() != 202:
                client.writer.close()
        client.writer.close()
    await until_served(server)
    assert not any("Error" in line or "Traceback" in line for line in server.log)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_handshake_does_not_hold_up_a_stop(
    start_daemon: StartDaemon, tmp_path: Path, loop: str
) -> None:
    """It is cut off."""
    daemon = partial(start_daemon, options=["--loop", loop])
    server, port, _ = tls_daemon(daemon, tmp_path, {"head_timeout": "1h", "max_connections": 1})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with connected(server) as surplus:
        assert await surplus.put() == 503  # by then the handshake is waited for
    assert await asyncio.to_thread(server.stop) == 0
    async with asyncio.timeout(TIMEOUT):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    assert not any("Error" in line or "Traceback" in line for line in server.log)


# Heads that come slowly, or never

BEGINNINGS = [
    b"",
    b"\r\n",
    b"P",
    b"PUT /a",
    PUT[:-5],
    PUT[:-3],
    b"HEAD / HTTP/1.1\r\nAuthorization: Basic c2Vj",
]


async def timed_out(client: Client) -> bool:
    """Wait until a connection is given up; whether its client is told why, in one line."""
    status, answer = await client.answer()
    assert await client.rest() == b""
    body = answer.partition("\r\n\r\n")[2]
    return (
        status == 408 and body.startswith("the request's head did not come within ") and body.count("\n") == 1
    )


@pytest.mark.parametrize("beginning", BEGINNINGS)
async def test_a_head_that_does_not_come_to_its_end_is_given_up(
    start_daemon: StartDaemon, beginning: bytes
) -> None:
    """408, and the connection is closed; so it is where nothing comes at all."""
    server = start_daemon({"server": {"head_timeout": 0.3}})
    async with connected(server) as client:
        client.send(beginning)
        assert await timed_out(client)
    if beginning:
        await server.until_logged("refused .* from 127.0.0.1: 408 the request's head did not come")


async def test_a_head_that_drips_is_given_up(start_daemon: StartDaemon) -> None:
    """However many bytes come meanwhile."""
    server = start_daemon({"server": {"head_timeout": 0.3}})
    async with connected(server) as client:
        client.send(b"HEAD / HTTP/1.1\r\nX: ")
        given_up = asyncio.create_task(timed_out(client))
        while not given_up.done():
            client.send(b"x")
            await asyncio.wait([given_up], timeout=0.01)
        assert await given_up


async def test_a_second_head_that_drips_is_given_up(start_daemon: StartDaemon) -> None:
    """Long before the 75 seconds that a connection may be idle between two requests."""
    server = start_daemon({"server": {"head_timeout": 0.3}})
    async with connected(server) as client:
        assert await client.put() == 202
        client.send(b"PUT")
        assert await timed_out(client)


async def test_a_head_that_drips_behind_a_request_is_given_up(start_daemon: StartDaemon) -> None:
    """Though it came while the request before it was being answered, which is answered first."""
    server = start_daemon({"server": {"head_timeout": 0.3, "refusal_delay": 1}})
    async with connected(server) as client:
        client.send(b"GET /, HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.request("HEAD", "/")  # by then the request has been read
        client.send(b"PUT")
        assert (await client.answer())[0] == 400
        assert await timed_out(client)


async def test_whoever_is_not_sending_a_head_is_not_given_up(start_daemon: StartDaemon) -> None:
    """An idle connection, a subscriber, a slow body: each goes on after a later connection timed out."""
    server = start_daemon({"server": {"head_timeout": 1}})
    async with (
        server.subscriber("/a") as stream,
        connected(server) as idle,
        connected(server) as slow,
    ):
        assert await idle.put() == 202
        for part in (PUT[:9], PUT[9:-2], PUT[-2:-1]):
            slow.send(part)
            await idle.put()  # so that the parts come one by one
        async with connected(server) as later:
            assert await timed_out(later)
        slow.send(PUT[-1:])
        assert (await slow.answer())[0] == 202
        assert await idle.put() == 202
        assert await slow.put() == 202
        for _ in range(7):
            assert (await stream.event())["pubsub_path"] == "/a"


async def test_a_surplus_connection_that_asks_for_nothing_is_closed_soon(start_daemon: StartDaemon) -> None:
    """It need not have the time that others have for their heads, and hears that it is one too many."""
    server = start_daemon({"server": {"max_connections": 1, "head_timeout": "1h"}})
    async with connected(server) as first, connected(server) as surplus:
        assert await first.put() == 202
        status, answer = await surplus.answer()
        assert status == 503
        assert "too many connections" in answer
        assert await surplus.rest() == b""


async def test_a_tls_handshake_that_does_not_end_is_given_up(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """The connection is closed, and the log stays silent."""
    server, port, _ = tls_daemon(start_daemon, tmp_path, {"head_timeout": 0.3})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(TIMEOUT):
        assert await reader.read() == b""
    writer.close()
    assert not any("Error" in line for line in server.log)


async def test_many_requests_at_once_are_answered_in_turn(server: Daemon) -> None:
    """What is sent ahead waits, and costs nobody's connection."""
    async with connected(server) as client:
        client.send(PUT * 500)
        assert [(await client.answer())[0] for _ in range(500)] == [202] * 500


# Heads that are too large, and what is no request

GET, HOST, SECRET = b"GET /a HTTP/1.1\r\n", b"Host: x\r\n", b"c2VjcmV0"
CHUNKED = b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
FIELD = b"X: " + SECRET * 1000 + b"\r\n"
REFUSED = {
    "a long path": (b"GET /" + SECRET * 1024, 414, "8190 bytes"),
    "a long query": (b"GET /?since=" + SECRET * 1024, 414, "8190 bytes"),
    "a request line without an end": (b"GET /" + SECRET * 125_000, 414, "8190 bytes"),
    "a long header field": (GET + HOST + b"Authorization: Basic " + SECRET * 1024, 431, "8192 bytes"),
    "a long name of a field": (GET + HOST + SECRET * 1025, 431, "8192 bytes"),
    "many fields": (GET + HOST + b"X: c2VjcmV0\r\n" * 128 + b"\r\n", 431, "128 header fields"),
    "fields of 66 KB together": (
        GET + HOST + FIELD * 8 + b"Y: " + FIELD[-2003:] + b"\r\n",
        431,
        "65536 bytes together",
    ),
    "fields without an end": (GET + HOST + FIELD * 100, 431, "65536 bytes together"),
    "empty lines without an end": (b"\r\n" * 70_000, 431, "65536 bytes together"),
    "a NUL in a field": (GET + HOST + b"Authorization: c2VjcmV0\0\r\n\r\n", 400, "header value"),
    "a control character": (GET + HOST + b"Authorization: c2VjcmV0\x01\r\n\r\n", 400, "header value"),
    "a NUL in the path": (b"GET /c2VjcmV0\0 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "no URL"),
    "a folded field": (GET + HOST + b"X: a\r\n c2VjcmV0\r\n\r\n", 400, "whitespace"),
    "no field": (GET + HOST + b"c2VjcmV0\r\n\r\n", 400, "header token"),
    "a space before the colon": (GET + HOST + b"Authorization : c2VjcmV0\r\n\r\n", 400, "header token"),
    "no Host": (GET + b"\r\n", 400, "Host"),
    "two Hosts": (GET + HOST + b"Host: c2VjcmV0\r\n\r\n", 400, "Host"),
    "no URL": (b"GET http://c2VjcmV0@[bad HTTP/1.1\r\n" + HOST + b"\r\n", 400, "no URL"),
    "no request line": (b"HELLO c2VjcmV0\r\n\r\n", 400, "not HTTP/1.1: Invalid method"),
    "an unknown version": (b"GET / HTTP/3.0\r\n" + HOST + b"\r\n", 400, "not HTTP/1.1"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 400, "HTTP/2 is not known here"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "HTTPS"),
    "no chunk size": (CHUNKED + b"c2VjcmV0\r\n{}\r\n0\r\n\r\n", 400, "chunks are broken"),
    "a chunk size beyond bounds": (CHUNKED + b"f" * 30 + b"\r\n{}\r\n0\r\n\r\n", 400, "chunks are broken"),
    "two lengths": (PUT[:-6] + b"\r\nContent-Length: 2\r\n\r\n{}", 400, "Content-Length"),
    "a length that is none": (PUT[:-7] + b"c2VjcmV0\r\n\r\n{}", 400, "Content-Length"),
    "chunks with a length": (
        CHUNKED[:-2] + b"Content-Length: 2\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        400,
        "Content-Length",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_no_request_is_refused_in_a_line_that_quotes_nothing(server: Daemon, name: str) -> None:
    """The answer says what it was, so does the log; neither quotes it, as it may hold credentials."""
    raw, status, said = REFUSED[name]
    async with connected(server) as client:
        client.send(raw)
        got, answer = await client.answer()
    assert got == status
    assert "\r\nServer: PyPubSub/" in answer
    body = answer.partition("\r\n\r\n")[2]
    assert said in body
    assert body.count("\n") == 1
    line = await server.until_logged(f"refused .* from 127.0.0.1: {status} ")
    assert line.endswith(body.rstrip())
    assert "c2VjcmV0" not in answer
    assert not any("c2VjcmV0" in line or "Traceback" in line for line in server.log)


async def test_a_head_just_within_the_limits_is_served(server: Daemon) -> None:
    """8,190 bytes of path and query, 128 fields, almost 64 KiB of them, in pieces."""
    target = b"/" + b"a" * 8189
    fields = HOST + FIELD[:8000] + b"\r\n" + (FIELD[:7990] + b"\r\n") * 7 + b"X: 1\r\n" * 119
    async with connected(server) as client:
        client.send(b"HEAD " + target)
        async with connected(server) as other:
            assert await other.put() == 202
        client.send(b" HTTP/1.1\r\n" + fields + b"\r\n")
        assert (await client.answer())[0] == 204


async def test_a_client_that_sends_on_gets_its_refusal(server: Daemon) -> None:
    """It is not cut off while it sends: that would be a reset, and take the answer with it."""
    async with connected(server) as client:
        client.send(b"GET /" + b"a" * 10_000)
        await server.until_logged("refused .* 414 ")
        for _ in range(20):
            client.send(b"a" * 1_000_000)
            await client.writer.drain()
        assert (await client.answer())[0] == 414


# Refusals are counted


async def test_a_stop_says_what_was_refused(start_daemon: StartDaemon) -> None:
    """How many of each status, and of each reason where a status has several."""
    server = start_daemon({"server": {"max_connections": 2, "head_timeout": 1}})
    async with connected(server) as first, connected(server) as second, connected(server) as surplus:
        first.send(PUT.replace(b"/a", b"/a,b") * 2)
        assert [(await first.answer())[0] for _ in range(2)] == [400, 400]
        assert await surplus.put() == 503
        first.send(b"X\r\n\r\n")
        assert (await first.answer())[0] == 400
        assert (await second.answer())[0] == 408
    server.stop()
    said = "2 of 400, 1 of 400 (malformed), 1 of 408 (silent), 1 of 503 (connections)"
    assert server.log[-2].endswith(f"refused in all: {said}")
    quiet = start_daemon()
    quiet.stop()
    assert not any("refused" in line for line in quiet.log)


def test_a_flood_of_refusals_does_not_flood_the_log() -> None:
    """100 lines a second of each kind; the next line says how many were left out; all are counted."""
    now = 5.0
    refusals = Refusals(lambda: now)
    lines = [refusals.add(503, "connections") for _ in range(LINES_A_SECOND + 7)]
    assert lines == [0] * LINES_A_SECOND + [None] * 7
    assert refusals.add(503, "") == 0
    now = 6.0
    assert [refusals.add(503, "connections") for _ in range(2)] == [7, 0]
    assert refusals.summary() == f"1 of 503, {LINES_A_SECOND + 9} of 503 (connections)"


async def test_the_log_says_how_many_lines_were_left_out(server: Daemon) -> None:
    """A client asks for nonsense, faster than anybody reads."""
    asked, before = 0, len(server.log)
    async with connected(server) as client, asyncio.timeout(TIMEOUT):
        while not any("left out" in line for line in server.log[before:]):
            client.send(PUT.replace(b"/a", b"/a,b") * 30)
            asked += 30
            for _ in range(30):
                assert (await client.answer())[0] == 400
    assert sum("refused PUT /a,b" in line for line in server.log[before:]) < asked


# What the log may hold

BASIC = b"Authorization: Basic c2VjcmV0OnNlY3JldA==\r\n"


def publish(fields: bytes, body: bytes = b"{}", path: bytes = b"/a") -> bytes:
    """A request that publishes."""
    length = b"Content-Length: %d\r\n" % len(body)
    return b"PUT " + path + b" HTTP/1.1\r\n" + HOST + length + fields + b"\r\n" + body


WITH_SECRETS = {
    "a stream": b"GET /a HTTP/1.0\r\n" + HOST + BASIC + b"\r\n",
    "a query": b"HEAD /seen?access_token=c2VjcmV0 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a refused query": b"GET /a?since=c2VjcmV0 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a user": b"HEAD http://c2VjcmV0:c2VjcmV0@x/a HTTP/1.1\r\n" + HOST + BASIC + b"\r\n",
    "a refused user": b"DELETE http://c2VjcmV0:c2VjcmV0@x/a HTTP/1.1\r\n" + HOST + BASIC + b"\r\n",
    "CONNECT": b"CONNECT c2VjcmV0:c2VjcmV0@x:1 HTTP/1.1\r\n" + HOST + BASIC + b"\r\n",
    "malformed credentials": GET + HOST + b"Authorization: c2VjcmV0\r\nX-Fetch-Since: c2VjcmV0\r\n\r\n",
    "a name": b"HEAD / HTTP/1.1\r\n" + HOST + b"c2VjcmV0: c2VjcmV0\r\nCookie: c2VjcmV0\r\n\r\n",
    "an event": publish(BASIC, b'{"c2VjcmV0": "c2VjcmV0"}'),
    "a broken event": publish(BASIC, b'{"c2VjcmV0": c2VjcmV0}'),
    "a key": publish(b"Idempotency-Key: c2VjcmV0\r\n"),
    "a refused key": publish(b"Idempotency-Key: c2VjcmV0 c2VjcmV0\r\n"),
    "a secure topic": publish(BASIC, path=b"/safe"),
    "an unknown coding": publish(b"Content-Encoding: c2VjcmV0\r\n"),
    "an unknown expectation": publish(b"Expect: c2VjcmV0\r\n"),
    "a forwarding header": publish(b"X-Forwarded-For: c2VjcmV0\r\n"),
    "a site": publish(b"Origin: http://c2VjcmV0\r\n"),
}


@pytest.mark.parametrize("parser", ["in C", "in Python"])
async def test_no_line_of_the_log_holds_a_secret(tmp_path: Path, parser: str) -> None:
    """Wherever it came in, with all lines there are; nor does the answer."""
    limits = {"access_log": True, "trusted_proxies": ["127.0.0.2"], "head_timeout": 1}
    server = Daemon(tmp_path, {"server": limits, "clients": {"secure_topics": ["safe"]}})
    server.options = ["--log-level", "debug"]
    if parser == "in Python":
        server.environment = {"AIOHTTP_NO_EXTENSIONS": "1"}
    server.start()
    try:
        heads = [raw for raw, *_ in REFUSED.values() if CHUNKED not in raw]
        for raw in [*WITH_SECRETS.values(), *heads]:
            address = "127.0.0.2" if b"Forwarded" in raw else "127.0.0.1"
            async with connected(server, address) as client:
                client.send(raw)
                _, answer = await client.answer()
                assert "c2VjcmV0" not in answer
    finally:
        server.stop()
    assert not any("c2VjcmV0" in line or "Traceback" in line for line in server.log)
    assert sum("INFO pypubsub.access: 127.0.0." in line for line in server.log) >= len(heads)


async def test_the_access_log_is_off_unless_asked_for(start_daemon: StartDaemon) -> None:
    """One line a request: peer, method, path without its query, status, bytes, seconds."""
    server = start_daemon({"server": {"access_log": True}})
    await server.request("HEAD", "/seen?token=1")
    line = await server.until_logged("HEAD /seen")
    assert re.search(r"pypubsub\.access: 127\.0\.0\.1 HEAD /seen 204 [0-9]+ bytes 0\.[0-9]{6} s$", line)
    silent = start_daemon()
    await silent.request("HEAD", "/seen")
    silent.stop()
    assert not any("/seen" in line for line in silent.log)
