"""An event: one JSON object on one line.

A publisher's payload is checked and re-encoded as ASCII: the opening of the event's line. It becomes an
Event when it is given its stamp. What Python's json accepts and JSON (RFC 8259) does not, or deployed readers
cannot take, is refused here.
"""

import json
import sys
from array import array
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn

from core.errors import Refused
from core.events.cursor import Stamp, position_of
from core.events.topics import PublishPath

MAX_DEPTH = 500  # lists and objects within one another; Python's own readers give up at about 990
MAX_INTEGER_DIGITS = 4300  # what Python's json reads by default, hence what its readers can take
MAX_BATCH = 10_000  # events in one request
RESERVED_KEYS = ("pubsub_topics", "pubsub_path", "pubsub_timestamp", "pubsub_cursor")
_DECODER = json.JSONDecoder()
_ENCODER = json.JSONEncoder(allow_nan=False)
_WHITESPACE = " \t\n\r"  # RFC 8259 section 2
_LONGEST_REMEMBERED = 128  # characters of a path
_CURSOR_LENGTH = len(', "pubsub_cursor": ""}\n') + 36
_STAMP_LENGTH = len(', "pubsub_timestamp": 1588132959.6066568') + _CURSOR_LENGTH

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
        text = f'{opening}, "pubsub_timestamp": {stamp.timestamp!r}, "pubsub_cursor": "{stamp.cursor}"}}\n'
        self.line = text.encode("ascii")


def position_in(line: bytes) -> int:
    """The position of the event that has this line."""
    return int(line[-39:-31] + line[-30:-26] + line[-24:-21], 16)  # see core.events.cursor


def timestamp_in(line: bytes) -> float:
    """The pubsub_timestamp of the event that has this line."""
    end = len(line) - _CURSOR_LENGTH
    return float(line[line.rindex(b" ", 0, end) : end])


def event_of(path: PublishPath, line: bytes) -> Event:
    """The event on a path that has this line. Raises ValueError if none has exactly this one."""
    try:
        opening = line[: line.rindex(b', "pubsub_timestamp": ')].decode("ascii")
        stamp = Stamp(position_in(line), line[-39:-3].decode("ascii"), timestamp_in(line))
    except ValueError:
        raise ValueError("a line that does not end as that of an event") from None
    event = Event(path, opening, stamp)
    if event.line != line or position_of(stamp.cursor) != stamp.position:
        raise ValueError("a line that does not end as that of an event")
    if not opening.endswith(_keys_of(path)):
        raise ValueError("a line of another path")
    return event


def parse_payload(body: bytes, path: PublishPath, max_line_size: int) -> str:
    """The event's line up to its stamp: the publisher's keys first, in their order, then topics and path.

    max_line_size: bytes that the finished line may have.
    Raises Refused: 400 for what is no acceptable JSON object, 413 for a line that would be too long.
    """
    return opening_of(json_object(_decode(body)), path, max_line_size)


def opening_of(payload: dict[str, Any], path: PublishPath, max_line_size: int) -> str:
    """The line, up to its stamp, of a payload that is read already: see parse_payload(). Changes the payload.

    Raises Refused: 400 for what is no acceptable payload, 413 for a line that would be too long.
    """
    if "stillalive" in payload:
        raise Refused(400, 'a top-level key "stillalive" is refused: readers would take the event for a ping')
    if not payload.keys().isdisjoint(RESERVED_KEYS):
        for key in RESERVED_KEYS:
            payload.pop(key, None)
    opening = f"{_encode(payload)[:-1]}{', ' if payload else ''}{_keys_of(path)}"
    size = len(opening) + _STAMP_LENGTH
    if size > max_line_size:
        raise Refused(
            413,
            f"the event's line would have {size} bytes (with non-ASCII characters escaped), "
            f"the most that is sent on is {max_line_size}",
        )
    return opening


def _keys_of(path: PublishPath) -> str:
    """What an event's line says of its path. Raises Refused(400) for lone surrogates, which no URL has."""
    write = _write_keys_of_short if len(path.text) <= _LONGEST_REMEMBERED else _write_keys_of
    return write(path)


def _write_keys_of(path: PublishPath) -> str:
    return _encode({"pubsub_topics": path.topics, "pubsub_path": path.text})[1:-1]


_write_keys_of_short = lru_cache(1000)(_write_keys_of)  # they are the same again and again


def _decode(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8 (at byte {error.start})") from None


def json_object(text: str) -> dict[str, Any]:
    """The JSON object that a payload is. Raises Refused(400)."""
    try:
        value = _json_value(text)
    except RecursionError:
        raise Refused(400, _TOO_DEEP) from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise Refused(400, f"not JSON: {error.msg} at {line}column {error.colno}") from None
    except ValueError:  # json leaves the conversion of long integers to int()
        raise Refused(400, f"an integer of more than {MAX_INTEGER_DIGITS} digits") from None
    if not isinstance(value, dict):
        raise Refused(400, f"the payload must be a JSON object, got {_json_kind(value)}")
    # what has so few brackets need not be looked through
    if text.count("{") + text.count("[") > MAX_DEPTH and depth_of(text) > MAX_DEPTH:
        raise Refused(400, _TOO_DEEP)
    return value


def _json_value(text: str) -> Any:
    """json.loads(), whose errors say what is wrong and where, in little more than half of its time."""
    text_alone = text.strip(_WHITESPACE)
    try:
        value, end = _DECODER.raw_decode(text_alone)
    except json.JSONDecodeError:
        end = -1
    return value if end == len(text_alone) else json.loads(text)


_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # in signed bytes: one deeper, one less deep
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_TOO_DEEP = f"lists and objects nested more than {MAX_DEPTH} deep"


def depth_of(text: str) -> int:
    """How many lists and objects of a JSON text are within one another. text: it was parsed before."""
    # without pairs of backslashes, and then without escaped quotes, each quote begins or ends a string
    parts = text.replace("\\\\", "").replace('\\"', "").split('"')
    brackets = "".join(parts[::2]).encode().translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(array("b", brackets)), default=0)


def _not_json(value: object) -> NoReturn:
    raise TypeError(f"no JSON value: {value!r}")


# what JSONEncoder.encode() makes anew each time, in CPython; that takes nearly half of its time
_make_encoder = getattr(json.encoder, "c_make_encoder", None)
_pieces_of: Callable[[dict[str, Any], int], Iterable[str]] = (
    _make_encoder(
        None, _not_json, json.encoder.encode_basestring_ascii, None, ": ", ", ", False, False, False
    )
    if _make_encoder
    else lambda payload, _: _ENCODER.iterencode(payload)
)


def _encode(payload: dict[str, Any]) -> str:
    """The payload as ASCII JSON. Raises Refused(400) for values that JSON does not know."""
    try:
        text = "".join(_pieces_of(payload, 0))
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
