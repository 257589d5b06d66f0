"""An event's way to its subscribers: match, gather, and one write to each at the end of a turn of the loop.

Subscribers who follow the same topics with the same rights in the same wire form stand in one channel. What
is published in one turn of the event loop is gathered by channel and joined once, then the same bytes are
written to each of them. A crowd is written to in slices, a turn of the loop for each, so that requests and
other channels need not wait for all of it; what is published meanwhile is gathered for the channel's next
round.

A subscriber for whom too much waits falls behind: it leaves its channel, at a known position, and comes back
when it has read the rest from the backlog. Without a backlog it is dropped.

Publishers may be faster than all that. Who brings events asks has_room first, and waits for room(), so that
what is gathered stays small and nobody's turn gets long.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Iterable, Iterator

from core.auth.rights import Rights, Segment, is_for, private_batches
from core.delivery.registry import Registry
from core.delivery.subscriber import Subscriber, send_to_all
from core.delivery.wire import Wire
from core.events.event import Event
from core.events.subscription import Subscription
from core.events.topics import PublishPath

_SLICE = 250  # subscribers written to in a turn of the loop, which takes about a millisecond
_JOIN_BYTES = 64 * 1024  # frames are joined up to about this size
_GATHER_BYTES = 256 * 1024  # with more than this gathered in a channel there is no room
_GATHER_FRAMES = 50_000  # the same for all channels together, each of which may gather the same event
PING_TURNS = 5  # in a ping interval, each for some of the subscribers; 10 took a fifth more CPU time


Key = tuple[Subscription, frozenset[Segment], Wire]


def key_of(subscriber: Subscriber) -> Key:
    """Subscribers for whom this is equal get the same bytes."""
    return subscriber.subscription, subscriber.rights.sees, subscriber.wire


class Channel:
    """The subscribers who get the same bytes, and the frames gathered for them.

    like: a subscriber such as they are.
    """

    __slots__ = (
        "_begun",
        "_crowd",
        "_gathered_end",
        "_left",
        "_newcomers",
        "_ping",
        "_pinged",
        "_pings",
        "_writes",
        "_writes_with_ping",
        "gathered",
        "gathered_bytes",
        "private_batches",
        "queued",
        "rights",
        "round_end",
        "subscribers",
        "subscription",
        "wire",
    )

    def __init__(self, like: Subscriber) -> None:
        self.subscription, self.rights, self.wire = like.subscription, like.rights, like.wire
        self.private_batches = private_batches(self.subscription, self.rights.sees)
        self.subscribers: dict[Subscriber, None] = {}  # in the order in which they came: see _begin_round()
        self.gathered: list[bytes] = []
        self.gathered_bytes = 0
        self.queued = False  # for its turn in Fanout._write_slice()
        self._gathered_end = 0  # position of the last event that was gathered
        self._ping = b""
        self._pings: dict[Subscriber, None] = {}  # for whom it is in the next round
        self._newcomers: dict[Subscriber, int] = {}  # -> the first of the gathered frames that is for them
        # the round that is being written
        self.round_end = 0  # position of the last event in it, or before it
        self._writes: list[bytes] = []  # its bytes
        self._pinged: dict[Subscriber, None] = {}  # who of them gets others, with a ping
        self._writes_with_ping: list[bytes] = []
        self._crowd: list[Subscriber] = []  # who gets any; empty when all have been written to
        self._begun = 0  # how many of them have been
        self._left: set[Subscriber] = set()  # who has left since the round began

    def may_see(self, path: PublishPath) -> bool:
        """Whether events of this path are for these subscribers."""
        return is_for(path, self.subscription, self.rights)

    @property
    def busy(self) -> bool:
        """Whether anything is still to be written."""
        return bool(self.gathered or self._pings or self._crowd)

    def add(self, subscriber: Subscriber, position: int) -> None:
        """Write to a subscriber from now on, but nothing of what is gathered already.

        position: of the last event that the subscriber has had.
        """
        self.subscribers[subscriber] = None
        self._gathered_end = max(self._gathered_end, position)
        if self.gathered:
            self._newcomers[subscriber] = len(self.gathered)

    def remove(self, subscriber: Subscriber) -> None:
        """Undo add()."""
        del self.subscribers[subscriber]
        self._newcomers.pop(subscriber, None)
        self._pings.pop(subscriber, None)
        if self._crowd:
            self._left.add(subscriber)

    def gather(self, frame: bytes, position: int) -> None:
        """Have an event's frame written in the next round."""
        self.gathered.append(frame)
        self.gathered_bytes += len(frame)
        self._gathered_end = position

    def ping(self, subscriber: Subscriber, frame: bytes) -> None:
        """Have a subscriber sent a ping in the next round, behind all events."""
        self._ping = frame
        self._pings[subscriber] = None

    def write(self, limit: int) -> tuple[int, list[Subscriber]]:
        """Write the round's bytes to up to so many subscribers. To how many, and for whom something waits."""
        waiting = [] if self._crowd else self._begin_round()
        some = self._crowd[self._begun : self._begun + limit]
        count = len(some)
        self._begun += count
        if self._left:
            some = [subscriber for subscriber in some if subscriber not in self._left]
        if self._begun == len(self._crowd):
            self._crowd, self._begun = [], 0
            self._left.clear()
        if self._pinged:
            pinged = [subscriber for subscriber in some if subscriber in self._pinged]
            waiting += _write(pinged, self._writes_with_ping)
            some = [subscriber for subscriber in some if subscriber not in self._pinged]
        return count, waiting + _write(some, self._writes)

    def _begin_round(self) -> list[Subscriber]:
        """Take what is gathered as the round's bytes, and write those of newcomers. For whom some wait."""
        frames, self.gathered, self.gathered_bytes = self.gathered, [], 0
        self.round_end = self._gathered_end
        self._pinged, self._pings = self._pings, {}
        if not frames:
            self._crowd, self._pinged = list(self._pinged), {}
            self._writes = [self._ping]
            return []
        newcomers, self._newcomers = self._newcomers, {}
        self._writes = _joined(frames)
        self._writes_with_ping = _joined([*frames, self._ping]) if self._pinged else []
        # sockets that were opened one after the other lie side by side in the kernel's memory: in a random
        # order its part of a delivery takes a tenth longer
        self._crowd = list(self.subscribers)
        if newcomers:
            self._crowd = [each for each in self._crowd if each not in newcomers]
        waiting = []
        for subscriber, first in newcomers.items():
            ping = [self._ping] if subscriber in self._pinged else []
            waiting += _write([subscriber], _joined(frames[first:] + ping))
        return waiting


def _write(subscribers: list[Subscriber], writes: list[bytes]) -> list[Subscriber]:
    """Write the same to each. For whom something waits: also after the last write, if after any."""
    waiting: list[Subscriber] = []
    for data in writes:
        waiting = send_to_all(subscribers, data)
    return waiting


def _joined(frames: list[bytes]) -> list[bytes]:
    """The frames in few pieces, so that a long turn does not become one write of any size."""
    pieces = []
    start = size = 0
    for index, frame in enumerate(frames):
        if size and size + len(frame) > _JOIN_BYTES:
            pieces.append(b"".join(frames[start:index]))
            start, size = index, 0
        size += len(frame)
    if size:
        pieces.append(b"".join(frames[start:]))
    return pieces


class Fanout:
    """All subscribers, and what is on its way to them.

    backlog: whether there is one to go on from for subscribers who have fallen behind.
    """

    def __init__(self, *, backlog: bool) -> None:
        self.backlog = backlog
        self._registry: Registry[Channel] = Registry()
        self._private: Registry[Channel] = Registry()  # for private events, those with the right to any
        self._channels: dict[Key, Channel] = {}
        self._queue: deque[Channel] = deque()  # those with something to write
        self._live = 0  # subscribers in channels
        self._reading: set[Subscriber] = set()  # subscribers who read the backlog
        self._end = 0  # position up to which everything has been delivered
        self._pinged: list[dict[Subscriber, Channel]] = [{} for _ in range(PING_TURNS)]  # those live, by turn
        self._ping_turn = 0
        self._gathered = 0  # frames, in all channels together
        self._congested: set[Channel] = set()  # those that have gathered too much
        self._waiting: list[asyncio.Future[None]] = []  # for room

    def __len__(self) -> int:
        return self._live + len(self._reading)

    def __iter__(self) -> Iterator[Subscriber]:
        yield from self._reading
        for channel in self._channels.values():
            yield from channel.subscribers

    def add(self, subscriber: Subscriber) -> None:
        """A subscriber is there, who reads the backlog first, if there is one."""
        self._reading.add(subscriber)

    def join(self, subscriber: Subscriber, position: int) -> None:
        """From now on the subscriber gets what it asked for; up to that position it has had everything."""
        self._end = max(self._end, position)
        self._reading.remove(subscriber)
        self._join(subscriber)

    def _join(self, subscriber: Subscriber) -> None:
        key = key_of(subscriber)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(subscriber)
            self._registry.add(channel, channel.subscription.batches)
            self._private.add(channel, channel.private_batches)
        subscriber.subscription = channel.subscription  # equal, and kept in memory once
        channel.add(subscriber, self._end)
        self._live += 1
        if subscriber.ping_turn is None:
            subscriber.ping_turn = self._next_ping_turn()
        self._pinged[subscriber.ping_turn][subscriber] = channel

    def _next_ping_turn(self) -> int:
        # the turn with the fewest slices, and of these the one that is farthest off: it has just had a ping.
        # Those of a slice have come one after the other, which helps: see Channel._begin_round()
        turns = ((self._ping_turn - n) % PING_TURNS for n in range(PING_TURNS))
        return min(turns, key=lambda turn: len(self._pinged[turn]) // _SLICE)

    def remove(self, subscriber: Subscriber) -> None:
        """Undo add(), wherever the subscriber is by now."""
        if subscriber in self._reading:
            self._reading.remove(subscriber)
        else:
            self._leave(subscriber)

    def _leave(self, subscriber: Subscriber) -> None:
        key = key_of(subscriber)
        channel = self._channels[key]
        channel.remove(subscriber)
        self._live -= 1
        if subscriber.ping_turn is not None:
            del self._pinged[subscriber.ping_turn][subscriber]
        if not channel.subscribers:
            del self._channels[key]
            self._registry.remove(channel, channel.subscription.batches)
            self._private.remove(channel, channel.private_batches)

    def change_rights(self, subscriber: Subscriber, rights: Rights) -> None:
        """From now on the subscriber sees what these rights allow."""
        reduced = not rights.see_all_of(subscriber.rights)
        if subscriber not in self._reading:
            self._flush(self._channels[key_of(subscriber)])  # which may make it fall behind
        if subscriber in self._reading:
            subscriber.rights = rights
        else:
            self._leave(subscriber)
            subscriber.rights = rights
            self._join(subscriber)
        if reduced and subscriber.has_unread:
            subscriber.cut_off("it has fewer rights now, and may not get what waits for it")

    def deliver(self, event: Event) -> None:
        """Put an event on its way to those who want it."""
        self._end = event.stamp.position
        frames: dict[Wire, bytes] = {}
        for channel in self._wanting(event.path):
            frame = frames.get(channel.wire)
            if frame is None:
                frame = frames[channel.wire] = channel.wire.event(event.line)
            channel.gather(frame, event.stamp.position)
            if channel.gathered_bytes > _GATHER_BYTES:
                self._congested.add(channel)
            self._gathered += 1
            if not channel.queued:
                self._enqueue(channel)

    @property
    def has_room(self) -> bool:
        """Whether little enough is gathered that events may be delivered now."""
        return not self._congested and self._gathered <= _GATHER_FRAMES

    async def room(self) -> None:
        """Wait until it has: each waits once, however much those bring who come meanwhile."""
        if not self.has_room:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting

    def _wanting(self, path: PublishPath) -> Iterable[Channel]:
        if not path.private:
            return self._registry.match(path.all_topics)
        # the index finds candidates, their rights decide
        return [channel for channel in self._private.match(frozenset(path.topics)) if channel.may_see(path)]

    def ping(self, now: float) -> None:
        """Put a ping on its way to those live subscribers whose turn it is, behind the events that are.

        now: Unix seconds.
        """
        self._ping_turn = (self._ping_turn + 1) % PING_TURNS
        frames: dict[Wire, bytes] = {}
        for subscriber, channel in self._pinged[self._ping_turn].items():
            if channel.wire not in frames:
                frames[channel.wire] = channel.wire.ping(now)
            channel.ping(subscriber, frames[channel.wire])
            if not channel.queued:
                self._enqueue(channel)

    def flush(self) -> None:
        """Write now what is on its way."""
        for channel in self._queue:
            self._flush(channel)

    def _flush(self, channel: Channel) -> None:
        while channel.busy:
            self._write(channel, sys.maxsize)

    def _write(self, channel: Channel, limit: int) -> int:
        """Write to up to so many of a channel's subscribers, and say to how many."""
        gathered = len(channel.gathered)
        try:
            count, waiting = channel.write(limit)
        finally:
            self._gathered -= gathered - len(channel.gathered)
            if channel.gathered_bytes <= _GATHER_BYTES:
                self._congested.discard(channel)
            if self._waiting and self.has_room:
                self._end_waiting()
        for subscriber in waiting:
            if reason := subscriber.overflow():
                self._overflow(subscriber, channel.round_end, reason)
        return count

    def _end_waiting(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():  # a publisher may have hung up
                waiting.set_result(None)
        self._waiting.clear()

    def _overflow(self, subscriber: Subscriber, after: int, reason: str) -> None:
        if self.backlog:
            self._leave(subscriber)
            self._reading.add(subscriber)
            subscriber.fall_behind(after)
        else:
            subscriber.drop(reason)

    def _enqueue(self, channel: Channel) -> None:
        if not self._queue:
            asyncio.get_running_loop().call_soon(self._write_slice)
        self._queue.append(channel)
        channel.queued = True

    def _write_slice(self) -> None:
        left = _SLICE
        try:
            while self._queue and left > 0:
                channel = self._queue.popleft()
                # back in the queue before it is written to: an error must not end the writing to the others
                self._queue.append(channel)
                if channel.busy:
                    left -= self._write(channel, left)
                if not channel.busy:
                    self._queue.pop()
                    channel.queued = False
        finally:
            if self._queue:
                asyncio.get_running_loop().call_soon(self._write_slice)
