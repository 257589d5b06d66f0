"""A table whose entries are forgotten after a while, or when there are too many.

It is bounded in number only. Where others choose the keys, a digest of fixed size stands for each.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Expiring(Generic[K, V]):
    """Entries, the oldest first. lifetime: seconds; limit: entries; clock: monotonic seconds.

    In an event loop a timer lets go of what is old, whether or not anybody asks for it again.
    """

    def __init__(self, lifetime: float, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._lifetime = lifetime
        self._limit = limit
        self._clock = clock
        self._entries: OrderedDict[K, tuple[V, float]] = OrderedDict()  # and when they were put there
        self._timer: asyncio.TimerHandle | None = None  # while there are entries, in an event loop

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        entry = self._entries.get(key)
        return entry is not None and self._clock() < entry[1] + self._lifetime

    def get(self, key: K) -> V | None:
        """The value, None if there is none any more."""
        return self._entries[key][0] if key in self else None

    def put(self, key: K, value: V, age: float = 0.0) -> None:
        """Remember a value from now on, or since so many seconds; older ones must have been put before.

        age: -inf for what is not to grow old before it is put again.
        """
        now = self._clock()
        self.forget(key)
        self._entries[key] = (value, now - age)
        self._added(key, value)
        self._forget_old(now)
        while len(self._entries) > self._limit:
            self.forget(self._surplus())
        if self._timer is None:
            self._expect_end(now)

    def forget(self, key: K) -> None:
        """Undo put(), if that was done."""
        if entry := self._entries.pop(key, None):
            self._removed(key, entry[0])

    # For subclasses

    def _added(self, key: K, value: V) -> None:
        """There is another entry."""

    def _removed(self, key: K, value: V) -> None:
        """An entry is not there any more, for whatever reason."""

    def _surplus(self) -> K:
        """Which entry makes room for another: the oldest."""
        return next(iter(self._entries))

    # Time

    def _forget_old(self, now: float) -> None:
        while self._entries and self._end_of_oldest() <= now:
            self.forget(next(iter(self._entries)))

    def _end_of_oldest(self) -> float:
        return next(iter(self._entries.values()))[1] + self._lifetime

    def _expect_end(self, now: float) -> None:
        """Have the oldest entry forgotten when its time has come."""
        self._timer = None
        if self._entries:
            with contextlib.suppress(RuntimeError):  # there is no event loop
                wait = max(self._end_of_oldest() - now, self._lifetime / 10)  # for others with it
                wait = min(wait, self._lifetime)  # it may be one that does not grow old yet
                self._timer = asyncio.get_running_loop().call_later(wait, self._on_end)

    def _on_end(self) -> None:
        now = self._clock()
        self._forget_old(now)
        self._expect_end(now)
