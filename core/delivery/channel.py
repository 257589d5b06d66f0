"""The subscribers who get the same bytes, the frames that are pending for them, and the round being written.

A crowd is written to in slices, with turns of the event loop in between. What is published meanwhile is
pending until the round that is being written has come to everybody; then all of it is joined, once, and makes
the next.
"""

from core.auth.rights import Rights, Segment, is_for, private_alternatives
from core.counters import counters
from core.delivery.subscriber import Subscriber, send_to_all
from core.delivery.wire import Wire
from core.events.selection import Selection
from core.events.subscription import Subscription
from core.events.topics import PublishPath

_JOIN_BYTES = 64 * 1024  # frames are joined up to about this size

Key = tuple[Subscription, frozenset[Segment], Wire]


def key_of(subscriber: Subscriber) -> Key:
    """What decides which bytes a subscriber gets: those for whom it is equal share a channel."""
    return subscriber.subscription, subscriber.rights.readable, subscriber.wire


def selection_of(subscription: Subscription, rights: Rights, wire: Wire) -> Selection:
    """What a subscriber gets of a backlog: the same as live."""
    return Selection(
        subscription.alternatives,
        private_alternatives(subscription, rights.readable),
        lambda path: is_for(path, subscription, rights),
        wire.events,
    )


class Channel:
    """Subscribers of one key (see key_of), and what is pending for them: frames in order, then pings.

    like: a subscriber such as they are.
    """

    __slots__ = (
        "_newcomers",
        "_pending_end",
        "_ping",
        "_pings",
        "pending",
        "pending_bytes",
        "private_alternatives",
        "queued",
        "rights",
        "round",
        "subscribers",
        "subscription",
        "wire",
    )

    def __init__(self, like: Subscriber) -> None:
        self.subscription, self.rights, self.wire = like.subscription, like.rights, like.wire
        self.private_alternatives = private_alternatives(self.subscription, self.rights.readable)
        self.subscribers: dict[Subscriber, None] = {}  # in the order in which they came: see _begin_round()
        self.queued = False  # for its turn in Fanout._write_slice()
        self.round = Round()  # one object for all rounds: with a single subscriber a new one would show
        self.pending: list[bytes] = []  # frames
        self.pending_bytes = 0
        self._pending_end = 0  # position of the last event that was gathered
        self._ping = b""
        self._pings: dict[Subscriber, None] = {}  # for whom it is in the next round
        self._newcomers: dict[Subscriber, int] = {}  # -> the first of the pending frames that is for them

    def can_read(self, path: PublishPath) -> bool:
        """Whether events of this path are for these subscribers."""
        return is_for(path, self.subscription, self.rights)

    @property
    def busy(self) -> bool:
        """Whether anything is still to be written."""
        return bool(self.pending or self._pings or self.round.recipients)

    def add(self, subscriber: Subscriber, position: int) -> None:
        """Write to a subscriber from now on, but nothing of what is pending already.

        position: of the last event that the subscriber has had.
        """
        self.subscribers[subscriber] = None
        self._pending_end = max(self._pending_end, position)
        if self.pending:
            self._newcomers[subscriber] = len(self.pending)

    def remove(self, subscriber: Subscriber) -> None:
        """Write nothing more to a subscriber, in the round that is being written neither."""
        del self.subscribers[subscriber]
        self._newcomers.pop(subscriber, None)
        self._pings.pop(subscriber, None)
        self.round.leave(subscriber)

    def gather(self, frame: bytes, position: int) -> None:
        """Have an event's frame written in the next round. position: the event's."""
        self.pending.append(frame)
        self.pending_bytes += len(frame)
        self._pending_end = position

    def ping(self, subscriber: Subscriber, frame: bytes) -> None:
        """Have a subscriber sent a ping in the next round, behind all events."""
        self._ping = frame
        self._pings[subscriber] = None

    def write(self, limit: int) -> tuple[int, list[Subscriber]]:
        """Write the round's bytes to up to so many subscribers. To how many, and for whom something waits."""
        waiting = [] if self.round.recipients else self._begin_round()
        return self.round.write(limit, waiting)

    def _begin_round(self) -> list[Subscriber]:
        """Make what is pending the next round, and write those of newcomers. For whom some of it waits."""
        this, frames, pings = self.round, self.pending, self._pings
        this.end, this.events, this.event_bytes = self._pending_end, len(frames), self.pending_bytes
        self.pending, self.pending_bytes, self._pings = [], 0, {}
        if not frames:
            this.recipients, this.writes, this.pinged = list(pings), [self._ping], {}
            return []
        newcomers, self._newcomers = self._newcomers, {}
        this.writes, this.pinged = _joined(frames), pings
        this.writes_with_ping = _joined([*frames, self._ping]) if pings else []
        # sockets that were opened one after the other lie side by side in the kernel's memory: in a random
        # order its part of a delivery takes a tenth longer
        this.recipients = list(self.subscribers)
        if newcomers:
            this.recipients = [each for each in this.recipients if each not in newcomers]
        waiting = []
        for subscriber, first in newcomers.items():
            ping = [self._ping] if subscriber in pings else []
            waiting += _write([subscriber], _joined(frames[first:] + ping))
            counters.deliveries += len(frames) - first
            counters.delivered_bytes += sum(map(len, frames[first:]))
        return waiting


class Round:
    """What is being written to a channel's subscribers: the same bytes to each, a slice of them at a time.

    end: position of the last event in it, or before it.
    recipients: who gets it; empty between two rounds.
    writes: its bytes, of so many events and their bytes; 0 if it is but a ping.
    pinged: which recipients get others instead, the same with a ping at their end.
    """

    __slots__ = (
        "_gone",
        "_written",
        "end",
        "event_bytes",
        "events",
        "pinged",
        "recipients",
        "writes",
        "writes_with_ping",
    )

    def __init__(self) -> None:
        self.end = self.events = self.event_bytes = 0
        self.recipients: list[Subscriber] = []
        self.writes: list[bytes] = []
        self.pinged: dict[Subscriber, None] = {}
        self.writes_with_ping: list[bytes] = []
        self._written = 0  # how many recipients have been written to
        self._gone: set[Subscriber] = set()  # who of them has left the channel since

    def leave(self, subscriber: Subscriber) -> None:
        """Write nothing more to a subscriber, whether or not it is a recipient."""
        if self.recipients:
            self._gone.add(subscriber)

    def write(self, limit: int, waiting: list[Subscriber]) -> tuple[int, list[Subscriber]]:
        """Write to up to so many of those who remain. To how many, and for whom something waits.

        waiting: others for whom something waits.
        """
        some = self.recipients[self._written : self._written + limit]
        count = len(some)
        self._written += count
        if self._gone:
            some = [subscriber for subscriber in some if subscriber not in self._gone]
        if self._written == len(self.recipients):
            self.recipients, self._written = [], 0
            self._gone.clear()
        remaining = len(some)
        counters.deliveries += self.events * remaining
        counters.delivered_bytes += self.event_bytes * remaining
        if self.pinged:
            pinged = [subscriber for subscriber in some if subscriber in self.pinged]
            waiting += _write(pinged, self.writes_with_ping)
            some = [subscriber for subscriber in some if subscriber not in self.pinged]
        return count, waiting + _write(some, self.writes)


def _write(subscribers: list[Subscriber], writes: list[bytes]) -> list[Subscriber]:
    """Write the same to each. For whom something waits: also after the last write, if after any."""
    waiting: list[Subscriber] = []
    for data in writes:
        waiting = send_to_all(subscribers, data)
    return waiting


def _joined(frames: list[bytes]) -> list[bytes]:
    """The frames in few pieces, so that a long turn does not become one write of any size."""
    if len(frames) == 1:
        return frames
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
