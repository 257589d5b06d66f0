"""An event's way to its subscribers: match, frame, queue, and one write to each in a turn of the event loop.

Subscribers who follow the same topics in the same wire form stand in one channel. What is published in one
turn of the loop is gathered by channel and joined once, then the same bytes are written to each of them.
Nothing here waits.
"""

import asyncio
import itertools
from collections.abc import Iterator

from core.event import Event
from core.framing import Wire
from core.registry import Registry
from core.subscriber import Subscriber
from core.topics import Subscription

_JOIN_BYTES = 64 * 1024  # frames are joined up to about this size


class Channel:
    """The subscribers of one subscription and wire form, and the frames of this turn."""

    __slots__ = ("frames", "subscribers", "wire")

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.subscribers: set[Subscriber] = set()
        self.frames: list[bytes] = []

    def flush(self) -> None:
        """Hand this turn's frames to every subscriber."""
        frames, self.frames = self.frames, []
        for data in _joined(frames):
            for subscriber in self.subscribers:
                subscriber.send(data)


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
    """All subscribers, and what is on its way to them."""

    def __init__(self) -> None:
        self._registry: Registry[Channel] = Registry()
        self._channels: dict[tuple[Subscription, Wire], Channel] = {}
        self._unflushed: list[Channel] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Subscriber]:
        return itertools.chain.from_iterable(channel.subscribers for channel in self._channels.values())

    def join(self, subscriber: Subscriber) -> None:
        """From now on the subscriber gets what it asked for, and nothing published before."""
        key = (subscriber.subscription, subscriber.wire)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(subscriber.wire)
            self._registry.add(channel, subscriber.subscription)
        elif channel.frames:
            channel.flush()
        channel.subscribers.add(subscriber)
        self._size += 1

    def leave(self, subscriber: Subscriber) -> None:
        """Undo join()."""
        key = (subscriber.subscription, subscriber.wire)
        channel = self._channels[key]
        channel.subscribers.remove(subscriber)
        self._size -= 1
        if not channel.subscribers:
            del self._channels[key]
            self._registry.remove(channel, subscriber.subscription)

    def deliver(self, event: Event) -> None:
        """Put an event on its way to those who want it; it is written at the end of this turn of the loop."""
        if event.private:
            return  # nobody has been given the right to see it
        for channel in self._registry.match(event.topics):
            self._append(channel, event.frame(channel.wire))

    def ping(self, line: bytes) -> None:
        """Put a ping on its way to everybody, behind the events that are."""
        frames: dict[Wire, bytes] = {}
        for channel in self._channels.values():
            if channel.wire not in frames:
                frames[channel.wire] = channel.wire(line)
            self._append(channel, frames[channel.wire])

    def flush(self) -> None:
        """Write what is on its way now."""
        channels, self._unflushed = self._unflushed, []
        for channel in channels:
            channel.flush()

    def _append(self, channel: Channel, frame: bytes) -> None:
        if not channel.frames:
            if not self._unflushed:
                asyncio.get_running_loop().call_soon(self.flush)
            self._unflushed.append(channel)
        channel.frames.append(frame)
