"""A subscriber's way from its place in the backlog to the live events, and back whenever it falls behind.

The backlog is read page by page, each once the reader has taken the one before, so a slow reader costs no
memory and nobody waits for it. Who stands at the same place and asks for the same gets the same bytes, which
are made once. The reader has caught up when its place is the last event delivered: in that
same turn of the event loop it joins the fan-out, so that each event comes once.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import NamedTuple, NoReturn

from core.auth.rights import Rights
from core.delivery.channel import Key, key_of
from core.delivery.fanout import Fanout
from core.delivery.subscriber import Subscriber
from core.events.replay import Gone, Placement
from core.events.store import Page, Store, StoreError
from core.events.topics import publish_path
from core.expiring import Expiring

_MOST_PATHS = 1000  # of which it is remembered whether the subscriber wants them
_SHARED_SECONDS = 1.0  # that the bytes of a page are kept for others
_SHARED_PAGES = 16


class Part(NamedTuple):
    """What a subscriber is sent of a page."""

    first: int  # position of the first event that is held of the page, its end if there is none
    end: int  # position up to which it goes
    data: bytes
    gone: Gone
    private: bool  # whether it was read with private events


Parts = Expiring[tuple[int, Key], Part]  # by the position after which they begin, and whom they are for


def shared_parts() -> Parts:
    """None yet."""
    return Expiring(_SHARED_SECONDS, _SHARED_PAGES)


class Surroundings(NamedTuple):
    """What all subscribers of a server have in common."""

    fanout: Fanout
    store: Store
    turn: asyncio.Lock  # to send a page: one in a turn of the loop, however many subscribers read the backlog
    ping_interval: float  # seconds
    parts: Parts
    clock: Callable[[], float] = time.time  # Unix seconds, for pings


class Follower:
    """Serves one subscriber.

    head: the position that its stream's head tells; what lies before it is replay, what comes after is live.
    """

    __slots__ = (
        "_begun",
        "_head",
        "_missing",
        "_replay_end",
        "_sees",
        "_sees_by",
        "_subscriber",
        "_surroundings",
    )

    def __init__(self, subscriber: Subscriber, head: int, surroundings: Surroundings) -> None:
        self._subscriber = subscriber
        self._surroundings = surroundings
        self._head = head
        self._begun = False  # to read
        self._replay_end: float = head  # infinite once the replay is over, which the first ping says
        self._missing = Gone()  # see Placement
        self._sees: dict[str, bool] = {}  # by path, while it reads the backlog
        self._sees_by = subscriber.rights  # the rights that this was judged by

    def begin(self, placement: Placement) -> Coroutine[None, None, NoReturn]:
        """What serves the subscriber like follow(). With nothing to read it has joined the fan-out already.

        It must not join later: without a backlog it could not read what is published in between.
        """
        if placement.after < self._end:
            return self.follow(placement)
        self._join(placement.after)
        return self._stay()

    @property
    def _sees_private(self) -> bool:
        return bool(self._subscriber.rights.sees)

    @property
    def _end(self) -> int:
        """The end of what there is for this subscriber, who must not notice more."""
        return self._surroundings.store.end(private=self._sees_private)

    async def follow(self, placement: Placement) -> NoReturn:
        """From a place on, for as long as the connection lasts: cancelled when it is gone."""
        self._missing = placement.missing
        self._join(await self._catch_up(placement.after))
        await self._stay()

    async def _stay(self) -> NoReturn:
        while True:
            position = await self._subscriber.serve()
            self._join(await self._catch_up(position))

    def _join(self, position: int) -> None:
        """Have the live events from now on, which must be those after a position.

        A ping comes before: the first of the stream, or one for those that were left out meanwhile.
        """
        self._replay_end = math.inf
        self._subscriber.send(self._ping())
        self._sees.clear()
        self._surroundings.fanout.join(self._subscriber, position)

    async def _catch_up(self, position: int) -> int:
        """Send all events after a position. The position by then.

        Nothing is awaited after the last look at where the end is.
        """
        loop = asyncio.get_running_loop()
        ping_due = loop.time() + self._surroundings.ping_interval
        while position < self._end:
            position = await self._send_page(position)
            if self._replay_end == math.inf and loop.time() >= ping_due:  # there may be nothing else to send
                self._subscriber.send(self._ping())
                ping_due = loop.time() + self._surroundings.ping_interval
        return position

    async def _send_page(self, position: int) -> int:
        """Send what comes next, at the reader's pace. The position after which to go on."""
        end = await self._read_and_send(position)
        await self._subscriber.flush()
        return end

    async def _read_and_send(self, position: int) -> int:
        part = self._shared(position)
        page = None if part else await self._read(position)
        async with self._surroundings.turn:
            # looked for again: others may have made it meanwhile, or its rights may have changed
            part = self._shared(position) or self._make(position, page or await self._read(position))
            if self._misses(position, part):
                await self._give_up("what it needs next has left the backlog")
            if part.data:
                self._subscriber.send(part.data)
            await asyncio.sleep(0)  # live events have their turn
        return part.end

    async def _read(self, position: int) -> tuple[Page, Rights]:
        """What comes next, and the rights it was read with."""
        rights = self._subscriber.rights
        try:
            return await self._surroundings.store.read(position, private=self._sees_private), rights
        except StoreError as error:
            await self._give_up(str(error))

    def _shared(self, position: int) -> Part | None:
        """What comes next, if it was made for another one, and no ping is due in the midst of it."""
        part = self._surroundings.parts.get((position, key_of(self._subscriber)))
        return part if part and part.end <= self._replay_end else None

    def _make(self, position: int, read: tuple[Page, Rights]) -> Part:
        page, rights = read
        alike = page.end <= self._replay_end and rights is self._subscriber.rights
        first = page.lines[0].position if page.lines else page.end
        part = Part(first, page.end, b"".join(self._frames(page)), page.gone, bool(rights.sees))
        if alike:
            self._surroundings.parts.put((position, key_of(self._subscriber)), part)
        return part

    def _frames(self, page: Page) -> list[bytes]:
        if len(self._sees) > _MOST_PATHS or self._sees_by is not self._subscriber.rights:
            self._sees.clear()
            self._sees_by = self._subscriber.rights
        frame, sees, may_see = self._subscriber.wire.event, self._sees, self._subscriber.may_see
        frames = []
        for position, path, line in page.lines:
            if position > self._replay_end:
                self._replay_end = math.inf
                frames.append(self._ping())
            seen = sees.get(path)
            if seen is None:
                seen = sees[path] = may_see(publish_path(path))
            if seen:
                frames.append(frame(line))
        return frames

    def _ping(self) -> bytes:
        return self._subscriber.wire.ping(self._surroundings.clock())

    def _misses(self, position: int, part: Part) -> bool:
        """Whether anything has left after a position that the subscriber does not know to be missing.

        Of its replay more may leave, as long as it has not come to that kind of events; of what was published
        since, only what lies before the first event that it gets.
        """
        may_leave = self._head if self._begun else max(self._head, part.first)
        for gone, missing in zip(part.gone, self._missing, strict=True):
            if position < gone and (missing <= position or gone > may_leave):
                return True
        self._begun = True
        # what is behind that is in the part, if it has come to it: the part may be older than the placement
        self._missing = part.gone
        if not part.private:  # of what it could not see it misses everything, also if it may see it later
            self._missing = Gone(part.gone.public, part.end)
        return False

    async def _give_up(self, reason: str) -> NoReturn:
        self._subscriber.drop(reason)
        await self._subscriber.gone()
