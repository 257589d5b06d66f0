"""Which requests can be answered at once, where they are read: most publishes of programs.

A task for each request, and all that aiohttp makes for it, cost more than the request itself. A publish that
was read whole, and in whose head is nothing that would have to be looked into, needs none of that.
"""

from collections.abc import Container
from functools import lru_cache
from typing import Protocol

MAX_PLAIN_SIZE = 64 * 1024  # bytes of head and body together
MAX_PLAIN_HEAD = 1024  # bytes of the head alone, since its fields are remembered
_PLAIN_FIELDS = frozenset(
    {b"accept", b"accept-encoding", b"accept-language", b"connection", b"content-length", b"content-type"}
    | {b"host", b"user-agent"}
)


class Head(Protocol):
    """A request's head, as aiohttp's parser gives it."""

    @property
    def method(self) -> str:
        """The request's method, in capitals."""

    @property
    def version(self) -> tuple[int, int]:
        """The version of HTTP: (1, 1) is HTTP/1.1."""

    @property
    def raw_headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """All header fields as they came: name and value of each, in their order."""

    @property
    def headers(self) -> Container[str]:
        """The names of the header fields, to be asked for in upper case or lower."""

    @property
    def should_close(self) -> bool:
        """Whether the connection ends with the answer."""

    @property
    def upgrade(self) -> bool:
        """Whether another protocol is asked for."""


def is_plain_publish(message: Head) -> bool:
    """Whether a head asks for nothing but to publish one event, by the address that it comes from.

    Credentials, which many publishers send with all they send, are not looked at then.
    """
    fields = message.raw_headers
    if "Authorization" in message.headers:  # which no cache may hold
        fields = tuple(field for field in fields if field[0].lower() != b"authorization")
    return (
        message.method in ("PUT", "POST")
        and message.version == (1, 1)
        and not message.should_close
        and not message.upgrade
        and all(map(_is_plain_field, fields))
    )


@lru_cache(1000)  # they are the same again and again
def _is_plain_field(field: tuple[bytes, bytes]) -> bool:
    name, value = field[0].lower(), field[1].lower()
    if name == b"accept":
        return b"json" not in value
    if name == b"content-type":
        return b"ndjson" not in value and b"jsonl" not in value
    return name in _PLAIN_FIELDS
