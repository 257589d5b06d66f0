"""The one door for events, whoever brings them: they are handed to the store, which stamps them.

So that nobody waits for many batches, those who bring them take turns, and what is under way at a time is
bounded. What is asked again with the same Idempotency-Key gets the first answer.
"""

import asyncio
import functools
import logging
import math
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import NamedTuple, Protocol, runtime_checkable

from core.counters import counters
from core.events.event import MAX_BATCH, Draft
from core.events.idempotency import IdempotencyKey, QueueItem, ReplyCache
from core.events.store import Accepted, Outlet, Store
from core.events.topics import PublishPath
from core.events.turns import Turns
from core.events.waiting import MOST_WAITING, Waiting, too_much_waits
from core.trouble import Trouble

log = logging.getLogger("pypubsub")

_FAR_AHEAD = 60.0  # seconds that stamps may be ahead of the clock without a warning
_FEW = 20  # events that are brought without waiting for a turn: they take well below a millisecond
_NO_TURN = nullcontext()


@runtime_checkable
class Source(Protocol):
    """A plugin that brings events, by Intake.take_items(). A stop ends its run() before the streams."""

    @property
    def files(self) -> int:
        """Open files that its connections may need."""


class Taken(NamedTuple):
    """What becomes of events that were brought."""

    answer: asyncio.Future[Accepted]  # to be shielded: others may wait for it. Raises Refused
    replayed: bool  # they had been brought before, under the same Idempotency-Key


class Intake:
    """Takes events for a store, which delivers to the outlet. idempotency_window: seconds."""

    def __init__(self, store: Store, outlet: Outlet, idempotency_window: float) -> None:
        self._store = store
        self.waiting = Waiting(MOST_WAITING)  # bodies that have been read, until they are taken
        self.wait_for_capacity = outlet.wait_for_capacity  # to be awaited before anything is brought
        self._outlet = outlet
        self._turns = Turns()
        self._under_way: dict[asyncio.Future[Accepted], int] = {}  # batches of those who had a turn: events
        self._clock = Trouble(
            log,
            "timestamps and cursors run %s ahead of the clock, which was set back or wrong before: they go "
            "on from where they were (docs/backlog.md says what can be done)",
            "timestamps and cursors are those of the clock again",
        )
        self._replies: ReplyCache[asyncio.Future[Accepted]] = ReplyCache(idempotency_window)
        self._forgotten: list[bytes] = []  # answers that had to make room: their names, for the store

    async def open(self) -> None:
        """Open the store, and remember what it remembers. Raises StartError."""
        await self._store.open()
        for key, accepted, age in self._store.remembered():
            answer: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
            answer.set_result(accepted)
            self._forgotten += self._replies.remember(key, answer, age)
        self.watch_clock()

    def watch_clock(self) -> None:
        """Warn if stamps are far ahead of the clock, and say when that is over."""
        ahead = self._store.ahead
        if ahead > _FAR_AHEAD:
            self._clock.began(f"{ahead:.0f} seconds ({ahead / 86_400:.1f} days)", "ahead")
        else:
            self._clock.ended()

    @property
    def at_once(self) -> bool:
        """Whether an event can be handed to the store in the moment in which it is brought."""
        return self._outlet.has_capacity and self._store.stamps_at_once and not self._store.is_full

    def take_at_once(self, path: PublishPath, opening: str) -> asyncio.Future[Accepted]:
        """Publish one event. Only while at_once. The future may raise Refused."""
        # Draft(path, opening) would take twice as long: it is not C that makes a NamedTuple
        answer = self._store.append((tuple.__new__(Draft, (path, opening)),))
        if answer.done():
            counters.events["accepted"] += 1
        else:
            answer.add_done_callback(_count)
        return answer

    def turn(self, publisher: str, events: int) -> AbstractAsyncContextManager[None]:
        """The turn of a publisher, from before events are read out of a body until they are taken."""
        return self._turns.turn(publisher, events) if events > _FEW else _NO_TURN

    async def ready(self, events: int) -> None:
        """Wait until so many events may be taken, by whoever has a turn if they are more than a few."""
        while events > _FEW and self._under_way and sum(self._under_way.values()) + events > MAX_BATCH:
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        await self.wait_for_capacity()

    def take(self, path: PublishPath, openings: Sequence[str], key: IdempotencyKey | None) -> Taken:
        """Publish events, at least one, unless it was done before. Raises Refused (422, 503).

        Nothing is awaited here, so that the same key cannot publish twice meanwhile.
        """
        if key and (answer := self._replies.find(key)):
            counters.events["repeated"] += len(openings)
            return Taken(answer, replayed=True)
        if self._store.is_full:
            raise too_much_waits()
        answer = self._append([Draft(path, opening) for opening in openings], key)
        if len(openings) > _FEW and not answer.done():
            self._under_way[answer] = len(openings)
            answer.add_done_callback(self._under_way.pop)
        if key:
            # not forgotten before it is there
            self._forgotten += self._replies.remember(key, answer, age=-math.inf)
        self._when_answered(key, answer)
        return Taken(answer, replayed=False)

    def take_items(self, drafts: Sequence[Draft], items: Sequence[QueueItem]) -> asyncio.Future[Accepted]:
        """Publish events of a queue, at least one, all or none, and remember the items they came from.

        Whether they were published before is asked before. The future may raise Refused(503).
        """
        answer = self._append(drafts, items=items)
        self._when_answered(None, answer)
        return answer

    async def remembered_items(self, queue: str) -> Sequence[tuple[bytes, float]]:
        """The items of a queue that earlier lives have taken: see Store. Raises StoreError."""
        return await self._store.remembered_items(queue)

    async def drain(self, patience: float) -> None:
        """Wait for batches whose publishers have left, up to so many seconds."""
        if self._store.batches:
            await asyncio.wait(self._store.batches, timeout=patience)

    def _when_answered(self, key: IdempotencyKey | None, answer: asyncio.Future[Accepted]) -> None:
        if answer.done():
            self._answered(key, answer)
        else:
            answer.add_done_callback(functools.partial(self._answered, key))

    def _answered(self, key: IdempotencyKey | None, answer: asyncio.Future[Accepted]) -> None:
        _count(answer)
        # the publisher may have hung up, so the exception counts as seen here
        refused = answer.cancelled() or answer.exception() is not None
        if key and refused:
            self._replies.forget(key, answer)
        elif key:
            self._forgotten += self._replies.remember(key, answer)  # the window begins with the answer

    def _append(
        self, drafts: Sequence[Draft], key: IdempotencyKey | None = None, items: Sequence[QueueItem] = ()
    ) -> asyncio.Future[Accepted]:
        forgotten, self._forgotten = self._forgotten, []
        return self._store.append(drafts, key, items, forgotten)


def _count(answer: asyncio.Future[Accepted]) -> None:
    """Count events that the store has taken, if it has."""
    if not answer.cancelled() and answer.exception() is None:
        counters.events["accepted"] += answer.result().events
