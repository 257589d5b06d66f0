"""How many connections there may be, in all and from one address, and which of them are too many.

One that is too many is not cut off: it is surplus, which means that its request gets an answer that says so.
Surplus connections take nobody's place. They are bounded as well. Where all places are taken, one more waits
in the kernel until it can be told. One from an address that has its share is closed without an answer: what
waits behind it may be welcome.
"""

import contextlib
import resource
import sys
from collections import Counter
from typing import Literal

from core.auth.networks import Networks, site_of
from core.errors import RETRY_AFTER, Refused, StartError
from core.settings import UNIX

MAX_SURPLUS = 1000  # connections that wait for no more than to be refused
MIN_SURPLUS = 4  # however few files may be open
SURPLUS_TIMEOUT = 2.0  # seconds that a surplus connection has for its request's head, or its TLS handshake
# open files that are not connections: 3 standard ones, some 8 of the event loop, sockets that listen, 6 of a
# backlog; for a while the ACL file, those of TLS, the resolver's, 4 connections to a directory
FILES_OF_OUR_OWN = 48

# what becomes of a new connection: it is served; it is surplus, and of which limit; it is beyond that as well
Entry = Literal["admitted", "connections", "connections_per_address", "closed"]


class Connections:
    """The connections there are, counted from where they are accepted.

    most: how many are admitted, in all.
    most_surplus: how many more there may be that wait to be refused.
    most_per_address: how many from one address; 0: any number.
    exempt: networks of which each address may have any number, as proxies must. Unix sockets are exempt too.
    """

    def __init__(self, most: int, most_surplus: int, most_per_address: int, exempt: Networks) -> None:
        self.most = most
        self.most_surplus = most_surplus
        self._most_per_address = most_per_address
        self._exempt = exempt
        self._admitted = 0
        self._surplus = 0
        self._from: Counter[str] = Counter()  # admitted ones, of addresses that are not exempt

    def has_room(self) -> bool:
        """Whether one more connection can be accepted: to be served, or to be told that it is too many."""
        return self._admitted < self.most or self._surplus < self.most_surplus

    def enter(self, peer: str | None) -> Entry:
        """Count a connection. peer: its address, "unix", or None if not known.

        "closed" is beyond what an address may have, is not counted, and gets no answer; the others count
        until they leave().
        """
        address = self._counted_as(peer)
        entry: Entry = "admitted"
        if self._admitted >= self.most:
            entry = "connections"
        elif address and self._from[address] >= self._most_per_address:
            entry = "connections_per_address"
        if entry == "admitted":
            self._admitted += 1
            if address:
                self._from[address] += 1
        elif self._surplus >= self.most_surplus:
            entry = "closed"
        else:
            self._surplus += 1
        return entry

    def leave(self, peer: str | None, entry: Entry) -> None:
        """Count a connection out again, of which enter() had said this."""
        if entry == "admitted":
            self._admitted -= 1
            if address := self._counted_as(peer):
                self._from[address] -= 1
                if not self._from[address]:
                    del self._from[address]
        elif entry != "closed":
            self._surplus -= 1

    def refusal(self, entry: Entry) -> Refused | None:
        """Why every request of a connection is refused; None if it is not."""
        if entry == "admitted":
            return None
        if entry == "connections":
            message = "too many connections (server.max_connections): ask again later"
            return Refused(503, message, headers=RETRY_AFTER, close=True, reason=entry)
        return Refused(
            429,
            f"more than {self._most_per_address} connections from one address "
            "(server.max_connections_per_address): close some",
            headers=RETRY_AFTER,
            close=True,
            reason="connections_per_address",
        )

    def _counted_as(self, peer: str | None) -> str | None:
        """The address, or network of IPv6, that a peer counts for; None if it may have any number."""
        if not self._most_per_address or peer is None or peer == UNIX or self._exempt.hold(peer):
            return None
        return site_of(peer)


def room_for_connections(configured: int, files_of_others: int) -> tuple[int, int]:
    """How many connections can be admitted, and how many more refused, with the files that may be open.

    Raises StartError if that is none.
    """
    limit = _raise_file_limit()
    files = limit - FILES_OF_OUR_OWN - files_of_others
    refusable = min(MAX_SURPLUS, max(MIN_SURPLUS, files // 16))
    if files <= refusable:
        needed = FILES_OF_OUR_OWN + files_of_others + MIN_SURPLUS + 1
        raise StartError(f"the limit of open files (ulimit -n) is {limit}: expected {needed} or more")
    most = min(configured, files - refusable)
    return most, min(MAX_SURPLUS, files - most)


def _raise_file_limit() -> int:
    """Let the process open as many files, connections among them, as it may. How many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses "unlimited"
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
