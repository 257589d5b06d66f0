"""How many requests were refused, of each kind, and which of them the log names one by one."""

import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

LINES_A_SECOND = 100  # of one kind; more say nothing that these do not


class Kind(NamedTuple):
    """What refusals are counted by: a status, and a reason where the status has several."""

    status: int
    reason: str  # a short word that stays the same over versions; "" where the status says it all

    def __str__(self) -> str:
        return f"{self.status} ({self.reason})" if self.reason else str(self.status)


class Refusals:
    """How many requests were refused so far. clock: seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[Kind] = Counter()
        self._clock = clock
        self._second: dict[Kind, int] = {}  # in which there were the lines that
        self._lines: Counter[Kind] = Counter()  # counts
        self._left_out: Counter[Kind] = Counter()  # since the last line

    def add(self, status: int, reason: str) -> int | None:
        """Count a refusal. None: the log gets no line; else how many like it got none since the last one."""
        kind = Kind(status, reason)
        self.counts[kind] += 1
        second = int(self._clock())
        if self._second.get(kind) != second:
            self._second[kind] = second
            self._lines[kind] = 0
        if self._lines[kind] >= LINES_A_SECOND:
            self._left_out[kind] += 1
            return None
        self._lines[kind] += 1
        return self._left_out.pop(kind, 0)

    def summary(self) -> str:
        """All refusals so far, such as "3 of 401, 12 of 503 (connections)"; "" if there were none."""
        return ", ".join(f"{number} of {kind}" for kind, number in sorted(self.counts.items()))
