"""The calls that read one queue of Amazon SQS, and what their answers and errors mean."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import aioboto3
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader

from core import __version__
from plugins.sqs.items import Item
from plugins.sqs.settings import QueueConfig

log = logging.getLogger("pypubsub.sqs")
for library in ("aioboto3", "aiobotocore", "boto3", "botocore"):
    # at DEBUG they show items, and how requests are signed; at INFO, at each try, where credentials are
    logging.getLogger(library).setLevel(logging.WARNING)

_TIMEOUT = 10.0  # seconds for a connection, and for an answer beyond the time that it may wait for items
_LONGEST_SHOWN = 300  # characters

_models = Loader()  # the files that describe AWS: reading them takes 100 ms, so once for all queues and tries


class SqsError(Exception):
    """A call has failed. kind: a word that stays the same while the cause does; reason: one line."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        self.reason = shown(f"{kind}: {reason}")
        super().__init__(self.reason)


class UndeletedError(SqsError):
    """Items could not be deleted."""


class Reader:
    """The calls that a queue's consumers make. Each raises SqsError."""

    def __init__(self, client: Any, url: str, config: QueueConfig) -> None:
        """client: of aioboto3."""
        self.url = url
        self._client = client
        self._config = config

    async def receive(self, wait: int) -> list[Item]:
        """The next items, none if there are none after so many seconds."""
        hidden_for = self._config.hidden_for
        visibility = {} if hidden_for is None else {"VisibilityTimeout": hidden_for}
        answer = await _asked(
            self._client.receive_message,
            QueueUrl=self.url,
            MaxNumberOfMessages=self._config.batch,
            WaitTimeSeconds=wait,
            **visibility,
        )
        items = [
            Item(*(message.get(name) for name in ("MessageId", "ReceiptHandle", "Body")))
            for message in answer.get("Messages", ())
        ]
        if not all(isinstance(text, str) for item in items for text in item):
            raise _odd("an item lacks its MessageId, ReceiptHandle or Body")
        return items

    async def delete(self, items: Sequence[Item]) -> int:
        """Delete items. How many: those that SQS cannot delete now come again, and are deleted then."""
        entries = [{"Id": str(place), "ReceiptHandle": item.receipt} for place, item in enumerate(items)]
        try:
            answer = await _asked(self._client.delete_message_batch, QueueUrl=self.url, Entries=entries)
        except SqsError as error:
            raise UndeletedError(error.kind, error.reason.removeprefix(f"{error.kind}: ")) from error
        failed = answer.get("Failed", ())
        for each in failed:
            log.debug("not deleted from %s: %s", self._config.queue, each)
        return len(items) - len(failed)

    async def hide(self, items: Sequence[Item], seconds: int) -> None:
        """Have the queue give items out again after so many seconds, and not when it would by itself."""
        entries = [
            {"Id": str(place), "ReceiptHandle": item.receipt, "VisibilityTimeout": seconds}
            for place, item in enumerate(items)
        ]
        await _asked(self._client.change_message_visibility_batch, QueueUrl=self.url, Entries=entries)


@contextlib.asynccontextmanager
async def reader_of(queue: QueueConfig) -> AsyncIterator[Reader]:
    """A connection to the queue, by the credentials that hold now. Raises SqsError."""
    options = AioConfig(
        connect_timeout=_TIMEOUT,
        read_timeout=queue.wait + _TIMEOUT,
        retries={"total_max_attempts": 1},  # whoever calls has the patience
        max_pool_connections=queue.connections,
        user_agent_extra=f"PyPubSub/{__version__}",
    )
    async with contextlib.AsyncExitStack() as closing:
        try:
            session = AioSession(profile=queue.profile)
            session.register_component("data_loader", _models)
            client = await closing.enter_async_context(
                aioboto3.Session(
                    aws_access_key_id=queue.key,
                    aws_secret_access_key=queue.secret,
                    region_name=queue.region,
                    botocore_session=session,
                ).client("sqs", endpoint_url=queue.endpoint_url, config=options)
            )
        except (BotoCoreError, ValueError) as error:
            raise SqsError(type(error).__name__, str(error)) from error
        yield Reader(client, await _url(client, queue.queue), queue)


async def _url(client: Any, queue: str) -> str:
    if "/" in queue:
        return queue
    url = (await _asked(client.get_queue_url, QueueName=queue)).get("QueueUrl")
    if not isinstance(url, str):
        raise _odd("it does not tell the queue's URL")
    return url


async def _asked(call: Callable[..., Awaitable[Any]], **parameters: Any) -> dict[str, Any]:
    """What a call of SQS is answered. Raises SqsError."""
    try:
        # botocore's own limit holds from byte to byte only
        async with asyncio.timeout(parameters.get("WaitTimeSeconds", 0) + 2 * _TIMEOUT):
            answer = await call(**parameters)
        kind = answer["ResponseMetadata"]["HTTPHeaders"].get("content-type", "")
    except ClientError as error:
        told = error.response.get("Error", {})
        raise SqsError(str(told.get("Code")), str(told.get("Message", ""))) from error
    except TimeoutError:
        raise SqsError("TimeoutError", "the answer takes too long") from None
    except (BotoCoreError, OSError) as error:
        raise SqsError(type(error).__name__, str(error)) from error
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise _odd(str(error)) from error  # of what is no answer of SQS botocore makes errors of its own,
    if "json" not in kind:
        raise _odd(f"it sends {kind or 'nothing'}")  # or an empty answer
    assert isinstance(answer, dict)  # noqa: S101 (or it would not have come here)
    return answer


def shown(text: str) -> str:
    """What somebody else has written, as it may stand in a line of the log."""
    return "".join(char if char.isprintable() else "?" for char in text[:_LONGEST_SHOWN])


def _odd(why: str) -> SqsError:
    return SqsError("OddAnswerError", f"what answers is not SQS: {why}")
