"""An event's way to its subscribers: match, gather, and one write to each at the end of a turn of the loop.

Subscribers who follow the same topics with the same rights in the same wire form stand in one channel. What
is published in one turn of the event loop is gathered by channel and joined once, then the same bytes are
written to each of them. A crowd is written to in slices, a turn of the loop for each, so that requests and
other channels need not wait for all of it; what is published meanwhile is pending for the channel's next
round.

A subscriber for whom too much waits, a slow consumer, falls behind: it leaves its channel, at a known
position, and comes back when it has read the rest from the backlog. Without a backlog it is dropped.

Publishers may be faster than all that, so there is backpressure. Past a high-water mark of what is pending,
those who bring events wait: they ask has_capacity first, or await wait_for_capacity(). So what is pending
stays small, and nobody's turn gets long.
"""

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from core.auth.rights import Rights
from core.counters import counters
from core.delivery.channel import Channel, Key, key_of
from core.delivery.registry import Registry
from core.delivery.subscriber import Subscriber
from core.delivery.wire import Wire
from core.events.event import Event
from core.events.topics import PublishPath

log = logging.getLogger("pypubsub")

_SLICE = 250  # subscribers written to in a turn of the loop, which takes about a millisecond
_MOST_PENDING_BYTES = 256 * 1024  # the high-water mark of a channel
_MOST_PENDING_FRAMES = (
    50_000  # that of all channels together, for each of which the same event may be pending
)
PING_TURNS = 5  # in a ping interval, each for some of the subscribers; 10 took a fifth more CPU time


@runtime_checkable
class Listener(Protocol):
    """A plugin that hears of events."""

    def hear(self, event: Event) -> None:
        """An event goes out, private ones too. Called for each, in order: it must return at once."""


class Fanout:
    """All subscribers, and what is on its way to them.

    backlog: whether there is one to go on from for subscribers who have fallen behind.
    """

    def __init__(self, *, backlog: bool) -> None:
        self.backlog = backlog
        self.listeners: Sequence[Listener] = ()
        self._registry: Registry[Channel] = Registry()
        self._private: Registry[Channel] = Registry()  # for private events, those with the right to any
        self._channels: dict[Key, Channel] = {}
        self._queue: deque[Channel] = deque()  # those with something to write
        self._live = 0  # subscribers in channels
        self._reading: set[Subscriber] = set()  # subscribers who read the backlog
        # position of the last event that was delivered, of each kind
        self._public_end = self._private_end = 0
        self._end = 0  # position up to which everything has been delivered
        self._pinged: list[dict[Subscriber, Channel]] = [{} for _ in range(PING_TURNS)]  # those live, by turn
        self._ping_turn = 0
        self._pending = 0  # frames, in all channels together
        self._congested: set[Channel] = set()  # those that are past their high-water mark
        self._waiting: list[asyncio.Future[None]] = []  # for capacity

    def __len__(self) -> int:
        return self._live + len(self._reading)

    def __iter__(self) -> Iterator[Subscriber]:
        yield from self._reading
        for channel in self._channels.values():
            yield from channel.subscribers

    def add(self, subscriber: Subscriber) -> None:
        """A subscriber is there, who reads the backlog first, if there is one."""
        self._reading.add(subscriber)
        counters.subscribers += 1

    def join(self, subscriber: Subscriber, position: int) -> None:
        """From now on the subscriber gets what it asked for; up to that position it has had everything.

        Raises RuntimeError if that cannot be: an event of a kind that it may read has been delivered since,
        and would be missing from its stream.
        """
        if position < (end := self._end_for(subscriber)):
            raise RuntimeError(
                f"a subscriber who has had everything up to position {position} may not join the fan-out: "
                f"an event at {end}, of a kind that it may read, is delivered and would be missing"
            )
        self._end = max(self._end, position)
        self._reading.remove(subscriber)
        self._join(subscriber)

    def _end_for(self, subscriber: Subscriber) -> int:
        """The position of the last event that was delivered, of the kinds that it may read.

        Who may read no private events must not notice that there are any.
        """
        return max(self._public_end, self._private_end) if subscriber.rights.readable else self._public_end

    def _join(self, subscriber: Subscriber) -> None:
        key = key_of(subscriber)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = Channel(subscriber)
            self._registry.add(channel, channel.subscription.alternatives)
            self._private.add(channel, channel.private_alternatives)
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
        """Undo add(), wherever the subscriber is by now: its stream is over."""
        counters.ends[subscriber.end_word] += 1
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
            self._registry.remove(channel, channel.subscription.alternatives)
            self._private.remove(channel, channel.private_alternatives)

    def change_rights(self, subscriber: Subscriber, rights: Rights) -> None:
        """From now on the subscriber gets what these rights let it read."""
        reduced = not rights.can_read_all_of(subscriber.rights)
        if subscriber not in self._reading:
            self._flush(self._channels[key_of(subscriber)])  # which may make it fall behind
        if subscriber in self._reading:
            subscriber.rights = rights
        else:
            self._leave(subscriber)
            subscriber.rights = rights
            self._join(subscriber)
        if reduced and subscriber.has_unread:
            subscriber.cut_off("rights", "it has fewer rights now, and may not get what waits for it")

    def deliver(self, event: Event) -> None:
        """Put an event on its way to those who want it."""
        self._end = end = event.stamp.position
        if event.path.private:
            self._private_end = end
        else:
            self._public_end = end
        frames: dict[Wire, bytes] = {}
        for channel in self._wanting(event.path):
            frame = frames.get(channel.wire)
            if frame is None:
                frame = frames[channel.wire] = channel.wire.event(event.line)
            channel.gather(frame, end)
            if channel.pending_bytes > _MOST_PENDING_BYTES:
                self._congested.add(channel)
            self._pending += 1
            if not channel.queued:
                self._enqueue(channel)
        for listener in self.listeners:
            _tell(listener, event)

    @property
    def has_capacity(self) -> bool:
        """Whether little enough is pending that events may be delivered now."""
        return not self._congested and self._pending <= _MOST_PENDING_FRAMES

    async def wait_for_capacity(self) -> None:
        """Wait until has_capacity: each waits once, however much those bring who come meanwhile."""
        if not self.has_capacity:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting

    def _wanting(self, path: PublishPath) -> Iterable[Channel]:
        if not path.private:
            return self._registry.match(path.all_topics)
        # the index finds candidates, their rights decide
        return [channel for channel in self._private.match(frozenset(path.topics)) if channel.can_read(path)]

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
        pending = len(channel.pending)
        try:
            count, waiting = channel.write(limit)
        finally:
            self._pending -= pending - len(channel.pending)
            if channel.pending_bytes <= _MOST_PENDING_BYTES:
                self._congested.discard(channel)
            if self._waiting and self.has_capacity:
                self._end_waiting()
        for subscriber in waiting:
            if reason := subscriber.overflow():
                self._fall_behind_or_drop(subscriber, channel.round.end, reason)
        return count

    def _end_waiting(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():  # a publisher may have hung up
                waiting.set_result(None)
        self._waiting.clear()

    def _fall_behind_or_drop(self, subscriber: Subscriber, after: int, reason: str) -> None:
        if self.backlog:
            self._leave(subscriber)
            self._reading.add(subscriber)
            subscriber.fall_behind(after)
        else:
            subscriber.drop("too_slow", reason)

    def _enqueue(self, channel: Channel) -> None:
        if not self._queue:
            asyncio.get_running_loop().call_soon(self._write_slice)
        self._queue.append(channel)
        channel.queued = True

    def _write_slice(self) -> None:
        begun = time.perf_counter_ns()
        remaining = _SLICE
        try:
            while self._queue and remaining > 0:
                channel = self._queue.popleft()
                # back in the queue before it is written to: an error must not end the writing to the others
                self._queue.append(channel)
                remaining -= self._write(channel, remaining)
                if not channel.busy:
                    self._queue.pop()
                    channel.queued = False
        finally:
            counters.fanout_ns += time.perf_counter_ns() - begun
            if self._queue:
                asyncio.get_running_loop().call_soon(self._write_slice)


def _tell(listener: Listener, event: Event) -> None:
    try:
        listener.hear(event)
    except Exception:  # a mistake in a plugin costs no subscriber the event
        log.exception("error in %s, which was told of an event", type(listener).__name__)
