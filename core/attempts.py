"""Failed attempts to log in, so that nobody can guess on and on.

They are counted by address, and by address and user name. Each count leaks away with time, so a limit is a
burst and then a rate. The smaller limit is that of the pair: who goes on with one wrong password, such as a
forgotten program, does not use up the chances of everybody else behind the same proxy.

Who is exempt passes while others are refused, and that tells a right guess from a wrong one. So the refusals
are counted as well, and beyond their limit nobody passes.
"""

import hashlib
import math
import time
from collections.abc import Callable

from core.access import site_of
from core.errors import Refused
from core.expiring import Expiring

_MINUTE = 60.0  # seconds in which a full count has leaked away
_MOST_OF_A_USER = 10  # of one user name, from one address
_MOST_OF_AN_ADDRESS = 50
_MOST_REFUSED = 100  # of one user name, from one address
_MOST_COUNTED = 20_000  # addresses and pairs, each


class TooManyAttempts(Refused):
    """429, and when to ask again."""

    def __init__(self, wait: float) -> None:
        super().__init__(
            429,
            "too many failed attempts to log in from this address",
            headers={"Retry-After": str(math.ceil(wait))},
        )


class _Counts:
    """A leaking count for each key. limit: how high one may be."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._levels: Expiring[bytes, tuple[float, float]] = Expiring(_MINUTE, _MOST_COUNTED, clock)

    def wait(self, key: object) -> float:
        """Seconds until there is room for one more."""
        return max(0.0, (self._level(key) + 1 - self._limit) * _MINUTE / self._limit)

    def add(self, key: object, number: int) -> None:
        self._levels.put(_digest(key), (max(0.0, self._level(key) + number), self._clock()))

    def _level(self, key: object) -> float:
        level, at = self._levels.get(_digest(key)) or (0.0, 0.0)
        return max(0.0, level - (self._clock() - at) * self._limit / _MINUTE)


def _digest(key: object) -> bytes:
    """Of one size, while a guessed name may take kilobytes once it is written out (alike())."""
    return hashlib.blake2b(repr(key).encode(), digest_size=16).digest()


class Attempts:
    """The counts of all addresses. clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._of_users = _Counts(_MOST_OF_A_USER, clock)
        self._of_addresses = _Counts(_MOST_OF_AN_ADDRESS, clock)
        self._refused = _Counts(_MOST_REFUSED, clock)

    def check(self, address: str, user: str, *, exempt: bool) -> None:
        """Raises TooManyAttempts if there were. exempt: by others, not by so many of the same user."""
        site = site_of(address)
        if exempt:
            wait = self._refused.wait((site, user))
        else:
            wait = max(self._of_users.wait((site, user)), self._of_addresses.wait(site))
            if wait and not self._refused.wait((site, user)):
                self._refused.add((site, user), 1)
        if wait:
            raise TooManyAttempts(wait)

    def begin(self, address: str, user: str) -> None:
        """Count an attempt, which is a failed one until it has succeeded."""
        self._count(site_of(address), user, 1)

    def succeeded(self, address: str, user: str) -> None:
        """Undo begin()."""
        self._count(site_of(address), user, -1)

    def _count(self, site: str, user: str, number: int) -> None:
        self._of_users.add((site, user), number)
        self._of_addresses.add(site, number)
