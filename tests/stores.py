"""A store that lives on its own, without a daemon, by clocks that a test sets."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from core.auth.rights import EVERY_EVENT, NO_RIGHTS, Rights
from core.delivery.channel import selection_of
from core.delivery.wire import BARE
from core.events.cursor import Stamps
from core.events.event import Event, position_in
from core.events.selection import Selection
from core.events.store import Page
from core.events.subscription import parse_subscription
from core.settings import ServerConfig
from plugins.backlog.file import StoredBacklog
from plugins.backlog.memory import Backlog
from plugins.backlog.settings import BacklogConfig

SHM = "/dev/shm"  # noqa: S108 (TemporaryDirectory makes a name of its own there)
# where the files of hundreds of examples are, each of which a disk would keep waiting; None: where others are
IN_MEMORY = SHM if Path(SHM).is_dir() else None


def selected(path: str = "/", *, private: bool = False) -> Selection:
    """What somebody gets who asks for a path, and may read all private events or none: lines as they are."""
    rights = Rights(frozenset({EVERY_EVENT})) if private else NO_RIGHTS
    return selection_of(parse_subscription(path), rights, BARE)


def positions_in(page: Page) -> list[int]:
    """Those of the events on a page of lines as they are."""
    return [position_in(line) for line in bytes(page.data).splitlines(keepends=True)]


class Delivered(list[Event]):
    """In the place of the fan-out."""

    has_capacity = True
    deliver = list[Event].append

    async def wait_for_capacity(self) -> None:
        """There is."""


@contextlib.asynccontextmanager
async def running(
    config: BacklogConfig,
    path: Path | None,
    delivered: Delivered,
    stamps: Stamps,
    seconds: Callable[[], float],
) -> AsyncIterator[Backlog]:
    """A store in that file, or in memory, which has started. seconds: the clock that its events age by."""
    store = (
        StoredBacklog(config, ServerConfig(), path, delivered, seconds)
        if path
        else Backlog(config, delivered, seconds)
    )
    store._stamps = stamps
    await store.open()
    task = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        task.cancel()
        await asyncio.wait([task])
        await store.stop()
