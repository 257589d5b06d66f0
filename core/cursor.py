"""Cursors and timestamps: a position for every event, growing whatever the clock does.

A cursor has the layout of a UUID version 7 (RFC 9562 section 5.7): 48 bits of milliseconds, then 12 bits
that hold the fraction of the millisecond (its method 3), then 62 random bits. Cursors sort as text in the
order in which they were made. They count nothing: between two of them lies real time and fresh randomness,
so they do not show how many others, private ones for instance, were made in between.
"""

import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

_TICKS_PER_MS = 4096  # a tick is the unit of a cursor's first 60 bits: 1/4096 ms, about 244 ns


class Stamp(NamedTuple):
    """What an event is given at the moment it is published."""

    cursor: str  # 36 characters of [0-9a-f-]
    timestamp: float  # Unix seconds


class Stamps:
    """Makes stamps, each after the one before.

    When the wall clock is set back, time goes on at the pace of the monotonic clock from where it was.
    wall, monotonic: clocks in nanoseconds.
    """

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._now_ns = wall()
        self._monotonic_ns = monotonic()
        self._ticks = 0

    def next(self) -> Stamp:
        """A stamp that sorts after every one made before."""
        monotonic_ns = self._monotonic()
        self._now_ns = max(self._wall(), self._now_ns + monotonic_ns - self._monotonic_ns)
        self._monotonic_ns = monotonic_ns
        # two stamps within a tick: the second is a tick later, and real time soon passes it again
        self._ticks = max(self._now_ns * _TICKS_PER_MS // 1_000_000, self._ticks + 1)
        return Stamp(_layout(self._ticks, secrets.randbits(62)), self._now_ns / 1e9)


def _layout(ticks: int, random: int) -> str:
    text = f"{ticks >> 12:012x}7{ticks & 0xFFF:03x}{1 << 63 | random:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
