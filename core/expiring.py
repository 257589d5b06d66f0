"""A table whose entries are forgotten after a while, or when there are too many."""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Expiring(Generic[K, V]):
    """Entries, the oldest first. lifetime: seconds; limit: entries; clock: monotonic seconds."""

    def __init__(self, lifetime: float, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._lifetime = lifetime
        self._limit = limit
        self._clock = clock
        self._entries: OrderedDict[K, tuple[V, float]] = OrderedDict()  # and when they were put there

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: K) -> bool:
        entry = self._entries.get(key)
        return entry is not None and self._clock() < entry[1] + self._lifetime

    def get(self, key: K) -> V | None:
        """The value, None if there is none any more."""
        return self._entries[key][0] if key in self else None

    def put(self, key: K, value: V, age: float = 0.0) -> None:
        """Remember a value from now on, or since so many seconds; older ones must have been put before."""
        now = self._clock()
        self._entries[key] = (value, now - age)
        self._entries.move_to_end(key)
        while self._entries and (
            len(self._entries) > self._limit or next(iter(self._entries.values()))[1] + self._lifetime <= now
        ):
            self._entries.popitem(last=False)

    def forget(self, key: K) -> None:
        """Undo put(), if that was done."""
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
