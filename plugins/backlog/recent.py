"""The newest events of one kind, public or private, that are kept by one rule: in memory and in order.

Lists beside one another instead of a list of objects: a position is found by bisection, a page is a slice,
and the garbage collector has nothing to look through.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from itertools import compress

from core.events.cursor import Mark
from core.events.event import Event
from core.events.store import PAGE_BYTES, PAGE_EVENTS
from plugins.backlog.pages import Found, LookedBack

_OVERHEAD = 200  # bytes that an event takes beside its line and path: three numbers, two objects, five places
_SPARE = 1000  # events that have been dropped and not yet cut off the lists
_LOOKED_THROUGH = 10  # pages in which nothing is wanted, at a time


class Recent:
    """Events by position. What is older than the first of them was dropped, or never here."""

    def __init__(self) -> None:
        self._first = 0  # index of the oldest that is held; those before it are cut off now and then
        self._positions: list[int] = []
        self._timestamps: list[float] = []
        self._paths: list[str] = []
        self._lines: list[bytes] = []
        self._ends: list[int] = []  # bytes of all events up to and with this one
        self._dropped_bytes = 0
        self._cut_off = 0.0  # the timestamp of the last event that has been

    def __len__(self) -> int:
        return len(self._positions) - self._first

    @property
    def oldest(self) -> Mark:
        """The event that would be dropped next. Raises IndexError if there is none."""
        return Mark(self._positions[self._first], self._timestamps[self._first])

    @property
    def oldest_path(self) -> str:
        """Where that was published. Raises IndexError if there is none."""
        return self._paths[self._first]

    @property
    def newest_timestamp(self) -> float:
        """That of the last event that was added, whether it is still held or not; 0 if none was."""
        return self._timestamps[-1] if self._timestamps else self._cut_off

    def add(self, event: Event) -> int:
        """Append an event, which is later than all here. The memory that it takes, in bytes, about."""
        held_bytes = len(event.line) + len(event.path.text) + _OVERHEAD
        self._positions.append(event.stamp.position)
        self._timestamps.append(event.stamp.timestamp)
        self._paths.append(event.path.text)
        self._lines.append(event.line)
        self._ends.append((self._ends[-1] if self._ends else self._dropped_bytes) + held_bytes)
        return held_bytes

    def drop_oldest(self) -> int:
        """Forget the oldest event. The memory that it took."""
        held_bytes = self._ends[self._first] - self._dropped_bytes
        self._dropped_bytes += held_bytes
        self._paths[self._first], self._lines[self._first] = "", b""  # their memory at once
        self._first += 1
        if self._first > _SPARE and self._first * 2 > len(self._positions):
            self._cut_off = self._timestamps[self._first - 1]
            for column in (self._positions, self._timestamps, self._paths, self._lines, self._ends):
                del column[: self._first]
            self._first = 0
        return held_bytes

    def first_since(self, timestamp: float) -> int | None:
        """The position of the first event at that time or later, None if there is none."""
        index = bisect_left(self._timestamps, timestamp, lo=self._first)
        return self._positions[index] if index < len(self._positions) else None

    def after(self, position: int, upto: int, wanted: Mapping[str, bool]) -> Found:
        """The next lines of events that are wanted, about a page of them at most.

        wanted: by path.
        """
        start = bisect_right(self._positions, position, lo=self._first)
        stop = bisect_right(self._positions, upto, lo=start)
        for _ in range(_LOOKED_THROUGH):
            if start == stop:
                return Found([], upto)
            before = self._ends[start - 1] if start > self._first else self._dropped_bytes
            most = min(start + PAGE_EVENTS, stop)
            end = max(bisect_right(self._ends, before + PAGE_BYTES, lo=start, hi=most), start + 1)
            which = map(wanted.__getitem__, self._paths[start:end])
            if lines := list(compress(self._lines[start:end], which)):
                return Found(lines, upto if end == stop else self._positions[end - 1])
            start = end
        return Found([], upto if start == stop else self._positions[start - 1])

    def before(self, upto: int, wanted: Mapping[str, bool]) -> LookedBack:
        """Where events are that are wanted, of a page of them up to a position. wanted: by path."""
        stop = bisect_right(self._positions, upto, lo=self._first)
        start = max(stop - PAGE_EVENTS, self._first)
        which = map(wanted.__getitem__, self._paths[start:stop])
        positions = list(compress(self._positions[start:stop], which))
        return LookedBack(positions, self._positions[start] - 1 if start > self._first else 0)
