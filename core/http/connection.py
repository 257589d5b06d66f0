"""aiohttp's connection, taken over: what of HTTP has nothing to do with events, and what goes past aiohttp.

Every path is a topic, so there is nothing to route: a request is handed to a RequestHandler, and so is what
aiohttp cannot parse. What is private in aiohttp is used here and nowhere else.
"""

import asyncio
from asyncio.sslproto import SSLProtocol
from functools import partial
from typing import Any, Protocol

from aiohttp import StreamReader, web
from aiohttp.http import HttpVersion, HttpVersion10, HttpVersion11, RawRequestMessage

from core.errors import Refused
from core.events.store import Accepted
from core.http.chunked_body import MOST_HELD, PARSED_AT_ONCE, ChunkedBody
from core.http.heads import HeadWatch, end_of_head, head_too_large, is_one_request, malformed
from core.http.limits import SURPLUS_TIMEOUT, Admission, Connections
from core.http.plain_publish import MAX_HEAD as MAX_PLAIN_HEAD
from core.http.plain_publish import MAX_SIZE, is_plain_publish
from core.http.stream import Stream

NO_HEAD = b"\0\r\n\r\n"  # ends a request's head wherever that is, as one that cannot be parsed
IDLE_TIMEOUT = 75.0  # seconds a connection may be idle between two requests
ANSWER_TIMEOUT = 5.0  # seconds that an answer may take to whom nothing more comes from: it may have gone
MOST_PIECES = 100  # heads and bodies that are parsed one by one of what has come at once
LINGER = 3.0  # seconds that a refused head or body is read on for, so that the answer is not lost to a reset

# asyncio keeps a buffer for each connection to read TLS into: of 256 KiB, for records of 16 KiB at most.
# 300 idle connections took 279 KiB each, and 55 with this.
SSLProtocol.max_size = 32 * 1024


class RequestHandler(Protocol):
    """Who answers requests."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request."""

    def publish_at_once(
        self, peer: str | None, message: RawRequestMessage, body: bytes
    ) -> asyncio.Future[Accepted] | None:
        """Take a plain publish (core.http.plain_publish). None: nothing is done, it is for handle().

        The future may raise Refused: nothing is published then, and handle() may try it again.
        """

    def accepted_answer(self, accepted: Accepted) -> bytes:
        """The answer to such a publish."""

    def refuse_malformed(self, request: web.BaseRequest, refused: Refused) -> web.StreamResponse:
        """Answer what never became a request for handle()."""

    def note_refusal(self, refused: Refused, what: str, peer: str | None) -> None:
        """Count and log a refusal that gets no answer."""


class Connection(web.RequestHandler):
    """A connection of aiohttp's that is counted, knows its peer, and deals with malformed heads our way."""

    __slots__ = (
        "admission",
        "ahead",
        "body",
        "body_size",
        "chunked",
        "given_up",
        "half_closed",
        "handed_over",
        "handler",
        "head",
        "idle",
        "limits",
        "lingers",
        "may_be_chunked",
        "opened",
        "peer",
        "taking",
    )

    def __init__(
        self,
        server: web.Server,
        handler: RequestHandler,
        limits: Connections,
        peer: str | None,
        admission: Admission,
        head_timeout: float,
        **settings: Any,
    ) -> None:
        super().__init__(server, **settings)
        # fewer than the parser's own 32: paused there, it would lose what follows a request to upgrade
        self._max_msg_queue_size, self._msg_queue_resume_size = 16, 8
        self.handler = handler
        self.limits = limits
        self.peer = peer  # an address, "unix", or None if not known
        self.admission = admission  # "admitted", or which limit it is beyond
        self.opened = False  # whether connection_made() was called: not before a TLS handshake has ended
        if admission != "admitted":
            head_timeout = min(head_timeout, SURPLUS_TIMEOUT)
        self.head = HeadWatch(self._loop, head_timeout, self._head_is_late)
        self.body: StreamReader | None = None  # of the last request, if it had not all come with its head
        self.body_size = 0  # its Content-Length
        self.chunked: ChunkedBody | None = None  # the same, if it is in chunks and under way
        self.may_be_chunked = False  # what comes next: it may belong to a head that began before
        self.ahead = b""  # what has come and is not parsed yet, as others are to be answered first
        self.half_closed: asyncio.TimerHandle | None = None  # ends it, once the client sends no more
        self.given_up: Refused | None = None  # what is wrong with a head: what comes after it is dropped
        self.lingers = False  # whether all is answered, and only read on for
        self.handed_over = False
        self.idle = (
            True  # whether all that was asked for is answered; not: whether aiohttp's task has noticed
        )
        self.taking = False  # whether a plain publish has been taken and is to be answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self.opened = True
        super().connection_made(transport)
        self._expect_head()

    def refusal(self) -> Refused | None:
        """Why every request of this connection is refused; None if it is not."""
        return self.limits.refusal(self.admission)

    def data_received(self, data: bytes) -> None:
        """Something has come: heads of requests, a part of one, a part of a body."""
        if self.given_up:
            return
        if self.taking:
            self._put_off(data)
        elif self.chunked is not None and data:
            self.chunked.hold(data)
        elif self.chunked is not None and self.chunked.held:
            self._parse_on(self.chunked.take())
        elif not data and len(self.ahead) > PARSED_AT_ONCE:
            ahead, self.ahead = self.ahead, b""
            self._parse_on(ahead)
        elif len(data) > PARSED_AT_ONCE and (self.may_be_chunked or b"chunked" in data.lower()):
            self.parse_in_pieces(data)
        else:
            self.parse(data)

    # What core.http.chunked_body asks for

    @property
    def deaf(self) -> bool:
        """Whether nothing that comes is parsed any more."""
        return self.given_up is not None or self.transport is None

    def parse_in_pieces(self, data: bytes) -> None:
        """Parse what comes next, as far as it is not to be held back."""
        for start in range(0, len(data), PARSED_AT_ONCE):
            if self.given_up:
                return
            if self.chunked is not None:
                self.chunked.hold(data[start:])
                return
            if self.taking:
                self._put_off(data[start:])
                return
            self.parse(data[start : start + PARSED_AT_ONCE])

    def pause_socket(self) -> None:
        """Read no more for now."""
        self._pause_transport_reading()

    def resume_socket(self) -> None:
        """Read on, unless there is no room."""
        full = self._reading_paused or self._buffer_paused or (self.chunked is not None and self.chunked.full)
        if not (full or self.half_closed):  # nothing more comes then, and uvloop would say so once more
            self._resume_transport_reading()

    def want_body(self, body: StreamReader) -> None:
        """Have a request's body parsed, as it comes."""
        if self.chunked is not None and body is self.chunked.body:
            self.chunked.want()

    def _parse_on(self, rest: bytes) -> None:
        """Parse what the parser has kept, and the rest behind it."""
        self.parse(b"")
        self.parse_in_pieces(rest)

    def _put_off(self, data: bytes) -> None:
        """Keep what comes behind a publish that is being stored, until that is answered."""
        self.ahead += data
        if len(self.ahead) > MOST_HELD:
            self._pause_transport_reading()

    def _leave_body(self) -> None:
        """Drop what is held, and whatever still comes."""
        self.given_up = self.given_up or Refused(400, "the request's body is not read", close=True)
        self.chunked = None
        if self.body is not None and not self.body.is_eof():
            self.body.feed_eof()
        self._resume_transport_reading()

    def parse(self, data: bytes) -> None:
        """Parse what comes next, and see to it that what is complete by then is answered."""
        count = self._request_count
        waiter, self._waiter = self._waiter, None  # lest aiohttp wakes the task that answers
        in_body = self._in_body
        taken = False
        try:
            self._feed_all(data)
            if self._request_count != count:
                taken = self.idle and self._publish_at_once(len(data))
        finally:
            self._waiter = waiter
        self.may_be_chunked = not taken
        if self.chunked is not None and self.chunked.body.is_eof():
            self.chunked = None
        if self._request_count != count:
            self.head.stop()
            if self._messages:
                self._wake()
        elif data and not (in_body or self.ahead):  # a part of the next head, perhaps behind one not answered
            if not self.head.waits:
                self._expect_head()
            if self.head.add(data):
                self._give_up(head_too_large())

    @property
    def _in_body(self) -> bool:
        return self.body is not None and not self.body.is_eof()

    def _feed_all(self, data: bytes) -> None:
        """Have aiohttp parse what has come, as far as there is room for it.

        Each head and each body is a piece of its own: with what cannot be parsed aiohttp drops all that is in
        front of it in the same piece, and with a request to upgrade all that is behind it.
        """
        if not (self.ahead or self._in_body) and is_one_request(data):  # as nearly all are
            self._feed(data)
            return
        if self.ahead or not data:
            self._feed(b"")  # the parser may hold a part of a body
            data, self.ahead = self.ahead + data, b""
        start, pieces = 0, 0
        while start < len(data) and not self.given_up and not self._reading_paused:
            if len(self._messages) >= self._max_msg_queue_size:
                self.ahead = data[start:]
                return
            pieces += 1
            end = self._end_of_piece(data, start) if pieces < MOST_PIECES else len(data)
            self._feed(data[start:end])
            start = end
        self.ahead = data[start:]

    def _end_of_piece(self, data: bytes, start: int) -> int:
        if self.body_size and self.body is not None and not self.body.is_eof():
            return start + self.body_size - self.body.total_bytes
        return end_of_head(data, start)

    def _feed(self, data: bytes) -> None:
        count = self._request_count
        super().data_received(data)
        if self._upgraded and self._parser is not None:  # nothing is spoken here but HTTP/1.1
            self._parser.set_upgraded(False)
            self._upgraded = False
        if self._request_count == count:
            return
        message, payload = self._messages[-1]
        if isinstance(message, RawRequestMessage):
            if message.version == HttpVersion10 and b" RTSP/1.0\r\n" in self.head.end + data:
                self._messages[-1] = message._replace(version=HttpVersion(0, 0)), payload
            self.body = None if payload.is_eof() else payload
            self.chunked = None
            if self.body is None:
                return
            if message.chunked:
                self.chunked, self.body_size = ChunkedBody(self, self._loop, self.body), 0
            else:
                self.body_size = int(message.headers.get("Content-Length", 0))
            return
        self.given_up = malformed(message.status, message.exc, message.message)
        if self.body is not None and self._in_body:  # its reader says what is wrong
            self._messages.pop()
            self.body.set_exception(web.RequestPayloadError())
            self.body.feed_eof()

    def _wake(self) -> None:
        """Have aiohttp's task handle the requests that wait, if it does not come round to them by itself."""
        self.idle = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _publish_at_once(self, size: int) -> bool:
        """Take the one request that has come, of so many bytes, if it is a plain publish.

        aiohttp's task may not have begun to wait for requests, so it must not find this one.
        """
        if (
            len(self._messages) != 1
            or size > MAX_SIZE
            or self.ahead
            or self._logging_enabled
            or self.writing_paused
            or self.admission != "admitted"
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
            self._wake()
        else:
            self._parser.message_consumed()
            self.transport.write(self.handler.accepted_answer(taken.result()))
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
        payload = StreamReader(self, MAX_SIZE, loop=self._loop)
        payload.feed_data(body)
        payload.feed_eof()
        self._messages.append((message, payload))

    def _watch_idleness(self) -> None:
        """Do what aiohttp does after an answer."""
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

    def resume_reading(self, resume_parser: bool = True) -> None:
        """There is room for more of a body: aiohttp says so after every read, paused or not."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _expect_head(self) -> None:
        self.keep_alive(False)  # until the next answer: aiohttp would close an idle connection without a word
        self.head.begin()

    def _head_is_late(self, late: Refused) -> None:
        self._give_up(self.refusal() or late)

    def _give_up(self, refused: Refused) -> None:
        self.head.stop()
        self.given_up = refused
        self.idle = False
        super().data_received(NO_HEAD)  # which handle_error() answers

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's returns None
        """The client sends no more: it has gone, or waits for an answer to what it has sent.

        Over TLS no connection can be half closed. True: this side is not closed.
        """
        if self.transport is None or self.lingers or self.transport.get_extra_info("sslcontext"):
            return False
        if self._is_done:
            return False
        self.head.stop()
        if not (self._messages or self._in_body or self.taking):
            self.close()  # behind the answer that is under way
        if self.half_closed is None:
            self.half_closed = self._loop.call_later(ANSWER_TIMEOUT, self.transport.abort)
        return True

    @property
    def _is_done(self) -> bool:
        """Whether nothing can be answered any more, if no more comes."""
        held = self.chunked is not None and self.chunked.held
        return self.idle or (self._in_body and not held)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""
        self.head.stop()
        if self.half_closed:
            self.half_closed.cancel()
        self.limits.leave(self.peer, self.admission)
        super().connection_lost(exc)

    def hand_over(self, transport: asyncio.Transport) -> Stream:
        """Make a stream, whose head has been sent, of the connection: for aiohttp it is lost with that.

        The task that handles the request is cancelled at its next await.
        """
        stream = Stream(self.limits, self.peer, self.admission, writing_paused=self.writing_paused)
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

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer. After the last one, read on: a reset would take it from one who still sends."""
        if self.handed_over:
            return resp, True  # as if the client had hung up
        if self.chunked is not None and request.content is self.chunked.body:
            resp.force_close()
            self._leave_body()
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
