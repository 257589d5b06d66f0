"""aiohttp's connection, taken over: what of HTTP has nothing to do with events, and what goes past aiohttp.

Every path is a topic, so there is nothing to route: a request is handed to a Responder, and so is what
aiohttp cannot parse. What is private in aiohttp is used here and in core.http.incoming, and listed in
core.http.private_names.
"""

import asyncio
from asyncio.sslproto import SSLProtocol
from functools import partial
from typing import Any, Protocol

from aiohttp import StreamReader, web
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage

from core.errors import Refused
from core.events.store import Accepted
from core.http.heads import malformed
from core.http.incoming import Incoming
from core.http.limits import SURPLUS_TIMEOUT, Connections, Entry
from core.http.plain_publish import MAX_PLAIN_HEAD, MAX_PLAIN_SIZE, is_plain_publish
from core.http.stream import Stream

IDLE_TIMEOUT = 75.0  # seconds a connection may be idle between two requests
ANSWER_TIMEOUT = 5.0  # seconds that an answer may take to whom nothing more comes from: it may have gone
LINGER = 3.0  # seconds that a refused head or body is read on for, so that the answer is not lost to a reset

# asyncio keeps a buffer for each connection to read TLS into: of 256 KiB, for records of 16 KiB at most.
# 300 idle connections took 279 KiB each, and 55 with this.
SSLProtocol.max_size = 32 * 1024


class Responder(Protocol):
    """Who answers requests: what they are about is known there, and nowhere in core.http."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request. Raises ConnectionError if nobody is there to be answered."""

    def publish_at_once(
        self, peer: str | None, message: RawRequestMessage, body: bytes
    ) -> asyncio.Future[Accepted] | None:
        """Take a plain publish (core.http.plain_publish). None: nothing is done, it is for handle().

        The future may raise Refused: nothing is published then, and handle() may try it again.
        """

    def plain_response(self, accepted: Accepted) -> bytes:
        """The answer to a plain publish, head and body, as it goes over the wire."""

    def refuse_malformed(self, request: web.BaseRequest, refused: Refused) -> web.StreamResponse:
        """Answer what never became a request for handle()."""

    def note_refusal(self, refused: Refused, what: str, peer: str | None) -> None:
        """Count and log a refusal that gets no answer. what: what was refused. peer: whom."""


class Connection(Incoming):
    """A client's connection: it is counted, and answers plain publishes and malformed heads without aiohttp.

    Its states: the flag that tells, what it means, and what moves it on.

    opening      not `opened`: a TLS handshake may be under way
                 -> idle, with connection_made()
    idle         `idle`: all is answered, and it is kept for the next request (keep-alive)
                 -> taking, with a plain publish; handling, with any other request; given up, with a head that
                 is late, too large or malformed; closed, after IDLE_TIMEOUT or with the end of input
    taking       `taking`: a plain publish is being stored; what comes behind it is kept as bytes
                 -> idle, when it is stored and answered; handling, if the store refuses it
    handling     neither: requests are with aiohttp's task, which answers them in their order, so that a slow
                 one holds up those behind it (pipelining, head-of-line blocking)
                 -> idle, with the last answer, or closed if that says so; handed over, with hand_over()
    half-closed  `half_closed`, beside taking or handling: the client sends no more, but waits for answers
                 -> closed, with the last answer or after ANSWER_TIMEOUT; handed over
    given up     `given_up`: a head is refused, or a body is not read on; nothing more is parsed
                 -> lingering, with the last answer
    lingering    `lingers`: all is answered, and what comes is read and dropped, lest a reset takes the answer
                 from a client that still sends (lingering close)
                 -> closed, after LINGER or when the client hangs up
    handed over  `handed_over`: it is a Stream, and aiohttp's no more
    closed       `transport` is None: it counts no more
    """

    __slots__ = ("entry", "handed_over", "handler", "limits", "lingers", "opened", "peer")

    def __init__(
        self,
        server: web.Server,
        handler: Responder,
        limits: Connections,
        peer: str | None,
        entry: Entry,
        head_timeout: float,
        **settings: Any,
    ) -> None:
        if entry != "admitted":
            head_timeout = min(head_timeout, SURPLUS_TIMEOUT)
        super().__init__(server, head_timeout, **settings)
        self.handler = handler
        self.limits = limits
        self.peer = peer  # an address, "unix", or None if not known
        self.entry = entry  # "admitted", or which limit it is beyond
        self.opened = False  # whether connection_made() was called: not before a TLS handshake has ended
        self.lingers = False  # whether all is answered, and only read on for
        self.handed_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self.opened = True
        super().connection_made(transport)

    def refusal(self) -> Refused | None:
        """Why every request of this connection is refused; None if it is not."""
        return self.limits.refusal(self.entry)

    def head_is_late(self, late: Refused) -> None:
        """A head has not come in time: if the connection is one too many, that is what its client hears."""
        super().head_is_late(self.refusal() or late)

    def take_at_once(self, size: int) -> bool:
        """Take the one request that has come, of so many bytes, if it is a plain publish.

        aiohttp's task may not have begun to wait for requests, so it must not find this one.
        """
        if (
            len(self._messages) != 1
            or size > MAX_PLAIN_SIZE
            or self.ahead
            or self._logging_enabled
            or self.writing_paused
            or self.entry != "admitted"
        ):
            return False
        message, payload = self._messages[0]
        if not (isinstance(message, RawRequestMessage) and payload.is_eof()):
            return False
        if size - payload.total_bytes > MAX_PLAIN_HEAD or not is_plain_publish(message):
            return False
        body = payload.read_nowait()
        self._messages.clear()
        taken = self.handler.publish_at_once(self.peer, message, body)
        if taken is None:
            self._put_back(message, body)
            return False
        self.idle, self.taking = False, True
        if taken.done():
            self._answer_taken(message, body, taken)
        else:
            taken.add_done_callback(partial(self._answer_taken, message, body))
        return True

    def _answer_taken(self, message: RawRequestMessage, body: bytes, taken: asyncio.Future[Accepted]) -> None:
        """Answer the request that was taken. If it is refused, it goes the long way, which can say so."""
        self.taking = False
        failed = taken.cancelled() or taken.exception() is not None
        if self.transport is None or self._parser is None:
            return  # the publisher has hung up
        if failed:
            self._put_back(message, body)
            self.wake()
        else:
            self._parser.message_consumed()
            self.transport.write(self.handler.plain_response(taken.result()))
            self.idle = True
            self._watch_idleness()
        if self.ahead:
            ahead, self.ahead = self.ahead, b""
            self.resume_socket()
            self.data_received(ahead)
        if self.half_closed and self._is_done:
            self.force_close()

    def _put_back(self, message: RawRequestMessage, body: bytes) -> None:
        """Let aiohttp's task have a request whose body was read before."""
        payload = StreamReader(self, MAX_PLAIN_SIZE, loop=self._loop)
        payload.feed_data(body)
        payload.feed_eof()
        self._messages.append((message, payload))

    def _watch_idleness(self) -> None:
        """Have the connection closed when it has been idle for too long, as aiohttp does after an answer."""
        self._keepalive = True
        self._next_keepalive_close_time = self._loop.time() + IDLE_TIMEOUT
        if self._keepalive_handle is None:
            close_time = self._next_keepalive_close_time
            self._keepalive_handle = self._loop.call_at(close_time, self._process_keepalive)

    def _process_keepalive(self) -> None:
        """Close an idle connection: one whose publish is being stored is not idle."""
        if self.taking:
            self._next_keepalive_close_time = self._loop.time() + IDLE_TIMEOUT
        super()._process_keepalive()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer. After the last one, read on: a reset would take it from one who still sends."""
        if self.handed_over:
            return resp, True  # as if the client had hung up
        if self.chunked is not None and request.content is self.chunked.body:
            resp.force_close()
            self.leave_body()
        if not is_spoken(request) or (self.given_up and not self._messages):
            request._cache["version"] = HttpVersion11  # whatever the client speaks, or aiohttp thinks it does
        finished = await super().finish_response(request, resp, start_time)
        if self.half_closed and not self._messages:
            self.close()
        elif self.given_up and self.transport is not None and not self._messages:
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.lingers = True
            await asyncio.sleep(LINGER)  # or until the client hangs up, which cancels this
        else:
            sent, hung_up = finished
            self.idle = bool(sent.keep_alive) and not (hung_up or self._messages)
        return finished

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what aiohttp could not parse, which never gets as far as the handler."""
        if self.given_up is None:
            self.given_up = malformed(status, exc, message or "")
        return self.handler.refuse_malformed(request, self.given_up)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's returns None
        """The client sends no more: it has gone, or waits for an answer to what it has sent (half-close).

        Over TLS no connection can be half closed. True: this side is not closed.
        """
        if self.transport is None or self.lingers or self.transport.get_extra_info("sslcontext"):
            return False
        if self._is_done:
            return False
        self.head.stop()
        if not (self._messages or self.in_body or self.taking):
            self.close()  # behind the answer that is under way
        if self.half_closed is None:
            self.half_closed = self._loop.call_later(ANSWER_TIMEOUT, self.transport.abort)
        return True

    @property
    def _is_done(self) -> bool:
        """Whether nothing can be answered any more, if no more comes."""
        held = self.chunked is not None and self.chunked.held
        return self.idle or (self.in_body and not held)

    def hand_over(self, transport: asyncio.Transport) -> Stream:
        """Make a stream, whose head has been sent, of the connection: for aiohttp it is lost with that.

        The task that handles the request is cancelled at its next await.
        """
        stream = Stream(self.limits, self.peer, self.entry, writing_paused=self.writing_paused)
        if self.half_closed:
            self.half_closed.cancel()
            stream.watch(transport)
        self.handed_over = True
        self.transport = None  # lest aiohttp close it
        transport.set_protocol(stream)
        if not self.half_closed:  # aiohttp may have paused it; only who reads notices that a reader is gone
            transport.resume_reading()
        super().connection_lost(None)
        return stream

    def connection_lost(self, exc: BaseException | None) -> None:
        """Count the connection out: it is gone, whoever closed it."""
        self.head.stop()
        if self.half_closed:
            self.half_closed.cancel()
        self.limits.leave(self.peer, self.entry)
        super().connection_lost(exc)


def is_spoken(request: web.BaseRequest) -> bool:
    """Whether a request is of a version of HTTP that is known here: 1.0 and 1.1."""
    return request.version in (HttpVersion10, HttpVersion11)


def connection_of(request: web.BaseRequest) -> Connection:
    """The connection a request came in on."""
    connection = request.protocol
    assert isinstance(connection, Connection)  # noqa: S101 (HttpServer makes no others)
    return connection


def shown_path(request: web.BaseRequest) -> str:
    """The path for a log line: still percent-encoded, no query, of bounded length."""
    return request.rel_url.raw_path[:200].encode("ascii", "backslashreplace").decode()
