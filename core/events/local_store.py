"""The order of events where one server makes it alone: stamps are given here, in the order of append().

A long batch is stamped over several turns of the event loop, so that others have theirs, but no event comes
in between. A store that several servers share is no LocalStore: its stamps come from where all of them write.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from core.events.cursor import Mark, Stamp, Stamps
from core.events.event import Draft, Event
from core.events.idempotency import IdempotencyKey, QueueItem
from core.events.store import PORTION, Accepted, Outlet, RememberedReply
from core.events.turns import Slice


class LocalStore(ABC):
    """What stores of one server have in common: see core.events.store.Store.

    It makes their order, and has what a store that forgets all with the process need not have: such a store
    has nothing to open and to wait for.
    """

    can_be_read = False
    durable = False  # whether a long batch is stored whole or not at all, instead of a portion at a time
    is_full = False
    stamps_at_once = True  # no long batch is being stamped

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._stamps = Stamps()
        self._stamping = asyncio.Lock()  # held while the stamps of a long batch are given
        self._stamping_private = False  # whether all of that batch is private
        self.batches: set[asyncio.Task[Accepted]] = set()

    # A life

    async def open(self) -> None:
        """Open what it needs, and go on after the stamps of an earlier life. Raises StartError."""
        now = self._stamps.next()
        self._stamps.go_on_after(await self._open(Mark(now.position, now.timestamp)))

    async def _open(self, now: Mark) -> Mark:
        """Open what it needs. What stamps have to come after. Raises StartError.

        now: a moment before every event to come.
        """
        return now

    def remembered(self) -> Sequence[RememberedReply]:
        """The answers of an earlier life, which a store in memory has not got."""
        return ()

    async def remembered_items(self, queue: str) -> Sequence[tuple[bytes, float]]:  # noqa: ARG002
        """The items of a queue that earlier lives took, which a store in memory does not know."""
        return ()

    async def flush(self) -> None:  # noqa: B027 (not abstract: see the class)
        """Wait until everything taken is delivered or refused: a store in memory does that at once."""

    async def settle(self, position: int, *, private: bool) -> None:  # noqa: B027 (not abstract: see the class)
        """Wait until what was appended has been delivered: a store in memory does that at once."""

    # The order of events

    async def now(self, *, private: bool) -> Stamp:
        """A place in the order of events, and not in the middle of a batch that may be noticed."""
        if self._stamping_private and not private:
            return self._stamps.next()
        async with self._stamping:
            return self._stamps.next()

    @property
    def latest(self) -> float:
        """The last pubsub_timestamp, which may be ahead of the clock."""
        return self._stamps.latest

    @property
    def ahead(self) -> float:
        """Seconds that stamps are ahead of the clock."""
        return self._stamps.ahead

    def append(
        self,
        drafts: Sequence[Draft],
        key: IdempotencyKey | None = None,
        items: Sequence[QueueItem] = (),
        forgotten: Sequence[bytes] = (),
    ) -> asyncio.Future[Accepted]:
        """Stamp events, and take them: at once, or a long batch in portions."""
        if len(drafts) == 1 and self.stamps_at_once:
            ((path, opening),) = drafts  # most often; a list would take longer than the stamp
            return self._take((Event(path, opening, self._stamps.next()),), key, items, forgotten)
        if len(drafts) > PORTION or not self.stamps_at_once:
            batch = asyncio.create_task(
                self._append_batch(drafts, key, items, forgotten), name="publish a batch"
            )
            self.batches.add(batch)
            batch.add_done_callback(self.batches.discard)
            return batch
        return self._take(self._stamped(drafts), key, items, forgotten)

    def _stamped(self, drafts: Sequence[Draft]) -> list[Event]:
        return [Event(path, opening, self._stamps.next()) for path, opening in drafts]

    async def _append_batch(
        self,
        drafts: Sequence[Draft],
        key: IdempotencyKey | None,
        items: Sequence[QueueItem],
        forgotten: Sequence[bytes],
    ) -> Accepted:
        """Take many events. Other requests have their turn meanwhile, but no event comes in between."""
        async with self._stamping:
            self.stamps_at_once = False
            self._stamping_private = all(path.private for path, _ in drafts)
            try:
                events: list[Event] = []
                piece = Slice()
                for start in range(0, len(drafts), PORTION):
                    if piece.over:
                        await piece.next()
                    await self._outlet.wait_for_capacity()
                    portion = self._stamped(drafts[start : start + PORTION])
                    if self.durable:
                        events += portion
                    else:
                        await self._take(portion, None, (), ())
                if not self.durable:
                    return Accepted(portion[-1].stamp, len(drafts))
                taken = self._take(events, key, items, forgotten)
            finally:
                self.stamps_at_once, self._stamping_private = True, False
        return await taken  # beside others, who share the write

    @abstractmethod
    def _take(
        self,
        events: Sequence[Event],
        key: IdempotencyKey | None,
        items: Sequence[QueueItem],
        forgotten: Sequence[bytes],
    ) -> asyncio.Future[Accepted]:
        """What becomes of stamped events: as append() says of drafts."""
