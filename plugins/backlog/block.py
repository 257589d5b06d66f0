"""A block: events of one kind that follow one another, some hundred to a thousand, compressed together.

Its data is a frame of zstd (RFC 8878). What it holds: the length of the list of paths (4 bytes, big-endian),
that list (JSON), for each event the number of its path in it (2 bytes, little-endian), and the lines, each as
a chunk of HTTP (RFC 9112 section 7.1): so to most readers a block goes out as it is unpacked.

Beside its data a block has a summary, by which it is found: up to which position it goes, the times of its
first and last event, and its topics, 4 bytes for each (departed.topic_key). Both have a checksum.
"""

import json
import sqlite3
import struct
import sys
import zlib
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from typing import NamedTuple

import zstandard

from core.delivery.wire import chunks
from core.events.event import position_in, timestamp_in
from plugins.backlog.departed import keys_of

BLOCK_EVENTS = 1000
BLOCK_BYTES = 256 * 1024  # of lines; a block has at least one event
_LEVEL = 5  # of zstd: 3 takes half of the time for 1.03 of the bytes, 9 twice as much for 0.95
_LENGTH = struct.Struct(">I")
_NUMBERS = struct.Struct(">qddqqq")


class Damaged(sqlite3.DatabaseError):
    """What is found in the file is not what was written there."""


class Summary(NamedTuple):
    """What is known of a block without its data. As a row of the table, in this order."""

    last: int  # position up to which it goes: that of its last event when it was sealed
    first_timestamp: float
    last_timestamp: float
    events: int
    size: int  # bytes of the data
    topics: bytes
    crc: int  # of the data
    summary_crc: int  # of all this

    @property
    def is_whole(self) -> bool:
        """Whether it is what was written."""
        return self.summary_crc == _crc_of(*self[:-1])

    @property
    def topic_keys(self) -> Sequence[int]:
        """Its topics, each as topic_key() has it."""
        return struct.unpack(f">{len(self.topics) // 4}I", self.topics)


def _crc_of(
    last: int, first_timestamp: float, last_timestamp: float, events: int, size: int, topics: bytes, crc: int
) -> int:
    numbers = _NUMBERS.pack(last, first_timestamp, last_timestamp, events, size, crc)
    return zlib.crc32(topics, zlib.crc32(numbers))


def pack(events: Sequence[tuple[str, bytes]], last: int | None = None) -> tuple[Summary, bytes]:
    """A block's summary and data. events: the path and the line of each, in order, at least one.

    last: the position up to which it goes, that of its last event if it is not given.
    """
    numbers: dict[str, int] = {}  # by path
    numbered = array("H", [numbers.setdefault(path, len(numbers)) for path, _ in events])
    if sys.byteorder == "big":
        numbered.byteswap()
    lines = [line for _, line in events]
    paths = json.dumps(list(numbers)).encode()
    content = b"".join([_LENGTH.pack(len(paths)), paths, numbered.tobytes(), chunks(lines)])
    data = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
    keys = sorted(frozenset().union(*map(keys_of, numbers)))
    topics = struct.pack(f">{len(keys)}I", *keys)
    known = (
        position_in(lines[-1]) if last is None else last,
        timestamp_in(lines[0]),
        timestamp_in(lines[-1]),
        len(lines),
        len(data),
        topics,
        zlib.crc32(data),
    )
    return Summary(*known, _crc_of(*known)), data


def counted_paths(summary: Summary, data: bytes) -> Counter[str]:
    """How many events of each path a block has, without their lines. Raises Damaged."""
    _check(summary, data)
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        (length,) = _LENGTH.unpack(reader.read(_LENGTH.size))
        paths = json.loads(reader.read(length))
        numbers = _numbers_in(reader.read(2 * summary.events))
    return Counter(map(paths.__getitem__, numbers))


def size_of_chunks(summary: Summary, data: bytes) -> int:
    """How many bytes the lines in a block have, each as a chunk."""
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        (length,) = _LENGTH.unpack(reader.read(_LENGTH.size))
    content: int = zstandard.frame_content_size(data)
    return content - _LENGTH.size - int(length) - 2 * summary.events


def _check(summary: Summary, data: bytes) -> None:
    if not summary.is_whole or zlib.crc32(data) != summary.crc:
        raise Damaged(f"the block of events up to position {summary.last} is damaged")


def _numbers_in(content: bytes) -> "array[int]":
    numbers = array("H", content)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


class Block:
    """A block, unpacked.

    chunks: of all its lines. first, last: positions. paths: without repeats.
    """

    __slots__ = ("_lines", "_numbers", "chunks", "events", "first", "last", "paths")

    def __init__(self, summary: Summary, data: bytes) -> None:
        """Raises Damaged if it is not what was written."""
        _check(summary, data)
        content = zstandard.ZstdDecompressor().decompress(data)
        (length,) = _LENGTH.unpack_from(content)
        begin = _LENGTH.size + length
        end = begin + 2 * summary.events
        self.paths: list[str] = json.loads(content[_LENGTH.size : begin])
        self._numbers = _numbers_in(content[begin:end])
        self.chunks = memoryview(content)[end:]
        self._lines: list[bytes] | None = None
        self.events = summary.events
        first = content.index(b"\n", end) + 1
        self.first = position_in(content[first : content.index(b"\n", first) + 1])
        self.last = summary.last

    @property
    def lines(self) -> list[bytes]:
        """The lines of its events, in order."""
        if self._lines is None:
            self._lines = bytes(self.chunks).splitlines(keepends=True)[1::3]
        return self._lines

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """The path and the line of each event."""
        return zip(map(self.paths.__getitem__, self._numbers), self.lines, strict=True)

    def is_whole(self, after: int, upto: int, wanted: Mapping[str, bool]) -> bool:
        """Whether all events come after a position, up to one, and their paths are wanted."""
        return after < self.first and self.last <= upto and all(map(wanted.__getitem__, self.paths))

    def select(self, after: int, upto: int, wanted: Mapping[str, bool]) -> list[bytes]:
        """The lines of events after a position, up to one, whose paths are wanted."""
        which = [wanted[path] for path in self.paths]
        if not any(which):
            return []
        lines = self.lines
        if not all(which):
            lines = list(compress(lines, map(which.__getitem__, self._numbers)))
        start = bisect_right(lines, after, key=position_in) if after >= self.first else 0
        stop = bisect_right(lines, upto, key=position_in) if upto < self.last else len(lines)
        return lines[start:stop]
