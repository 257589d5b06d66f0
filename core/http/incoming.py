"""What comes over a connection of aiohttp's: bytes, of which requests are made, and what is held back.

aiohttp parses them. Between the socket and its parser stands what it does not do: heads are watched, chunked
bodies are held back (core.http.chunked_body), and what cannot be parsed takes nothing with it.
"""

import asyncio
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.http import HttpVersion, HttpVersion10, RawRequestMessage

from core.errors import Refused
from core.http.chunked_body import MOST_HELD, PARSED_AT_ONCE, ChunkedBody
from core.http.heads import HeadWatch, head_too_large, malformed

NO_HEAD = b"\0\r\n\r\n"  # ends a request's head wherever that is, as one that cannot be parsed
MOST_PIECES = 100  # heads and bodies that are parsed one by one of what has come at once


class Incoming(web.RequestHandler):
    """The side of a connection that reads. Connection, which is derived from it, answers.

    Requests, whether their bodies are there or under way, wait for aiohttp's task, which handles them one by
    one. A request that comes alone may be taken at once instead; what comes behind it waits then, unparsed.
    head_timeout: seconds that the head of a request may take.
    """

    __slots__ = (
        "ahead",
        "body",
        "body_size",
        "chunked",
        "given_up",
        "half_closed",
        "head",
        "idle",
        "may_be_chunked",
        "taking",
    )

    def __init__(self, server: web.Server, head_timeout: float, **settings: Any) -> None:
        super().__init__(server, **settings)
        # fewer than the parser's own 32: paused there, it would lose what follows a request to upgrade
        self._max_msg_queue_size, self._msg_queue_resume_size = 16, 8
        self.head = HeadWatch(self._loop, head_timeout)
        self.body: StreamReader | None = None  # of the last request, if it had not all come with its head
        self.body_size = 0  # its Content-Length
        self.chunked: ChunkedBody | None = None  # the same, if it is in chunks and under way
        self.may_be_chunked = False  # what comes next: it may belong to a head that began before
        self.ahead = b""  # what has come and is not parsed yet, as others are to be answered first
        self.given_up: Refused | None = None  # what is wrong with a head: what comes after it is dropped
        self.half_closed: asyncio.TimerHandle | None = None  # ends it, once the client sends no more
        # whether all that was asked for is answered; aiohttp's task may not have noticed yet
        self.idle = True
        self.taking = False  # whether a publish that was taken at once is being stored

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self._expect_head()

    def take_at_once(self, size: int) -> bool:
        """Take what has come, of so many bytes, where it is read. False: it is for aiohttp's task."""
        raise NotImplementedError

    def head_is_late(self, late: Refused) -> None:
        """A head has not come in time."""
        self._give_up(late)

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

    def _parse_on(self, rest: bytes) -> None:
        """Parse what the parser has kept, and the rest behind it."""
        self.parse(b"")
        self.parse_in_pieces(rest)

    def _put_off(self, data: bytes) -> None:
        """Keep what comes behind a publish that is being stored, until that is answered."""
        self.ahead += data
        if len(self.ahead) > MOST_HELD:
            self._pause_transport_reading()

    def parse(self, data: bytes) -> None:
        """Parse what comes next, and see to it that what is complete by then is answered."""
        count = self._request_count
        waiter, self._waiter = self._waiter, None  # lest aiohttp wakes the task that answers
        in_body = self.in_body
        taken = False
        try:
            self._feed_all(data)
            if self._request_count != count:
                taken = self.idle and self.take_at_once(len(data))
        finally:
            self._waiter = waiter
        self.may_be_chunked = not taken
        if self.chunked is not None and self.chunked.body.is_eof():
            self.chunked = None
        if self._request_count != count:
            self.head.stop()
            if self._messages:
                self.wake()
        elif data and not (in_body or self.ahead):  # a part of the next head, perhaps behind one not answered
            if not self.head.waits:
                self._expect_head()
            if self.head.add(data):
                self._give_up(head_too_large())

    @property
    def in_body(self) -> bool:
        """Whether the last request's body is to come, or a part of it."""
        return self.body is not None and not self.body.is_eof()

    def _feed_all(self, data: bytes) -> None:
        """Have aiohttp parse what has come, as far as there is room for it.

        Each head and each body is a piece of its own: with what cannot be parsed aiohttp drops all that is in
        front of it in the same piece, and with a request to upgrade all that is behind it.
        """
        if not (self.ahead or self.in_body) and is_one_request(data):  # as nearly all are
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
        if self.body is not None and self.in_body:  # its reader says what is wrong
            self._messages.pop()
            self.body.set_exception(web.RequestPayloadError())
            self.body.feed_eof()

    def wake(self) -> None:
        """Have aiohttp's task handle the requests that wait, if it does not come round to them by itself."""
        self.idle = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _expect_head(self) -> None:
        self.keep_alive(False)  # until the next answer: aiohttp would close an idle connection without a word
        self.head.begin(self.head_is_late)

    def _give_up(self, refused: Refused) -> None:
        self.head.stop()
        self.given_up = refused
        self.idle = False
        super().data_received(NO_HEAD)  # which handle_error() answers

    # What core.http.chunked_body asks for

    @property
    def deaf(self) -> bool:
        """Whether nothing that comes is parsed any more."""
        return self.given_up is not None or self.transport is None

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

    def leave_body(self) -> None:
        """Drop what is held, and whatever still comes."""
        self.given_up = self.given_up or Refused(400, "the request's body is not read", close=True)
        self.chunked = None
        if self.body is not None and not self.body.is_eof():
            self.body.feed_eof()
        self._resume_transport_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """There is room for more of a body: aiohttp says so after every read, paused or not."""
        if self._reading_paused:
            super().resume_reading(resume_parser)


def is_one_request(data: bytes) -> bool:
    """Whether this looks like a head and the body that belongs to it, with nothing behind them."""
    end = data.find(b"\r\n\r\n")
    # Content-Length, however written
    return data.find(b"ength: %d\r" % (len(data) - end - 4), 0, end + 1) > 0


def end_of_head(data: bytes, start: int) -> int:
    """Where a head ends that begins here; the end of all if it is not there yet."""
    if data[start] in b"\r\n":  # the rest of the last line of a head, or of chunks
        breaks = data[start : start + 4]
        return start + len(breaks) - len(breaks.lstrip(b"\r\n"))
    end = data.find(b"\r\n\r\n", start)
    return end + 4 if end >= 0 else len(data)
