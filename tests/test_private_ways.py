"""Which way a subscription takes does not depend on private events that it may not see.

Ways take times, and who asks often enough can tell them apart: by when a stream joins, whether it waits for a
write, is read from memory or from the file. So the ways are compared here, and not the times.
"""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from core.delivery.catch_up import CatchUpContext, Follower
from core.delivery.fanout import Fanout
from core.delivery.subscriber import Subscriber
from core.delivery.wire import BARE
from core.events.cursor import Mark, Stamps
from core.events.intake import Intake
from core.events.replay import ReplayRequest
from core.events.store import PORTION, Accepted
from core.events.subscription import EVERYTHING
from core.events.topics import publish_path
from core.http.stream import Stream
from core.settings import ServerConfig
from plugins.backlog.file import StoredBacklog
from plugins.backlog.memory import Backlog
from plugins.backlog.settings import BacklogConfig
from stores import selected
from test_model import NO_LIMITS, Thread

PING = b'{"stillalive": 0.0}\n'


class World:
    """A store, its threads, which work when they are told to, and what came to pass for a reader."""

    def __init__(self, directory: Path | None) -> None:
        self.fanout = Fanout(backlog=True)
        self.threads = [Thread(), Thread()]
        self.store: Backlog
        if directory:
            config = BacklogConfig(size=100, storage=str(directory / "backlog.db"))
            self.store = StoredBacklog(config, ServerConfig(), directory / "backlog.db", self.fanout)
            self.store._writing, self.store._reading = self.threads  # type: ignore[assignment]
        else:
            self.store = Backlog(BacklogConfig(size=100), self.fanout)
        self.intake = Intake(self.store, self.fanout, 600)
        clock = itertools.count(1_795_489_256_376_269_300, 1000)  # nanoseconds: a microsecond for each look
        self.store._stamps = Stamps(clock.__next__, clock.__next__)

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something to its end, with all threads at work."""
        task = asyncio.create_task(coroutine)
        while not task.done():
            await asyncio.sleep(0)
            for thread in self.threads:
                thread.step()
        return task.result()

    async def publish(self, path: str) -> str:
        """Publish an event; its cursor."""

        async def accepted() -> str:
            return (await self.begin_to_publish(path)).last.cursor

        cursor = await self.run(accepted())
        assert isinstance(cursor, str)
        return cursor

    def begin_to_publish(self, path: str, count: int = 1) -> asyncio.Future[Accepted]:
        """Publish so many events, which wait to be stored."""
        return self.intake.take(publish_path(path), ['{"n": 1'] * count, None).answer

    async def way(self, asked: ReplayRequest | None) -> list[str]:
        """What comes to pass, in its order, until an anonymous reader gets its first ping, or the end."""
        steps: list[str] = []
        turns = 0
        here, there = socket.socketpair()
        here.setblocking(False)
        there.setblocking(False)

        async def subscribe() -> None:
            now = await self.store.now(private=False)
            steps.append("has its moment")
            await self.store.settle(now.position, private=False)
            steps.append("need not wait for anything")
            placement = await self.store.place(asked, Mark(now.position, now.timestamp), selected())
            steps.append(f"is told {placement.verdict}")
            stream = Stream(NO_LIMITS, None, "closed", writing_paused=False)
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_accepted_socket(lambda: stream, here)
            subscriber = Subscriber("", EVERYTHING, BARE, transport, stream, stream.drain, 2**20)
            self.fanout.add(subscriber)
            context = CatchUpContext(self.fanout, self.store, 60.0, lambda: 0.0)
            stream.serve(Follower(subscriber, now.position, context).begin(placement))
            steps.append("has joined" if subscriber.ping_turn is not None else "reads")

        task = asyncio.create_task(subscribe())
        received = b""
        ended = False
        while not received.endswith(PING) and not ended:
            await asyncio.sleep(0)
            turns += 1
            if not turns % 20:  # it gets no further by itself
                writer, reader = self.threads
                if reader.step():
                    steps.append("waits for the reader")
                elif writer.step():
                    steps.append("waits for the writer")
            with contextlib.suppress(BlockingIOError):
                received += (piece := there.recv(10_000))
                ended = not piece
        await task
        there.close()
        return [*steps, f"gets {received.removesuffix(PING).count(b'{')} events"]


@contextlib.asynccontextmanager
async def world(directory: Path | None) -> AsyncIterator[World]:
    """One, as long as it is needed."""
    here = World(directory)
    await here.run(here.intake.open())
    running = asyncio.create_task(here.store.run())
    try:
        yield here
    finally:
        running.cancel()
        await here.run(asyncio.wait([running]))
        await here.run(here.store.stop())


async def after_a_private_event(here: World) -> None:
    """The last that was published is private."""
    await here.publish("/private/a")


async def while_one_is_stored(here: World) -> None:
    """A private event waits for the disk."""
    here.begin_to_publish("/private/a")


async def in_a_private_batch(here: World) -> None:
    """A long private batch is being stamped, with turns of the loop for others in between."""
    here.begin_to_publish("/private/a", 10 * PORTION)
    await asyncio.sleep(0)
    await asyncio.sleep(0)


PRIVATE = [after_a_private_event, while_one_is_stored, in_a_private_batch]


@pytest.mark.parametrize("in_file", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("asks", ["cursor", "since", "live", "last", "until", "limit"])
@pytest.mark.parametrize("happens", PRIVATE, ids=lambda happens: happens.__name__)
async def test_the_way_is_the_same_with_private_events_and_without(
    tmp_path: Path, in_file: bool, asks: str, happens: Callable[[World], Coroutine[Any, Any, None]]
) -> None:
    """By whichever place in the order of events somebody asks."""
    ways = []
    for private in (False, True):
        directory = tmp_path / str(private)
        directory.mkdir()
        async with world(directory if in_file else None) as here:
            cursor = await here.publish("/a")
            if private:
                await happens(here)
            asked = {
                "cursor": ReplayRequest(cursor=cursor),
                "since": ReplayRequest(since=0.0),
                "last": ReplayRequest(last=2),
                "until": ReplayRequest(cursor=cursor, until=2e9),
                "limit": ReplayRequest(since=0.0, limit=2),
            }.get(asks)
            ways.append(await here.way(asked))
    assert ways[0] == ways[1]
    assert ("has joined" in ways[0]) == (asks in ("cursor", "live"))


async def test_the_way_is_the_same_after_a_restart_whose_last_event_is_private(tmp_path: Path) -> None:
    """Who goes on from the last public event is not sent to the file, where there is nothing more for it."""
    ways = []
    for private in (False, True):
        directory = tmp_path / str(private)
        directory.mkdir()
        async with world(directory) as here:
            cursor = await here.publish("/a")
            if private:
                await here.publish("/private/a")
        async with world(directory) as here:
            way = await here.way(ReplayRequest(cursor=cursor))
            await here.publish("/a")
            ways.append(
                [way, await here.way(ReplayRequest(cursor=cursor)), await here.way(ReplayRequest(last=1))]
            )
    assert ways[0] == ways[1]
    assert "has joined" in ways[0][0]
    assert "waits for the reader" not in ways[0][1] + ways[0][2]
