"""What was published before, remembered for a while and up to a number.

That is the answers to publishers who ask twice (Idempotency-Key), and the items of queues.

An answer is remembered by two digests of fixed size, of what was asked for and of the body, while paths and
bodies may be long.
"""

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from core.errors import Refused

MAX_REMEMBERED = 100_000
MAX_ITEMS = 120_000  # of each queue: as many as SQS lets its readers hold without deleting them
_KEY = re.compile(r"[!-~]{1,255}")

A = TypeVar("A")


class Ask(NamedTuple):
    """A request that has an Idempotency-Key."""

    scope: bytes  # digest: the same key of another publisher, or on another path, is another key
    body: bytes  # digest


class Item(NamedTuple):
    """The item of a queue that an event came from, remembered so that none is published twice."""

    queue: str
    id: bytes  # digest of what the queue calls it
    window: float  # seconds that it is remembered


class _Remembered(NamedTuple, Generic[A]):
    body: bytes  # digest
    answer: A
    at: float  # monotonic seconds


class Answers(Generic[A]):
    """Remembered answers, the oldest first.

    window: seconds that an answer is kept; 0 switches it off.
    """

    def __init__(
        self, window: float, limit: int = MAX_REMEMBERED, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window = window
        self._limit = limit
        self._clock = clock
        self._answers: OrderedDict[bytes, _Remembered[A]] = OrderedDict()  # by Ask.scope

    def find(self, ask: Ask) -> A | None:
        """The answer given before, None if there was none. Raises Refused(422) if the body was another."""
        self._forget_expired()
        remembered = self._answers.get(ask.scope)
        if remembered is None:
            return None
        if remembered.body != ask.body:
            raise Refused(422, "this Idempotency-Key was used on this path with another body")
        return remembered.answer

    def remember(self, ask: Ask, answer: A, age: float = 0.0) -> None:
        """Keep an answer that was given so many seconds ago; -inf: that is yet to come, and kept until then.

        Older ones must have been told of before.
        """
        if self._window:
            self._answers[ask.scope] = _Remembered(ask.body, answer, self._clock() - age)
            self._answers.move_to_end(ask.scope)
            self._forget_expired()

    def forget(self, ask: Ask, answer: A) -> None:
        """Undo remember(): the request was refused in the end."""
        remembered = self._answers.get(ask.scope)
        if remembered and remembered.answer is answer:
            del self._answers[ask.scope]

    def _forget_expired(self) -> None:
        expired = self._clock() - self._window
        while self._answers:
            oldest = next(iter(self._answers.values()))
            if oldest.at > expired and len(self._answers) <= self._limit:
                return
            self._answers.popitem(last=False)


def ask_again(publisher: str, path: str, key: str, body: bytes) -> Ask:
    """What an answer is remembered by. Raises Refused(400) if the key is none.

    publisher: who asks, an address or a user.
    """
    if not _KEY.fullmatch(key):
        raise Refused(400, "Idempotency-Key: expected 1 to 255 visible ASCII characters")
    return Ask(_digest(repr((publisher, path, key)).encode()), _digest(body))


def item_id(name: str) -> bytes:
    """The id of an item by what its queue calls it."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
