"""HTTP by aiohttp: connections, their limits, and what of a request has nothing to do with events.

The one module of core/ that knows aiohttp. Every path is a topic, so there is nothing to route: a request is
handed to whoever Answers, and so is what aiohttp cannot parse.
"""

import asyncio
import logging
from asyncio.sslproto import SSLProtocol
from functools import partial
from typing import Any, Protocol

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http import HttpVersion, HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import InvalidURLError, LineTooLong
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from core.auth.networks import Networks
from core.errors import Refused
from core.events.store import Accepted
from core.http.limits import SURPLUS_TIMEOUT, Connections, Place, room_for_connections
from core.http.plain_publish import MAX_HEAD as MAX_PLAIN_HEAD
from core.http.plain_publish import MAX_SIZE, is_plain_publish
from core.http.stream import Stream
from core.settings import ServerConfig

NO_HEAD = b"\0\r\n\r\n"  # ends a request's head wherever that is, as one that cannot be parsed
HEAD_TOO_LARGE = "head_too_large"  # a reason to count by
IDLE_TIMEOUT = 75.0  # seconds a connection may be idle between two requests
MAX_TARGET = 8190  # bytes of a request's target: its path and query
MAX_FIELD = 8192  # bytes of a header field; not MAX_TARGET, by which malformed() tells the two apart
MAX_FIELDS = 128  # header fields
MAX_HEAD = 64 * 1024  # bytes of all header fields together
PARSED_AT_ONCE = 4 * 1024  # bytes in which there may be chunks; 256 KiB of the smallest would take 50 ms
MOST_HELD = 64 * 1024  # bytes of a chunked body that are read before it is parsed
ANSWER_TIMEOUT = 5.0  # seconds that an answer may take to whom nothing more comes from: it may have gone
MOST_PIECES = 100  # heads and bodies that are parsed one by one of what has come at once
LINGER = 3.0  # seconds that a refused head or body is read on for, so that the answer is not lost to a reset

# asyncio keeps a buffer for each connection to read TLS into: of 256 KiB, for records of 16 KiB at most.
# 300 idle connections took 279 KiB each, and 55 with this.
SSLProtocol.max_size = 32 * 1024


class Answers(Protocol):
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
        "ahead",
        "body",
        "body_size",
        "chunked",
        "given_up",
        "half_closed",
        "handed_over",
        "head_end",
        "head_size",
        "head_timer",
        "held",
        "http",
        "lingers",
        "may_be_chunked",
        "opened",
        "peer",
        "place",
        "taking",
        "wanted",
    )

    def __init__(self, http: "HttpServer", peer: str | None, place: Place, **settings: Any) -> None:
        super().__init__(http, **settings)
        # fewer than the parser's own 32: paused there, it would lose what follows a request to upgrade
        self._max_msg_queue_size, self._msg_queue_resume_size = 16, 8
        self.http = http
        self.peer = peer  # an address, "unix", or None if not known
        self.place = place  # "admitted", or which limit it is beyond
        self.opened = False  # whether connection_made() was called: not before a TLS handshake has ended
        self.head_timer: asyncio.TimerHandle | None = None  # while a request's head is to come
        self.head_size = 0  # bytes of an incomplete head that have come
        self.head_end = b""  # the last of them
        self.body: StreamReader | None = None  # of the last request, if it had not all come with its head
        self.body_size = 0  # its Content-Length
        self.chunked = False  # whether that is in chunks
        self.held: bytearray | None = None  # what is not parsed yet, while such a body is under way
        self.wanted = False  # whether it has been asked for
        self.may_be_chunked = False  # what comes next: it may belong to a head that began before
        self.ahead = b""  # what has come and is not parsed yet, as too many requests wait
        self.half_closed: asyncio.TimerHandle | None = None  # ends it, once the client sends no more
        self.given_up: Refused | None = None  # what is wrong with a head: what comes after it is dropped
        self.lingers = False  # whether all is answered, and only read on for
        self.handed_over = False
        self.taking = False  # whether a plain publish has been taken and is to be answered

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self.opened = True
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Something has come: heads of requests, a part of one, a part of a body."""
        if self.given_up:
            return
        if self.held is not None and data:
            self._hold(data)
        elif self.held:
            held, self.held = bytes(self.held), bytearray()
            self._parse_behind(held)
        elif not data and len(self.ahead) > PARSED_AT_ONCE:
            ahead, self.ahead = self.ahead, b""
            self._parse_behind(ahead)
        elif len(data) > PARSED_AT_ONCE and (self.may_be_chunked or b"chunked" in data.lower()):
            self._parse_in_pieces(data)
        else:
            self._parse(data)

    # A chunked body is parsed bit by bit, and not before somebody has asked for it: its chunks may cost a
    # thousand times what its bytes do, and who sends them may have no right to be heard.

    def _parse_in_pieces(self, data: bytes) -> None:
        for start in range(0, len(data), PARSED_AT_ONCE):
            self._parse(data[start : start + PARSED_AT_ONCE])
            if self.given_up:
                return
            if self.held is not None:
                self._hold(data[start + PARSED_AT_ONCE :])
                return

    def _parse_behind(self, rest: bytes) -> None:
        """Parse what the parser has kept, and the rest behind it."""
        self._parse(b"")
        if self.held is not None:
            self._hold(rest)
        else:
            self._parse_in_pieces(rest)

    def _hold(self, data: bytes | bytearray) -> None:
        """Keep what has come of a chunked body, or what comes behind it."""
        if self.held is None or not data:
            return
        if self.wanted and not self.held:
            self._loop.call_soon(self._parse_held)
        self.held += data
        if len(self.held) > MOST_HELD:
            self._pause_transport_reading()

    def want_body(self, body: StreamReader) -> None:
        """Have a request's body parsed, as it comes."""
        if body is self.body and not self.wanted:
            self.wanted = True
            self._parse_held()

    def _parse_held(self) -> None:
        """Parse a piece: one in each turn of the loop, so that others have theirs."""
        if not self.held or self.given_up or self.transport is None:
            return
        piece, rest = bytes(self.held[:PARSED_AT_ONCE]), bytes(self.held[PARSED_AT_ONCE:])
        self._parse(piece)
        if self.held is not None:
            self._hold(rest)
        elif rest:
            self._parse_in_pieces(rest)
        full = self._reading_paused or self._buffer_paused or len(self.held or b"") > MOST_HELD
        if not (full or self.half_closed):  # nothing more comes then, and uvloop would say so once more
            self._resume_transport_reading()

    def _leave_body(self) -> None:
        """Drop what is held, and whatever still comes."""
        self.given_up = self.given_up or Refused(400, "the request's body is not read", close=True)
        self.held = None
        if self.body is not None and not self.body.is_eof():
            self.body.feed_eof()
        self._resume_transport_reading()

    def _parse(self, data: bytes) -> None:
        count = self._request_count
        waiter, self._waiter = self._waiter, None  # lest aiohttp wakes the task that answers
        idle = waiter is not None and not waiter.done() and not self.taking
        in_body = self._in_body
        taken = False
        try:
            self._feed_all(data)
            if self._request_count != count:
                taken = idle and self._publish_at_once(len(data))
        finally:
            self._waiter = waiter
        self.may_be_chunked = not taken
        self.held = bytearray() if self.chunked and self._in_body else None
        if self._request_count != count:
            self._expect_no_head()
            if idle and not taken:
                self._wake()
        elif data and not (in_body or self.ahead):  # a part of the next head, perhaps behind one not answered
            if self.head_timer is None:
                self._expect_head()
            self.head_size += len(data)
            self.head_end = data[-10:]
            if self.head_size > 2 * MAX_HEAD:  # with the target, and what is between the fields
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
        if data[start] in b"\r\n":  # the rest of the last line of a head, or of chunks
            start += len(data[start : start + 4]) - len(data[start : start + 4].lstrip(b"\r\n"))
            return start
        end = data.find(b"\r\n\r\n", start)
        return end + 4 if end >= 0 else len(data)

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
            if message.version == HttpVersion10 and b" RTSP/1.0\r\n" in self.head_end + data:
                self._messages[-1] = message._replace(version=HttpVersion(0, 0)), payload
            self.body = None if payload.is_eof() else payload
            self.chunked, self.wanted = message.chunked, False
            if self.body is not None:
                self.body_size = 0 if message.chunked else int(message.headers.get("Content-Length", 0))
            return
        self.given_up = malformed(message.status, message.exc, message.message)
        if self.body is not None and self._in_body:  # its reader says what is wrong
            self._messages.pop()
            self.body.set_exception(web.RequestPayloadError())
            self.body.feed_eof()

    def _wake(self) -> None:
        """Have aiohttp's task handle the requests that wait."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _publish_at_once(self, size: int) -> bool:
        """Take the one request that has come, of so many bytes, if it is a plain publish."""
        if (
            len(self._messages) != 1
            or size > MAX_SIZE
            or self._logging_enabled
            or self.writing_paused
            or self.place != "admitted"
            or self._parser is None
        ):
            return False
        message, payload = self._messages[0]
        if not (isinstance(message, RawRequestMessage) and payload.is_eof()):
            return False
        if size - payload.total_bytes > MAX_PLAIN_HEAD or not is_plain_publish(message):
            return False
        body = payload.read_nowait()
        taken = self.http.answers.publish_at_once(self.peer, message, body)
        if taken is None:
            self._put_back(body)
            return False
        self.taking = True
        if taken.done():
            self._answer_taken(body, taken)
        else:
            taken.add_done_callback(partial(self._answer_taken, body))
        return True

    def _answer_taken(self, body: bytes, taken: asyncio.Future[Accepted]) -> None:
        """Answer the request that was taken. If it is refused, it goes the long way, which can say so."""
        self.taking = False
        failed = taken.cancelled() or taken.exception() is not None
        if self.transport is None or self._parser is None:
            return  # the publisher has hung up
        if failed:
            self._put_back(body)
        else:
            self._messages.popleft()
            self._parser.message_consumed()
            self.transport.write(self.http.answers.accepted_answer(taken.result()))
            if self.half_closed and not self._messages:
                self.force_close()
                return
            self._watch_idleness()
        if self._messages:
            self._wake()

    def _put_back(self, body: bytes) -> None:
        """Let aiohttp read a body that was read before."""
        payload = StreamReader(self, MAX_SIZE, loop=self._loop)
        payload.feed_data(body)
        payload.feed_eof()
        self._messages[0] = self._messages[0][0], payload

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
        timeout = self.http.settings.head_timeout
        if self.place != "admitted":
            timeout = min(timeout, SURPLUS_TIMEOUT)
        self.head_timer = self._loop.call_later(timeout, self._head_is_late, timeout)

    def _expect_no_head(self) -> None:
        if self.head_timer:
            self.head_timer.cancel()
            self.head_timer = None
            self.head_size = 0
            self.head_end = b""

    def _head_is_late(self, timeout: float) -> None:
        silent = not self.head_size  # as connections are that browsers open in advance
        late = Refused(
            408,
            f"the request's head did not come within {timeout:g} seconds",
            close=True,
            reason="silent" if silent else "head_timeout",
            quiet=silent,
        )
        self._give_up(self.http.limits.refusal(self.place) or late)

    def _give_up(self, refused: Refused) -> None:
        self._expect_no_head()
        self.given_up = refused
        waiter = self._waiter
        if self.taking:  # that is answered first, and not by aiohttp's task
            self._waiter = None
        super().data_received(NO_HEAD)  # which handle_error() answers
        self._waiter = waiter

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's returns None
        """The client sends no more: it has gone, or waits for an answer to what it has sent.

        Over TLS no connection can be half closed. True: this side is not closed.
        """
        if self.transport is None or self.lingers or self.transport.get_extra_info("sslcontext"):
            return False
        idle = self._waiter is not None and not self._waiter.done()
        if (self._in_body and not self.held) or not (self._messages or (self._request_count and not idle)):
            return False
        self._expect_no_head()
        if not self._messages and not self._in_body:
            self.close()  # behind the answer that is under way
        if self.half_closed is None:
            self.half_closed = self._loop.call_later(ANSWER_TIMEOUT, self.transport.abort)
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""
        self._expect_no_head()
        if self.half_closed:
            self.half_closed.cancel()
        self.http.limits.leave(self.peer, self.place)
        super().connection_lost(exc)

    def hand_over(self, transport: asyncio.Transport) -> Stream:
        """Make a stream, whose head has been sent, of the connection: for aiohttp it is lost with that.

        The task that handles the request is cancelled at its next await.
        """
        stream = Stream(self.http.limits, self.peer, self.place, writing_paused=self.writing_paused)
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
        return self.http.answers.refuse_malformed(request, self.given_up)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer. After the last one, read on: a reset would take it from one who still sends."""
        if self.handed_over:
            return resp, True  # as if the client had hung up
        if self.held is not None and request.content is self.body:
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
        return finished


class AccessLog(AbstractAccessLogger):
    """A line for each request, without its query and headers, where credentials may be."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log a request. time: the seconds it took."""
        peer, path = connection_of(request).peer, shown_path(request)
        line = "%s %s %s %d %d bytes %.6f s"
        self.logger.info(line, peer, request.method, path, response.status, response.body_length, time)


class HttpServer(web.Server):
    """aiohttp's low-level server (every path is a topic: there is nothing to route), with our Connection."""

    def __init__(self, answers: Answers, settings: ServerConfig, files_of_others: int) -> None:
        """files_of_others: open files that the server must leave to connections that plugins make."""
        super().__init__(answers.handle, handler_cancellation=True)  # so a disconnect is noticed at once
        self.answers = answers
        self.settings = settings
        self.limits = Connections(
            *room_for_connections(settings.max_connections, files_of_others),
            settings.max_connections_per_address,
            Networks(settings.trusted_proxies),
        )

    def connection(self, peer: str | None, place: Place) -> Connection:
        """What serves a connection that has been counted."""
        return Connection(
            self,
            peer,
            place,
            loop=self._loop,
            keepalive_timeout=IDLE_TIMEOUT,
            lingering_time=LINGER,
            max_line_size=MAX_TARGET,
            max_field_size=MAX_FIELD,
            max_headers=MAX_FIELDS,
            auto_decompress=False,  # inflate() does it, and knows the limit
            logger=logging.getLogger("pypubsub.http"),
            access_log=logging.getLogger("pypubsub.access") if self.settings.access_log else None,
            access_log_class=AccessLog,
        )

    def turned_away(self, peer: str | None, place: Place) -> None:
        """Count and log a connection that is closed without an answer."""
        if refused := self.limits.refusal(place):
            self.answers.note_refusal(refused, "a connection, without an answer,", peer)


def malformed(status: int, error: BaseException | None, message: str) -> Refused:
    """The refusal of what aiohttp could not parse; its messages quote the request, which no log may."""
    if isinstance(error, LineTooLong):
        if error.args[1] == MAX_TARGET:
            return Refused(414, f"the path and query have more than {MAX_TARGET} bytes", close=True)
        return Refused(
            431, f"a header field has more than {MAX_FIELD} bytes", close=True, reason=HEAD_TOO_LARGE
        )
    if message.startswith("Too many headers"):
        return Refused(
            431, f"there are more than {MAX_FIELDS} header fields", close=True, reason=HEAD_TOO_LARGE
        )
    what = (message.strip().partition(":")[0].splitlines() or ["not a request"])[0]
    if isinstance(error, InvalidURLError):
        what = "the request's target is no URL"
    elif HttpRequestParser is HttpRequestParserPy:  # where there is none in C; it quotes even more
        what = "the head or a chunk cannot be parsed"
    elif "PRI/" in what:
        what = "HTTP/2 is not known here, HTTP/1.1 is"
    return Refused(status, f"not HTTP/1.1: {what}", close=True, reason="malformed")


def head_too_large() -> Refused:
    """The refusal of a head whose fields are each of an acceptable size."""
    return Refused(
        431, f"the header fields have more than {MAX_HEAD} bytes together", close=True, reason=HEAD_TOO_LARGE
    )


def is_one_request(data: bytes) -> bool:
    """Whether this looks like a head and the body that belongs to it, with nothing behind them."""
    end = data.find(b"\r\n\r\n")
    # Content-Length, however written
    return data.find(b"ength: %d\r" % (len(data) - end - 4), 0, end + 1) > 0


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
