"""The one door for events, whoever brings them: they are stamped, in order, and handed to the store.

A long batch is stamped and stored over several turns of the event loop, so that others have theirs, but no
event comes in between. So that nobody waits for many batches, those who bring them take turns, and what is
under way at a time is bounded. What is asked again with the same Idempotency-Key gets the first answer.
"""

import asyncio
import functools
import logging
import math
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import NamedTuple, Protocol, runtime_checkable

from core.events.cursor import Mark, Stamp, Stamps
from core.events.event import MAX_BATCH, Draft, Event
from core.events.idempotency import Answers, Ask, Item
from core.events.store import PORTION, Accepted, Outlet, Store
from core.events.topics import PublishPath
from core.events.turns import Slice, Turns
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
        self._stamps = Stamps()
        self._clock = Trouble(
            log,
            "timestamps and cursors run %s ahead of the clock, which was set back or wrong before: they go "
            "on from where they were (docs/backlog.md says what can be done)",
            "timestamps and cursors are those of the clock again",
        )
        self._stamping = asyncio.Lock()  # held while the stamps of a long batch are given
        self._stamping_private = False  # whether all of that batch is private
        self._answers: Answers[asyncio.Future[Accepted]] = Answers(idempotency_window)
        self._gone: list[bytes] = []  # answers that had to make room: their names, for the store
        self._batches: set[asyncio.Task[Accepted]] = set()

    async def open(self) -> None:
        """Start the store, and remember what it remembers. Raises StartError."""
        now = self._stamps.next()
        self._stamps.go_on_after(await self._store.open(Mark(now.position, now.timestamp)))
        for ask, accepted, age in self._store.remembered():
            answer: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
            answer.set_result(accepted)
            self._gone += self._answers.remember(ask, answer, age)
        self.watch_clock()

    def watch_clock(self) -> None:
        """Warn if stamps are far ahead of the clock, and say when that is over."""
        ahead = self._stamps.ahead
        if ahead > _FAR_AHEAD:
            self._clock.began(f"{ahead:.0f} seconds ({ahead / 86_400:.1f} days)", "ahead")
        else:
            self._clock.ended()

    async def now(self, *, private: bool) -> Stamp:
        """A place in the order of events, and not in the middle of a batch.

        private: for somebody who may see private events; others are not to notice that there is such a batch.
        """
        if self._stamping_private and not private:
            return self._stamps.next()
        async with self._stamping:
            return self._stamps.next()

    @property
    def latest(self) -> float:
        """The last pubsub_timestamp, which may be ahead of the clock."""
        return self._stamps.latest

    @property
    def at_once(self) -> bool:
        """Whether an event can be handed to the store in the moment in which it is brought."""
        return self._outlet.has_capacity and not self._stamping.locked() and not self._store.is_full

    def take_at_once(self, path: PublishPath, opening: str) -> asyncio.Future[Accepted]:
        """Publish one event. Only while at_once. The future may raise Refused."""
        return self._store.append((Event(path, opening, self._stamps.next()),))

    def turn(self, publisher: str, events: int) -> AbstractAsyncContextManager[None]:
        """The turn of a publisher, from before events are read out of a body until they are taken."""
        return self._turns.turn(publisher, events) if events > _FEW else _NO_TURN

    async def ready(self, events: int) -> None:
        """Wait until so many events may be taken, by whoever has a turn if they are more than a few."""
        while events > _FEW and self._under_way and sum(self._under_way.values()) + events > MAX_BATCH:
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        await self.wait_for_capacity()

    def take(self, path: PublishPath, openings: Sequence[str], ask: Ask | None) -> Taken:
        """Publish events, at least one, unless it was done before. Raises Refused (422, 503).

        Nothing is awaited here, so that the same key cannot publish twice meanwhile.
        """
        if ask and (answer := self._answers.find(ask)):
            return Taken(answer, replayed=True)
        if self._store.is_full:
            raise too_much_waits()
        answer = self._publish([Draft(path, opening) for opening in openings], ask)
        if len(openings) > _FEW and not answer.done():
            self._under_way[answer] = len(openings)
            answer.add_done_callback(self._under_way.pop)
        if ask:
            # not forgotten before it is there
            self._gone += self._answers.remember(ask, answer, age=-math.inf)
        if answer.done():
            self._answered(ask, answer)
        else:
            answer.add_done_callback(functools.partial(self._answered, ask))
        return Taken(answer, replayed=False)

    def take_items(self, drafts: Sequence[Draft], items: Sequence[Item]) -> asyncio.Future[Accepted]:
        """Publish events of a queue, at least one, all or none, and remember the items they came from.

        Whether they were published before is asked before. The future may raise Refused(503).
        """
        return self._publish(drafts, items=items)

    async def remembered_items(self, queue: str) -> Sequence[tuple[bytes, float]]:
        """The items of a queue that earlier lives have taken: see Store. Raises StoreError."""
        return await self._store.remembered_items(queue)

    async def drain(self, patience: float) -> None:
        """Wait for batches whose publishers have left, up to so many seconds."""
        if self._batches:
            await asyncio.wait(self._batches, timeout=patience)

    def _answered(self, ask: Ask | None, answer: asyncio.Future[Accepted]) -> None:
        # the publisher may have hung up, so the exception counts as seen here
        refused = answer.cancelled() or answer.exception() is not None
        if ask and refused:
            self._answers.forget(ask, answer)
        elif ask:
            self._gone += self._answers.remember(ask, answer)  # the window begins with the answer

    def _publish(
        self, drafts: Sequence[Draft], ask: Ask | None = None, items: Sequence[Item] = ()
    ) -> asyncio.Future[Accepted]:
        """Publish: at once, or a long batch in portions."""
        if len(drafts) > PORTION or self._stamping.locked():
            batch = asyncio.create_task(self._publish_batch(drafts, ask, items), name="publish a batch")
            self._batches.add(batch)
            batch.add_done_callback(self._batches.discard)
            return batch
        return self._append(self._stamped(drafts), ask, items)

    def _append(
        self, events: Sequence[Event], ask: Ask | None, items: Sequence[Item]
    ) -> asyncio.Future[Accepted]:
        gone, self._gone = self._gone, []
        return self._store.append(events, ask, items, gone)

    def _stamped(self, drafts: Sequence[Draft]) -> list[Event]:
        return [Event(path, opening, self._stamps.next()) for path, opening in drafts]

    async def _publish_batch(
        self, drafts: Sequence[Draft], ask: Ask | None, items: Sequence[Item]
    ) -> Accepted:
        """Publish many events. Other requests have their turn meanwhile, but no event comes in between."""
        async with self._stamping:
            self._stamping_private = all(draft.path.private for draft in drafts)
            events: list[Event] = []
            piece = Slice()
            for start in range(0, len(drafts), PORTION):
                if piece.over:
                    await piece.next()
                await self.wait_for_capacity()
                portion = self._stamped(drafts[start : start + PORTION])
                if self._store.durable:
                    events += portion
                else:
                    await self._store.append(portion)
            self._stamping_private = False
            if not self._store.durable:
                return Accepted(portion[-1].stamp, len(drafts))
            stored = self._append(events, ask, items)
        return await stored  # beside others, who share the write
