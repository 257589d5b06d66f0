"""Cursors and timestamps: a position for every event, growing whatever the clock does.

A cursor has the layout of a UUID version 7 (RFC 9562 section 5.7): 48 bits of milliseconds, then 12 bits
that hold the fraction of the millisecond (its method 3), then 62 random bits. Cursors sort as text in the
order in which they were made. They count nothing: between two of them lies real time and fresh randomness,
so they do not show how many others, private ones for instance, were made in between.

The first 60 bits, the time, are the position as a number. No two stamps share it.
"""

import re
import secrets
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

TICKS_PER_SECOND = 4_096_000  # a tick is the unit of a position: 1/4096 ms, about 244 ns
MAX_POSITION = 2**60 - 1
_CURSOR = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


_since_boot_ns = partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)


class Stamp(NamedTuple):
    """What an event is given at the moment it is published."""

    position: int  # 60 bits
    cursor: str  # 36 characters of [0-9a-f-]
    timestamp: float  # Unix seconds


class Mark(NamedTuple):
    """A moment in the order of events."""

    position: int
    timestamp: float  # Unix seconds


class Stamps:
    """Makes stamps, each after the one before.

    When the wall clock is set back, time goes on at the pace of the monotonic clock from where it was: of the
    one that goes on while the machine is suspended, as who judges age by stamps expects.
    wall, monotonic: clocks in nanoseconds.
    """

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = _since_boot_ns
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._now_ns = wall()
        self._position_ns = self._now_ns  # may be ahead of _now_ns, see go_on_after()
        self._monotonic_ns = monotonic()
        self._position = 0

    @property
    def latest(self) -> float:
        """The time of the last stamp, in Unix seconds; it may be ahead of the clock."""
        return self._now_ns / 1e9

    def go_on_after(self, mark: Mark) -> None:
        """Make stamps from here on that come after those of an earlier life."""
        self._now_ns = max(self._now_ns, round(mark.timestamp * 1e9))
        self._position = max(self._position, mark.position)
        self._position_ns = max(self._position_ns, mark.position * 1_000_000_000 // TICKS_PER_SECOND)

    @property
    def ahead(self) -> float:
        """Seconds that stamps are ahead of the wall clock: since it was set back, or an earlier life."""
        elapsed_ns = self._monotonic() - self._monotonic_ns
        return (max(self._now_ns, self._position_ns) + elapsed_ns - self._wall()) / 1e9

    def next(self) -> Stamp:
        """A stamp that sorts after every one made before."""
        wall_ns, monotonic_ns = self._wall(), self._monotonic()
        elapsed_ns, self._monotonic_ns = monotonic_ns - self._monotonic_ns, monotonic_ns
        # no max(): it would take a quarter of the time that a stamp takes
        now_ns, position_ns = self._now_ns + elapsed_ns, self._position_ns + elapsed_ns
        self._now_ns = now_ns if now_ns > wall_ns else wall_ns
        self._position_ns = position_ns = position_ns if position_ns > wall_ns else wall_ns
        # two stamps within a tick: the second is a tick later, and real time soon passes it again
        position, after = position_ns * TICKS_PER_SECOND // 1_000_000_000, self._position + 1
        self._position = position if position > after else after
        return stamp_at(self._position, self._now_ns / 1e9)


def stamp_at(position: int, timestamp: float) -> Stamp:
    """A stamp with a fresh cursor."""
    # one number cut up: formatting each part takes twice as long
    digits = "%015x%016x" % (position, _random_bits() & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000)  # noqa: UP031
    cursor = f"{digits[:8]}-{digits[8:12]}-7{digits[12:15]}-{digits[15:19]}-{digits[19:]}"
    return Stamp(position, cursor, timestamp)


def _random_numbers() -> Iterator[int]:
    """Numbers of 64 random bits, of which the kernel is asked for many at a time."""
    while True:
        yield from struct.unpack("512Q", secrets.token_bytes(4096))


_random_bits = _random_numbers().__next__


def position_of(cursor: str) -> int | None:
    """The position that a cursor stands for; None if it is none of ours, such as a random UUID of 0.7's."""
    if not _CURSOR.fullmatch(cursor):
        return None
    digits = cursor.replace("-", "")
    return int(digits[:12], 16) << 12 | int(digits[13:16], 16)


def position_at(timestamp: float) -> int:
    """A position which no event of that time or later lies below. timestamp: Unix seconds, 0 or more."""
    whole_ms = int(min(timestamp, 1e12) * 1000) - 1  # 1 less: a double cannot tell all ticks apart
    return min(max(whole_ms, 0) * TICKS_PER_SECOND // 1000, MAX_POSITION)
