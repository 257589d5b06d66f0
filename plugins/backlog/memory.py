"""The backlog, in memory: the newest events, for subscribers who were away or have fallen behind.

Public and private events are bounded apart, by number and by age, and each kind's memory of what has left is
its own. So what a subscriber to public events gets, is told and no longer gets does not depend on private
ones.
"""

import asyncio
import math
from collections.abc import Callable, Sequence

from core.events.cursor import Mark, position_of
from core.events.event import Event
from core.events.idempotency import IdempotencyKey, QueueItem
from core.events.local_store import LocalStore
from core.events.replay import (
    NOTHING,
    Gone,
    Placement,
    Reach,
    ReplayRequest,
    judge_since,
    place,
    place_cursor,
)
from core.events.store import (
    PAGE_BYTES,
    PAGE_EVENTS,
    Accepted,
    Outlet,
    Page,
    delivered,
)
from plugins import Plugin
from plugins.backlog.ages import Ages, since_boot
from plugins.backlog.recent import Recent
from plugins.backlog.settings import BacklogConfig

_PRUNINGS = 20  # by age, in max_age
_PRUNING_PAUSES = (0.25, 60.0)  # seconds, the shortest and the longest


class Kind:
    """What is held of the public events, or of the private ones."""

    def __init__(self) -> None:
        self.recent = Recent()
        self.ages = Ages([(0.0, 0.0)])
        self.end = 0  # position of the last event that was delivered
        self.lost = NOTHING  # the latest event that has left the backlog
        self.in_memory_after = 0  # position: what the backlog holds from later on is in `recent`

    def drop_oldest(self) -> Mark:
        """Take the oldest event out of memory."""
        oldest = self.recent.oldest
        self.recent.drop_oldest()
        self.in_memory_after = oldest.position
        return oldest


class Backlog(LocalStore, Plugin):
    """A store that keeps events in memory. clock: seconds, that nobody sets."""

    name = "store"
    can_be_read = True

    def __init__(
        self, config: BacklogConfig, outlet: Outlet, clock: Callable[[], float] = since_boot
    ) -> None:
        super().__init__(outlet)
        self._config = config
        self._clock = clock
        self._public = Kind()
        self._private = Kind()
        self._kinds = {"public": self._public, "private": self._private}
        self._began = Mark(0, 0.0)
        self._from_the_start = False  # an earlier life, if there was one, left nothing behind

    def end(self, *, private: bool) -> int:
        """The position of the last event that was delivered, of those that a subscriber may see."""
        return max(self._public.end, self._private.end) if private else self._public.end

    def plan(self) -> list[str]:
        """What is kept, in words."""
        config = self._config
        age = f", for {config.max_age:g} seconds at most" if config.max_age else ""
        where = config.storage or "in memory"
        return [f"backlog: {config.size} public and as many private events{age}, {where}"]

    # A life

    async def _open(self, now: Mark) -> Mark:
        """Begin to remember."""
        self._began = now
        for kind in self._kinds.values():
            kind.ages = Ages([(self._clock(), now.timestamp)])
        return now

    async def run(self) -> None:
        """Let go of events that are too old, until cancelled."""
        if self._config.max_age:
            await self._prune_regularly()

    async def _prune_regularly(self) -> None:
        shortest, longest = _PRUNING_PAUSES
        pause = min(max((self._config.max_age or math.inf) / _PRUNINGS, shortest), longest)
        while True:
            await asyncio.sleep(pause)
            await self.prune()

    async def prune(self) -> None:
        """Let go of what is too old by now."""
        now = self._clock()
        for kind in self._kinds.values():
            self._look_at_clock(kind, now)
            before = kind.ages.stamped(now - self._config.max_age)
            while kind.recent and kind.recent.oldest.timestamp < before:
                kind.lost = kind.drop_oldest()

    def _look_at_clock(self, kind: Kind, now: float) -> bool:
        """Note what has been stamped by now. Whether stamps have not kept pace with the clock."""
        newest = kind.recent.newest_timestamp
        return bool(newest) and kind.ages.look(now, newest)

    # Writing

    def _take(
        self,
        events: Sequence[Event],
        key: IdempotencyKey | None,  # noqa: ARG002
        items: Sequence[QueueItem],  # noqa: ARG002
        forgotten: Sequence[bytes],  # noqa: ARG002
    ) -> asyncio.Future[Accepted]:
        """Keep events, and deliver them."""
        for event in events:
            self._keep(event)
        return delivered(events)

    def _keep(self, event: Event) -> None:
        kind = self._private if event.path.private else self._public
        kind.recent.add(event)
        self._bound(kind)
        kind.end = event.stamp.position
        self._outlet.deliver(event)

    def _bound(self, kind: Kind) -> None:
        while len(kind.recent) > self._config.size:
            kind.lost = kind.drop_oldest()

    # Reading

    def _seen(self, private: bool) -> tuple[Kind, ...]:
        return (self._public, self._private) if private else (self._public,)

    async def place(self, asked: ReplayRequest | None, now: Mark, *, private: bool) -> Placement:
        """Where a subscriber begins to read, and the verdict on the replay that it asked for, if any."""
        if asked is None:
            return Placement(now.position, None)
        if asked.cursor is not None:
            return place_cursor(position_of(asked.cursor), self._reach(private), now.position)
        since = asked.since or 0.0
        first = await self._first_since(since, private)
        # the verdict after the look at the events: what has left before it is among what is lost
        reach = self._reach(private)
        # not beyond now, also if all that was held by then has been pushed out meanwhile by what came later
        after = now.position if first is None else min(first - 1, now.position)
        return place(after, judge_since(since, reach), reach)

    def _reach(self, private: bool) -> Reach:
        lost = self._private.lost if private else NOTHING
        return Reach(self._began, self._public.lost, lost, self._from_the_start)

    async def _first_since(self, timestamp: float, private: bool) -> int | None:
        """The position of the first event at that time or later, None if there is none."""
        found = (kind.recent.first_since(timestamp) for kind in self._seen(private))
        return min((position for position in found if position is not None), default=None)

    async def read(self, after: int, *, private: bool) -> Page:
        """What is held after a position, in order, up to the size of a page. Does not suspend."""
        kinds = self._seen(private)
        found = [kind.recent.after(after, PAGE_EVENTS, PAGE_BYTES) for kind in kinds]
        # a kind of which there is more may have an event right behind its page
        end = min(
            (lines[-1].position for lines, more in found if more),
            default=max(after, self.end(private=private)),
        )
        lines = sorted(line for lines, _ in found for line in lines if line.position <= end)
        return Page(end, lines, Gone(*(kind.lost.position for kind in kinds)))
