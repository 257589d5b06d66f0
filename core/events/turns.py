"""How those who bring much share the server with everybody else: in turns (fair queueing), and in slices."""

import asyncio
import heapq
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_SLICE = 0.002  # seconds


class Slice:
    """A slice of long work. When it is over, the event loop has others' work done before the next one."""

    def __init__(self) -> None:
        self._end = time.perf_counter() + _SLICE

    @property
    def over(self) -> bool:
        """Whether the slice has lasted as long as one may."""
        return time.perf_counter() >= self._end

    async def next(self) -> None:
        """Let others have their turn, and begin another slice."""
        await asyncio.sleep(0)
        self._end = time.perf_counter() + _SLICE


class Turns:
    """One at a time, of those who bring many events.

    Next is who would be done first if all of them were served side by side. So who brings
    less goes before who brings more, but nobody waits for ever: those who come later count from what has been
    done by then. Whoever has several waiting gets no more for that: they count one after the other.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []  # heap: due, number, given the turn
        self._numbers = itertools.count()
        self._publishers: Counter[str] = Counter()  # who waits, or has the turn, and how often
        self._taken = False
        self._done = 0.0  # events that each of them would have had done, side by side

    @asynccontextmanager
    async def turn(self, publisher: str, events: int) -> AsyncIterator[None]:
        """Wait for a turn, and have it to the end of the block. events: how many the publisher brings."""
        self._publishers[publisher] += 1
        try:
            await self._wait(self._done + events * self._publishers[publisher])
            try:
                yield
            finally:
                self._done += events / (len(self._waiting) + 1)
                self._give_away()
        finally:
            self._publishers[publisher] -= 1
            if not self._publishers[publisher]:
                del self._publishers[publisher]

    async def _wait(self, due: float) -> None:
        if not self._taken:
            self._taken = True
            return
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (due, next(self._numbers), given)
        heapq.heappush(self._waiting, entry)
        try:
            await given
        except asyncio.CancelledError:  # the publisher has hung up
            if not given.cancelled():  # in the moment in which it was given
                self._give_away()
            elif entry in self._waiting:
                self._waiting.remove(entry)
                heapq.heapify(self._waiting)
            raise

    def _give_away(self) -> None:
        """Let the next one have the turn."""
        while self._waiting:
            _, _, given = heapq.heappop(self._waiting)
            if not given.cancelled():
                given.set_result(None)
                return
        self._taken = False
