"""A chunked body while it comes: held back until somebody asks for it, and parsed bit by bit from then on.

Its chunks may cost a thousand times what its bytes do, and who sends them may have no right to be heard.
"""

import asyncio
from typing import Protocol

from aiohttp import StreamReader

PARSED_AT_ONCE = 4 * 1024  # bytes in which there may be chunks; 256 KiB of the smallest would take 50 ms
MOST_HELD = 64 * 1024  # bytes that are read before they are parsed


class Parses(Protocol):
    """The connection that a chunked body comes over."""

    @property
    def deaf(self) -> bool:
        """Whether nothing that comes is parsed any more."""

    def parse(self, data: bytes) -> None:
        """Parse what comes next."""

    def parse_in_pieces(self, data: bytes) -> None:
        """Parse what comes next, as far as it is not to be held back."""

    def pause_socket(self) -> None:
        """Read no more for now."""

    def resume_socket(self) -> None:
        """Read on, if nothing else speaks against it."""


class ChunkedBody:
    """A chunked body that has not come to its end, and what of it, and behind it, is not parsed yet.

    body: where its content goes, and who asks for it reads.
    """

    __slots__ = ("_connection", "_loop", "body", "held", "wanted")

    def __init__(self, connection: Parses, loop: asyncio.AbstractEventLoop, body: StreamReader) -> None:
        self.body = body
        self.wanted = False  # whether it has been asked for
        self.held = bytearray()
        self._connection = connection
        self._loop = loop

    @property
    def full(self) -> bool:
        """Whether so much is held that no more is read."""
        return len(self.held) > MOST_HELD

    def hold(self, data: bytes) -> None:
        """Keep what has come. If the body is wanted, the next turn of the loop parses a piece."""
        if not data:
            return
        if self.wanted and not self.held:
            self._loop.call_soon(self._parse_piece)
        self.held += data
        if self.full:
            self._connection.pause_socket()

    def want(self) -> None:
        """Have it parsed, as it comes."""
        if not self.wanted:
            self.wanted = True
            self._parse_piece()

    def take(self) -> bytes:
        """All that is held, which is held no more."""
        held, self.held = bytes(self.held), bytearray()
        return held

    def _parse_piece(self) -> None:
        """Parse a piece: one in each turn of the loop, so that others have theirs."""
        if not self.held or self._connection.deaf:
            return
        held = self.take()
        self._connection.parse(held[:PARSED_AT_ONCE])
        self._connection.parse_in_pieces(held[PARSED_AT_ONCE:])
        self._connection.resume_socket()
