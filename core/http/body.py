"""A publisher's body: its size, inflating it within that size, and what is sent in the place of one."""

import codecs
import zlib
from collections.abc import Iterator

from core.errors import Refused

_GZIP = b"\x1f\x8b"  # begins each member
_MOST_MEMBERS = 1000  # of a gzip body: 7 ms, if there is nothing in them
_PIECE = 1024  # bytes


def too_large(limit: int) -> Refused:
    """The refusal of a body; the rest of it may still be on its way."""
    return Refused(413, f"the body is larger than the {limit} bytes that are accepted", close=True)


def without_mark(body: bytes) -> bytes:
    """The body without the byte order mark that Windows' programs put before UTF-8 (RFC 8259 section 8.1)."""
    return body.removeprefix(codecs.BOM_UTF8)


def refuse_form(content_type: str, body: bytes) -> None:
    """Raise Refused(400) for a form with the JSON in it; curl -d calls JSON a form too, which is fine."""
    if content_type == "application/x-www-form-urlencoded" and body.startswith(b"payload="):
        raise Refused(
            400,
            'the JSON comes in a form: set "Content type" to application/json in the settings of the webhook',
        )


def inflate(body: bytes, limit: int) -> bytes:
    """A gzip or deflate body (RFC 9110 section 8.4.1), up to so many bytes inflated. Raises Refused."""
    if body.startswith(_GZIP):
        return b"".join(_members(body, limit))
    try:
        inflater = zlib.decompressobj()
        inflated = inflater.decompress(body, limit + 1)
    except zlib.error:  # many send deflate without zlib's header
        inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        inflated = _inflated(inflater, body, limit + 1)
    if len(inflated) > limit:
        raise too_large(limit)
    if not inflater.eof or inflater.unused_data:
        raise _wrong_end()
    return inflated


def _members(body: bytes, limit: int) -> Iterator[bytes]:
    """The members of a gzip file (RFC 1952 section 2.2), inflated."""
    position, left, members = 0, limit, 0
    while position < len(body):
        members += 1
        if members > _MOST_MEMBERS:
            raise Refused(413, f"the body has more than {_MOST_MEMBERS} gzip members: compress it as one")
        if not body.startswith(_GZIP, position):
            raise _wrong_end()
        inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        while not inflater.eof:
            # piece by piece: what is behind a member is copied
            piece = body[position : position + _PIECE]
            if not piece:
                raise _wrong_end()
            position += len(piece)
            inflated = _inflated(inflater, piece, left + 1)
            left -= len(inflated)
            if left < 0:
                raise too_large(limit)
            yield inflated
        position -= len(inflater.unused_data)


def _inflated(inflater: "zlib._Decompress", body: bytes, most: int) -> bytes:
    try:
        return inflater.decompress(body, most)
    except zlib.error:
        raise Refused(400, "the body does not inflate as its Content-Encoding says") from None


def _wrong_end() -> Refused:
    return Refused(400, "the compressed body is cut short, or goes on after its end")
