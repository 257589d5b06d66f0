"""Events from Amazon SQS: the items of a queue are published as if they had been sent to the server.

An item is deleted once its event is stored, and not before; one that is read again (SQS delivers at least
once) is recognised by its MessageId. So whatever fails in between, its event is in the stream, and once.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeVar

from core.errors import Refused
from core.events.event import Draft
from core.events.idempotency import MAX_ITEMS, QueueItem, item_id
from core.events.intake import Intake
from core.events.store import Accepted, StoreError
from core.expiring import Expiring
from core.settings import Config
from core.trouble import Trouble
from plugins.sqs.client import Reader, SqsError, UndeletedError, reader_of, shown
from plugins.sqs.items import Item, Terms, draft_of
from plugins.sqs.settings import QueueConfig

log = logging.getLogger("pypubsub.sqs")

_LONGEST_PAUSE = 60.0  # seconds between two tries
_SHORTEST_ROUND = 1.0  # seconds, if the queue has nothing new
_HELD_FOR = 30  # seconds that items are kept from others each time that they could not be stored
_REPORTED = 10_000  # bad items that are known to be in the log

R = TypeVar("R")


class Backoff:
    """The pauses between tries: longer each time, and not the same for all who wait for the same thing."""

    def __init__(self) -> None:
        self._tries = 0

    def next(self) -> float:
        """The next pause: seconds."""
        longest = min(_LONGEST_PAUSE, 2.0**self._tries)
        self._tries = min(self._tries + 1, 10)
        return longest * random.uniform(0.5, 1)  # noqa: S311 (nobody gains by guessing it)

    def reset(self) -> None:
        """Begin with the shortest pause again: it worked."""
        self._tries = 0


class ReadAlreadyError(Exception):
    """Another section reads the same queue: each would publish what is in it."""


class SqsQueue:
    """One queue of the section `sqs`."""

    def __init__(
        self, name: str, queue: QueueConfig, config: Config, intake: Intake, readers: dict[str, str]
    ) -> None:
        """name: of its section; readers: of all queues, by their identity, who reads it: shared by all."""
        self.name = f"sqs {name}"
        self._section = name
        self._readers = readers
        self._queue = queue
        self._intake = intake
        self._terms = Terms(
            config.server.max_payload_size,
            config.server.max_line_size,
            self._queue.unwrap_sns,
            frozenset(config.clients.secure_topics) - frozenset(self._queue.secure_topics),
        )
        self._patience = config.server.drain_timeout / 2  # seconds for what a stop finds under way
        self._published: Expiring[bytes, None] = Expiring(self._queue.window, MAX_ITEMS)  # by item_id
        self._under_way: dict[bytes, asyncio.Future[Accepted]] = {}  # the same: being stored
        self._reported: Expiring[str, None] = Expiring(self._queue.window, _REPORTED)  # by MessageId
        self._recalled = False  # what was published in earlier lives
        self._url_told = ""
        self._consumers = 0
        self._backoff = Backoff()
        # each of its own, since one may last while another one's work is done
        self._reading = self._trouble("cannot read")
        self._storing = self._trouble("items stay in")
        self._holding = self._trouble("cannot keep items hidden in")
        self._deleting = self._trouble("cannot delete from")

    def _trouble(self, what: str) -> Trouble:
        began = f"{self.name}: {what} {self._queue.queue}".replace("%", "%%") + ": %s"
        return Trouble(log, began, f"{self.name}: reads {self._queue.queue} again")

    async def run(self) -> None:
        """Publish what comes, until cancelled. Whatever goes wrong is tried again.

        Ends if the queue turns out to be read already.
        """
        while True:
            try:
                await self._read()
            except ReadAlreadyError as error:
                log.error("%s: %s", self.name, error)  # noqa: TRY400 (one clear line, no traceback)
                return
            except Exception as error:  # noqa: BLE001 (which is told, and only this queue has to wait)
                self._note(error)
                if (task := asyncio.current_task()) and task.cancelling():
                    return  # consumers failed during the stop, and their group tells of that only
            await asyncio.sleep(self._backoff.next())

    def _note(self, error: Exception) -> None:
        while isinstance(error, ExceptionGroup):  # of consumers: the first to fail
            error = error.exceptions[0]
        match error:
            case UndeletedError():
                self._deleting.began(error.reason, error.kind)
            case SqsError():
                self._reading.began(error.reason, error.kind)
            case StoreError():
                self._reading.began(f"what was published before cannot be found out: {error}")
            case _:
                self._reading.began("a mistake in the program", repr(error), error)

    async def _read(self) -> None:
        """Read the queue over one client, until something fails."""
        if not self._recalled:
            for key, left in await self._intake.remembered_items(self._queue.name):
                self._published.put(key, None, age=self._queue.window - left)
            self._recalled = True
        async with reader_of(self._queue) as reader:
            first = self._readers.setdefault(self._queue.identity_of(reader.url), self._section)
            if first != self._section:
                raise ReadAlreadyError(f"{shown(reader.url)} is read as sqs.{first} already, and not twice")
            if reader.url != self._url_told:
                log.info("%s: reads %s", self.name, shown(reader.url))
                self._url_told = reader.url
            async with asyncio.TaskGroup() as consumers:
                self._consumers = 1
                consumers.create_task(self._consume(reader, consumers), name=f"{self.name} consumer")
                # until one fails, or a stop cancels all of them at once; not by waiting at the group's end,
                # where Python 3.11, after a failure, forgets to take back the cancellation of this task
                await asyncio.get_running_loop().create_future()

    async def _consume(self, reader: Reader, consumers: asyncio.TaskGroup, *, extra: bool = False) -> None:
        """Publish what comes. An extra consumer is there only as long as there is always something."""
        while True:
            began = time.monotonic()
            items = await reader.receive(1 if extra else self._queue.wait)
            self._reading.ended()
            if len(items) == self._queue.batch and self._consumers < self._queue.consumers:
                self._consumers += 1
                consumers.create_task(self._consume(reader, consumers, extra=True), name=f"{self.name} extra")
            new = bool(items) and await self._take(reader, items)
            self._backoff.reset()
            if extra and not items:
                self._consumers -= 1
                return
            if not new:
                await asyncio.sleep(began + _SHORTEST_ROUND - time.monotonic())

    async def _take(self, reader: Reader, items: Sequence[Item]) -> bool:
        """Publish items, and delete them. Whether anything was done.

        While the store refuses them they are kept from other readers.
        """
        while True:
            settling = asyncio.create_task(self._settle(reader, items), name=f"{self.name} under way")
            try:
                return await self._to_its_end(settling)
            except Refused as refused:
                self._storing.began(refused.message)
            except asyncio.CancelledError:
                if settling.done() and not settling.cancelled() and isinstance(settling.exception(), Refused):
                    await self._give_back(reader, items)
                raise
            try:
                await self._hold(reader, items, _HELD_FOR)
                await asyncio.sleep(min(self._backoff.next(), _HELD_FOR / 2))
            except asyncio.CancelledError:
                await self._give_back(reader, items)
                raise

    async def _give_back(self, reader: Reader, items: Sequence[Item]) -> None:
        """Let others have items at once."""
        holding = self._hold(reader, items, 0)
        await self._to_its_end(asyncio.create_task(holding, name=f"{self.name} gives back"))

    async def _hold(self, reader: Reader, items: Sequence[Item], seconds: int) -> None:
        """Keep items from others so long from now on. If that fails, they come up when the queue wants."""
        try:
            await reader.hide(items, seconds)
        except SqsError as error:
            self._holding.began(error.reason, error.kind)
        else:
            self._holding.ended()

    async def _settle(self, reader: Reader, items: Sequence[Item]) -> bool:
        """Publish what was not published before, and delete what is done with. Whether any of it was done.

        Raises Refused if the store does not take it.
        """
        await self._intake.wait_for_capacity()
        keys = [key_of(item) for item in items]
        while being_stored := {self._under_way[key] for key in keys if key in self._under_way}:
            await asyncio.wait(being_stored)  # for another consumer, who was given them too
        drafts, bad = self._sorted(items)
        if drafts:
            await asyncio.shield(self._publish(drafts))
            self._storing.ended()
        done = [item for item in items if self._is_done_with(item, bad)]
        deleted = 0
        if done:
            deleted = await reader.delete(done)
            self._deleting.ended()
        return bool(drafts or deleted)

    def _sorted(self, items: Sequence[Item]) -> tuple[dict[bytes, Draft], set[str]]:
        """The events that are to be published, and which items are bad (by MessageId)."""
        drafts: dict[bytes, Draft] = {}
        bad = set()
        for item in items:
            key = key_of(item)
            if key in self._published:
                continue
            try:
                drafts[key] = draft_of(item, self._terms)
            except Refused as refused:
                bad.add(item.id)
                self._report(item, refused)
        return drafts, bad

    def _report(self, item: Item, refused: Refused) -> None:
        if item.id in self._reported:
            return
        self._reported.put(item.id, None)
        if self._queue.bad_items == "delete":
            log.error("%s: item %s is bad and is deleted: %s", self.name, shown(item.id), refused.message)
        else:
            log.warning("%s: item %s is bad and stays: %s", self.name, shown(item.id), refused.message)

    def _is_done_with(self, item: Item, bad: set[str]) -> bool:
        if item.id in bad:
            return self._queue.bad_items == "delete"
        return self._queue.delete and key_of(item) in self._published

    def _publish(self, drafts: Mapping[bytes, Draft]) -> asyncio.Future[Accepted]:
        """All together, or none. The future may raise Refused."""
        remembered = [QueueItem(self._queue.name, key, self._queue.window) for key in drafts]
        stored = self._intake.take_items(list(drafts.values()), remembered)
        self._under_way |= dict.fromkeys(drafts, stored)
        if stored.done():
            self._stored(list(drafts), stored)  # now: who awaits it does not let a callback run first
        else:
            stored.add_done_callback(partial(self._stored, list(drafts)))
        return stored

    def _stored(self, keys: Sequence[bytes], stored: asyncio.Future[Accepted]) -> None:
        """The store has taken them or refused, also if nobody waits for it any more."""
        taken = not stored.cancelled() and stored.exception() is None
        for key in keys:
            del self._under_way[key]
            if taken:
                self._published.put(key, None)

    async def _to_its_end(self, task: asyncio.Task[R]) -> R:
        """Wait for what must not be left half done: a stop waits for it too, but not for ever."""
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            until = time.monotonic() + self._patience
            while not task.done() and (left := until - time.monotonic()) > 0:
                with contextlib.suppress(asyncio.CancelledError):  # a stop, after a consumer has failed
                    await asyncio.wait([task], timeout=left)
            task.cancel()
            if task.done() and not task.cancelled() and (error := task.exception()):
                log.debug("%s: at the stop: %s", self.name, error)
            raise


def key_of(item: Item) -> bytes:
    """What an item is remembered by."""
    return item_id(item.id)
