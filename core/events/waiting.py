"""What publishers have sent that is not published yet: bounded in bytes, for all of them together."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import RETRY_AFTER, Refused

MOST_WAITING = 64 * 1024**2  # bytes


class Waiting:
    """How much waits. most: bytes.

    A publisher may have as much waiting as would be left for others. So one alone gets half, two get a third
    each, and there is always room for one more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._by_publisher: Counter[str] = Counter()

    @contextmanager
    def hold(self, publisher: str, size: int) -> Iterator[None]:
        """Count so many bytes meanwhile. Raises Refused(503) if that is too much beside what waits."""
        if self._held and self._held + self._by_publisher[publisher] + size > self._most:
            raise too_much_waits()
        self._held += size
        self._by_publisher[publisher] += size
        try:
            yield
        finally:
            self._held -= size
            self._by_publisher[publisher] -= size
            if not self._by_publisher[publisher]:
                del self._by_publisher[publisher]


def too_much_waits() -> Refused:
    """The refusal of what would have to wait behind too much."""
    return Refused(503, "too much waits to be published: ask again", headers=RETRY_AFTER)
