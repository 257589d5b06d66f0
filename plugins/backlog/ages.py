"""How old events are, by a clock that nobody sets.

Stamps follow the time of day, which may be set, forward and back, by years. So a stamp alone does not tell
how long ago it was given. What leaves for its age is judged by the time that has passed since, as the kernel
counts it, and by what was stamped then.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

_TOLERANCE = 1.0  # seconds that stamps may be ahead or behind without a word
_MOST_POINTS = 1000


def since_boot() -> float:
    """Seconds since the machine was started, those in which it was suspended too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def this_boot() -> str:
    """What the kernel calls the time since it was started; "" if it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Ages:
    """What was stamped when. Between its points, stamps have kept pace with the clock that nobody sets.

    points: moments by that clock, in seconds, and the newest timestamp at each of them; at least one. Before
    the first one stamps are taken to have kept pace, too.
    now: the moment in which a life begins, and after which stamps keep pace again; the last point without it.
    newest: the newest timestamp by then, None if there is none.
    """

    def __init__(
        self,
        points: Iterable[tuple[float, float]],
        now: float | None = None,
        newest: float | None = None,
    ) -> None:
        self.points = list(points)
        self._newest = newest
        self._looked = self.points[-1][0] if now is None else now

    def begin(self, first: float) -> None:
        """Note that no timestamp of the life that begins now is before that one, which may be behind."""
        if first < self.stamped(self._looked) - _TOLERANCE:
            if self._newest is not None:
                first = max(first, math.nextafter(self._newest, math.inf))
            self._add(self._looked, first)

    def stamped(self, moment: float) -> float:
        """A timestamp that is not later than those which were given after that moment."""
        index = max(bisect_right(self.points, (moment, math.inf)) - 1, 0)
        at, timestamp = self.points[index]
        return min([timestamp + moment - at, *(later for _, later in self.points[index + 1 :])])

    def look(self, moment: float, newest: float) -> bool:
        """Note the newest timestamp. Whether stamps have not kept pace since the last look."""
        looked, self._looked = self._looked, moment
        before, self._newest = self._newest, newest
        if newest == before:
            return False
        ahead = newest > self.stamped(moment) + _TOLERANCE
        behind = newest < self.stamped(looked) - _TOLERANCE
        if behind:
            # since when is not known: what was stamped right after the last look may be as old as that
            newest -= moment - looked
            moment = looked
            if before is not None:  # but it is later than what was stamped before
                newest = max(newest, math.nextafter(before, math.inf))
        if ahead or behind:
            self._add(moment, newest)
        return ahead or behind

    def _add(self, moment: float, newest: float) -> None:
        self.points = [*self.points[1 - _MOST_POINTS :], (moment, newest)]
