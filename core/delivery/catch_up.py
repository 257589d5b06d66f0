"""A subscriber's way from its place in the backlog to the live events, and back whenever it falls behind.

The backlog is read page by page, each once the reader has taken the one before, so a slow reader costs no
memory and nobody waits for it. Who stands at the same place and asks for the same gets the same bytes, which
are made once. The reader has caught up when its place is the last event delivered: in that same turn of the
event loop it joins the fan-out, so that each event comes once.

Who asks for history reads no further than that, never joins, and its stream ends.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

from core.auth.rights import Rights
from core.counters import counters
from core.delivery.channel import Key, key_of, selection_of
from core.delivery.fanout import Fanout
from core.delivery.subscriber import Subscriber
from core.events.replay import Gone, Placement
from core.events.selection import Selection
from core.events.store import Page, Store, StoreError
from core.expiring import Expiring

_SHARED_SECONDS = 1.0  # that a page is kept for others
_SHARED_PAGES = 16

# by the position after which they begin, and whom they are for; those that are being read, too
SharedPages = Expiring[tuple[int, Key], asyncio.Task[Page]]


@dataclass(frozen=True, slots=True)
class CatchUpContext:
    """What all subscribers of a server who read the backlog have in common.

    ping_interval: seconds. clock: Unix seconds, for pings.
    pacing: held to send a page: one in a turn of the loop, however many read the backlog.
    """

    fanout: Fanout
    store: Store
    ping_interval: float
    clock: Callable[[], float] = time.time
    pacing: asyncio.Lock = field(default_factory=asyncio.Lock)
    pages: SharedPages = field(default_factory=lambda: Expiring(_SHARED_SECONDS, _SHARED_PAGES))


class Follower:
    """Serves one subscriber: what it has not had of the backlog, then live events, for as long as it stays.

    head: the position that its stream's head tells; what lies before it is replay, what comes after is live.
    """

    __slots__ = (
        "_begun",
        "_context",
        "_head",
        "_history_end",
        "_left",
        "_missing",
        "_replay_end",
        "_selected_by",
        "_selection",
        "_subscriber",
    )

    def __init__(self, subscriber: Subscriber, head: int, context: CatchUpContext) -> None:
        self._subscriber = subscriber
        self._context = context
        self._head = head
        self._begun = False  # it has got an event of the backlog
        self._replay_end: float = head  # infinite once the replay is over, which the first ping says
        self._missing = Gone()  # see Placement
        self._history_end: int | None = None  # position up to which it reads; None: it goes live
        self._left: int | None = None  # events of its history that may come yet; None: any number
        self._selection: Selection | None = None  # while it reads the backlog
        self._selected_by: Rights | None = None  # the rights that this was made by

    def begin(self, placement: Placement) -> Coroutine[None, None, NoReturn]:
        """What serves the subscriber, to be run as a task, which is cancelled when the connection is gone.

        With nothing to read it has joined the fan-out already, if it goes live. It must not join later:
        without a backlog it could not read what is published in between.
        """
        if placement.verdict:
            counters.replays[placement.verdict] += 1
        if placement.end is not None or placement.after < self._end:
            return self.follow(placement)
        self._join(placement.after)
        return self._stay()

    @property
    def _reads_private(self) -> bool:
        return bool(self._subscriber.rights.readable)

    @property
    def _end(self) -> int:
        """The position of the last event delivered of those for this subscriber, who must not notice more."""
        return self._context.store.end(private=self._reads_private)

    @property
    def _goal(self) -> int:
        """The position up to which it has to read."""
        return self._end if self._history_end is None else min(self._end, self._history_end)

    async def follow(self, placement: Placement) -> NoReturn:
        """Serve the subscriber from a place in the backlog on, until cancelled."""
        self._missing = placement.missing
        self._history_end, self._left = placement.end, placement.limit
        position = await self._catch_up(placement.after)
        if self._history_end is None:
            self._join(position)
            await self._stay()
        self._subscriber.finish("done", "it has had all that it asked for")
        await self._subscriber.flush()
        await self._subscriber.until_gone()

    async def _stay(self) -> NoReturn:
        while True:
            position = await self._subscriber.serve()
            self._join(await self._catch_up(position))

    def _join(self, position: int) -> None:
        """Send the live events from now on, which must be those after a position: see Fanout.join().

        A ping comes before: the first of the stream, or one for those that were left out meanwhile.
        """
        self._replay_end = math.inf
        self._subscriber.send(self._ping())
        self._selection = self._selected_by = None
        self._context.fanout.join(self._subscriber, position)

    async def _catch_up(self, position: int) -> int:
        """Send the events after a position. The position up to which the subscriber has had everything.

        Nothing is awaited after the last look at where the end is, so it can join the fan-out there.
        """
        loop = asyncio.get_running_loop()
        ping_due = loop.time() + self._context.ping_interval
        while position < self._goal and self._left != 0:
            if self._replay_end <= position:  # what comes now was published since its stream began
                self._subscriber.send(self._ping())
                self._replay_end = math.inf
            position = await self._send_page(position)
            if self._replay_end == math.inf and loop.time() >= ping_due:  # there may be nothing else to send
                self._subscriber.send(self._ping())
                ping_due = loop.time() + self._context.ping_interval
        return position

    async def _send_page(self, position: int) -> int:
        """Send what comes next, at the reader's pace. The position after which to go on."""
        while True:
            selection = self._select()
            page = await self._read(position, selection)
            async with self._context.pacing:
                if selection is self._select():  # its rights are those that it was read with
                    await self._send(position, page, selection)
                    break
        await self._subscriber.flush()
        return page.end

    async def _send(self, position: int, page: Page, selection: Selection) -> None:
        if self._misses(position, page, selection):
            await self._give_up("what it needs next has left the backlog")
        if page.events:
            self._subscriber.send(page.data)
            counters.deliveries += page.events
            counters.deliveries_from_backlog += page.events
            counters.delivered_bytes += len(page.data)
            if self._left is not None:
                self._left -= page.events
        await asyncio.sleep(0)  # live events have their turn

    def _select(self) -> Selection:
        """What it gets, by the rights that it has now."""
        subscriber = self._subscriber
        if self._selection is None or self._selected_by is not subscriber.rights:
            self._selection = selection_of(subscriber.subscription, subscriber.rights, subscriber.wire)
            self._selected_by = subscriber.rights
        return self._selection

    async def _read(self, position: int, selection: Selection) -> Page:
        """What comes next, up to the end of the replay if that lies before."""
        try:
            if self._history_end is not None:  # nobody else is likely to ask for the same
                return await self._context.store.read(position, self._goal, selection, self._left)
            page = await self._shared(position, selection)
            if page.end > self._replay_end:
                page = await self._context.store.read(position, int(self._replay_end), selection)
        except StoreError as error:
            await self._give_up(str(error))
        return page

    async def _shared(self, position: int, selection: Selection) -> Page:
        """What comes next, read once for all who stand there and get the same."""
        pages, key = self._context.pages, (position, key_of(self._subscriber))
        reading = pages.get(key)
        if reading is None:
            read = self._context.store.read(position, self._end, selection)
            reading = asyncio.create_task(read, name="read a page of the backlog")
            reading.add_done_callback(partial(_forget_failed, pages, key))
            pages.put(key, reading)
        return await asyncio.shield(reading)

    def _ping(self) -> bytes:
        return self._subscriber.wire.ping(self._context.clock())

    def _misses(self, position: int, page: Page, selection: Selection) -> bool:
        """Whether anything has left after a position that the subscriber does not know to be missing.

        Of its replay more may leave, as long as it has not come to that kind of events; of what was published
        since, only what lies before the first event that it gets; nothing of that is history.
        """
        history = self._history_end is not None
        may_leave: float = self._head
        if not self._begun:
            may_leave = max(self._head, page.first) if page.events else math.inf
        for gone, missing in zip(page.gone, self._missing, strict=True):
            if position < gone and (missing <= position or (gone > may_leave and not history)):
                return True
        self._begun = self._begun or bool(page.events)
        # what is behind that is in the page, if it has come to it: the page may be older than the placement
        known, self._missing = self._missing, page.gone
        if not self._begun:  # more may leave, if it knows that something has
            bounds = zip(page.gone, known, strict=True)
            self._missing = Gone(*(max(gone, page.end + 1) if at > position else gone for gone, at in bounds))
        if not selection.reads_private:  # of what it cannot read it misses everything, also if it can later
            self._missing = Gone(self._missing.public, page.end)
        return False

    async def _give_up(self, reason: str) -> NoReturn:
        self._subscriber.drop("backlog", reason)
        await self._subscriber.until_gone()


def _forget_failed(pages: SharedPages, key: tuple[int, Key], reading: asyncio.Task[Page]) -> None:
    if reading.cancelled() or reading.exception():
        pages.forget(key)
