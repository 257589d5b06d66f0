"""Each item of a queue becomes one event, however often it comes, and however many there are."""

import asyncio
import json
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aws import Moto
from aws_proxy import AwsProxy, Do, Reply, refusal
from daemon import StartDaemon
from queues import backlog, new_queue, nothing_else_on, numbers, reading, restart, stored_in
from wire import EVERYTHING

STORES = ("none", "memory", "file")
# a deletion that SQS does not manage at the moment
NOT_DELETED = Reply(
    200,
    json.dumps(
        {
            "Successful": [],
            "Failed": [{"Id": "0", "Code": "InternalError", "SenderFault": False, "Message": "later"}],
        }
    ).encode(),
    {"Content-Type": "application/x-amz-json-1.0"},
)


@pytest.fixture
def queue(moto: Moto) -> str:
    """A queue of the test's own, whose items come up again after a second."""
    return new_queue(moto, VisibilityTimeout=1)


@pytest.fixture
async def proxy(moto: Moto) -> AsyncIterator[AwsProxy]:
    """Between a daemon and the AWS."""
    async with AwsProxy(moto.url) as proxy:
        yield proxy


@pytest.mark.parametrize("store", STORES)
async def test_items_are_deleted_when_they_are_published(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path, store: str
) -> None:
    """At the first reading: while the test runs none comes up a second time."""
    queue = new_queue(moto, VisibilityTimeout=600)
    daemon = start_daemon(reading(moto, queue, sections=stored_in(store, tmp_path)))
    async with daemon.subscriber("/") as stream:
        moto.send_many(queue, [{"n": n} for n in range(25)])
        assert sorted(await numbers(stream, 25)) == list(range(25))
        await moto.until_empty(queue)
        await nothing_else_on(stream, daemon)


async def test_a_queue_named_in_two_ways_is_read_once(moto: Moto, start_daemon: StartDaemon) -> None:
    """By name, by URL, and by other credentials: one section reads it, and the log says so of the others."""
    queue = new_queue(moto, VisibilityTimeout=1)
    settings = {
        "named": moto.settings(queue, delete=False, visibility=1),
        "given": moto.settings(moto.queue_url(queue), delete=False, visibility=1),
        "otherwise": moto.settings(queue, delete=False, visibility=1, key="other", secret="other"),
    }
    daemon = start_daemon({"sqs": settings})
    assert len([line for line in daemon.log if "WARNING" in line and "may be the queue of" in line]) == 2
    for _ in range(2):
        line = await daemon.until_logged("ERROR pypubsub.sqs")
        assert "sqs named: " in line or "sqs otherwise: " in line
        assert f"{moto.queue_url(queue)} is read as sqs.given already" in line
    async with daemon.subscriber("/") as stream:
        moto.send_many(queue, [{"n": n} for n in range(5)])
        assert sorted(await numbers(stream, 5)) == list(range(5))
        await nothing_else_on(stream, daemon)


@pytest.mark.parametrize("store", STORES)
async def test_an_item_that_comes_again_is_deleted_and_not_published(
    moto: Moto, start_daemon: StartDaemon, proxy: AwsProxy, queue: str, tmp_path: Path, store: str
) -> None:
    """Its visibility ran out before it was deleted."""
    proxy.on("DeleteMessageBatch", NOT_DELETED, times=1)
    config = reading(moto, queue, sections=stored_in(store, tmp_path), endpoint_url=proxy.url)
    daemon = start_daemon(config)
    async with daemon.subscriber("/") as stream:
        moto.send(queue, {"n": 1})
        assert await numbers(stream, 1) == [1]
        await moto.until_empty(queue)
        await nothing_else_on(stream, daemon)
    assert proxy.operations.count("DeleteMessageBatch") == 2


async def test_an_item_that_comes_again_after_a_restart_is_not_published(
    moto: Moto, start_daemon: StartDaemon, proxy: AwsProxy, queue: str, tmp_path: Path
) -> None:
    """With a backlog in a file."""
    proxy.on("DeleteMessageBatch", NOT_DELETED)
    config = reading(moto, queue, sections=stored_in("file", tmp_path), endpoint_url=proxy.url)
    daemon = start_daemon(config)
    async with daemon.subscriber("/") as stream:
        moto.send_many(queue, [{"n": n} for n in range(15)])
        assert sorted(await numbers(stream, 15)) == list(range(15))
    await asyncio.to_thread(daemon.stop)
    await moto.until_counts(queue, visible=15)
    proxy.heal()
    daemon.start()
    await moto.until_empty(queue)
    assert len((await daemon.replay("/", **EVERYTHING))[1]) == 15


async def test_an_item_is_remembered_as_long_as_its_window(
    moto: Moto, start_daemon: StartDaemon, queue: str, tmp_path: Path
) -> None:
    """What comes up after that is published again."""
    settings = {"delete": False, "visibility": "1s", "window": "0.1s"}
    daemon = start_daemon(reading(moto, queue, sections=stored_in("file", tmp_path), **settings))
    async with daemon.subscriber("/") as stream:
        moto.send(queue, {"n": 1})
        assert await numbers(stream, 2) == [1, 1]


@pytest.mark.parametrize("store", STORES)
async def test_items_that_stay_are_published_once(
    moto: Moto, start_daemon: StartDaemon, proxy: AwsProxy, queue: str, tmp_path: Path, store: str
) -> None:
    """Although they come up again and again; with a backlog in a file also after a restart."""
    settings = {"delete": False, "visibility": "1s", "endpoint_url": proxy.url}
    daemon = start_daemon(reading(moto, queue, sections=stored_in(store, tmp_path), **settings))
    async with daemon.subscriber("/") as stream:
        moto.send_many(queue, [{"n": n} for n in range(3)])
        assert sorted(await numbers(stream, 3)) == [0, 1, 2]
        await proxy.until_asked("ReceiveMessage", 5)
        await nothing_else_on(stream, daemon)
    if store == "file":
        asked = proxy.operations.count("ReceiveMessage")
        await restart(daemon)
        async with daemon.subscriber("/") as stream:
            await proxy.until_asked("ReceiveMessage", asked + 4)
            await nothing_else_on(stream, daemon)
    await asyncio.to_thread(daemon.stop)
    await moto.until_counts(queue, visible=3)
    items = moto.receive(queue)
    counts = [int(item["Attributes"]["ApproximateReceiveCount"]) for item in items]
    assert len(counts) == 3
    assert min(counts) > 2, "they did not come again, so nothing was tested"
    assert "DeleteMessageBatch" not in proxy.operations


async def test_items_that_stay_are_not_asked_for_without_end(
    moto: Moto, start_daemon: StartDaemon, proxy: AwsProxy
) -> None:
    """There is always one to be had, and it is asked for as often as the server pings: once in a second."""
    queue = new_queue(moto)
    moto.send_many(queue, [{"n": n} for n in range(3)])
    settings = {"delete": False, "visibility": "1s", "batch": 1, "consumers": 1, "endpoint_url": proxy.url}
    config = reading(moto, queue, sections={"server": {"ping_interval": 1}}, **settings)
    known = json.dumps({"Messages": moto.receive(queue, 1, VisibilityTimeout=0)}).encode()
    proxy.on("ReceiveMessage", Reply(200, known, {"Content-Type": "application/x-amz-json-1.0"}))
    daemon = start_daemon(config)
    async with daemon.subscriber("/") as stream:
        await proxy.until_asked("ReceiveMessage", 2)
        pings = [await stream.object() for _ in range(4)]
    seconds = pings[-1]["stillalive"] - pings[0]["stillalive"]
    assert proxy.operations.count("ReceiveMessage") <= 2 * (2 + seconds)


async def test_what_cannot_be_deleted_is_not_tried_without_end(
    moto: Moto, start_daemon: StartDaemon, proxy: AwsProxy
) -> None:
    """Although the queue gives it out again at once."""
    queue = new_queue(moto, VisibilityTimeout=0)
    moto.send(queue, {"n": 1})
    proxy.on("DeleteMessageBatch", NOT_DELETED)
    pinging = {"server": {"ping_interval": 1}}
    daemon = start_daemon(reading(moto, queue, sections=pinging, consumers=1, endpoint_url=proxy.url))
    async with daemon.subscriber("/") as stream:
        assert await numbers(stream, 1) == [1]
        for _ in range(3):  # seconds
            assert "stillalive" in await stream.object()
        await nothing_else_on(stream, daemon)
    assert proxy.operations.count("DeleteMessageBatch") <= 5


# Many


@pytest.mark.parametrize("consumers", [1, 4])
async def test_as_many_requests_as_there_are_consumers(
    moto: Moto, start_daemon: StartDaemon, proxy: AwsProxy, queue: str, consumers: int
) -> None:
    """While there is more in the queue than one brings, and no more than that."""
    moto.send_many(queue, [{"n": n} for n in range(100)])
    proxy.on("ReceiveMessage", Do.HANG)
    proxy.on("ReceiveMessage", Do.PASS, times=8)
    daemon = start_daemon(reading(moto, queue, consumers=consumers, endpoint_url=proxy.url))
    await proxy.until_hanging(consumers)
    await daemon.put("/a", {})
    assert proxy.hanging == consumers


async def test_a_stop_while_a_failure_is_dealt_with_ends_the_server(
    moto: Moto, start_daemon: StartDaemon, proxy: AwsProxy, queue: str
) -> None:
    """One consumer has failed, another still waits for what it has under way."""
    moto.send_many(queue, [{"n": n} for n in range(20)])
    proxy.on("DeleteMessageBatch", Do.HANG)
    proxy.on("ReceiveMessage", refusal(400, "Refused"))
    proxy.on("ReceiveMessage", Do.PASS, times=1)
    daemon = start_daemon(reading(moto, queue, endpoint_url=proxy.url))
    await proxy.until_asked("ReceiveMessage", 2)
    await proxy.until_hanging(1)
    await daemon.put("/a", {})  # which the server reads after the refusal
    daemon.signal(signal.SIGTERM)
    assert await asyncio.to_thread(daemon.wait) == 0


async def test_a_stop_ends_the_reading_of_all_consumers(
    moto: Moto, start_daemon: StartDaemon, proxy: AwsProxy
) -> None:
    """Also of those beside one that is held up by what it has to end first."""
    queue = new_queue(moto)
    moto.send_many(queue, [{"n": n} for n in range(100)])
    proxy.on("DeleteMessageBatch", Do.HANG)
    proxy.on("ReceiveMessage", Do.HANG)
    proxy.on("ReceiveMessage", Do.PASS, times=1)
    config = reading(
        moto, queue, sections={"server": {"drain_timeout": 10}}, consumers=2, endpoint_url=proxy.url
    )
    daemon = start_daemon(config)
    await proxy.until_hanging(2)  # one deletes, one waits for items
    daemon.signal(signal.SIGTERM)
    await asyncio.wait_for(proxy.until_hanging(1), 3)
    assert await asyncio.to_thread(daemon.wait) == 0


@pytest.mark.parametrize(("consumers", "batch"), [(1, 10), (1, 1), (8, 1), (50, 3)])
async def test_all_items_come_once_with_any_number_of_consumers(
    moto: Moto, start_daemon: StartDaemon, proxy: AwsProxy, consumers: int, batch: int
) -> None:
    """And with any size of what one request brings."""
    queue = new_queue(moto, VisibilityTimeout=600)
    moto.send_many(queue, [{"n": n} for n in range(100)])
    settings = {"consumers": consumers, "batch": batch, "endpoint_url": proxy.url}
    daemon = start_daemon(reading(moto, queue, sections=backlog(), **settings))
    async with daemon.subscriber("/", EVERYTHING) as stream:
        assert sorted(await numbers(stream, 100)) == list(range(100))
        await moto.until_empty(queue)
        await nothing_else_on(stream, daemon)
    assert proxy.operations.count("ReceiveMessage") >= 100 / batch


@pytest.mark.timeout(150)
async def test_items_of_three_queues_arrive_complete_and_once(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """2,000 of each, of two standard queues and a FIFO one, whose groups keep their order."""
    number, groups = 2000, 8
    plain, other, fifo = queues = [new_queue(moto), new_queue(moto), new_queue(moto, fifo=True)]

    def send() -> None:
        for start in range(0, number, 250):
            part = range(start, start + 250)
            for name in (plain, other):
                moto.send_many(name, [{"pubsub_path": name, "n": n} for n in part])
            group = f"group {start // 250 % groups}"
            moto.send_many(fifo, [{"pubsub_path": fifo, "n": n, "group": group} for n in part], group)

    daemon = start_daemon(reading(moto, *queues, sections=stored_in("file", tmp_path)))
    sent = asyncio.create_task(asyncio.to_thread(send))
    came: dict[str, list[int]] = defaultdict(list)
    in_groups: dict[str, list[int]] = defaultdict(list)
    async with daemon.subscriber("/") as stream:
        for _ in range(3 * number):
            event = await stream.event()
            came[event["pubsub_path"].strip("/")].append(event["n"])
            if "group" in event:
                in_groups[event["group"]].append(event["n"])
        await sent
        for queue in queues:
            await moto.until_empty(queue)
        await nothing_else_on(stream, daemon)
    assert {name: sorted(found) for name, found in came.items()} == {
        name: list(range(number)) for name in queues
    }
    assert len(in_groups) == groups
    assert all(found == sorted(found) for found in in_groups.values())
