"""What other tests rely on in the AWS of aws.py, and in the proxy before it."""

import asyncio
from typing import Any

import aioboto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError

from aws import Counts, Credentials, Message, Moto, arn_of
from aws_proxy import AwsProxy, Do, refusal


def client(url: str, credentials: Credentials) -> Any:
    """As the daemon has it, but without retries."""
    return aioboto3.Session().client(
        "sqs",
        region_name="us-east-1",
        endpoint_url=url,
        aws_access_key_id=credentials.key,
        aws_secret_access_key=credentials.secret,
        config=Config(retries={"total_max_attempts": 1}),
    )


def handles(messages: list[Message]) -> list[dict[str, str]]:
    """What a batch of deletions is made of."""
    return [{"Id": str(n), "ReceiptHandle": item["ReceiptHandle"]} for n, item in enumerate(messages)]


def bodies(messages: list[Message]) -> list[str]:
    """What they were sent with."""
    return [message["Body"] for message in messages]


async def test_several_consumers_get_each_item_once(moto: Moto) -> None:
    """While items are sent, several consumers get each of them once."""
    queue = moto.create_queue("consumers")
    sending = asyncio.create_task(asyncio.to_thread(moto.send_many, queue, range(300)))
    received: list[str] = []

    async def consume(sqs: Any) -> None:
        while len(received) < 300:
            answer = await sqs.receive_message(
                QueueUrl=moto.queue_url(queue), MaxNumberOfMessages=10, WaitTimeSeconds=1
            )
            if messages := answer.get("Messages", []):
                received.extend(bodies(messages))
                await sqs.delete_message_batch(QueueUrl=moto.queue_url(queue), Entries=handles(messages))

    async with client(moto.url, moto.credentials) as sqs:
        await asyncio.gather(sending, *(consume(sqs) for _ in range(4)))
    assert sorted(received, key=int) == [str(n) for n in range(300)]
    await moto.until_empty(queue)


async def test_who_has_gone_gets_nothing(moto: Moto) -> None:
    """An item that comes when a long poll was given up is not in flight."""
    queue = moto.create_queue("gone")
    async with AwsProxy(moto.url) as proxy, client(proxy.url, moto.credentials) as sqs:
        polling = asyncio.create_task(sqs.receive_message(QueueUrl=moto.queue_url(queue), WaitTimeSeconds=20))
        await proxy.until_asked("ReceiveMessage")
        polling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await polling
        await proxy.until_idle()
    moto.send(queue, "x")
    assert moto.counts(queue) == Counts(visible=1, in_flight=0)


async def test_dead_letters(moto: Moto) -> None:
    """An item goes to the dead letters when it was received too often."""
    dead = moto.create_queue("dead")
    queue = moto.create_queue("deadly", dead_letters=dead, max_receives=2, VisibilityTimeout=0)
    moto.send(queue, "x")
    counts = [
        message["Attributes"]["ApproximateReceiveCount"] for _ in "123" for message in moto.receive(queue)
    ]
    assert counts == ["1", "2"]
    assert bodies(await moto.until_received(dead)) == ["x"]
    await moto.until_empty(dead)


def test_fifo(moto: Moto) -> None:
    """A group is held back while some of it is in flight, and keeps its order when it comes again."""
    queue = moto.create_queue("order.fifo", VisibilityTimeout=1)
    moto.send_many(queue, ["a1", "a2", "a3"], "a")
    moto.send(queue, "b1", "b")
    first = moto.receive(queue, 2)
    assert bodies(first) == ["a1", "a2"]
    assert bodies(moto.receive(queue)) == ["b1"]
    again = moto.receive(queue, wait=20)
    assert bodies(again)[:3] == ["a1", "a2", "a3"]
    late = moto.sqs.delete_message_batch(QueueUrl=moto.queue_url(queue), Entries=handles(first))
    assert [failed["Code"] for failed in late["Failed"]] == ["ReceiptHandleIsInvalid"] * 2
    moto.delete(queue, again[:3])
    moto.send(queue, "a1", "a")
    assert "a1" not in bodies(moto.receive(queue, wait=1))


def test_deletion_of_what_somebody_else_has(moto: Moto) -> None:
    """An item stays in the queue if somebody else has received it since."""
    queue = moto.create_queue("late")
    moto.send(queue, "x")
    first, second = moto.receive(queue, VisibilityTimeout=0), moto.receive(queue)
    moto.delete(queue, first)
    assert moto.counts(queue) == Counts(visible=0, in_flight=1)
    moto.delete(queue, second)
    assert moto.counts(queue) == Counts(visible=0, in_flight=0)


def test_topics(moto: Moto) -> None:
    """What is published to a topic comes in its envelope, or raw."""
    raw, wrapped = moto.create_queue("raw"), moto.create_queue("wrapped")
    moto.subscribe("topic", raw, raw=True)
    moto.subscribe("topic", wrapped)
    moto.publish("topic", {"x": 1})
    assert moto.drain(raw) == ['{"x": 1}']
    (envelope,) = moto.drain(wrapped)
    assert '"Type": "Notification"' in envelope


def test_policies(moto: Moto) -> None:
    """A user may do what the policy allows with the queue that it names, batches included."""
    queue, other = moto.create_queue("allowed"), moto.create_queue("other")
    actions = ["sqs:GetQueueUrl", "sqs:ReceiveMessage", "sqs:DeleteMessage"]
    statement = {"Effect": "Allow", "Action": actions, "Resource": arn_of(queue)}
    user = moto.user({"Version": "2012-10-17", "Statement": [statement]})
    moto.send_many(queue, "xy")

    def refused(sqs: Any, operation: str, queue: str, **parameters: Any) -> str:
        with pytest.raises(ClientError) as error:
            getattr(sqs, operation)(QueueUrl=moto.queue_url(queue), **parameters)
        return str(error.value.response["Error"]["Code"])

    with moto.enforced():
        sqs = moto.client("sqs", user)
        assert sqs.get_queue_url(QueueName=queue)["QueueUrl"] == moto.queue_url(queue)
        messages = sqs.receive_message(QueueUrl=moto.queue_url(queue), MaxNumberOfMessages=10)["Messages"]
        sqs.delete_message_batch(QueueUrl=moto.queue_url(queue), Entries=handles(messages))
        assert refused(sqs, "receive_message", other) == "AccessDenied"
        assert refused(sqs, "send_message", queue, MessageBody="x") == "AccessDenied"
        for credentials, code in (
            (Credentials(user.key, "wrong"), "SignatureDoesNotMatch"),
            (Credentials("AKIAWRONG", "wrong"), "InvalidClientTokenId"),
        ):
            assert refused(moto.client("sqs", credentials), "receive_message", queue) == code
        assert moto.counts(queue) == Counts(visible=0, in_flight=0)
    moto.client("sqs", Credentials("any", "any")).receive_message(QueueUrl=moto.queue_url(queue))


def test_restart(own_moto: Moto) -> None:
    """After a restart, there are no queues."""
    own_moto.start()
    own_moto.create_queue("x")
    own_moto.restart()
    with pytest.raises(ClientError) as error:
        own_moto.counts("x")
    assert error.value.response["Error"]["Code"] == "AWS.SimpleQueueService.NonExistentQueue"


async def test_proxy(moto: Moto) -> None:
    """The proxy fails requests in all its ways, and lets through what it should."""
    queue = moto.create_queue("proxied")
    moto.send_many(queue, "xy")
    url = moto.queue_url(queue)
    async with AwsProxy(moto.url) as proxy, client(proxy.url, moto.credentials) as sqs:
        with moto.enforced():  # signatures hold behind the proxy
            first, second = (await sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10))["Messages"]

        proxy.on("DeleteMessageBatch", refusal(400, "ThrottlingException"), times=1)
        with pytest.raises(ClientError, match="ThrottlingException"):
            await sqs.delete_message_batch(QueueUrl=url, Entries=handles([first]))
        assert moto.counts(queue).in_flight == 2
        await sqs.delete_message_batch(QueueUrl=url, Entries=handles([first]))
        assert moto.counts(queue).in_flight == 1

        proxy.on("DeleteMessageBatch", Do.LOSE_ANSWER)
        with pytest.raises(ConnectionClosedError):
            await sqs.delete_message_batch(QueueUrl=url, Entries=handles([second]))
        assert moto.counts(queue).in_flight == 0

        proxy.on(None, Do.CUT, times=1)
        with pytest.raises(ConnectionClosedError):
            await sqs.receive_message(QueueUrl=url)

        proxy.on(None, Do.HANG)
        hanging = asyncio.create_task(sqs.receive_message(QueueUrl=url))
        await proxy.until_hanging()
        proxy.cut()
        with pytest.raises(ConnectionClosedError):
            await hanging
        await proxy.until_hanging(0)

        proxy.refuse()
        with pytest.raises(EndpointConnectionError):
            await sqs.receive_message(QueueUrl=url)
        await proxy.accept()
        proxy.heal()
        assert "Messages" not in await sqs.receive_message(QueueUrl=url)
