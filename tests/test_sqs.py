"""Items of queues become events: where they go, what subscribers see, and each of them once."""

import asyncio
import json
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aws import Moto
from aws_proxy import AwsProxy, Do, Reply
from daemon import Daemon, basic
from queues import backlog, new_queue, next_line, nothing_else_on, numbers, reading, without_stamp

StartDaemon = Callable[..., Daemon]
STORES = ("none", "memory", "file")
EVERYTHING = {"X-Fetch-Since": "-1"}
ACL = {
    "alice": {"password": "secret", "acl": {"office": ["hr"]}},
    "bob": {"password": "secret", "acl": {"office": ["board"]}},
}
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


@pytest.fixture(scope="module")
def shared_queue(shared_moto: Moto) -> str:
    """A queue that the shared reader reads, empty again after each test."""
    return new_queue(shared_moto)


@pytest.fixture(scope="module")
def reader(
    shared_moto: Moto, shared_queue: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon that reads it, without a backlog."""
    daemon = Daemon(tmp_path_factory.mktemp("reader"), reading(shared_moto, shared_queue))
    daemon.write_acl(ACL)
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def queue(moto: Moto) -> str:
    """A queue of the test's own, whose items come up again after a second."""
    return new_queue(moto, VisibilityTimeout=1)


@pytest.fixture
async def proxy(moto: Moto) -> AsyncIterator[AwsProxy]:
    """Between a daemon and the AWS."""
    async with AwsProxy(moto.url) as proxy:
        yield proxy


def stored_in(store: str, directory: Path, **server: Any) -> dict[str, Any]:
    """The sections of a daemon with such a backlog."""
    if store == "none":
        return {"server": server}
    return backlog(directory / "backlog.db" if store == "file" else None, **server)


async def restart(daemon: Daemon) -> None:
    """Stop it, and start it again."""
    assert await asyncio.to_thread(daemon.stop) == 0
    daemon.start()


# Where items go


@pytest.mark.parametrize(
    ("path", "topics", "shown"),
    [
        ("/fruits/apples", ["fruits", "apples"], "/fruits/apples"),
        ("fruits/apples", ["fruits", "apples"], "/fruits/apples"),
        ("//fruits//apples/", ["fruits", "apples"], "/fruits/apples"),
        ("a/a", ["a", "a"], "/a/a"),
        ("/a/private", ["a", "private"], "/a/private"),
        ("/", [], "/"),
        ("", [], "/"),
        ("/a%2Fb/%41%00%zz?c#d", ["a%2Fb", "%41%00%zz?c#d"], "/a%2Fb/%41%00%zz?c#d"),
        ("/é/😀 \x00\n", ["é", "😀 \x00\n"], "/é/😀 \x00\n"),
    ],
)
async def test_the_path_of_an_item_is_text(
    moto: Moto, reader: Daemon, shared_queue: str, path: str, topics: list[str], shown: str
) -> None:
    """With and without a slash before it, and percent signs mean nothing."""
    async with reader.subscriber("/") as stream:
        moto.send(shared_queue, {"pubsub_path": path})
        event = await stream.event()
    assert (event["pubsub_topics"], event["pubsub_path"]) == (topics, shown)


async def test_an_item_without_a_path_is_for_subscribers_to_everything(
    moto: Moto, reader: Daemon, shared_queue: str
) -> None:
    """It has no topics; an object without any key is a good item."""
    async with reader.subscriber("/") as everything, reader.subscriber("/fruits") as fruits:
        moto.send_many(shared_queue, ["{}", {"n": 1}, {"n": 2, "pubsub_path": "/fruits"}])
        first = await everything.event()
        assert list(first) == ["pubsub_topics", "pubsub_path", "pubsub_timestamp", "pubsub_cursor"]
        assert (first["pubsub_topics"], first["pubsub_path"]) == ([], "/")
        assert await numbers(everything, 2) == [1, 2]
        assert await numbers(fruits, 1) == [2]


async def test_private_items_are_for_those_with_the_right(
    moto: Moto, reader: Daemon, shared_queue: str
) -> None:
    """Whether or not a slash stands before `private`; others see that there is nothing."""
    async with (
        reader.subscriber("/", basic("alice")) as alice,
        reader.subscriber("/", basic("bob")) as bob,
        reader.subscriber("/private/hr") as nobody,
        reader.subscriber("/") as anybody,
    ):
        paths = ["/private/hr", "private/hr/pay", "/hr/private"]
        moto.send_many(shared_queue, [{"pubsub_path": path, "n": path} for path in paths])
        assert await numbers(alice, 3) == paths
        for other in (bob, nobody, anybody):
            assert await numbers(other, 1) == ["/hr/private"]


async def test_an_event_has_its_own_keys(moto: Moto, reader: Daemon, shared_queue: str) -> None:
    """Whatever the item says of them; what else it says stays, in its order."""
    body = (
        '{"z": 1, "pubsub_timestamp": 1, "pubsub_topics": ["x"], "pubsub_path": "/a", '
        '"pubsub_cursor": "x", "pubsub_other": "stays", "a": [{"pubsub_path": "deeper"}]}'
    )
    before = time.time()
    async with reader.subscriber("/") as stream:
        moto.send(shared_queue, body)
        event = await stream.event()
    stamp = ["pubsub_topics", "pubsub_path", "pubsub_timestamp", "pubsub_cursor"]
    assert list(event) == ["z", "pubsub_other", "a", *stamp]
    assert event["pubsub_topics"] == ["a"]
    assert before <= event["pubsub_timestamp"] <= time.time()
    assert len(event["pubsub_cursor"]) == 36
    assert (event["pubsub_other"], event["a"]) == ("stays", [{"pubsub_path": "deeper"}])


@pytest.mark.parametrize(
    "rest",
    [
        '"n": 1',
        '"é": "\\u00e9 ü 😀 \\ud83d\\ude00", "tab": "\\t"',
        '"n": [1.0, 1e5, -0.0, 123456789012345678901234567890, true, null]',
        '"n": 1, "n": {"deep": [{"er": {}}]}',
        '\n  "spaced" :\t[ 1 ,2 ]\r\n',
    ],
)
async def test_subscribers_cannot_tell_an_item_from_a_publish(
    moto: Moto, reader: Daemon, shared_queue: str, rest: str
) -> None:
    """The same payload gives the same bytes, but for the stamp."""
    async with reader.subscriber("/a") as stream:
        moto.send(shared_queue, f'{{"pubsub_path": "/a/b", {rest}}}')
        from_queue = await next_line(stream)
        await reader.put("/a/b", f"{{{rest}}}".encode())
        assert without_stamp(from_queue) == without_stamp(await next_line(stream))


# What is kept of them


@pytest.mark.parametrize("store", ["memory", "file"])
async def test_items_are_replayed(
    moto: Moto, start_daemon: StartDaemon, queue: str, tmp_path: Path, store: str
) -> None:
    """Since a time and after a cursor, among publishes and in the order and the bytes of the live stream."""
    daemon = start_daemon(reading(moto, queue, sections=stored_in(store, tmp_path)))
    live = []
    async with daemon.subscriber("/a") as stream:
        for n in range(3):
            moto.send(queue, {"pubsub_path": "/a", "n": f"item {n}"})
            live.append(await next_line(stream))
            await daemon.put("/a", {"n": f"publish {n}"})
            live.append(await next_line(stream))
        events = [json.loads(line) for line in live]
        cursors = [event["pubsub_cursor"] for event in events]
        assert cursors == sorted(set(cursors))
    for restarted in (False, store == "file"):
        if restarted:
            await restart(daemon)
        for asked, skipped in [({"X-Fetch-Since-Cursor": cursors[2]}, 3), (EVERYTHING, 0)]:
            async with daemon.subscriber("/a", asked) as stream:
                assert [await next_line(stream) for _ in live[skipped:]] == live[skipped:]


async def test_items_and_publishes_have_one_order(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Of two queues and a publisher at the same time: live and replayed the same, cursors rise."""
    queues = [new_queue(moto) for _ in range(2)]
    daemon = start_daemon(reading(moto, *queues, sections=stored_in("file", tmp_path)))
    async with daemon.subscriber("/", EVERYTHING) as stream:

        async def publish() -> None:
            for n in range(50):
                await daemon.put("/a", {"n": n})

        bodies = [{"pubsub_path": "/a", "n": n} for n in range(50)]
        sending = [asyncio.to_thread(moto.send_many, queue, bodies) for queue in queues]
        await asyncio.gather(publish(), *sending)
        live = [await next_line(stream) for _ in range(150)]
    cursors = [json.loads(line)["pubsub_cursor"] for line in live]
    assert cursors == sorted(set(cursors))
    async with daemon.subscriber("/", EVERYTHING) as stream:
        assert [await next_line(stream) for _ in live] == live


@pytest.mark.parametrize("store", ["memory", "file"])
async def test_a_backlog_keeps_no_more_items_than_its_size(
    moto: Moto, start_daemon: StartDaemon, queue: str, tmp_path: Path, store: str
) -> None:
    """Also when nothing is published after them."""
    sections = stored_in(store, tmp_path)
    sections["server"]["backlog"]["size"] = 5
    moto.send_many(queue, [{"pubsub_path": "/a", "n": n} for n in range(20)])
    daemon = start_daemon(reading(moto, queue, sections=sections))
    await moto.until_empty(queue)
    assert (await daemon.replay("/a", X_Fetch_Since="-1"))[1] == [15, 16, 17, 18, 19]


# Once


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
    assert len((await daemon.replay("/", X_Fetch_Since="-1"))[1]) == 15


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


async def test_a_stop_at_the_moment_of_a_failure_ends_the_server(
    moto: Moto, start_daemon: StartDaemon, proxy: AwsProxy
) -> None:
    """The connections of all consumers are reset, and the signal comes while that is dealt with."""
    queues = [new_queue(moto) for _ in range(4)]
    for queue in queues:
        moto.send_many(queue, [{"n": n} for n in range(100)])
    proxy.on("ReceiveMessage", Do.HANG)
    proxy.on("ReceiveMessage", Do.PASS, times=30)
    daemon = start_daemon(reading(moto, *queues, endpoint_url=proxy.url))
    await proxy.until_hanging(16)
    proxy.cut()
    daemon.signal(signal.SIGTERM)
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
