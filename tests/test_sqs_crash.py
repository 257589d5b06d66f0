"""Items of queues over crashes: kill -9 while they come, again and again, and each is an event once."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from aws import Moto
from aws_proxy import AwsProxy, Do
from daemon import StartDaemon
from queues import config, new_queue
from wire import EVERYTHING, Stream

pytestmark = pytest.mark.timeout(180)  # on a machine that others use too
ROUNDS = 6
GROUPS = ("a", "b", "c")
Sent = dict[str, list[int]]  # by queue and group, in order


class Witness:
    """A subscriber that comes again after each crash, and goes on where it was."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self._wanted = 0
        self._enough = asyncio.Event()

    @property
    def start(self) -> dict[str, str]:
        """Where it goes on."""
        return {"X-Fetch-Since-Cursor": self.seen[-1]["pubsub_cursor"]} if self.seen else EVERYTHING

    async def watch(self, stream: Stream) -> None:
        """Note what a stream shows until it breaks."""
        assert stream.headers["X-Replay"] == "complete"
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                self.seen.append(await stream.event())
                if len(self.seen) >= self._wanted:
                    self._enough.set()

    async def until_seen(self, number: int) -> None:
        """Wait until it has seen so many events in all."""
        self._wanted = number
        self._enough.clear()
        if len(self.seen) < number:
            await self._enough.wait()


def send(moto: Moto, queue: str, numbers: "count[int]", sent: Sent) -> None:
    """A few items for each of a queue's groups; a queue that is not FIFO has one, without order."""
    for group in GROUPS if queue.endswith(".fifo") else (None,):
        key = f"{queue} {group}"
        batch = [next(numbers) for _ in range(4 if group else 12)]
        bodies = [{"pubsub_path": "/items", "key": key, "n": n} for n in batch]
        moto.send_many(queue, bodies, group)
        sent.setdefault(key, []).extend(batch)


async def keep_sending(moto: Moto, queues: Sequence[str], sent: Sent, stop: asyncio.Event) -> None:
    """Send items to all queues until told to stop."""
    numbers = count()
    while not stop.is_set():
        for queue in queues:
            await asyncio.to_thread(send, moto, queue, numbers, sent)


def by_key(events: Sequence[dict[str, Any]]) -> Sent:
    """The numbers of events by queue and group."""
    found: Sent = {}
    for event in events:
        found.setdefault(event["key"], []).append(event["n"])
    return {key: found[key] if ".fifo" in key else sorted(found[key]) for key in found}


async def test_every_item_is_an_event_once_over_many_crashes(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Each item is in the replay and was seen by a subscriber that resumed: once, each group in order."""
    queues = [new_queue(moto), new_queue(moto, fifo=True)]
    settings = {queue: moto.settings(queue, visibility=2, wait=1) for queue in queues}
    daemon = start_daemon(config(settings, tmp_path / "backlog.db"))
    witness, sent, dice, stop = Witness(), Sent(), random.Random(4), asyncio.Event()
    sending = asyncio.create_task(keep_sending(moto, queues, sent, stop))
    for _ in range(ROUNDS):
        async with daemon.subscriber("/items", witness.start) as stream, asyncio.TaskGroup() as tasks:
            tasks.create_task(witness.watch(stream))
            await witness.until_seen(len(witness.seen) + dice.randrange(1, 60))
            await asyncio.to_thread(daemon.stop, signal.SIGKILL)
        await asyncio.to_thread(daemon.start)
    stop.set()
    await sending
    for queue in queues:
        await moto.until_empty(queue)
    async with daemon.subscriber("/items", witness.start) as stream:
        assert stream.headers["X-Replay"] == "complete"
        witness.seen += await stream.replay()
    async with daemon.subscriber("/items", EVERYTHING) as stream:
        assert stream.headers["X-Replay"] == "complete"
        replayed = await stream.replay()
    assert by_key(replayed) == sent
    assert witness.seen == replayed
    assert len(sent) == 1 + len(GROUPS)


@pytest.mark.parametrize("fifo", [False, True])
async def test_a_crash_between_storing_and_deleting_publishes_nothing_again(
    moto: Moto, start_daemon: StartDaemon, tmp_path: Path, fifo: bool
) -> None:
    """Crash upon crash, each with an item whose deletion is under way."""
    queue = new_queue(moto, fifo=fifo)
    group = "a" if fifo else None
    async with AwsProxy(moto.url) as proxy:
        settings = moto.settings(queue, endpoint_url=proxy.url, visibility=1, wait=1)
        daemon = start_daemon(config({"q": settings}, tmp_path / "backlog.db"))
        for n in range(3):
            proxy.on("DeleteMessageBatch", Do.HANG)
            await asyncio.to_thread(moto.send, queue, {"pubsub_path": "/q", "n": n}, group)
            await proxy.until_hanging()
            await asyncio.to_thread(daemon.stop, signal.SIGKILL)
            await proxy.until_hanging(0)
            proxy.heal()
            if n == 1:  # it is known for good, and not only to the next life
                await asyncio.to_thread(daemon.start)
                await asyncio.to_thread(daemon.stop)
            await asyncio.to_thread(daemon.start)
            await moto.until_empty(queue)
            assert (await daemon.replay("/q", **EVERYTHING))[1] == list(range(n + 1))
        await asyncio.to_thread(daemon.stop)
