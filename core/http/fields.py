"""Header fields and query keys, as far as their number and their names go."""

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from core.errors import Refused

MOST_SHOWN = 40  # characters of an unknown key, in the answer to whoever sent it


class Fields(Protocol):
    """Names with a value each, or with several."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """All values of a name."""


def only_one(fields: Fields, *names: str) -> None:
    """Raise Refused(400) if one of these is there more than once: which of them is meant, nobody can tell."""
    for name in names:
        if len(fields.getall(name, ())) > 1:
            raise Refused(400, f"{name} is there more than once: send it once")


def only_known(keys: Iterable[str], known: Collection[str]) -> None:
    """Raise Refused(400) for a key that is not known: misspelt, it would go unnoticed."""
    for key in keys:
        if key not in known:
            shown = ascii(key if len(key) <= MOST_SHOWN else f"{key[:MOST_SHOWN]}…")
            raise Refused(400, f"the query has the unknown key {shown}; known are {' and '.join(known)}")
