"""An event's way to its subscribers: match, gather, and one write to each at the end of a turn of the loop.

Subscribers who follow the same topics with the same rights in the same wire form stand in one channel. What
is published in one turn of the event loop is gathered by channel and joined once, then the same bytes are
written to each of them. A crowd is written to in slices, a turn of the loop for each, so that requests and
other channels need not wait for all of it; what is published meanwhile is gathered for the channel's next
round.

A subscriber for whom too much waits falls behind: it leaves its channel, at a known position, and comes back
when it has read the rest from the backlog. Without a backlog it is dropped.
"""

import asyncio
import sys
from collections import deque
from collections.abc import Iterable, Iterator

from core.event import Event
from core.framing import Wire
from core.registry import Registry
from core.rights import Rights, Segment, is_for, private_batches
from core.subscriber import Subscriber
from core.topics import PublishPath, Subscription

_SLICE = 100  # subscribers written to in a turn of the loop, which takes about a millisecond
_JOIN_BYTES = 64 * 1024  # frames are joined up to about this size
_GATHER_BYTES = 256 * 1024  # with more than this gathered, publishers wait until all of it is written


Key = tuple[Subscription, frozenset[Segment], Wire]


def _key(subscriber: Subscriber) -> Key:
    """Subscribers for whom this is equal get the same bytes."""
    return subscriber.subscription, subscriber.rights.sees, subscriber.wire


class Channel:
    """The subscribers who get the same bytes, and the frames gathered for them.

    like: a subscriber such as they are.
    """

    __slots__ = (
        "_gathered_bytes",
        "_gathered_end",
        "_newcomers",
        "_unwritten",
        "_writes",
        "gathered",
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
        self.subscribers: set[Subscriber] = set()
        self.gathered: list[bytes] = []
        self.queued = False  # for its turn in Fanout._write_slice()
        self._gathered_bytes = 0
        self._gathered_end = 0  # position of the last event that was gathered
        self.round_end = 0  # position of the last event in this round's bytes, or before them
        self._writes: list[bytes] = []  # this round's bytes
        self._unwritten: list[Subscriber] = []  # who has not been sent them yet
        self._newcomers: dict[Subscriber, int] = {}  # -> the first of the gathered frames that is for them

    def may_see(self, path: PublishPath) -> bool:
        """Whether events of this path are for these subscribers."""
        return is_for(path, self.subscription, self.rights)

    @property
    def busy(self) -> bool:
        """Whether anything is still to be written."""
        return bool(self.gathered or self._unwritten)

    def add(self, subscriber: Subscriber, position: int) -> None:
        """Write to a subscriber from now on, but nothing of what is gathered already.

        position: of the last event that the subscriber has had.
        """
        self.subscribers.add(subscriber)
        self._gathered_end = max(self._gathered_end, position)
        if self.gathered:
            self._newcomers[subscriber] = len(self.gathered)

    def remove(self, subscriber: Subscriber) -> None:
        """Undo add()."""
        self.subscribers.remove(subscriber)
        self._newcomers.pop(subscriber, None)

    def gather(self, frame: bytes, position: int | None) -> bool:
        """Have a frame written in the next round. Whether so much is gathered that this should be now.

        position: the event's; None for a ping.
        """
        self.gathered.append(frame)
        self._gathered_bytes += len(frame)
        if position is not None:
            self._gathered_end = position
        return self._gathered_bytes > _GATHER_BYTES

    def write(self, limit: int) -> list[Subscriber]:
        """Write this round's bytes to up to so many subscribers. To whom."""
        written = [] if self._unwritten else self._begin_round()
        now, self._unwritten = self._unwritten[:limit], self._unwritten[limit:]
        for subscriber in now:
            if subscriber in self.subscribers:  # it may have left since the round began
                for data in self._writes:
                    subscriber.send(data)
                written.append(subscriber)
        return written

    def _begin_round(self) -> list[Subscriber]:
        """Take what is gathered as this round's bytes. Newcomers are written to at once: to whom."""
        frames, self.gathered, self._gathered_bytes = self.gathered, [], 0
        self.round_end = self._gathered_end
        newcomers, self._newcomers = self._newcomers, {}
        for subscriber, first in newcomers.items():
            for data in _joined(frames[first:]):
                subscriber.send(data)
        self._writes = list(_joined(frames))
        self._unwritten = [subscriber for subscriber in self.subscribers if subscriber not in newcomers]
        return list(newcomers)


def _joined(frames: list[bytes]) -> Iterator[bytes]:
    """The frames in few pieces, so that a long turn does not become one write of any size."""
    start = size = 0
    for index, frame in enumerate(frames):
        if size and size + len(frame) > _JOIN_BYTES:
            yield b"".join(frames[start:index])
            start, size = index, 0
        size += len(frame)
    if size:
        yield b"".join(frames[start:])


class Fanout:
    """All subscribers, and what is on its way to them.

    backlog: whether there is one to go on from for subscribers who have fallen behind.
    """

    def __init__(self, *, backlog: bool) -> None:
        self._backlog = backlog
        self._registry: Registry[Channel] = Registry()
        self._private: Registry[Channel] = Registry()  # for private events, those with the right to any
        self._channels: dict[Key, Channel] = {}
        self._queue: deque[Channel] = deque()  # those with something to write
        self._live = 0  # subscribers in channels
        self._reading: set[Subscriber] = set()  # subscribers who read the backlog
        self._end = 0  # position up to which everything has been delivered

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
        key = _key(subscriber)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(subscriber)
            self._registry.add(channel, channel.subscription)
            self._private.add(channel, channel.private_batches)
        subscriber.subscription = channel.subscription  # equal, and kept in memory once
        channel.add(subscriber, self._end)
        self._live += 1

    def remove(self, subscriber: Subscriber) -> None:
        """Undo add(), wherever the subscriber is by now."""
        if subscriber in self._reading:
            self._reading.remove(subscriber)
        else:
            self._leave(subscriber)

    def _leave(self, subscriber: Subscriber) -> None:
        key = _key(subscriber)
        channel = self._channels[key]
        channel.remove(subscriber)
        self._live -= 1
        if not channel.subscribers:
            del self._channels[key]
            self._registry.remove(channel, channel.subscription)
            self._private.remove(channel, channel.private_batches)

    def change_rights(self, subscriber: Subscriber, rights: Rights) -> None:
        """From now on the subscriber sees what these rights allow."""
        reduced = not rights.see_all_of(subscriber.rights)
        if subscriber not in self._reading:
            self._flush(self._channels[_key(subscriber)])  # which may make it fall behind
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
                frame = frames[channel.wire] = channel.wire(event.line)
            self._gather(channel, frame, event.stamp.position)

    def _wanting(self, path: PublishPath) -> Iterable[Channel]:
        if not path.private:
            return self._registry.match(path.all_topics)
        # the index finds candidates, their rights decide
        return [channel for channel in self._private.match(frozenset(path.topics)) if channel.may_see(path)]

    def ping(self, line: bytes) -> None:
        """Put a ping on its way to everybody who is live, behind the events that are."""
        frames: dict[Wire, bytes] = {}
        for channel in list(self._channels.values()):
            if channel.wire not in frames:
                frames[channel.wire] = channel.wire(line)
            self._gather(channel, frames[channel.wire], None)

    def flush(self) -> None:
        """Write now what is on its way."""
        for channel in self._queue:
            self._flush(channel)

    def _flush(self, channel: Channel) -> None:
        while channel.busy:
            self._write(channel, sys.maxsize)

    def _write(self, channel: Channel, limit: int) -> int:
        """Write to up to so many of a channel's subscribers, and say to how many."""
        written = channel.write(limit)
        for subscriber in written:
            if subscriber.queued_bytes and (reason := subscriber.overflow()):
                self._overflow(subscriber, channel.round_end, reason)
        return len(written)

    def _overflow(self, subscriber: Subscriber, after: int, reason: str) -> None:
        if self._backlog:
            self._leave(subscriber)
            self._reading.add(subscriber)
            subscriber.fall_behind(after)
        else:
            subscriber.drop(reason)

    def _gather(self, channel: Channel, frame: bytes, position: int | None) -> None:
        if channel.gather(frame, position):
            self._flush(channel)
        elif not channel.queued:
            if not self._queue:
                asyncio.get_running_loop().call_soon(self._write_slice)
            self._queue.append(channel)
            channel.queued = True

    def _write_slice(self) -> None:
        left = _SLICE
        try:
            while self._queue and left > 0:
                channel = self._queue.popleft()
                channel.queued = False
                if channel.busy:
                    left -= self._write(channel, left)
                if channel.busy:
                    self._queue.append(channel)
                    channel.queued = True
        finally:  # an error in one channel must not end the writing to all others
            if self._queue:
                asyncio.get_running_loop().call_soon(self._write_slice)
