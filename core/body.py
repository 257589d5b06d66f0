"""A publisher's body: its size, and inflating it within that size."""

import zlib

from core.errors import Refused


def too_large(limit: int) -> Refused:
    """The refusal of a body; the rest of it may still be on its way."""
    return Refused(413, f"the body is larger than the {limit} bytes that are accepted", close=True)


def inflate(body: bytes, limit: int) -> bytes:
    """A gzip or deflate body (RFC 9110 section 8.4.1), up to so many bytes inflated. Raises Refused."""
    inflater = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)  # 32: either header
    try:
        inflated = inflater.decompress(body, limit + 1)
    except zlib.error:
        raise Refused(400, "the body does not inflate as its Content-Encoding says") from None
    if len(inflated) > limit:
        raise too_large(limit)
    if not inflater.eof or inflater.unused_data:
        raise Refused(400, "the compressed body is cut short, or goes on after its end")
    return inflated
