"""Many who read the backlog at once: what they have in common is made once, and nobody gets another's."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from core.auth.networks import Networks
from core.auth.rights import EVERY_EVENT, NO_RIGHTS, Rights, is_for
from core.counters import counters
from core.delivery.catch_up import CatchUpContext, Follower
from core.delivery.fanout import Fanout
from core.delivery.subscriber import Subscriber
from core.delivery.wire import BARE, CHUNKED, JsonLines, Wire
from core.events.replay import Placement
from core.events.selection import Selection
from core.events.store import Page
from core.events.subscription import Subscription, parse_subscription
from core.events.topics import publish_path
from core.http.limits import Connections
from core.http.stream import Stream
from plugins.backlog.unstored import Unstored

PATHS = ["/a", "/b", "/a/b", "/private/a", "/private/b/c"]
EVENTS = 100
PER_PAGE = 10
PING = b'{"stillalive": 0.0}\n'


class Line(NamedTuple):
    """An event of the backlog."""

    position: int
    path: str
    line: bytes


class Pages(Unstored):
    """A backlog of events at the positions 1, 2, 3, ..., which is asked for in another turn of the loop."""

    def __init__(self, fanout: Fanout) -> None:
        super().__init__(fanout)
        self.lines = [Line(n, PATHS[n % len(PATHS)], b'{"n": %d}\n' % n) for n in range(1, EVENTS + 1)]
        self.reading: Callable[[], None] | None = None  # called once, while somebody waits for a page

    def end(self, *, private: bool) -> int:  # noqa: ARG002
        """The last of them."""
        return EVENTS

    async def read(self, after: int, upto: int, selection: Selection, most: int | None = None) -> Page:  # noqa: ARG002
        """What comes next."""
        await asyncio.sleep(0)
        if self.reading:
            self.reading()
            self.reading = None
        end = min(after + PER_PAGE, upto)
        lines = [line for line in self.lines[after:end] if selection.wanted[line.path]]
        first = lines[0].position if lines else 0
        return Page(end, selection.frames([line.line for line in lines]), len(lines), first)

    def stream(self, subscription: Subscription, rights: Rights, wire: Wire, head: int) -> bytes:
        """What somebody is to get of it, with a ping where the replay ends."""
        wanted = [line for line in self.lines if is_for(publish_path(line.path), subscription, rights)]
        replay, live = (
            [wire.event(line.line) for line in wanted if (line.position > head) is live]
            for live in (False, True)
        )
        return b"".join([*replay, wire.event(PING), *live])


class Crowd:
    """Followers of one backlog."""

    def __init__(self) -> None:
        self.fanout = Fanout(backlog=True)
        self.store = Pages(self.fanout)
        self._context = CatchUpContext(self.fanout, self.store, 60.0, lambda: 0.0)
        self._streams: list[tuple[Stream, asyncio.StreamWriter]] = []

    async def follow(
        self, subscription: Subscription, rights: Rights, wire: Wire, head: int = EVENTS
    ) -> tuple[Subscriber, asyncio.StreamReader]:
        """Another one, who reads all of it, and what it gets. Its replay ends at the head of its stream."""
        here, there = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=there, limit=2**20)
        stream = Stream(Connections(1, 0, 0, Networks([])), None, "closed", writing_paused=False)
        here.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_accepted_socket(lambda: stream, here)
        subscriber = Subscriber("", subscription, wire, transport, stream, stream.drain, 2**20)
        subscriber.rights = rights
        self.fanout.add(subscriber)
        follower = Follower(subscriber, head, self._context)
        stream.serve(follower.begin(Placement(0, "complete")))
        self._streams.append((stream, writer))
        return subscriber, reader

    def close(self) -> None:
        """Have all of them leave."""
        for stream, writer in self._streams:
            stream.connection_lost(None)
            writer.close()


@contextlib.asynccontextmanager
async def crowd() -> AsyncIterator[Crowd]:
    """Followers, as long as they are needed."""
    here = Crowd()
    try:
        yield here
    finally:
        here.close()


async def test_a_crowd_has_each_page_made_once() -> None:
    """Though all of them come at the same moment."""
    made = 0

    def counted(line: bytes) -> bytes:
        """A frame that is the line, counted."""
        nonlocal made
        made += line != PING
        return line

    wire = JsonLines(counted, b"")
    subscription, rights = parse_subscription("/a"), Rights(frozenset({EVERY_EVENT}))
    delivered, replays = counters.deliveries_from_backlog, counters.replays["complete"]
    async with crowd() as here:
        readers = [await here.follow(subscription, rights, wire) for _ in range(50)]
        streams = [await reader.readuntil(PING) for _, reader in readers]
    assert set(streams) == {here.store.stream(subscription, rights, BARE, EVENTS)}
    assert made == streams[0].count(b"\n") - 1
    assert counters.deliveries_from_backlog - delivered == 50 * made  # though they are made once
    assert counters.replays["complete"] - replays == 50


async def test_everybody_gets_their_own() -> None:
    """Whatever others ask for at the same moment, in whatever form, with whatever rights."""
    dice = random.Random(7)
    deliveries, size = counters.deliveries, counters.delivered_bytes
    rights = [NO_RIGHTS, *(Rights(frozenset({frozenset(topics)})) for topics in ("a", "b", "bc", ""))]
    async with crowd() as here:
        followers = []
        for _ in range(60):
            subscription = parse_subscription(dice.choice(["/", "/a", "/b", "/a,b", "/private"]))
            wire, may = dice.choice([BARE, CHUNKED]), dice.choice(rights)
            head = dice.choice([EVENTS, EVENTS, PER_PAGE, 35])
            _, reader = await here.follow(subscription, may, wire, head)
            followers.append((reader, here.store.stream(subscription, may, wire, head)))
        for reader, expected_bytes in followers:
            assert await reader.readexactly(len(expected_bytes)) == expected_bytes
    every = [expected_bytes for _, expected_bytes in followers]
    assert counters.deliveries - deliveries == sum(each.count(b'"n"') for each in every)
    pings = sum(len((CHUNKED if CHUNKED.ping(0.0) in each else BARE).ping(0.0)) for each in every)
    assert counters.delivered_bytes - size == sum(map(len, every)) - pings


async def test_rights_that_come_while_a_page_is_read_are_not_taken_for_those_it_was_read_with() -> None:
    """It lacks private events, which another one with these rights gets."""
    all_rights = Rights(frozenset({EVERY_EVENT}))
    subscription = parse_subscription("/")
    async with crowd() as here:
        first, _ = await here.follow(subscription, NO_RIGHTS, BARE)
        here.store.reading = lambda: setattr(first, "rights", all_rights)
        _, reader = await here.follow(subscription, all_rights, BARE)
        expected = here.store.stream(subscription, all_rights, BARE, EVENTS)
        assert await reader.readexactly(len(expected)) == expected
