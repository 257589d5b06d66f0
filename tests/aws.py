"""An AWS of the tests' own: a real moto server with SQS, SNS and IAM, on a port of its own.

Queues, topics and users go by their names.
"""

import asyncio
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import boto3

from wire import TIMEOUT, free_port

REGION = "us-east-1"
ACCOUNT = "123456789012"  # the only one that moto has
ALL_ALLOWED = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
}

Message = Mapping[str, Any]  # as AWS gives it: Body, ReceiptHandle, Attributes


class Counts(NamedTuple):
    """How many items a queue has."""

    visible: int
    in_flight: int


class Credentials(NamedTuple):
    """Of a user."""

    key: str
    secret: str


def arn_of(queue: str) -> str:
    """The name of a queue among everything that AWS has."""
    return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue}"


class Moto:
    """The server. What it has is gone when it is restarted. directory: for its log."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._log = directory / "moto.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.credentials = Credentials("", "")  # of a user who may do everything

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Its requests, and its errors."""
        return self._log.read_text()

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        script = Path(__file__).with_name("aws_server.py")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(script), str(self.port)],  # -P: its modules are not the tests'
                env={
                    name: value
                    for name, value in os.environ.items()
                    if not name.startswith(("AWS_", "COVERAGE_"))
                },
                stdin=subprocess.PIPE,  # by which it sees that the tests have gone
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                assert self.running, f"moto has ended: {self.log}"
                assert time.monotonic() < deadline, "moto does not listen"
                time.sleep(0.02)
        self.credentials = Credentials("anybody", "anything")
        self._connect()
        self.credentials = self.user(ALL_ALLOWED)
        self._connect()

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, and all that it had; nothing is on a disk that could suffer."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.send_signal(number)
            self._process.wait(TIMEOUT)
            self._process = None

    def restart(self) -> None:
        """Another one on the same port, without queues."""
        self.stop()
        self.start()

    def client(self, service: str, credentials: Credentials | None = None) -> Any:
        """A boto3 client, of somebody who may do everything or of a user."""
        key, secret = credentials or self.credentials
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
        )

    def _connect(self) -> None:
        self.sqs, self.sns, self.iam = map(self.client, ("sqs", "sns", "iam"))

    # Queues

    def queue_url(self, queue: str) -> str:
        """As AWS's calls want it."""
        return f"{self.url}/{ACCOUNT}/{queue}"

    def create_queue(
        self, queue: str, *, dead_letters: str | None = None, max_receives: int = 2, **attributes: Any
    ) -> str:
        """A queue, by its name, which it returns; FIFO if that ends in `.fifo`.

        dead_letters: the queue that items go to when they were received max_receives times.
        attributes: as AWS calls them, such as VisibilityTimeout=1.
        """
        if queue.endswith(".fifo"):
            attributes = {"FifoQueue": "true", "ContentBasedDeduplication": "true", **attributes}
        if dead_letters is not None:
            attributes["RedrivePolicy"] = json.dumps(
                {"deadLetterTargetArn": arn_of(dead_letters), "maxReceiveCount": max_receives}
            )
        texts = {name: str(value) for name, value in attributes.items()}
        self.sqs.create_queue(QueueName=queue, Attributes=texts)
        return queue

    def delete_queue(self, queue: str) -> None:
        """End a queue."""
        self.sqs.delete_queue(QueueUrl=self.queue_url(queue))

    def purge(self, queue: str) -> None:
        """Take everything out of it, in flight or not."""
        self.sqs.purge_queue(QueueUrl=self.queue_url(queue))

    def settings(self, queue: str, **changes: Any) -> dict[str, Any]:
        """What the daemon's configuration says of a queue; without what changes have as None."""
        key, secret = self.credentials
        settings: dict[str, Any] = {
            "queue": queue,
            "region": REGION,
            "key": key,
            "secret": secret,
            "endpoint_url": self.url,
            "delete": True,
            "wait": 20,
            "batch": 10,
        }
        return {name: value for name, value in (settings | changes).items() if value is not None}

    # Items

    def send(self, queue: str, body: Any, group: str | None = None, dedup: str | None = None) -> str:
        """One item, a text or what becomes one as JSON; its id. A FIFO queue needs a group."""
        return self.send_many(queue, [body], group, dedup)[0]

    def send_many(
        self, queue: str, bodies: Iterable[Any], group: str | None = None, dedup: str | None = None
    ) -> list[str]:
        """Items in that order, ten in a request; their ids."""
        common = {"MessageGroupId": group, "MessageDeduplicationId": dedup}
        common = {name: value for name, value in common.items() if value is not None}
        ids: list[str] = []
        remaining = iter(bodies)
        while batch := list(itertools.islice(remaining, 10)):
            texts = (body if isinstance(body, str) else json.dumps(body) for body in batch)
            entries = [{"Id": str(n), "MessageBody": text, **common} for n, text in enumerate(texts)]
            sent = self.sqs.send_message_batch(QueueUrl=self.queue_url(queue), Entries=entries)
            assert not sent.get("Failed"), sent["Failed"]
            ids += [item["MessageId"] for item in sent["Successful"]]
        return ids

    def counts(self, queue: str) -> Counts:
        """How many items are in it, and are with somebody who has received them."""
        names = "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"
        answer = self.sqs.get_queue_attributes(QueueUrl=self.queue_url(queue), AttributeNames=names)
        return Counts(*(int(answer["Attributes"][name]) for name in names))

    def receive(self, queue: str, number: int = 10, *, wait: int = 0, **parameters: Any) -> list[Message]:
        """Items, as any consumer gets them, with all their attributes. wait: seconds, if there is none.

        parameters: as AWS calls them, such as VisibilityTimeout=0, with which they are in flight at no time.
        """
        answer = self.sqs.receive_message(
            QueueUrl=self.queue_url(queue),
            MaxNumberOfMessages=number,
            WaitTimeSeconds=wait,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
            **parameters,
        )
        messages: list[Message] = answer.get("Messages", [])
        return messages

    def delete(self, queue: str, messages: Iterable[Message]) -> None:
        """Take out of the queue what was received."""
        handles = (message["ReceiptHandle"] for message in messages)
        while batch := list(itertools.islice(handles, 10)):
            entries = [{"Id": str(n), "ReceiptHandle": handle} for n, handle in enumerate(batch)]
            done = self.sqs.delete_message_batch(QueueUrl=self.queue_url(queue), Entries=entries)
            assert not done.get("Failed"), done["Failed"]

    def drain(self, queue: str) -> list[str]:
        """The bodies of all visible items, which are then gone."""
        bodies: list[str] = []
        while messages := self.receive(queue):
            self.delete(queue, messages)
            bodies += [message["Body"] for message in messages]
        return bodies

    # What becomes of them. These wait aside, so that what a test has in its own event loop goes on

    async def until_counts(
        self, queue: str, visible: int | None = None, in_flight: int | None = None
    ) -> None:
        """Wait until a queue has as many items; None: any number."""

        def so(counts: Counts) -> bool:
            return visible in {None, counts.visible} and in_flight in {None, counts.in_flight}

        await self.until(queue, so, f"visible={visible} in_flight={in_flight}")

    async def until_empty(self, queue: str) -> None:
        """Wait until everything in a queue was deleted."""
        await self.until_counts(queue, 0, 0)

    async def until(self, queue: str, condition: Callable[[Counts], bool], what: str) -> None:
        """Wait until a queue's counts are so. what: they should be, for the error."""
        deadline = time.monotonic() + TIMEOUT
        while not condition(counts := await asyncio.to_thread(self.counts, queue)):
            assert time.monotonic() < deadline, f"{queue} has {counts}, not {what}"
            await asyncio.sleep(0.05)

    async def until_received(self, queue: str, number: int = 1) -> list[Message]:
        """Take so many items out of a queue, such as one of dead letters, as soon as they are there."""
        deadline = time.monotonic() + TIMEOUT
        received: list[Message] = []
        while len(received) < number:
            wanted = min(10, number - len(received))
            messages = await asyncio.to_thread(self.receive, queue, wanted, wait=1)
            await asyncio.to_thread(self.delete, queue, messages)
            received += messages
            assert len(received) >= number or time.monotonic() < deadline, (
                f"{queue} had {[message['Body'] for message in received]}, not {number} items"
            )
        return received

    # Topics

    def subscribe(self, topic: str, queue: str, *, raw: bool = False) -> None:
        """Have a topic, which is made if there is none, send to a queue. raw: without SNS's envelope."""
        self.sns.subscribe(
            TopicArn=self.sns.create_topic(Name=topic)["TopicArn"],
            Protocol="sqs",
            Endpoint=arn_of(queue),
            Attributes={"RawMessageDelivery": str(raw).lower()},
        )

    def publish(self, topic: str, body: Any) -> None:
        """Send to the queues of a topic."""
        text = body if isinstance(body, str) else json.dumps(body)
        self.sns.publish(TopicArn=f"arn:aws:sns:{REGION}:{ACCOUNT}:{topic}", Message=text)

    # Users

    def user(self, policy: Mapping[str, Any]) -> Credentials:
        """A user who may do what a policy says, while rights are enforced()."""
        name = f"user{time.monotonic_ns()}"
        self.iam.create_user(UserName=name)
        self.iam.put_user_policy(UserName=name, PolicyName="policy", PolicyDocument=json.dumps(policy))
        key = self.iam.create_access_key(UserName=name)["AccessKey"]
        return Credentials(key["AccessKeyId"], key["SecretAccessKey"])

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Have it look at keys, signatures and policies, of everybody. Else it takes any key.

        It knows actions, resources, and `*` in both, but no conditions.
        """
        self._authenticate_after("0")
        try:
            yield
        finally:
            if self.running:
                self._authenticate_after("inf")

    def _authenticate_after(self, requests_without: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        connection.request("POST", "/moto-api/reset-auth", requests_without)
        assert connection.getresponse().status == 200
        connection.close()
