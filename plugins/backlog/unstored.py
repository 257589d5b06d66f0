"""The store of a server without a backlog: events go out at once, and nothing can be read again."""

import asyncio
from collections.abc import Sequence

from core.events.cursor import Mark
from core.events.event import Event
from core.events.idempotency import IdempotencyKey, QueueItem
from core.events.local_store import LocalStore
from core.events.replay import Placement, ReplayRequest
from core.events.selection import Selection
from core.events.store import Accepted, Page, delivered
from plugins import Plugin


class Unstored(LocalStore, Plugin):
    """A store that keeps nothing."""

    name = "store"

    def plan(self) -> list[str]:
        """That nothing is kept."""
        return ["backlog: none"]

    def _take(
        self,
        events: Sequence[Event],
        key: IdempotencyKey | None,  # noqa: ARG002
        items: Sequence[QueueItem],  # noqa: ARG002
        forgotten: Sequence[bytes],  # noqa: ARG002
    ) -> asyncio.Future[Accepted]:
        """Deliver events, and keep none."""
        for event in events:
            self._outlet.deliver(event)
        return delivered(events)

    def end(self, *, private: bool) -> int:  # noqa: ARG002
        """The position 0, since nothing can be read."""
        return 0

    async def place(self, asked: ReplayRequest | None, now: Mark, selection: Selection) -> Placement:  # noqa: ARG002
        """Every subscriber begins to read with the live events; history ends before them."""
        if asked is None:
            return Placement(now.position, None)
        return Placement(now.position, "none", end=now.position if asked.is_history else None)

    async def read(
        self,
        after: int,  # noqa: ARG002
        upto: int,
        selection: Selection,  # noqa: ARG002
        most: int | None = None,  # noqa: ARG002
    ) -> Page:
        """A page without a line."""
        return Page(upto)
