"""A store that keeps nothing: where no backlog is asked for."""

import asyncio
from collections.abc import Sequence

from core.events.cursor import Mark
from core.events.event import Event
from core.events.idempotency import Ask, Item
from core.events.replay import Placement, ReplayRequest
from core.events.store import Accepted, Outlet, Page, Remembered, accepted
from plugins import Plugin


class Unstored(Plugin):
    """A store that keeps nothing: events go out at once."""

    name = "store"
    can_be_read = False
    durable = False
    is_full = False

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    def plan(self) -> list[str]:
        """That nothing is kept."""
        return ["backlog: none"]

    def end(self, *, private: bool) -> int:  # noqa: ARG002
        """Nothing can be read."""
        return 0

    async def open(self, now: Mark) -> Mark:
        """There is nothing to open."""
        return now

    def remembered(self) -> Sequence[Remembered]:
        """Nothing."""
        return ()

    async def flush(self) -> None:
        """Nothing waits."""

    async def remembered_items(self, queue: str) -> Sequence[tuple[bytes, float]]:  # noqa: ARG002
        """None."""
        return ()

    def append(
        self,
        events: Sequence[Event],
        ask: Ask | None = None,  # noqa: ARG002
        items: Sequence[Item] = (),  # noqa: ARG002
        gone: Sequence[bytes] = (),  # noqa: ARG002
    ) -> asyncio.Future[Accepted]:
        """Deliver them."""
        for event in events:
            self._outlet.deliver(event)
        return accepted(events)

    async def settle(self, position: int, *, private: bool) -> None:
        """Nothing waits."""

    async def place(self, asked: ReplayRequest | None, now: Mark, *, private: bool) -> Placement:  # noqa: ARG002
        """From now on."""
        return Placement(now.position, "none" if asked else None)

    async def read(self, after: int, *, private: bool) -> Page:  # noqa: ARG002
        """Nothing is there."""
        return Page(after, ())
