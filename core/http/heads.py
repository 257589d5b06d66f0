"""The head of a request: its size, its time, and what is said to whoever sends one that is refused."""

import asyncio
from collections.abc import Callable

from aiohttp.http_exceptions import InvalidURLError, LineTooLong
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from core.errors import Refused

MAX_TARGET = 8190  # bytes of a request's target: its path and query
MAX_FIELD = 8192  # bytes of a header field; not MAX_TARGET, by which malformed() tells the two apart
MAX_FIELDS = 128  # header fields
MAX_HEAD = 64 * 1024  # bytes of all header fields together
MOST_OF_A_HEAD = 2 * MAX_HEAD  # bytes that are read: with the target, and what is between the fields
TAIL_KEPT = 10  # the last bytes of an incomplete head that are kept, to be looked at with what comes next
HEAD_TOO_LARGE = "head_too_large"  # a reason to count by


class HeadWatch:
    """What watches over a connection while the head of a request is to come: for its time, and its size.

    timeout: seconds until a head must be there.
    """

    __slots__ = ("_loop", "_timeout", "_timer", "end", "size")

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        self.size = 0  # bytes of an incomplete head that have come
        self.end = b""  # the last of them
        self._loop = loop
        self._timeout = timeout
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether a head is to come."""
        return self._timer is not None

    def begin(self, on_late: Callable[[Refused], None]) -> None:
        """Expect a head from now on. on_late: called with the refusal of one that is late.

        It is held by the timer alone: kept here, a method of the connection would make a cycle of the two,
        for the garbage collector to find.
        """
        self._timer = self._loop.call_later(self._timeout, self._is_late, on_late)

    def add(self, data: bytes) -> bool:
        """Count in a part of a head. Whether it is too large by now."""
        self.size += len(data)
        self.end = (self.end + data)[-TAIL_KEPT:]
        return self.size > MOST_OF_A_HEAD

    def stop(self) -> None:
        """Expect none: it is there, or the connection has ended."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
            self.size = 0
            self.end = b""

    def _is_late(self, on_late: Callable[[Refused], None]) -> None:
        silent = not self.size  # as connections are that browsers open in advance
        on_late(
            Refused(
                408,
                f"the request's head did not come within {self._timeout:g} seconds",
                close=True,
                reason="silent" if silent else "head_timeout",
                quiet=silent,
            )
        )


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
