"""The answers remembered for publishers who ask twice (Idempotency-Key), for a while and up to a number."""

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from core.errors import Refused

_KEY = re.compile(r"[!-~]{1,255}")
_MAX_REMEMBERED = 100_000

A = TypeVar("A")


class Scope(NamedTuple):
    """What a key is good for: the same key of another publisher, or on another path, is another key."""

    publisher: str
    path: str
    key: str

    def digest(self) -> bytes:
        """What it is remembered by: of fixed size, while paths may be long."""
        return _digest(repr(self).encode())


class _Remembered(NamedTuple, Generic[A]):
    digest: bytes  # of the body
    answer: A
    at: float  # monotonic seconds


class Answers(Generic[A]):
    """Remembered answers, the oldest first.

    window: seconds that an answer is kept; 0 switches it off.
    """

    def __init__(
        self, window: float, limit: int = _MAX_REMEMBERED, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window = window
        self._limit = limit
        self._clock = clock
        self._answers: OrderedDict[bytes, _Remembered[A]] = OrderedDict()  # by Scope.digest()

    def find(self, scope: Scope, body: bytes) -> A | None:
        """The answer given before, None if there was none. Raises Refused(422) if the body was another."""
        self._forget()
        remembered = self._answers.get(scope.digest())
        if remembered is None:
            return None
        if remembered.digest != _digest(body):
            raise Refused(422, "this Idempotency-Key was used on this path with another body")
        return remembered.answer

    def remember(self, scope: Scope, body: bytes, answer: A) -> None:
        """Keep the answer to a request that was accepted."""
        if self._window:
            self._answers[scope.digest()] = _Remembered(_digest(body), answer, self._clock())
            self._forget()

    def _forget(self) -> None:
        expired = self._clock() - self._window
        while self._answers:
            oldest = next(iter(self._answers.values()))
            if oldest.at > expired and len(self._answers) <= self._limit:
                return
            self._answers.popitem(last=False)


def check_key(key: str) -> str:
    """The key, if it is one. Raises Refused(400)."""
    if not _KEY.fullmatch(key):
        raise Refused(400, "Idempotency-Key: expected 1 to 255 visible ASCII characters")
    return key


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
