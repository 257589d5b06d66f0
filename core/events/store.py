"""What becomes of published events: a store takes them, and decides when they go out.

The server does not know whether events are kept in memory, in a file or not at all: it appends them, and the
store gives them their stamps, and delivers them in that order once they are as safe as it can make them. A
store that keeps them is also what subscribers read who were away, or have fallen behind.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from core.events.cursor import Mark, Stamp
from core.events.event import Draft, Event
from core.events.idempotency import IdempotencyKey, QueueItem
from core.events.replay import Gone, Placement, ReplayRequest
from core.events.selection import Selection

PORTION = 200  # events that are stamped or delivered in one turn of the event loop
PAGE_EVENTS = 1000
PAGE_BYTES = 128 * 1024  # about, a page has at least one event


class Outlet(Protocol):
    """Where events go out: the fan-out."""

    def deliver(self, event: Event) -> None:
        """Put an event on its way to its subscribers."""

    @property
    def has_capacity(self) -> bool:
        """Whether events may be delivered now: who brings any waits until they may (backpressure)."""

    async def wait_for_capacity(self) -> None:
        """Wait until has_capacity. Returns at once where it has."""


class Accepted(NamedTuple):
    """What a publisher is told, and told again for the same Idempotency-Key."""

    last: Stamp  # that of the last event
    events: int  # how many


class RememberedReply(NamedTuple):
    """An answer that outlived a restart."""

    key: IdempotencyKey
    accepted: Accepted
    age: float  # seconds


class Page(NamedTuple):
    """A part of the backlog, as one reader gets it: what lies between two positions, and is wanted."""

    end: int  # position up to which it goes; there may be no event at it
    data: bytes | memoryview = b""  # frames
    events: int = 0  # in it
    first: int = 0  # position of the first of them, if there is any
    gone: Gone = Gone()  # what had left, of all that the reader might want, at the latest when it was read


@runtime_checkable
class Store(Protocol):
    """What the server and its subscribers ask of a store."""

    can_be_read: bool  # who was away, or has fallen behind, can go on from it
    is_full: bool  # so much waits to be stored that nothing may be appended
    stamps_at_once: bool  # an event that is appended now gets its stamp now, and not behind a long batch

    @property
    def batches(self) -> Collection[asyncio.Future[Accepted]]:
        """Long batches that were appended, and what came behind one, while that is not delivered."""

    @property
    def latest(self) -> float:
        """The last pubsub_timestamp, in Unix seconds, which may be ahead of the clock."""

    @property
    def ahead(self) -> float:
        """Seconds that stamps are ahead of the clock: since it was set back, or an earlier life."""

    async def now(self, *, private: bool) -> Stamp:
        """A place in the order of events, and not in the middle of a batch.

        private: for somebody who may see private events; others are not to notice that there is such a batch.
        """

    def end(self, *, private: bool) -> int:
        """The position of the last event that was delivered, of those that a subscriber may see.

        Here as everywhere, private: whether it may see private events. What is published privately must not
        decide which way others' subscriptions take: it would show in the time that they take.
        """

    async def open(self) -> None:
        """Open what it needs, and go on after the stamps of an earlier life. Raises StartError."""

    def remembered(self) -> Sequence[RememberedReply]:
        """The answers of an earlier life, the oldest first."""

    async def flush(self) -> None:
        """Wait until everything that has its stamp is delivered or refused."""

    async def remembered_items(self, queue: str) -> Sequence[tuple[bytes, float]]:
        """The ids of a queue's items that earlier lives took, oldest first, and the seconds they have left.

        Raises StoreError.
        """

    def append(
        self,
        drafts: Sequence[Draft],
        key: IdempotencyKey | None = None,
        items: Sequence[QueueItem] = (),
        forgotten: Sequence[bytes] = (),
    ) -> asyncio.Future[Accepted]:
        """Stamp events, at least one, in order, and take them. The future is done when they are delivered.

        Events that are appended together follow one another: no other event comes in between.
        Its exception is Refused(503) if they could not be stored; nothing was delivered then.
        key, items: remember the answer, or where the events came from, together with the events.
        forgotten: names of answers (IdempotencyKey.name) that need not be remembered any longer.
        """

    async def settle(self, position: int, *, private: bool) -> None:
        """Wait until all that a subscriber may see of what was appended has been delivered, or refused.

        position: about to be handed out; no later life will give an event one below it.
        """

    async def place(self, asked: ReplayRequest | None, now: Mark, selection: Selection) -> Placement:
        """Where a subscriber begins to read and where it ends, and what it is told.

        now: where live events begin. Raises Refused(503) if that cannot be found out.
        """

    async def read(self, after: int, upto: int, selection: Selection, most: int | None = None) -> Page:
        """What comes next of a selection, up to a position. Does not suspend near the end.

        most: events that there may be on the page, one at least.
        It may be nothing, with an end before upto: then so much has been looked through.
        Raises StoreError.
        """


class StoreError(Exception):
    """The store cannot be read or written. One line."""


def delivered(events: Sequence[Event]) -> asyncio.Future[Accepted]:
    """The future of events that have been delivered."""
    future: asyncio.Future[Accepted] = asyncio.get_running_loop().create_future()
    future.set_result(Accepted(events[-1].stamp, len(events)))
    return future
