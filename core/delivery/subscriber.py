"""One subscriber: what waits for it, its writes, and how its stream ends.

send() never waits. While the socket takes everything, bytes go straight to it. Once it is full they wait in
a queue of bounded size, which flush() empties at the reader's pace. The queue holds the same bytes objects
for all subscribers of a channel, so readers who have stopped share one copy of what they wait for.
"""

import asyncio
import contextlib
import math
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Literal, NoReturn, Protocol

from core.auth.login import Login
from core.auth.rights import NO_RIGHTS, is_for
from core.delivery.wire import Wire
from core.events.subscription import Subscription
from core.events.topics import PublishPath

_GRACE = 1.0  # seconds that more than the limit may wait
_BURST_FACTOR = 4  # times the limit that may wait during that second
_TLS_CLOSE_GRACE = 1.0  # seconds
_MAX_WRITE = 128 * 1024  # bytes; what a write leaves behind is copied, once for each stalled subscriber

# why a stream ended, for counting; "client": the other side ended it; "done": it has had all of its history
EndWord = Literal[
    "client", "done", "too_slow", "stalled", "backlog", "rights", "credentials", "server_stops", "error"
]


class FlowControl(Protocol):
    """What the transport tells its protocol (asyncio.BaseProtocol.pause_writing)."""

    on_lost: Callable[[], None] | None  # called before the socket is closed

    @property
    def writing_paused(self) -> bool:
        """Whether the kernel has not taken everything yet."""


class Subscriber:
    """A reader's end of a stream whose head has been sent.

    state   what it means                                       what moves it on
    ------  --------------------------------------------------  ------------------------------------------
    free    nothing waits: what is sent goes to the socket      the socket is full: full
    full    what is sent waits in the queue: see flush()        all is written: free
                                                                too much waits (overflow(), a slow consumer):
                                                                behind, or over where there is no backlog
    behind  fall_behind(): it is sent no live events, what      all is written: serve() returns, it is sent
            waits is written                                    the backlog (free, full), and joins again
    ending  finish(): nothing more is sent, what waits is       all is written: over
            written
    over    the connection is closed, or by drop() aborted      the connection is gone: lost
    lost    the transport must not be used any more             the task that serves it is cancelled

    It begins free, or full if its head has not gone out yet. From any state it may come to the last three.

    peer: who it is, for the log.
    ping_turn: when it gets its pings, see core.delivery.fanout; None until it has joined.
    free: the socket's descriptor while nothing waits that must go out first; TLS has none.
    login: the user, None for somebody who did not log in.
    transport, flow, drain: the connection; drain waits while writing is paused.
    buffer_limit: bytes that may wait for this reader; for a second, four times as many.
    """

    __slots__ = (
        "_behind_after",
        "_buffer_limit",
        "_descriptor",
        "_drain",
        "_flow",
        "_full",
        "_left_behind",
        "_over_since",
        "_progress_at",
        "_queue",
        "_transport",
        "end_reason",
        "end_word",
        "free",
        "login",
        "lost",
        "peer",
        "ping_turn",
        "queued_bytes",
        "rights",
        "subscription",
        "wire",
    )

    def __init__(
        self,
        peer: str,
        subscription: Subscription,
        wire: Wire,
        transport: asyncio.Transport,
        flow: FlowControl,
        drain: Callable[[], Awaitable[None]],
        buffer_limit: int,
        login: Login | None = None,
    ) -> None:
        self.peer = peer
        self.login = login
        self.rights = login.rights if login else NO_RIGHTS  # what they are by now
        self.subscription = subscription
        self.wire = wire
        self.ping_turn: int | None = None
        self.lost = False  # whether the connection is gone, which the server will soon be told
        self.end_reason: str | None = None  # why this side ended the stream, for the log
        self.end_word: EndWord = "client"  # why it ended, if it is over
        self._transport = transport
        self._flow = flow
        self._drain = drain
        self._buffer_limit = buffer_limit
        self._queue: deque[bytes | memoryview] | None = None  # until something waits: 760 bytes, even empty
        self.queued_bytes = 0  # in the queue
        self._full: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._over_since = math.inf  # loop time since which more than the limit waits
        self._left_behind = 0  # bytes in the transport when has_stalled() last looked
        self._progress_at = 0.0  # loop time
        self._behind_after: int | None = None  # position of the last event it was sent before it fell behind
        connection = transport.get_extra_info("socket")
        tls = bool(transport.get_extra_info("sslcontext"))
        # paused as soon as the kernel does not take all: the rest waits here, shared with others, not copied
        # into the transport (asyncio's TLS pauses an empty buffer at 0)
        transport.set_write_buffer_limits(high=1 if tls else 0, low=0)
        self._descriptor: int | None = None if tls else connection.fileno()  # None as well once it is closed
        self.free: int | None = None
        if flow.writing_paused:  # the stream's head has not gone out yet
            self._full.set_result(None)
        else:
            self.free = self._descriptor
        flow.on_lost = self._on_lost
        limit_kernel_buffer(connection)

    def can_read(self, path: PublishPath) -> bool:
        """Whether events of this path are for this subscriber: it asks for them, and has the right."""
        return is_for(path, self.subscription, self.rights)

    @property
    def has_unread(self) -> bool:
        """Whether anything waits for it on this side of the kernel."""
        return bool(self._unread_bytes)

    @property
    def _unread_bytes(self) -> int:
        return 0 if self.lost else self.queued_bytes + self._transport.get_write_buffer_size()

    def send(self, data: bytes | memoryview) -> None:
        """Write frames, or queue them if the socket is full."""
        if self.free is not None:  # past the transport, which takes its time
            try:
                sent = os.write(self.free, data)
            except OSError:  # there is no room, or the transport will find the same
                sent = 0
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        if self.lost or self.end_reason is not None:
            return
        if not self._full.done():
            rest = self._write(data)
            if self._flow.writing_paused:
                self._full.set_result(None)
                self.free = None
            if not rest:
                return
            data = rest
        if self._queue is None:
            self._queue = deque()
        self._queue.append(data)
        self.queued_bytes += len(data)

    def _on_lost(self) -> None:
        """The connection is gone: its descriptor is soon another's, its transport is not to be used."""
        self.lost = True
        self._descriptor = self.free = None

    def overflow(self) -> str | None:
        """Why too much waits, None while it does not. A burst is not held against one who soon catches up.

        This is where a slow consumer is found out. What is done about it: Fanout._overflow().
        """
        waiting = self._unread_bytes
        if waiting <= self._buffer_limit:
            self._over_since = math.inf
            return None
        now = asyncio.get_running_loop().time()
        self._over_since = min(self._over_since, now)
        if now - self._over_since >= _GRACE or waiting > _BURST_FACTOR * self._buffer_limit:
            return f"too slow: {waiting} bytes waiting, the limit is {self._buffer_limit}"
        return None

    def _write(self, data: bytes | memoryview) -> bytes | memoryview:
        """Write to the socket, a large piece bit by bit, until it is full. What it was not given."""
        while len(data) > _MAX_WRITE:
            data = memoryview(data)
            self._transport.write(data[:_MAX_WRITE])
            data = data[_MAX_WRITE:]
            if self._flow.writing_paused:
                return data
        self._transport.write(data)
        return b""

    async def serve(self) -> int:
        """Empty the queue whenever the reader makes room, until the subscriber has fallen behind.

        The position after which to go on. Cancelled when the connection is gone.
        """
        while self._behind_after is None:
            await self._full
            await self.flush()
        after, self._behind_after = self._behind_after, None
        return after

    async def flush(self) -> None:
        """Write all that waits, at the reader's pace. Does not return once the stream is to end."""
        while self._queue or self._flow.writing_paused:
            await self._drain()
            self._progress_at = asyncio.get_running_loop().time()
            while self._queue and not self._flow.writing_paused:
                if rest := self._write(self._next_piece(self._queue)):
                    self._queue.appendleft(rest)
                    self.queued_bytes += len(rest)
            if self.queued_bytes <= self._buffer_limit:
                self._over_since = math.inf
        if self.end_reason is not None:
            self._close()
            await self.until_gone()
        self._queue = None
        if self._full.done():
            self._full = asyncio.get_running_loop().create_future()
            self.free = self._descriptor

    async def until_gone(self) -> NoReturn:
        """Wait for the end of the connection, at which the task that serves it is cancelled."""
        while True:
            await asyncio.get_running_loop().create_future()

    def fall_behind(self, after: int) -> None:
        """Nothing more is sent: serve() ends with that position once what waits is written."""
        self._behind_after = after
        self._over_since = math.inf

    def _next_piece(self, queue: deque[bytes | memoryview]) -> bytes | memoryview:
        """The next of what is queued: a large piece, or small ones joined."""
        pieces = [queue.popleft()]
        size = len(pieces[0])
        while queue and size + len(queue[0]) <= _MAX_WRITE:
            pieces.append(queue.popleft())
            size += len(pieces[-1])
        self.queued_bytes -= size
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def has_stalled(self, now: float, timeout: float) -> bool:
        """Whether the reader has taken nothing of what waits for it for `timeout` seconds. now: loop time."""
        waiting = 0 if self.lost else self._transport.get_write_buffer_size()
        if waiting == 0 or waiting != self._left_behind:
            self._left_behind = waiting
            self._progress_at = now
        return now - self._progress_at >= timeout

    def finish(self, word: EndWord, reason: str) -> None:
        """End the stream: the connection is closed once all that is queued is written, and the form's end.

        Only if it is done, the reader sees that nothing is missing. A stream that is to end already does so
        as it was to.
        """
        if self.end_reason is not None:
            return
        if end := self.wire.end() + (self.wire.closing if word == "done" else b""):
            self.send(end)
        self.end_word, self.end_reason = word, reason
        self.free = None
        if not self._full.done():
            self._close()

    def cut_off(self, word: EndWord, reason: str) -> None:
        """End the stream at once, without what waits for the reader."""
        if self.has_unread:
            self.drop(word, reason)
        else:
            self.finish(word, reason)

    def _close(self) -> None:
        if self.lost:
            return
        self._transport.close()
        if self._transport.get_extra_info("sslcontext"):
            # asyncio waits half a minute for the peer's own close_notify; a busy peer sends none
            asyncio.get_running_loop().call_later(_TLS_CLOSE_GRACE, self._transport.abort)

    def drop(self, word: EndWord, reason: str) -> None:
        """End the stream at once, and free what waits for it, in the kernel too."""
        self.end_word, self.end_reason = word, reason
        self.free = None
        self._queue = None
        self.queued_bytes = 0
        if not self.lost:
            reset_on_close(self._transport.get_extra_info("socket"))
            self._transport.abort()


def send_to_all(subscribers: Iterable[Subscriber], data: bytes) -> list[Subscriber]:
    """send() the same frames to each of them. For whom something waits then.

    Nearly all deliveries are one turn of this loop, without a call of a method for each.
    """
    waiting = []
    write, size = os.write, len(data)
    for subscriber in subscribers:
        sent = 0
        if (descriptor := subscriber.free) is not None:
            try:
                sent = write(descriptor, data)
            except OSError:  # send() will see why
                sent = 0
            if sent == size:
                continue
        subscriber.send(memoryview(data)[sent:] if sent else data)
        if subscriber.queued_bytes:
            waiting.append(subscriber)
    return waiting


def limit_kernel_buffer(connection: socket.socket) -> None:
    """Keep the kernel from buffering megabytes for a reader who has stopped.

    200 of them took 820 MB of the kernel's memory for TCP without this, and 54 MB with it.
    """
    if connection.family != socket.AF_UNIX and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_WRITE)


def reset_on_close(connection: socket.socket) -> None:
    """Make a close forget what the peer has not taken; the kernel would keep offering it for minutes."""
    with contextlib.suppress(OSError):  # closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
