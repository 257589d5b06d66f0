"""Events from Amazon SQS: the items of a queue are published as if they had been sent to the server.

An item is deleted once its event is stored, and not before; one that is read again is recognised by its
MessageId. So whatever fails in between, its event is in the stream, and once.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import aioboto3
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader

from core import __version__
from core.errors import Refused
from core.event import Draft
from core.expiring import Expiring
from core.idempotency import MAX_ITEMS, item_id
from core.idempotency import Item as Remembered
from core.intake import Intake
from core.settings import Config
from core.sqs_settings import QueueConfig
from core.store import Accepted, StoreError
from core.trouble import Trouble
from plugins.sqs_items import Item, Terms, draft_of

log = logging.getLogger("pypubsub.sqs")
for library in ("aioboto3", "aiobotocore", "boto3", "botocore"):
    # at DEBUG they show items, and how requests are signed; at INFO, at each try, where credentials are
    logging.getLogger(library).setLevel(logging.WARNING)

_LONGEST_PAUSE = 60.0  # seconds between two tries
_SHORTEST_ROUND = 1.0  # seconds, if the queue has nothing new
_HELD_FOR = 30  # seconds that items are kept from others each time that they could not be stored
_TIMEOUT = 10.0  # seconds for a connection, and for an answer beyond the time that it may wait for items
_REPORTED = 10_000  # bad items that are known to be in the log

_models = Loader()  # the files that describe AWS: reading them takes 100 ms, so once for all queues and tries

R = TypeVar("R")
Client = Any  # of aioboto3, made at run time


class OddAnswerError(Exception):
    """What answers is not SQS."""


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
        """It worked."""
        self._tries = 0


class SqsQueue:
    """One queue of the section `sqs`."""

    def __init__(self, name: str, config: Config, intake: Intake) -> None:
        """name: which one."""
        self.name = f"sqs {name}"
        self._queue: QueueConfig = config.sqs[name]
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
        self._trouble = Trouble(
            log, f"{self.name.replace('%', '%%')}: %s", f"{self.name}: reads {self._queue.queue} again"
        )

    async def run(self) -> None:
        """Publish what comes, until cancelled. Whatever goes wrong is tried again."""
        while True:
            try:
                await self._read()
            except Exception as error:  # noqa: BLE001 (which is told, and only this queue has to wait)
                self._note(error)
                if (task := asyncio.current_task()) and task.cancelling():
                    return  # consumers failed during the stop, and their group tells of that only
            await asyncio.sleep(self._backoff.next())

    def _note(self, error: Exception) -> None:
        while isinstance(error, ExceptionGroup):  # of consumers: the first to fail
            error = error.exceptions[0]
        kind, reason = explained(error)
        expected = isinstance(error, ClientError | BotoCoreError | OSError | StoreError | OddAnswerError)
        self._trouble.began(
            f"cannot read {self._queue.queue}: {reason}", kind, error if not expected else None
        )

    async def _read(self) -> None:
        """Read the queue over one client, until something fails."""
        if not self._recalled:
            for key, left in await self._intake.remembered_items(self._queue.queue):
                self._published.put(key, None, age=self._queue.window - left)
            self._recalled = True
        async with connect(self._queue) as client:
            url = await self._url(client)
            if url != self._url_told:
                log.info("%s: reads %s", self.name, url)
                self._url_told = url
            reader = Reader(client, url, self._queue)
            async with asyncio.TaskGroup() as consumers:  # which a stop cancels all at once
                self._consumers = 1
                consumers.create_task(self._consume(reader, consumers), name=f"{self.name} consumer")

    async def _url(self, client: Client) -> str:
        if "/" in self._queue.queue:
            return self._queue.queue
        return str((await client.get_queue_url(QueueName=self._queue.queue))["QueueUrl"])

    async def _consume(self, reader: "Reader", consumers: asyncio.TaskGroup, *, extra: bool = False) -> None:
        """Publish what comes. An extra consumer is there only as long as there is always something."""
        while True:
            began = time.monotonic()
            items = await reader.receive(1 if extra else self._queue.wait)
            if len(items) == self._queue.batch and self._consumers < self._queue.consumers:
                self._consumers += 1
                consumers.create_task(self._consume(reader, consumers, extra=True), name=f"{self.name} extra")
            new = bool(items) and await self._take(reader, items)
            self._trouble.ended()
            self._backoff.reset()
            if extra and not items:
                self._consumers -= 1
                return
            if not new:
                await asyncio.sleep(began + _SHORTEST_ROUND - time.monotonic())

    async def _take(self, reader: "Reader", items: Sequence[Item]) -> bool:
        """Publish items, and delete them. Whether anything was done.

        While the store refuses them they are kept from other readers.
        """
        while True:
            try:
                return await self._to_its_end(self._settle(reader, items))
            except Refused as refused:
                self._trouble.began(f"items stay in {self._queue.queue}: {refused.message}", "store")
            try:
                await reader.hide(items, _HELD_FOR)
                await asyncio.sleep(min(self._backoff.next(), _HELD_FOR / 2))
            except asyncio.CancelledError:
                await self._to_its_end(reader.hide(items, 0))  # others may have them at once
                raise

    async def _settle(self, reader: "Reader", items: Sequence[Item]) -> bool:
        """Publish what was not published before, and delete what is done with. Whether any of it was done.

        Raises Refused if the store does not take it.
        """
        keys = [key_of(item) for item in items]
        while being_stored := {self._under_way[key] for key in keys if key in self._under_way}:
            await asyncio.wait(being_stored)  # for another consumer, who was given them too
        drafts, bad = self._sorted(items)
        if drafts:
            await asyncio.shield(self._publish(drafts))
        done = [item for item in items if self._is_done_with(item, bad)]
        deleted = await reader.delete(done) if done else 0
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
            log.error("%s: item %.100s is bad and is deleted: %s", self.name, item.id, refused.message)
        else:
            log.warning("%s: item %.100s is bad and stays: %s", self.name, item.id, refused.message)

    def _is_done_with(self, item: Item, bad: set[str]) -> bool:
        if item.id in bad:
            return self._queue.bad_items == "delete"
        return self._queue.delete and key_of(item) in self._published

    def _publish(self, drafts: Mapping[bytes, Draft]) -> asyncio.Future[Accepted]:
        """All together, or none. The future may raise Refused."""
        remembered = [Remembered(self._queue.queue, key, self._queue.window) for key in drafts]
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

    async def _to_its_end(self, under_way: Coroutine[Any, Any, R]) -> R:
        """Wait for what must not be left half done: a stop waits for it too, but not for ever."""
        task = asyncio.create_task(under_way, name=f"{self.name} under way")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            try:
                await asyncio.wait([task], timeout=self._patience)
            finally:
                task.cancel()
            if not task.cancelled() and task.done() and (error := task.exception()):
                log.debug("%s: at the stop: %s", self.name, error)
            raise


class Reader:
    """The calls that a queue's consumers make. Each raises what botocore does."""

    def __init__(self, client: Client, url: str, config: QueueConfig) -> None:
        self._client = client
        self._url = url
        self._config = config

    async def receive(self, wait: int) -> list[Item]:
        """The next items, none if there are none after so many seconds. Raises OddAnswerError."""
        hidden_for = self._config.hidden_for
        visibility = {} if hidden_for is None else {"VisibilityTimeout": hidden_for}
        answer = await self._client.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=self._config.batch,
            WaitTimeSeconds=wait,
            **visibility,
        )
        try:
            return [
                Item(message["MessageId"], message["ReceiptHandle"], message["Body"])
                for message in answer.get("Messages", ())
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise OddAnswerError("an item lacks its MessageId, ReceiptHandle or Body") from error

    async def delete(self, items: Sequence[Item]) -> int:
        """Delete items; how many were. Those that SQS cannot delete now come again, and are deleted then."""
        answer = await self._client.delete_message_batch(
            QueueUrl=self._url,
            Entries=[{"Id": str(place), "ReceiptHandle": item.receipt} for place, item in enumerate(items)],
        )
        for failed in answer.get("Failed", ()):
            log.debug("not deleted from %s: %s", self._config.queue, failed)
        return len(answer.get("Successful", ()))

    async def hide(self, items: Sequence[Item], seconds: int) -> None:
        """Have the queue give items out again after so many seconds: if this fails, it does so by itself."""
        entries = [
            {"Id": str(place), "ReceiptHandle": item.receipt, "VisibilityTimeout": seconds}
            for place, item in enumerate(items)
        ]
        with contextlib.suppress(BotoCoreError, ClientError):
            await self._client.change_message_visibility_batch(QueueUrl=self._url, Entries=entries)


def connect(queue: QueueConfig) -> contextlib.AbstractAsyncContextManager[Client]:
    """A client of the queue's region or endpoint, by the credentials that hold now."""
    own = AioSession(profile=queue.profile)
    own.register_component("data_loader", _models)
    session = aioboto3.Session(
        aws_access_key_id=queue.key,
        aws_secret_access_key=queue.secret,
        region_name=queue.region,
        botocore_session=own,
    )
    options = AioConfig(
        connect_timeout=_TIMEOUT,
        read_timeout=queue.wait + _TIMEOUT,
        retries={"total_max_attempts": 1},  # run() has the patience
        max_pool_connections=2 * queue.consumers + 1,
        tcp_keepalive=True,
        user_agent_extra=f"PyPubSub/{__version__}",
    )
    client: contextlib.AbstractAsyncContextManager[Client] = session.client(
        "sqs", endpoint_url=queue.endpoint_url, config=options
    )
    return client


def explained(error: Exception) -> tuple[str, str]:
    """What kind of failure it is, and its reason in one line."""
    kind = type(error).__name__
    if isinstance(error, ClientError):
        told = error.response.get("Error", {})
        kind = str(told.get("Code", kind))
        return kind, f"{kind}: {told.get('Message', '')}"[:300].replace("\n", " ")
    return kind, f"{kind}: {error}"[:300].replace("\n", " ")


def key_of(item: Item) -> bytes:
    """What an item is remembered by."""
    return item_id(item.id)
