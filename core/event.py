"""An event: one JSON object on one line.

A publisher's payload is checked and re-encoded as ASCII: the opening of the event's line. It becomes an
Event when it is given its stamp. What Python's json accepts and JSON (RFC 8259) does not, or deployed readers
cannot take, is refused here.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from core.cursor import Stamp
from core.errors import Refused
from core.topics import PublishPath

MAX_DEPTH = 500  # lists and objects within one another; Python's own readers give up at about 990
MAX_INTEGER_DIGITS = 4300  # what Python's json reads by default, hence what its readers can take
RESERVED_KEYS = ("pubsub_topics", "pubsub_path", "pubsub_timestamp", "pubsub_cursor")
_ENCODER = json.JSONEncoder(allow_nan=False)  # json.dumps() would make one each time
_STAMP_LENGTH = len(', "pubsub_timestamp": 1588132959.6066568, "pubsub_cursor": ""}\n') + 36

sys.set_int_max_str_digits(MAX_INTEGER_DIGITS)


class Draft(NamedTuple):
    """An event that has no stamp yet."""

    path: PublishPath
    opening: str  # from parse_payload


class Event:
    """One published event. Immutable."""

    __slots__ = ("line", "path", "stamp")

    def __init__(self, path: PublishPath, opening: str, stamp: Stamp) -> None:
        """opening: the line as far as it is known without a stamp, from parse_payload."""
        self.path = path
        self.stamp = stamp
        stamp_keys = f'"pubsub_timestamp": {stamp.timestamp!r}, "pubsub_cursor": "{stamp.cursor}"'
        self.line = f"{opening}, {stamp_keys}}}\n".encode("ascii")


def parse_payload(body: bytes, path: PublishPath, max_line_size: int) -> str:
    """The event's line up to its stamp: the publisher's keys first, in their order, then topics and path.

    max_line_size: bytes that the finished line may have.
    Raises Refused: 400 for what is no acceptable JSON object, 413 for a line that would be too long.
    """
    return opening_of(json_object(_decode(body)), path, max_line_size)


def opening_of(payload: dict[str, Any], path: PublishPath, max_line_size: int) -> str:
    """The same for a payload that is read already, and may be changed."""
    if "stillalive" in payload:
        raise Refused(400, 'a top-level key "stillalive" is refused: readers would take the event for a ping')
    for key in RESERVED_KEYS:
        payload.pop(key, None)
    payload["pubsub_topics"] = path.topics
    payload["pubsub_path"] = path.text
    opening = _encode(payload)[:-1]
    size = len(opening) + _STAMP_LENGTH
    if size > max_line_size:
        raise Refused(
            413,
            f"the event's line would have {size} bytes (with non-ASCII characters escaped), "
            f"the most that is sent on is {max_line_size}",
        )
    return opening


def parse_ndjson(body: bytes, path: PublishPath, max_line_size: int) -> Iterator[str]:
    """The openings (see parse_payload) of a body that holds a payload on each line.

    Raises Refused, naming the first bad line.
    """
    empty = True
    for number, line in enumerate(body.split(b"\n"), 1):
        if line.strip():
            empty = False
            try:
                yield parse_payload(line, path, max_line_size)
            except Refused as refused:
                raise Refused(refused.status, f"line {number}: {refused.message}") from None
    if empty:
        raise Refused(400, "there is no event in the body: expected a JSON object on each line")


def _decode(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8 (at byte {error.start})") from None


def json_object(text: str) -> dict[str, Any]:
    """The JSON object that a payload is. Raises Refused(400)."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise Refused(400, _TOO_DEEP) from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise Refused(400, f"not JSON: {error.msg} at {line}column {error.colno}") from None
    except ValueError:  # json leaves the conversion of long integers to int()
        raise Refused(400, f"an integer of more than {MAX_INTEGER_DIGITS} digits") from None
    if not isinstance(value, dict):
        raise Refused(400, f"the payload must be a JSON object, got {_json_kind(value)}")
    if too_deep(value):
        raise Refused(400, _TOO_DEEP)
    return value


_TOO_DEEP = f"lists and objects nested more than {MAX_DEPTH} deep"


def too_deep(value: dict[str, Any]) -> bool:
    """Whether there are more than MAX_DEPTH lists and objects within one another."""
    level: list[Any] = [part for part in value.values() if isinstance(part, dict | list)]
    if not level:
        return False
    for _ in range(MAX_DEPTH - 1):
        inner = [part.values() if isinstance(part, dict) else part for part in level]
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]
        if not level:
            return False
    return True


def _encode(payload: dict[str, Any]) -> str:
    """The payload as ASCII JSON. Raises Refused(400) for values that JSON does not know."""
    try:
        text = _ENCODER.encode(payload)
    except ValueError:
        raise Refused(400, "NaN, Infinity and numbers beyond the range of a double are not JSON") from None
    if "\\ud" in text and _has_lone_surrogate(payload):
        raise Refused(400, "a lone surrogate (half of a \\u pair) is no character")
    return text


def _has_lone_surrogate(payload: dict[str, Any]) -> bool:
    try:
        json.dumps(payload, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return "a string" if isinstance(value, str) else "a list"
