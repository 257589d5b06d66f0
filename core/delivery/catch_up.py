"""A subscriber's way from its place in the backlog to the live events, and back whenever it falls behind.

The backlog is read page by page, each once the reader has taken the one before, so a slow reader costs no
memory and nobody waits for it. Who stands at the same place and asks for the same gets the same bytes, which
are made once. (What a store has to read for it may be shared by more, whatever they ask for: only the store
knows whether any of that has left since.) The reader has caught up when its place is the last event
delivered: in that same turn of the event loop it joins the fan-out, so that each event comes once.
"""

import asyncio
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple, NoReturn

from core.auth.rights import Rights
from core.counters import counters
from core.delivery.channel import Key, key_of
from core.delivery.fanout import Fanout
from core.delivery.subscriber import Subscriber
from core.events.replay import Gone, Placement
from core.events.store import Line, Page, Store, StoreError
from core.events.topics import publish_path
from core.expiring import Expiring

_MOST_PATHS = 1000  # of which it is remembered whether the subscriber wants them
_SHARED_SECONDS = 1.0  # that a page is kept for others
_SHARED_PAGES = 16
_POSITION = attrgetter("position")


class CachedPage(NamedTuple):
    """A page of the backlog as it is sent: to all who stand at its beginning and have the same key."""

    first: int  # position of the first event that is held of the page, its end if there is none
    end: int  # position up to which it goes
    data: bytes
    events: int  # in it
    event_bytes: int
    gone: Gone  # what had left the backlog, at the latest, when it was read
    private: bool  # whether it was read with private events


# by the position after which they begin, and whom they are for
PageCache = Expiring[tuple[int, Key], CachedPage]


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
    pages: PageCache = field(default_factory=lambda: Expiring(_SHARED_SECONDS, _SHARED_PAGES))


class Follower:
    """Serves one subscriber: what it has not had of the backlog, then live events, for as long as it stays.

    head: the position that its stream's head tells; what lies before it is replay, what comes after is live.
    """

    __slots__ = (
        "_begun",
        "_context",
        "_head",
        "_missing",
        "_readable",
        "_readable_by",
        "_replay_end",
        "_subscriber",
    )

    def __init__(self, subscriber: Subscriber, head: int, context: CatchUpContext) -> None:
        self._subscriber = subscriber
        self._context = context
        self._head = head
        self._begun = False  # to read
        self._replay_end: float = head  # infinite once the replay is over, which the first ping says
        self._missing = Gone()  # see Placement
        self._readable: dict[str, bool] = {}  # by path, while it reads the backlog: see Subscriber.can_read()
        self._readable_by = subscriber.rights  # the rights that this was judged by

    def begin(self, placement: Placement) -> Coroutine[None, None, NoReturn]:
        """What serves the subscriber, to be run as a task, which is cancelled when the connection is gone.

        With nothing to read it has joined the fan-out already. It must not join later: without a backlog it
        could not read what is published in between.
        """
        if placement.verdict:
            counters.replays[placement.verdict] += 1
        if placement.after < self._end:
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

    async def follow(self, placement: Placement) -> NoReturn:
        """Serve the subscriber from a place in the backlog on, until cancelled."""
        self._missing = placement.missing
        self._join(await self._catch_up(placement.after))
        await self._stay()

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
        self._readable.clear()
        self._context.fanout.join(self._subscriber, position)

    async def _catch_up(self, position: int) -> int:
        """Send all events after a position. The position up to which the subscriber has had everything.

        Nothing is awaited after the last look at where the end is, so it can join the fan-out there.
        """
        loop = asyncio.get_running_loop()
        ping_due = loop.time() + self._context.ping_interval
        while position < self._end:
            position = await self._send_page(position)
            if self._replay_end == math.inf and loop.time() >= ping_due:  # there may be nothing else to send
                self._subscriber.send(self._ping())
                ping_due = loop.time() + self._context.ping_interval
        return position

    async def _send_page(self, position: int) -> int:
        """Send what comes next, at the reader's pace. The position after which to go on."""
        end = await self._read_and_send(position)
        await self._subscriber.flush()
        return end

    async def _read_and_send(self, position: int) -> int:
        page = self._cached(position)
        read = None if page else await self._read(position)
        async with self._context.pacing:
            # looked for again: others may have made it meanwhile, or its rights may have changed
            page = self._cached(position) or self._make(position, read or await self._read(position))
            if self._misses(position, page):
                await self._give_up("what it needs next has left the backlog")
            if page.data:
                self._subscriber.send(page.data)
                counters.deliveries += page.events
                counters.deliveries_from_backlog += page.events
                counters.delivered_bytes += page.event_bytes
            await asyncio.sleep(0)  # live events have their turn
        return page.end

    async def _read(self, position: int) -> tuple[Page, Rights]:
        """What comes next, and the rights it was read with."""
        rights = self._subscriber.rights
        try:
            return await self._context.store.read(position, private=self._reads_private), rights
        except StoreError as error:
            await self._give_up(str(error))

    def _cached(self, position: int) -> CachedPage | None:
        """What comes next, if it was made for another one, and no ping is due in the midst of it."""
        page = self._context.pages.get((position, key_of(self._subscriber)))
        return page if page and page.end <= self._replay_end else None

    def _make(self, position: int, read: tuple[Page, Rights]) -> CachedPage:
        page, rights = read
        alike = page.end <= self._replay_end and rights is self._subscriber.rights
        replayed = bisect_right(page.lines, self._replay_end, key=_POSITION)
        frames, ping = self._frames(page.lines[:replayed]), b""
        if live := page.lines[replayed:]:
            ping = self._ping()
            self._replay_end = math.inf
            frames += [ping, *self._frames(live)]
        data = b"".join(frames)
        made = CachedPage(
            first=page.lines[0].position if page.lines else page.end,
            end=page.end,
            data=data,
            events=len(frames) - bool(ping),
            event_bytes=len(data) - len(ping),
            gone=page.gone,
            private=bool(rights.readable),
        )
        if alike:
            self._context.pages.put((position, key_of(self._subscriber)), made)
        return made

    def _frames(self, lines: Sequence[Line]) -> list[bytes]:
        """The frames of those events that are for the subscriber."""
        if len(self._readable) > _MOST_PATHS or self._readable_by is not self._subscriber.rights:
            self._readable.clear()
            self._readable_by = self._subscriber.rights
        frame, readable, can_read = self._subscriber.wire.event, self._readable, self._subscriber.can_read
        frames = []
        for _, path, line in lines:
            wanted = readable.get(path)
            if wanted is None:
                wanted = readable[path] = can_read(publish_path(path))
            if wanted:
                frames.append(frame(line))
        return frames

    def _ping(self) -> bytes:
        return self._subscriber.wire.ping(self._context.clock())

    def _misses(self, position: int, page: CachedPage) -> bool:
        """Whether anything has left after a position that the subscriber does not know to be missing.

        Of its replay more may leave, as long as it has not come to that kind of events; of what was published
        since, only what lies before the first event that it gets.
        """
        may_leave = self._head if self._begun else max(self._head, page.first)
        for gone, missing in zip(page.gone, self._missing, strict=True):
            if position < gone and (missing <= position or gone > may_leave):
                return True
        self._begun = True
        # what is behind that is in the page, if it has come to it: the page may be older than the placement
        self._missing = page.gone
        if not page.private:  # of what it could not read it misses everything, also if it can read it later
            self._missing = Gone(page.gone.public, page.end)
        return False

    async def _give_up(self, reason: str) -> NoReturn:
        self._subscriber.drop("backlog", reason)
        await self._subscriber.until_gone()
