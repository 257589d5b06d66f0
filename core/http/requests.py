"""What of a request is read before its events are: which requests are spoken to, their fields, their body.

A body is inflated within its limit, whatever it says of itself.
"""

import asyncio
import codecs
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Protocol

from aiohttp import web
from aiohttp.http import HttpVersion11

from core.errors import Refused
from core.events.replay import REPLAY_HEADERS, REPLAY_KEYS, ReplayRequest, replay_request
from core.events.subscription import Subscription, parse_subscription
from core.http.connection import connection_of, is_spoken
from core.http.heads import MAX_HEAD, head_too_large

BODY_TIMEOUT = 60.0  # seconds a request's body may take
NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
MOST_QUERY_KEYS = 64
MOST_SHOWN = 40  # characters of an unknown key, in the answer to whoever sent it
_ENCODINGS = ("gzip", "x-gzip", "deflate")
_NO_ENCODING = ("", "identity")
_GZIP = b"\x1f\x8b"  # begins each member
_MOST_MEMBERS = 1000  # of a gzip body: 7 ms, if there is nothing in them
_PIECE = 1024  # bytes


def check_spoken(request: web.BaseRequest) -> None:
    """Raise Refused for a request in a form that is not known here: 431, 501, 505."""
    if not is_spoken(request):
        raise Refused(505, "HTTP/1.1 is known here, and HTTP/1.0", close=True)
    if size_of_fields(request) > MAX_HEAD:
        raise head_too_large()
    if request.headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":
        raise Refused(501, "Transfer-Encoding: only chunked is known here", close=True)


def size_of_fields(request: web.BaseRequest) -> int:
    """How many bytes the names and values of all header fields have together."""
    return sum(map(len, chain.from_iterable(request.raw_headers)))


# Header fields and query keys


class Fields(Protocol):
    """Names with a value each, or with several."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """All values of a name."""


def only_one(fields: Fields, *names: str) -> None:
    """Raise Refused(400) if one of these is there more than once: which of them is meant, nobody can tell."""
    for name in names:
        if len(fields.getall(name, ())) > 1:
            raise Refused(400, f"{name} is there more than once: send it once")


def only_known(keys: Iterable[str], known: Collection[str]) -> None:
    """Raise Refused(400) for a key that is not known: misspelt, it would go unnoticed."""
    for key in keys:
        if key not in known:
            shown = ascii(key if len(key) <= MOST_SHOWN else f"{key[:MOST_SHOWN]}…")
            raise Refused(400, f"the query has the unknown key {shown}; known are {', '.join(known)}")


def holds_lines(request: web.BaseRequest) -> bool:
    """Whether a body is announced that holds an event on each line (NDJSON)."""
    return request.content_type in NDJSON_TYPES


def read_subscription(request: web.BaseRequest, latest: float) -> tuple[Subscription, ReplayRequest | None]:
    """What a subscriber asks for, live and past. latest: the last event's timestamp. Raises Refused."""
    if request.rel_url.raw_query_string.count("&") >= MOST_QUERY_KEYS:
        raise Refused(400, f"there are more than {MOST_QUERY_KEYS} keys in the query")
    subscription = parse_subscription(request.rel_url.raw_path)
    only_known(request.query, REPLAY_KEYS)
    only_one(request.query, *REPLAY_KEYS)
    only_one(request.headers, *REPLAY_HEADERS)
    return subscription, replay_request(request.headers, request.query, max(time.time(), latest))


# Reading a body


async def read_body(request: web.BaseRequest, limit: int) -> bytes:
    """The body, up to so many bytes once it is inflated; it is not empty. Raises Refused."""
    only_one(request.headers, "Content-Encoding")
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in _NO_ENCODING + _ENCODINGS:
        raise Refused(
            415,
            "Content-Encoding: gzip, deflate and none are known here",
            headers={"Accept-Encoding": "gzip, deflate"},
        )
    if (request.content_length or 0) > limit:
        raise too_large(limit)
    continue_if_expected(request)
    body = await receive(request, limit)
    if encoding in _ENCODINGS:
        body = inflate(body, limit)
    body = without_mark(body)
    if not body:
        raise Refused(400, "there is no body: expected a JSON object")
    refuse_form(request.content_type, body)
    return body


def may_never_come(request: web.BaseRequest, limit: int) -> bool:
    """Whether the body of a refused request is not worth waiting for before the next request."""
    if request.content.is_eof():
        return False
    return (request.content_length or 0) > limit or "Expect" in request.headers


async def receive(request: web.BaseRequest, limit: int) -> bytes:
    """The body as it was sent, up to so many bytes. Raises Refused."""
    body = bytearray()
    try:
        async with asyncio.timeout(None if request.content.is_eof() else BODY_TIMEOUT):
            connection_of(request).want_body(request.content)
            while piece := await request.content.readany():
                body += piece
                if len(body) > limit:
                    raise too_large(limit)
    except TimeoutError:
        raise Refused(408, f"the body took longer than {BODY_TIMEOUT:g} seconds", close=True) from None
    except web.RequestPayloadError:
        raise Refused(400, "the body's chunks are broken", close=True) from None
    return bytes(body)


def continue_if_expected(request: web.BaseRequest) -> None:
    """Send 100 (Continue) to a client that waits for it (RFC 9110 section 10.1.1). Raises Refused(417)."""
    expected = request.headers.get("Expect")
    if expected is None or request.version < HttpVersion11:
        return
    if expected.strip().lower() != "100-continue":
        raise Refused(417, "Expect: only 100-continue is known here")
    if request.transport is not None and not request.content.is_eof():
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


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
