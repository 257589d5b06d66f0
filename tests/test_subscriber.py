"""One subscriber's queue and writes, on a transport whose room is set by hand."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import cast

import pytest

from core.delivery import subscriber as subscriber_module
from core.delivery.subscriber import EndWord, Subscriber
from core.delivery.wire import BARE, JsonLines, Wire, bare
from core.events.subscription import EVERYTHING


class Transport:
    """A transport, and the flow control of its protocol: it has room for so many bytes."""

    def __init__(self) -> None:
        self.room = 0
        self.taken = b""
        self.left_over = b""
        self.writes: list[int] = []
        self.aborted = self.closed = False
        self.on_lost: Callable[[], None] | None = None
        self._drained = asyncio.Event()
        self._socket, self._other = socket.socketpair()

    @property
    def writing_paused(self) -> bool:
        """As aiohttp's protocol has it."""
        return bool(self.left_over)

    async def drain(self) -> None:
        """As aiohttp's writer has it."""
        while self.left_over:
            self._drained.clear()
            await self._drained.wait()

    def write(self, data: bytes | memoryview) -> None:
        """Take what there is room for, and keep the rest."""
        self.writes.append(len(data))
        self.left_over += bytes(data)
        self.take(0)

    def take(self, room: int) -> None:
        """The reader makes room."""
        self.room += room
        now = self.left_over[: self.room]
        self.taken += now
        self.room -= len(now)
        self.left_over = self.left_over[len(now) :]
        if not self.left_over:
            self._drained.set()

    def get_write_buffer_size(self) -> int:
        """What is left over."""
        return len(self.left_over)

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        """The subscriber wants to hear of every byte that is not taken."""
        assert (high, low) == (1, 0)

    def get_extra_info(self, _name: str) -> socket.socket:
        """A real socket for socket options."""
        return self._socket

    def abort(self) -> None:
        """Cut off."""
        self.aborted = True

    def close(self) -> None:
        """Close once all is sent."""
        self.closed = True


class Flow:
    """What asyncio's streams know of their transport's flow."""

    def __init__(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self.on_lost: Callable[[], None] | None = None

    @property
    def writing_paused(self) -> bool:
        """As aiohttp's protocol has it."""
        return bool(vars(self._protocol)["_paused"])


@contextlib.asynccontextmanager
async def serving(transport: Transport, limit: int, wire: Wire = BARE) -> AsyncIterator[Subscriber]:
    """A subscriber on a transport, serving itself."""
    subscriber = Subscriber(
        "reader", EVERYTHING, wire, cast(asyncio.Transport, transport), transport, transport.drain, limit
    )
    task = asyncio.create_task(subscriber.serve())
    try:
        yield subscriber
    finally:
        task.cancel()


async def turns() -> None:
    """Let serve() do what it can."""
    for _ in range(5):
        await asyncio.sleep(0)


def write(subscriber: Subscriber, data: bytes) -> None:
    """Send as the fan-out does where there is no backlog."""
    subscriber.send(data)
    if reason := subscriber.overflow():
        subscriber.drop("too_slow", reason)


async def test_once_the_connection_is_gone_its_transport_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until the server has been told: uvloop's transport and one of TLS raise errors then."""
    transport = Transport()
    async with serving(transport, limit=10) as subscriber:
        write(subscriber, b"a" * 40)  # for which there is no room
        assert transport.on_lost
        transport.on_lost()
        for name in ("write", "get_write_buffer_size", "get_extra_info", "abort", "close"):
            monkeypatch.setattr(transport, name, None)  # which cannot be called
        subscriber.send(b"b")
        assert subscriber.overflow() is None
        assert not subscriber.has_unread
        assert not subscriber.has_stalled(1e9, 1)
        for end in (subscriber.finish, subscriber.cut_off, subscriber.drop):
            end("error", "a reason")


async def test_what_fits_goes_straight_to_the_socket() -> None:
    """One write for each piece, in the turn in which it is sent."""
    transport = Transport()
    async with serving(transport, limit=100) as subscriber:
        transport.take(100)
        write(subscriber, b"a" * 40)
        write(subscriber, b"b" * 40)
        assert transport.taken == b"a" * 40 + b"b" * 40
        assert transport.writes == [40, 40]


async def test_what_has_been_read_no_longer_counts() -> None:
    """A reader that is behind, but goes on reading, may get any amount over its limit in the long run."""
    transport = Transport()
    async with serving(transport, limit=100) as subscriber:
        sent = b""
        for n in range(50):
            piece = b"%050d" % n
            write(subscriber, piece)
            sent += piece
            transport.take(50 if n else 0)
            await turns()
        assert subscriber.end_reason is None
        transport.take(100)
        await turns()
        assert transport.taken == sent


async def test_more_than_the_limit_drops_the_subscriber(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in the transport counts as well."""
    monkeypatch.setattr(subscriber_module, "_GRACE", 0)
    transport = Transport()
    async with serving(transport, limit=100) as subscriber:
        write(subscriber, b"a" * 60)  # in the transport
        write(subscriber, b"b" * 40)
        assert not transport.aborted
        write(subscriber, b"c")
        assert transport.aborted
        assert subscriber.end_reason == "too slow: 101 bytes waiting, the limit is 100"
        write(subscriber, b"d")  # no effect any more
        assert transport.writes == [60]


async def test_a_burst_is_not_held_against_a_reader_who_catches_up() -> None:
    """For a second four times the limit may wait, and not a byte more."""
    transport = Transport()
    async with serving(transport, limit=100) as subscriber:
        for _ in range(3):
            for _ in range(4):
                write(subscriber, b"a" * 100)
            assert subscriber.end_reason is None
            transport.take(400)
            await turns()
        for _ in range(4):
            write(subscriber, b"a" * 100)
        write(subscriber, b"b")
        assert subscriber.end_reason == "too slow: 401 bytes waiting, the limit is 100"


async def test_the_second_begins_when_the_limit_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the reader was behind before, and has caught up in between."""
    now = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    transport = Transport()
    async with serving(transport, limit=100) as subscriber:
        for _ in range(2):  # one waits in the transport, one in the queue
            write(subscriber, b"a" * 60)
        now = 0.5
        transport.take(120)
        await turns()
        for _ in range(2):
            write(subscriber, b"b" * 60)
        now = 1.4
        write(subscriber, b"c")
        assert subscriber.end_reason is None
        now = 1.5
        write(subscriber, b"d")
        assert subscriber.end_reason == "too slow: 122 bytes waiting, the limit is 100"


async def test_a_large_piece_is_cut_and_waits_uncopied() -> None:
    """Only one cut at a time is given to the transport, which keeps a copy of what is not taken."""
    transport = Transport()
    async with serving(transport, limit=2**20) as subscriber:
        write(subscriber, b"a" * 400_000)
        await turns()
        assert transport.writes == [131_072]
        transport.take(131_072)
        await turns()
        assert transport.writes == [131_072, 131_072]
        transport.take(10**6)
        await turns()
        assert transport.taken == b"a" * 400_000


async def test_small_pieces_that_wait_are_joined() -> None:
    """And what is sent meanwhile stays behind them."""
    transport = Transport()
    async with serving(transport, limit=2**20) as subscriber:
        for n in range(100):
            write(subscriber, b"%03d" % n)
        transport.take(3)
        await turns()
        assert transport.writes == [3, 297]
        write(subscriber, b"end")
        transport.take(1000)
        await turns()
        assert transport.taken == b"".join(b"%03d" % n for n in range(100)) + b"end"


@pytest.mark.parametrize("unread", [False, True])
async def test_an_end_has_a_word_and_a_reason(unread: bool) -> None:
    """Unless the client ends it; who is cut off is told in the same words, whatever waits for it."""
    transport = Transport()
    async with serving(transport, limit=100) as subscriber:
        subscriber.send(b"abc" if unread else b"")
        assert (subscriber.end_word, subscriber.end_reason) == ("client", None)
        subscriber.cut_off("rights", "it has fewer")
        assert (subscriber.end_word, subscriber.end_reason) == ("rights", "it has fewer")
        assert (transport.aborted, transport.closed) == (unread, not unread)


@pytest.mark.parametrize("waiting", [False, True])
async def test_finishing_closes_after_all_is_sent(waiting: bool) -> None:
    """At once if nothing waits."""
    transport = Transport()
    async with serving(transport, limit=100) as subscriber:
        transport.take(0 if waiting else 3)
        write(subscriber, b"abc")
        subscriber.finish("server_stops", "the end")
        assert transport.closed is not waiting
        transport.take(3)
        await turns()
        assert transport.closed
        assert transport.taken == b"abc"


class Ended(JsonLines):
    """A form whose streams end with something."""

    def end(self) -> bytes:
        """What ends them."""
        return b"."


@pytest.mark.parametrize("waiting", [False, True])
async def test_a_form_may_end_its_streams_with_something(waiting: bool) -> None:
    """Behind everything else, once; a stream that is cut off ends without it."""
    transport = Transport()
    async with serving(transport, limit=100, wire=Ended(bare, b"!")) as subscriber:
        transport.take(0 if waiting else 100)
        subscriber.send(b"abc")
        subscriber.finish("server_stops", "the end")
        subscriber.send(b"d")
        transport.take(100)
        await turns()
        assert transport.closed
        assert transport.taken == b"abc."
    transport = Transport()
    async with serving(transport, limit=100, wire=Ended(bare, b"!")) as subscriber:
        transport.take(3)
        subscriber.send(b"abc")
        subscriber.drop("server_stops", "the end")
        assert transport.taken == b"abc"


@pytest.mark.parametrize("waiting", [False, True])
async def test_only_a_stream_that_is_done_ends_as_a_whole(waiting: bool) -> None:
    """Behind everything else, once; a stream that is to end already has the end that it was to have."""
    for words, end in ((["done", "server_stops"], b".!"), (["server_stops", "done"], b".")):
        transport = Transport()
        async with serving(transport, limit=100, wire=Ended(bare, b"!")) as subscriber:
            transport.take(0 if waiting else 100)
            subscriber.send(b"abc")
            for word in words:
                subscriber.finish(cast(EndWord, word), "the end")
            transport.take(100)
            await turns()
            assert transport.closed
            assert transport.taken == b"abc" + end
            assert subscriber.end_word == words[0]


async def test_over_tcp_everything_comes_once_and_in_order() -> None:
    """Sent past the transport while it holds nothing, through it while it does."""
    arrived: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    listening = await asyncio.start_server(lambda _, writer: arrived.set_result(writer), "127.0.0.1", 0)
    async with listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname()[:2], limit=2**10)
        serving_end = await arrived
        connection = cast(asyncio.Transport, serving_end.transport)
        protocol = connection.get_protocol()
        subscriber = Subscriber(
            "reader", EVERYTHING, BARE, connection, Flow(protocol), serving_end.drain, 2**30
        )
        task = asyncio.create_task(subscriber.serve())
        expected = b""
        for n in range(3000):
            piece = b"%d " % n * (1 + n * 7919 % 4000)
            subscriber.send(piece)
            expected += piece
            if n % 100 == 0:
                await asyncio.sleep(0)
        assert subscriber.has_unread
        assert await reader.readexactly(len(expected)) == expected
        task.cancel()
        writer.close()
        serving_end.close()
