"""What was published before, remembered for a while and up to a number (deduplication).

Publishers, and queues, may bring an event again when they have not heard of it (at-least-once). What is
remembered is the answers to publishers who ask twice (Idempotency-Key), and the items of
queues, so that each event is in the stream once.

An answer is remembered by digests of fixed size, of what was asked for and of the body, while paths and
bodies may be long. When there are too many, whoever has the most of them loses the oldest: so the keys of one
publisher do not push out those of others.
"""

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from core.errors import Refused
from core.expiring import Expiring

MAX_REMEMBERED = 100_000
SCOPE_SIZE = 32  # bytes of IdempotencyKey.scope
_PUBLISHER_SIZE = 8  # bytes of the digest of a publisher
MAX_ITEMS = 120_000  # of each queue: as many as SQS lets its readers hold without deleting them
_KEY = re.compile(r"[!-~]{1,255}")

A = TypeVar("A")


class IdempotencyKey(NamedTuple):
    """The Idempotency-Key of a request, with all that it belongs to."""

    scope: bytes  # digest: the same key of another publisher, or on another path, is another key
    body: bytes  # digest
    publisher: bytes = b""  # digest; empty if it is not known any more

    @property
    def name(self) -> bytes:
        """What a file calls it: SCOPE_SIZE bytes of the scope, behind the publisher."""
        return self.publisher + self.scope


class QueueItem(NamedTuple):
    """The item of a queue that an event came from, remembered so that none is published twice."""

    queue: str
    id: bytes  # digest of what the queue calls it
    window: float  # seconds that it is remembered


class _Reply(NamedTuple, Generic[A]):
    body: bytes  # digest
    answer: A
    publisher: bytes  # digest


class ReplyCache(Generic[A]):
    """Remembered answers, the oldest first.

    window: seconds that an answer is kept; 0 switches it off.
    """

    def __init__(
        self, window: float, limit: int = MAX_REMEMBERED, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window = window
        self._replies: _Replies[A] = _Replies(window, limit, clock)  # by IdempotencyKey.scope

    def find(self, key: IdempotencyKey) -> A | None:
        """The answer given before, None if there was none. Raises Refused(422) if the body was another."""
        reply = self._replies.get(key.scope)
        if reply is None:
            return None
        if reply.body != key.body:
            raise Refused(422, "this Idempotency-Key was used on this path with another body")
        return reply.answer

    def remember(self, key: IdempotencyKey, answer: A, age: float = 0.0) -> Sequence[bytes]:
        """Keep an answer that was given so many seconds ago; -inf: that is yet to come, and kept until then.

        Older ones must have been told of before. The names (IdempotencyKey.name) of those that make room.
        """
        if not self._window:
            return ()
        self._replies.put(key.scope, _Reply(key.body, answer, key.publisher), age)
        pushed_out, self._replies.pushed_out = self._replies.pushed_out, []
        return pushed_out

    def forget(self, key: IdempotencyKey, answer: A) -> None:
        """Undo remember(): the request was refused in the end."""
        reply = self._replies.get(key.scope)
        if reply and reply.answer is answer:
            self._replies.forget(key.scope)


class _Replies(Expiring[bytes, _Reply[A]]):
    """Replies by scope. If there are too many, whoever has the most of them loses the oldest."""

    def __init__(self, window: float, limit: int, clock: Callable[[], float]) -> None:
        super().__init__(window, limit, clock)
        self.pushed_out: list[bytes] = []  # names of those that had to make room
        self._shares = _Shares()

    def _added(self, key: bytes, value: _Reply[A]) -> None:
        self._shares.add(value.publisher, key)

    def _removed(self, key: bytes, value: _Reply[A]) -> None:
        self._shares.remove(value.publisher, key)

    def _surplus(self) -> bytes:
        publisher, scope = self._shares.oldest_of_the_largest()
        self.pushed_out.append(publisher + scope)
        return scope


class _Shares:
    """How many answers there are of each publisher, by digests."""

    def __init__(self) -> None:
        self._scopes: dict[bytes, OrderedDict[bytes, None]] = {}  # by publisher, the oldest first
        self._by_size: dict[int, OrderedDict[bytes, None]] = {}  # how many -> the publishers who have as many
        self._most = 0  # that any of them has

    def add(self, publisher: bytes, scope: bytes) -> None:
        """Count a new answer."""
        scopes = self._scopes.setdefault(publisher, OrderedDict())
        scopes[scope] = None
        self._resize(publisher, len(scopes) - 1, len(scopes))
        self._most = max(self._most, len(scopes))

    def remove(self, publisher: bytes, scope: bytes) -> None:
        """Undo add()."""
        scopes = self._scopes[publisher]
        del scopes[scope]
        self._resize(publisher, len(scopes) + 1, len(scopes))
        if not scopes:
            del self._scopes[publisher]
        if self._most not in self._by_size:
            self._most -= 1

    def _resize(self, publisher: bytes, before: int, after: int) -> None:
        if before:
            del self._by_size[before][publisher]
            if not self._by_size[before]:
                del self._by_size[before]
        if after:
            self._by_size.setdefault(after, OrderedDict())[publisher] = None

    def oldest_of_the_largest(self) -> tuple[bytes, bytes]:
        """The publisher who has the most, and the oldest of its answers."""
        publisher = next(iter(self._by_size[self._most]))
        return publisher, next(iter(self._scopes[publisher]))


def fair_share(counts: Iterable[int], limit: int) -> int:
    """How many each may keep of what it has, so that all together keep no more than the limit.

    Who has less than that keeps all of it.
    """
    ascending = sorted(counts)
    left = limit
    for index, count in enumerate(ascending):
        share = left // (len(ascending) - index)
        if count > share:
            return share
        left -= count
    return limit


def idempotency_key(publisher: str, path: str, key: str, body: bytes) -> IdempotencyKey:
    """What an answer is remembered by. Raises Refused(400) if the key is none.

    publisher: who asks, an address or a user.
    """
    if not _KEY.fullmatch(key):
        raise Refused(400, "Idempotency-Key: expected 1 to 255 visible ASCII characters")
    scope = _digest(repr((publisher, path, key)).encode())
    return IdempotencyKey(scope, _digest(body), _digest(repr(publisher).encode())[:_PUBLISHER_SIZE])


def item_id(name: str) -> bytes:
    """The id of an item by what its queue calls it."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()  # of SCOPE_SIZE
