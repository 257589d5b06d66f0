"""Failed attempts to log in, so that nobody can guess on and on.

They are counted by address, and by address and user name; those from IPv6 also by wider networks, which one
owner may have, with higher limits. Each count leaks away with time (leaky bucket), so a limit is a burst and
then a rate. The smaller limit is that of the pair: who goes on with one wrong password, such as a forgotten
program, does not use up the chances of everybody else behind the same proxy.

Who is exempt passes while others are refused, and that tells a right guess from a wrong one. So the refusals
are counted as well, and beyond their limit nobody passes.
"""

import hashlib
import math
import time
from collections.abc import Callable

from core.auth.login import NotLoggedIn
from core.auth.networks import networks_of, site_of
from core.expiring import Expiring

_MINUTE = 60.0  # seconds in which a full count has leaked away
_MOST_OF_A_USER = 10  # of one user name, from one address
_MOST_OF_AN_ADDRESS = 50
_WIDER = 4  # times as many from the next wider network
_MOST_REFUSED = 100  # of one user name, from one address
_MOST_COUNTED = 20_000  # addresses and pairs, each


class TooManyAttempts(NotLoggedIn):
    """429, and when to ask again."""

    def __init__(self, wait: float) -> None:
        super().__init__(
            429,
            "too many failed attempts to log in from this address",
            headers={"Retry-After": str(math.ceil(wait))},
        )


class _Counts:
    """A leaking count for each key. limit: how high one may be.

    step: of a key that is about a network: 0 for the narrowest, 1 for the next wider one.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._levels: Expiring[bytes, tuple[float, float]] = Expiring(_MINUTE, _MOST_COUNTED, clock)

    def wait(self, key: object, step: int = 0) -> float:
        """Seconds until there is room for one more."""
        limit = self._limit_of(step)
        return max(0.0, (self._level(key, limit) + 1 - limit) * _MINUTE / limit)

    def add(self, key: object, number: int, step: int = 0) -> None:
        level = self._level(key, self._limit_of(step))
        self._levels.put(_digest(key), (max(0.0, level + number), self._clock()))

    def _limit_of(self, step: int) -> int:
        return self._limit * int(_WIDER**step)

    def _level(self, key: object, limit: int) -> float:
        level, at = self._levels.get(_digest(key)) or (0.0, 0.0)
        return max(0.0, level - (self._clock() - at) * limit / _MINUTE)


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
            wait = max(
                max(self._of_users.wait((network, user), step), self._of_addresses.wait(network, step))
                for step, network in enumerate(networks_of(address))
            )
            if wait and not self._refused.wait((site, user)):
                self._refused.add((site, user), 1)
        if wait:
            raise TooManyAttempts(wait)

    def begin(self, address: str, user: str) -> None:
        """Count an attempt, which is a failed one until it has succeeded."""
        self._count(address, user, 1)

    def succeeded(self, address: str, user: str) -> None:
        """Undo begin()."""
        self._count(address, user, -1)

    def _count(self, address: str, user: str, number: int) -> None:
        for step, network in enumerate(networks_of(address)):
            self._of_users.add((network, user), number, step)
            self._of_addresses.add(network, number, step)
