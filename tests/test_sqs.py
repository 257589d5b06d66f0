"""Items of queues become events: where they go, what subscribers see of them, and what is kept."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aws import Moto
from daemon import Daemon, StartDaemon, basic
from queues import new_queue, next_line, numbers, reading, restart, stored_in, without_stamp
from wire import EVERYTHING

ACL = {
    "alice": {"password": "secret", "acl": {"office": ["hr"]}},
    "bob": {"password": "secret", "acl": {"office": ["board"]}},
}


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
    assert (await daemon.replay("/a", **EVERYTHING))[1] == [15, 16, 17, 18, 19]
