"""The backlog, in memory: the newest events, for subscribers who were away or have fallen behind.

Public and private events are bounded apart, by number, bytes and age, and each kind's memory of what has left
is its own. So what a subscriber to public events gets, is told and no longer gets does not depend on private
ones.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain

from core.events.cursor import MAX_POSITION, Mark, position_of
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
from core.events.selection import Selection
from core.events.store import Accepted, Outlet, Page, delivered
from core.events.turns import Slice
from plugins import Plugin
from plugins.backlog.ages import Ages, since_boot
from plugins.backlog.departed import Departed, keys_of
from plugins.backlog.pages import LookedBack, newest, page_of
from plugins.backlog.recent import Recent
from plugins.backlog.retention import Retention
from plugins.backlog.settings import IN_MEMORY_AT_MOST, BacklogConfig

_PRUNINGS = 20  # by age, in max_age
_PRUNING_PAUSES = (0.25, 60.0)  # seconds, the shortest and the longest


class Kind:
    """What is held of the public events, or of the private ones."""

    def __init__(self, rules: int) -> None:
        self.recents = [Recent() for _ in range(rules)]  # by the rule by which their events are kept
        self.held = 0  # events
        self.held_bytes = 0
        self.ages = Ages([(0.0, 0.0)])
        self.end = 0  # position of the last event that was delivered
        self.departed = Departed()
        # positions, where there is a file: what it holds from later on is in `recents`, too; what has left it
        self.in_memory_after = self.pushed_out = 0

    @property
    def newest_timestamp(self) -> float:
        """That of the last event that was added, whether it is still held or not; 0 if none was."""
        return max(recent.newest_timestamp for recent in self.recents)

    def add(self, event: Event, rule: int) -> None:
        """Hold another event, kept by a rule."""
        self.held += 1
        self.held_bytes += self.recents[rule].add(event)

    @property
    def oldest(self) -> Recent | None:
        """Which has the oldest event; None if there is no event."""
        if len(self.recents) == 1:
            return self.recents[0] or None
        return min(
            (recent for recent in self.recents if recent), key=lambda recent: recent.oldest, default=None
        )

    def drop(self, recent: Recent) -> tuple[Mark, str]:
        """Take the oldest event out of one of the `recents`. Which it was, and its path."""
        mark, path = recent.oldest, recent.oldest_path
        self.held -= 1
        self.held_bytes -= recent.drop_oldest()
        return mark, path


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
        self._retention = Retention(config)
        self._public = Kind(len(self._retention.rules))
        self._private = Kind(len(self._retention.rules))
        self._kinds = {"public": self._public, "private": self._private}
        self._began = Mark(0, 0.0)
        self._from_the_start = False  # an earlier life, if there was one, left nothing behind

    def end(self, *, private: bool) -> int:
        """The position of the last event that was delivered, of those that a subscriber may see."""
        return max(self._public.end, self._private.end) if private else self._public.end

    def plan(self) -> list[str]:
        """What is kept, in words."""
        config = self._config
        where = config.storage or "in memory"
        most = config.max_bytes or (None if config.storage else IN_MEMORY_AT_MOST)
        bounds = f", {most / 1024**2:g} MiB of each at most" if most else ""
        age = f", for {config.max_age:g} seconds at most" if config.max_age else ""
        lines = [f"backlog: {config.size} public and as many private events{bounds}{age}, {where}"]
        for topics, kept in config.keep.items():
            lines.append(
                f"backlog of {topics}: for {kept.max_age:g} seconds at most"
                if kept.max_age
                else f"backlog of {topics}: until others push it out"
            )
        return lines

    # A life

    async def _open(self, now: Mark) -> Mark:
        """Begin to remember."""
        self._began = now
        for kind in self._kinds.values():
            kind.ages = Ages([(self._clock(), now.timestamp)])
        return now

    async def run(self) -> None:
        """Let go of events that are too old, until cancelled."""
        if self._retention.ends:
            await self._prune_regularly()

    async def _prune_regularly(self) -> None:
        shortest, longest = _PRUNING_PAUSES
        pause = min(max((self._retention.shortest or longest * _PRUNINGS) / _PRUNINGS, shortest), longest)
        while True:
            await asyncio.sleep(pause)
            await self.prune()

    async def prune(self) -> None:
        """Let go of what is too old by now."""
        now = self._clock()
        for kind in self._kinds.values():
            self._look_at_clock(kind, now)
            for mark, path in self._drop_old(kind, self._kept_since(kind, now)):
                kind.departed.leave(keys_of(path), mark)

    def _kept_since(self, kind: Kind, now: float) -> list[float]:
        """By rule of retention, the timestamp that an event has at least if it is kept."""
        return [
            kind.ages.stamped(now - rule.max_age) if rule.max_age else -math.inf
            for rule in self._retention.rules
        ]

    def _drop_old(
        self, kind: Kind, kept_since: Sequence[float], upto: float = math.inf
    ) -> Iterator[tuple[Mark, str]]:
        """Take out of memory what is older, up to a position. What it was."""
        for recent, timestamp in zip(kind.recents, kept_since, strict=True):
            while recent and recent.oldest.timestamp < timestamp and recent.oldest.position <= upto:
                yield kind.drop(recent)

    def _look_at_clock(self, kind: Kind, now: float) -> bool:
        """Note what has been stamped by now. Whether stamps have not kept pace with the clock."""
        newest = kind.newest_timestamp
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
        path = event.path
        kind = self._private if path.private else self._public
        kind.add(event, self._retention.rule_of[path.text] if self._config.keep else 0)
        self._bound(kind)
        kind.end = event.stamp.position
        self._outlet.deliver(event)

    def _bound(self, kind: Kind) -> None:
        most = self._config.max_bytes or IN_MEMORY_AT_MOST
        while (kind.held > self._config.size or kind.held_bytes > most) and (recent := kind.oldest):
            mark, path = kind.drop(recent)
            kind.departed.leave(keys_of(path), mark)

    # Reading

    def _seen(self, private: bool) -> tuple[Kind, ...]:
        return (self._public, self._private) if private else (self._public,)

    async def place(self, asked: ReplayRequest | None, now: Mark, selection: Selection) -> Placement:
        """Where a subscriber begins to read and where it ends, and the verdict on its replay, if any."""
        if asked is None:
            return Placement(now.position, None)
        end = now.position
        if asked.until is not None:
            until = await self._position_until(asked.until, selection)
            if until is None:
                return place_cursor(None, self._reach(selection), end)._replace(end=end)
            end = min(end, until)
        placement = await self._place_begin(asked, end, now, selection)
        return placement._replace(end=end, limit=asked.limit) if asked.is_history else placement

    async def _position_until(self, until: float | str, selection: Selection) -> int | None:
        """The position up to which events lie before a time, or not behind a cursor.

        None if it is no cursor that is known.
        """
        if isinstance(until, str):
            return await self._position_of(until)
        first = await self._first_since(until, selection.reads_private)
        return MAX_POSITION if first is None else first - 1

    async def _position_of(self, cursor: str) -> int | None:
        """The position that a cursor stands for, None if it is no cursor that is known."""
        return position_of(cursor)

    async def _place_begin(
        self, asked: ReplayRequest, end: int, now: Mark, selection: Selection
    ) -> Placement:
        """Where a replay begins that goes up to a position."""
        if asked.last is not None:
            return await self._place_last(asked.last, end, now, selection)
        if asked.cursor is not None:
            return await self._place_cursor(asked.cursor, now.position, selection)
        return await self._place_since(asked.since or 0.0, now, selection)

    async def _place_cursor(self, cursor: str, now: int, selection: Selection) -> Placement:
        return place_cursor(position_of(cursor), self._reach(selection), now)

    async def _place_since(self, since: float, now: Mark, selection: Selection) -> Placement:
        first = await self._first_since(since, selection.reads_private)
        # the verdict after the look at the events: what has left before it is among what is lost
        reach = self._reach(selection)
        # not beyond now, also if all that was held by then has been pushed out meanwhile by what came later
        after = now.position if first is None else min(first - 1, now.position)
        return place(after, judge_since(since, reach), reach)

    async def _place_last(self, count: int, end: int, now: Mark, selection: Selection) -> Placement:
        """Where the newest events up to a position begin: complete if there are so many, with no gap."""
        positions = await self._newest(count, end, selection)
        if len(positions) < count:
            return await self._place_since(-1.0, now, selection)
        after = positions[0] - 1
        reach = self._reach(selection)
        held = after >= max(reach.began.position, reach.lost.position)
        return place(after, "complete" if held else "partial", reach)

    async def _newest(self, count: int, upto: int, selection: Selection) -> list[int]:
        """The positions of the newest events of a selection, up to a position: see pages.newest()."""
        piece = Slice()

        async def look_back(recent: Recent, upto: int) -> LookedBack:
            if piece.over:
                await piece.next()
            return recent.before(upto, selection.wanted)

        recents = chain.from_iterable(kind.recents for kind in self._seen(selection.reads_private))
        return await newest(count, upto, [partial(look_back, recent) for recent in recents])

    def _reach(self, selection: Selection) -> Reach:
        """How far back a selection goes."""
        lost = self._private.departed.of(selection.private) if selection.reads_private else NOTHING
        return Reach(self._began, self._public.departed.of(selection.public), lost, self._from_the_start)

    def _gone(self, selection: Selection) -> Gone:
        reach = self._reach(selection)
        return Gone(reach.public.position, reach.private.position)

    async def _first_since(self, timestamp: float, private: bool) -> int | None:
        """The position of the first event at that time or later, None if there is none."""
        recents = chain.from_iterable(kind.recents for kind in self._seen(private))
        found = (recent.first_since(timestamp) for recent in recents)
        return min((position for position in found if position is not None), default=None)

    async def read(self, after: int, upto: int, selection: Selection, most: int | None = None) -> Page:
        """What is held after a position of a selection, about a page at most. Does not suspend."""
        recents = chain.from_iterable(kind.recents for kind in self._seen(selection.reads_private))
        found = [recent.after(after, upto, selection.wanted) for recent in recents]
        return page_of(found, selection.frames, self._gone(selection), most)
