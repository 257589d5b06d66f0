"""The wire forms: what an event's line becomes on its way to a reader, and what a stream has beside events.

A line is JSON and its newline, as bytes. Clients in the field parse chunk by chunk, so a line is exactly one
HTTP chunk, however many chunks one write carries.

CONTRIBUTING.md says how to add a form.
"""

from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import NamedTuple, Protocol

_LONGEST_COMMON = 4096  # bytes of a line


class Wire(Protocol):
    """A wire form. There is one instance of each, and they are compared by identity.

    Subscribers of the same form share their bytes (see core.delivery.channel). So what a form makes depends
    on its arguments alone, and is whole: whatever is made next may follow it.
    """

    content_type: str  # of a stream's head
    closing: bytes  # what tells that a body is whole, behind end(); b"" where only the connection's end does

    def event(self, line: bytes) -> bytes:
        """The frame of an event's line. Made once for all who get it."""

    def events(self, lines: Sequence[bytes]) -> bytes:
        """The frames of several lines, joined: what a replay is made of, so this is to be fast."""

    def ping(self, now: float) -> bytes:
        """The frame that shows a quiet stream to be alive. now: Unix seconds."""

    def end(self) -> bytes:
        """What ends a stream that this side closes, after its last frame; b"" for nothing."""


CLOSING_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Bytes as one chunk of a body (RFC 9112 section 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class _ChunkHeads(dict[int, bytes]):
    """How a chunk of so many bytes begins."""

    def __missing__(self, size: int) -> bytes:
        """Make it, and remember it unless it is rare."""
        head = b"%x\r\n" % size
        if size < _LONGEST_COMMON:
            self[size] = head
        return head


_chunk_head = _ChunkHeads().__getitem__


def chunks(lines: Sequence[bytes]) -> bytes:
    """Each of them as one chunk, joined, in a fifth of the time that chunk() takes."""
    return b"".join(chain.from_iterable(zip(map(_chunk_head, map(len, lines)), lines, repeat(b"\r\n"))))


def bare(data: bytes) -> bytes:
    """Bytes as they are: HTTP/1.0 knows no chunks."""
    return data


class JsonLines:
    """An object on each line: an event, or a ping, which every client tells by its one key `stillalive`.

    event: makes the frame of a line. events: the frames of several, joined; by `event` if it is not given.
    """

    content_type = "application/vnd.pypubsub-stream"

    def __init__(
        self,
        event: Callable[[bytes], bytes],
        closing: bytes,
        events: Callable[[Sequence[bytes]], bytes] | None = None,
    ) -> None:
        self.event = event
        self.closing = closing
        self.events = events or (lambda lines: b"".join(map(event, lines)))

    def ping(self, now: float) -> bytes:
        """A line that holds the time. now: Unix seconds."""
        return self.event(b'{"stillalive": %a}\n' % now)  # as json.dumps() writes it, in a fifth of the time

    def end(self) -> bytes:
        """b"", without even the closing chunk: deployed readers reconnect after an early end, and give up
        after a clean one.
        """
        return b""


CHUNKED = JsonLines(chunk, CLOSING_CHUNK, chunks)
BARE = JsonLines(bare, b"", b"".join)
# for readers of svnpubsub's time, who wait for a NUL after each object
CHUNKED_NUL_TERMINATED = JsonLines(lambda line: chunk(line + b"\0"), CLOSING_CHUNK)
BARE_NUL_TERMINATED = JsonLines(lambda line: line + b"\0", b"")


class _Form(NamedTuple):
    over_1_1: Wire
    over_1_0: Wire  # HTTP/1.0 knows no chunks


FORMS = {
    "lines": _Form(CHUNKED, BARE),
    "nul_terminated": _Form(CHUNKED_NUL_TERMINATED, BARE_NUL_TERMINATED),
}


def wire_form(*, http_1_0: bool, nul_terminated: bool) -> Wire:
    """The form that a stream is written in."""
    form = FORMS["nul_terminated" if nul_terminated else "lines"]
    return form.over_1_0 if http_1_0 else form.over_1_1
