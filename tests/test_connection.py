"""core.http.connection by itself: which requests are answered where they are read, and in which order.

There is no network. A test says in which turn of the event loop something comes, where with sockets it would
be luck: before aiohttp's task has run at all, say, which begins in the next turn with Python 3.11.
"""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.http import RawRequestMessage

import core.http.connection
from core.errors import Refused
from core.events.store import Accepted
from core.http.chunked_body import MOST_HELD, PARSED_AT_ONCE
from core.http.connection import Connection, connection_of
from core.http.heads import HeadWatch
from core.http.server import HttpServer
from core.settings import ServerConfig
from wire import TIMEOUT

ACCEPTED: Any = object()  # which only the handler would look into
QUICK, LONG = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n"
TURNS = 20  # of the event loop, in which everything is done that waits for nothing


def publish(number: int, fields: str = "") -> bytes:
    """A request that is a plain publish, unless the fields say something else."""
    body = b"%d" % number
    return f"PUT /a HTTP/1.1\r\nHost: x\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Transport(asyncio.Transport):
    """Keeps what is written. on_write: called with it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False
        self.reading = True
        self.on_write: Callable[[bytes], object] = id

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.written.append(bytes(data))
        self.on_write(bytes(data))

    def can_write_eof(self) -> bool:
        """As over TCP."""
        return True

    def write_eof(self) -> None:
        """Nothing follows."""

    def close(self) -> None:
        """Nothing is read any more."""
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self.closed

    def pause_reading(self) -> None:
        """Leave what comes where it is."""
        self.reading = False

    def resume_reading(self) -> None:
        """Read on."""
        self.reading = True


class Handler:
    """Takes plain publishes, and answers all others at once. stored: what the store says of those taken."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.handled: list[bytes] = []
        self.stored: list[asyncio.Future[Accepted]] = []
        self.at_once = True  # whether they are stored in the same moment
        self.may_answer: asyncio.Semaphore | None = None  # what the others wait for, if they do
        self.closes = False  # whether an answer is the last of its connection

    def publish_at_once(
        self,
        peer: str | None,  # noqa: ARG002
        message: RawRequestMessage,  # noqa: ARG002
        body: bytes,
    ) -> asyncio.Future[Accepted] | None:
        """Take it."""
        self.taken.append(body)
        self.stored.append(asyncio.get_running_loop().create_future())
        if self.at_once:
            self.stored[-1].set_result(ACCEPTED)
        return self.stored[-1]

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer it."""
        connection_of(request).want_body(request.content)
        self.handled.append(await request.read())
        if self.may_answer:
            await self.may_answer.acquire()
        response = web.Response()
        if self.closes:
            response.force_close()
        return response

    def plain_response(self, accepted: Accepted) -> bytes:  # noqa: ARG002
        """A short one."""
        return QUICK

    def refuse_malformed(
        self,
        request: web.BaseRequest,  # noqa: ARG002
        refused: Refused,
    ) -> web.StreamResponse:
        """Its message alone."""
        return web.Response(status=refused.status, text=refused.message)

    def note_refusal(self, refused: Refused, what: str, peer: str | None) -> None:
        """No connection is refused here."""


class Opened:
    """A connection that has just been made."""

    def __init__(self) -> None:
        self.handler = Handler()
        self.transport = Transport()
        self.server = HttpServer(self.handler, ServerConfig(), 0)
        entry = self.server.limits.enter("127.0.0.1")
        self.connection: Connection = self.server.connection("127.0.0.1", entry)
        self.connection.connection_made(self.transport)

    def comes(self, data: bytes) -> None:
        """Have the connection read this, now."""
        self.connection.data_received(data)

    @property
    def answers(self) -> list[bytes]:
        """The answers so far: QUICK or LONG, or what else they begin with."""
        heads = [data for data in self.transport.written if data.startswith(b"HTTP/")]
        return [next((kind for kind in (QUICK, LONG) if head.startswith(kind)), head) for head in heads]


async def turns() -> None:
    """Let everything happen that waits for nothing."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def test_the_first_bytes_of_a_connection_may_be_a_plain_publish() -> None:
    """It is answered where it is read, though aiohttp's task may not have begun; and once."""
    opened = Opened()
    opened.comes(publish(1))
    assert opened.answers == [QUICK]
    await turns()
    opened.comes(publish(2))
    await turns()
    assert opened.answers == [QUICK, QUICK]
    opened.comes(publish(3, "X-Other: 1\r\n"))
    await turns()
    assert opened.answers == [QUICK, QUICK, LONG]
    assert (opened.handler.taken, opened.handler.handled) == ([b"1", b"2"], [b"3"])


async def test_the_first_bytes_may_be_any_other_request() -> None:
    """aiohttp's task comes round to it, and to what comes before it has."""
    opened = Opened()
    opened.comes(publish(1, "X-Other: 1\r\n"))
    opened.comes(publish(2))
    await turns()
    assert opened.answers == [LONG, LONG]
    assert opened.handler.handled == [b"1", b"2"]


async def test_a_publish_in_the_turn_after_an_answer_is_answered_where_it_is_read() -> None:
    """aiohttp's task has not noticed yet that its request is answered, and must not take the next one."""
    opened = Opened()
    loop = asyncio.get_running_loop()
    opened.transport.on_write = lambda data: (
        loop.call_soon(opened.comes, publish(2)) if data.startswith(LONG) else None
    )
    opened.comes(publish(1, "X-Other: 1\r\n"))
    await turns()
    assert opened.answers == [LONG, QUICK]
    opened.comes(publish(3, "X-Other: 1\r\n"))
    await turns()
    assert opened.handler.handled == [b"1", b"3"]
    assert opened.handler.taken[0] == b"2"


@pytest.mark.parametrize("field", ["Connection: close\r\n", "X-Other: 1\r\n"])
async def test_nothing_is_taken_behind_an_answer_that_is_the_last(field: str) -> None:
    """Whichever side asked for the connection to be closed: what comes behind is not answered."""
    opened = Opened()
    opened.handler.closes = "close" not in field
    loop = asyncio.get_running_loop()
    opened.transport.on_write = lambda _: loop.call_soon(opened.comes, publish(2))
    opened.comes(publish(1, field))
    await turns()
    assert opened.answers == [LONG]
    assert opened.handler.taken == []
    assert opened.transport.closed


async def test_nothing_is_taken_while_a_request_is_being_answered() -> None:
    """Of several that came together, one is answered: the next is on its turn, and a publish waits for it."""
    opened = Opened()
    opened.handler.may_answer = asyncio.Semaphore(1)
    opened.comes(publish(1, "X-Other: 1\r\n") + publish(2, "X-Other: 1\r\n"))
    await turns()
    assert opened.answers == [LONG]
    opened.comes(publish(3))
    await turns()
    assert opened.answers == [LONG]
    opened.handler.may_answer.release()
    opened.handler.may_answer.release()
    await turns()
    assert opened.handler.handled == [b"1", b"2", b"3"]
    assert opened.handler.taken == []


async def test_a_connection_takes_any_number_of_publishes() -> None:
    """aiohttp's parser, which lets a few requests wait, is told of each that it waits no longer."""
    opened = Opened()
    for number in range(100):
        opened.comes(publish(number))
    assert opened.answers == [QUICK] * 100


async def test_a_publish_that_the_store_refuses_goes_the_long_way() -> None:
    """Whole, and though nothing comes behind it."""
    opened = Opened()
    opened.handler.at_once = False
    opened.comes(publish(1))
    opened.handler.stored[0].set_exception(Refused(503, "full"))
    await turns()
    assert opened.answers == [LONG]
    assert opened.handler.handled == [b"1"]


@pytest.mark.parametrize("fails", [False, True])
async def test_what_comes_behind_a_publish_that_is_being_stored_waits(fails: bool) -> None:
    """All are answered in their order, each once; one that was refused by the store is answered first."""
    opened = Opened()
    opened.handler.at_once = False
    opened.comes(publish(1))
    rest = publish(2, "X-Other: 1\r\n") + publish(3) + publish(4)
    opened.comes(rest[:50])
    await turns()
    opened.comes(rest[50:-20])
    await turns()
    assert opened.answers == []
    if fails:
        opened.handler.stored[0].set_exception(Refused(503, "full"))
    else:
        opened.handler.stored[0].set_result(ACCEPTED)
    opened.comes(rest[-20:])
    await turns()
    behind = [b"2", b"3", b"4"]
    assert opened.answers == [LONG if fails else QUICK, LONG, LONG, LONG]
    assert opened.handler.handled == ([b"1", *behind] if fails else behind)
    opened.handler.at_once = True
    opened.comes(publish(5))
    assert opened.answers[-1] == QUICK


async def test_no_more_is_read_behind_a_publish_than_may_be_kept() -> None:
    """Until that is answered: then it is read on, and all is answered."""
    opened = Opened()
    opened.handler.at_once = False
    opened.comes(publish(0))
    number = 0
    while opened.transport.reading:
        number += 1
        opened.comes(publish(number))
    assert MOST_HELD < len(opened.connection.ahead) < 2 * MOST_HELD
    opened.handler.stored[0].set_result(ACCEPTED)
    while len(opened.answers) <= number:
        await turns()
    assert opened.transport.reading
    assert opened.handler.handled == [b"%d" % n for n in range(1, number + 1)]


async def test_what_is_cut_into_pieces_waits_for_a_publish_in_the_first() -> None:
    """As it is where there may be chunks: they are parsed piece by piece."""
    opened = Opened()
    opened.handler.at_once = False
    body = b"1" + b" " * (PARSED_AT_ONCE - 100)
    first = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    chunked = b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n2\r\n" * 2000
    opened.comes(first + chunked)
    await turns()
    assert (opened.answers, len(opened.handler.taken)) == ([], 1)
    opened.handler.stored[0].set_result(ACCEPTED)
    await turns()
    opened.comes(b"0\r\n\r\n")
    await turns()
    assert opened.answers == [QUICK, LONG]
    assert opened.handler.handled == [b"2" * 2000]


async def test_a_large_body_behind_a_publish_is_read_on_when_that_is_answered() -> None:
    """The socket is not read meanwhile."""
    opened = Opened()
    opened.handler.at_once = False
    opened.comes(publish(1))
    body = b"2" * (MOST_HELD + 1000)
    opened.comes(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:-1])
    assert not opened.transport.reading
    opened.handler.stored[0].set_result(ACCEPTED)
    await turns()
    assert opened.transport.reading
    opened.comes(body[-1:])
    await turns()
    assert opened.handler.handled == [body]


async def test_a_connection_whose_publish_is_being_stored_is_not_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long that takes; when it is answered, the time that a connection may be idle begins again."""
    monkeypatch.setattr(core.http.connection, "IDLE_TIMEOUT", 0.01)
    opened = Opened()
    await turns()
    opened.comes(publish(1))
    opened.handler.at_once = False
    opened.comes(publish(2))
    opened.connection._next_keepalive_close_time = 0.0  # long past, when the timer comes
    opened.connection._process_keepalive()
    assert not opened.transport.closed
    opened.handler.stored[1].set_result(ACCEPTED)
    async with asyncio.timeout(TIMEOUT):
        while not opened.transport.closed:  # noqa: ASYNC110 (a timer does it)
            await asyncio.sleep(0.001)
    assert opened.answers == [QUICK, QUICK]


async def test_a_client_hears_that_its_head_is_late_though_it_sends_no_more() -> None:
    """Its end of input comes before the answer is written."""
    opened = Opened()
    opened.comes(b"PUT /a")
    opened.connection.head_is_late(Refused(408, "late", close=True))
    assert opened.connection.eof_received()
    await turns()
    (answer,) = opened.answers
    assert answer.startswith(b"HTTP/1.1 408 ")


# What a client has sent behind a publish when it sends no more -> its answers
HALF_CLOSED: dict[str, tuple[bytes, list[bytes]]] = {
    "nothing": (b"", [QUICK]),
    "a request": (publish(2, "X-Other: 1\r\n"), [QUICK, LONG]),
    "a part of a head": (publish(2)[:20], [QUICK]),
    "a part of a body": (publish(22)[:-1], [QUICK]),
    "a request, and a part of one": (publish(2, "X-Other: 1\r\n") + publish(3)[:20], [QUICK, LONG]),
}


@pytest.mark.parametrize("name", HALF_CLOSED)
async def test_a_publish_of_a_half_closed_connection_is_answered(name: str) -> None:
    """And so is what came whole behind it; then this side is closed as well."""
    opened = Opened()
    behind, answers = HALF_CLOSED[name]
    opened.handler.at_once = False
    opened.comes(publish(1))
    opened.comes(behind)
    assert opened.connection.eof_received()
    await turns()
    assert not opened.transport.closed
    opened.handler.stored[0].set_result(ACCEPTED)
    await turns()
    assert opened.answers == answers
    assert opened.transport.closed


async def test_half_closing_an_idle_connection_ends_it() -> None:
    """Before the first request, and after one that was answered."""
    opened = Opened()
    assert not opened.connection.eof_received()
    opened.comes(publish(1))
    assert not opened.connection.eof_received()
    opened.comes(publish(2, "X-Other: 1\r\n"))
    assert opened.connection.eof_received()
    await turns()
    assert opened.answers == [QUICK, LONG]
    assert opened.transport.closed


async def test_a_publisher_who_hangs_up_while_it_is_being_stored_is_forgotten() -> None:
    """The event is published all the same; nothing is written to nobody, and no error is logged."""
    opened = Opened()
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    opened.handler.at_once = False
    opened.comes(publish(1) + b"PUT /")
    opened.connection.connection_lost(None)
    opened.handler.stored[0].set_result(ACCEPTED)
    await turns()
    assert opened.answers == []
    assert errors == []


async def test_a_stop_closes_idle_connections_and_waits_for_answers() -> None:
    """For so many seconds; whoever is answered meanwhile gets the whole answer."""
    idle, asks = Opened(), Opened()
    asks.handler.may_answer = asyncio.Semaphore(0)
    asks.comes(publish(1, "X-Other: 1\r\n"))
    await turns()
    await asyncio.wait_for(idle.server.stop(60), 5)
    assert idle.transport.closed
    stop = asyncio.create_task(asks.server.stop(60))
    await turns()
    assert not stop.done()
    assert not asks.transport.closed
    asks.handler.may_answer.release()
    await asyncio.wait_for(stop, 5)
    assert asks.answers == [LONG]
    assert asks.transport.closed


async def test_a_stop_cuts_off_what_is_not_answered_in_time() -> None:
    """Its task is cancelled."""
    opened = Opened()
    opened.handler.may_answer = asyncio.Semaphore(0)
    opened.comes(publish(1, "X-Other: 1\r\n"))
    await turns()
    await opened.server.stop(0.01)
    assert opened.transport.closed
    await turns()
    assert opened.answers == []


@pytest.mark.parametrize("field", ["", "X-Other: 1\r\n"])
async def test_a_connection_that_has_ended_leaves_nothing_for_the_garbage_collector(field: str) -> None:
    """However it was answered: it is in no cycle of references, and given back at once."""
    gc.collect()
    gc.disable()
    try:
        opened = Opened()
        opened.comes(publish(1, field))
        await turns()
        opened.connection.connection_lost(None)
        server = opened.server
        del opened
        await turns()
        left = [type(each) for each in gc.get_objects() if isinstance(each, Connection | HeadWatch)]
        assert left == []
        assert server.connections == []
    finally:
        gc.enable()
