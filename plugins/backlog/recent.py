"""The newest events of one kind, public or private, in memory and in order.

Lists beside one another instead of a list of objects: a position is found by bisection, a page is a slice,
and the garbage collector has nothing to look through.
"""

from bisect import bisect_left, bisect_right

from core.events.cursor import Mark
from core.events.event import Event
from core.events.store import Line

_OVERHEAD = 200  # bytes that an event takes beside its line and path: three numbers, two objects, five places
_SPARE = 1000  # events that have been dropped and not yet cut off the lists


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
    def held_bytes(self) -> int:
        """Memory that the events take, about."""
        return self._ends[-1] - self._dropped_bytes if self else 0

    @property
    def oldest(self) -> Mark:
        """The event that would be dropped next. Raises IndexError if there is none."""
        return Mark(self._positions[self._first], self._timestamps[self._first])

    @property
    def newest_timestamp(self) -> float:
        """That of the last event that was added, whether it is still held or not; 0 if none was."""
        return self._timestamps[-1] if self._timestamps else self._cut_off

    def add(self, event: Event) -> None:
        """Append an event, which is later than all here."""
        held_bytes = len(event.line) + len(event.path.text) + _OVERHEAD
        self._positions.append(event.stamp.position)
        self._timestamps.append(event.stamp.timestamp)
        self._paths.append(event.path.text)
        self._lines.append(event.line)
        self._ends.append((self._ends[-1] if self._ends else self._dropped_bytes) + held_bytes)

    def drop_oldest(self) -> None:
        """Forget the oldest event."""
        self._dropped_bytes = self._ends[self._first]
        self._paths[self._first], self._lines[self._first] = "", b""  # their memory at once
        self._first += 1
        if self._first > _SPARE and self._first * 2 > len(self._positions):
            self._cut_off = self._timestamps[self._first - 1]
            for column in (self._positions, self._timestamps, self._paths, self._lines, self._ends):
                del column[: self._first]
            self._first = 0

    def first_since(self, timestamp: float) -> int | None:
        """The position of the first event at that time or later, None if there is none."""
        index = bisect_left(self._timestamps, timestamp, lo=self._first)
        return self._positions[index] if index < len(self._positions) else None

    def after(self, position: int, most_events: int, most_bytes: int) -> tuple[list[Line], bool]:
        """The next events, at least one if there is any, up to so many; and whether there are more."""
        start = bisect_right(self._positions, position, lo=self._first)
        if start == len(self._positions):
            return [], False
        before = self._ends[start - 1] if start > self._first else self._dropped_bytes
        most = min(start + most_events, len(self._ends))
        stop = max(bisect_right(self._ends, before + most_bytes, lo=start, hi=most), start + 1)
        lines = map(Line, self._positions[start:stop], self._paths[start:stop], self._lines[start:stop])
        return list(lines), stop < len(self._positions)
