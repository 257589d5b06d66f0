"""Requests that browsers send for web pages, and which pages may publish.

A browser sends a request from its user's address, which may be allowed to publish, for any page that the
user looks at. It says so in the headers Origin and Sec-Fetch-*, which no page can change; programs send none.

A page can have the browser take this server for its own site, by a name that is first its own address and
then this server's (DNS rebinding). So a name counts only if it is one of this server's. Addresses and
localhost are never anything else.
"""

import contextlib
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from core.auth.networks import plain_address
from core.errors import Refused
from core.signals import start_deaf_thread

_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]{1,255})(?::([0-9]{1,5}))?", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class _Authority(NamedTuple):
    """What a URL or the header Host names."""

    host: str  # in lower case
    port: str  # "" if none is given


class Headers(Protocol):
    """A request's header fields, by names in any case."""

    def __iter__(self) -> Iterator[str]: ...

    def get(self, name: str, /) -> str | None:
        """The first value of a field."""


class WebPages:
    """Whose pages may publish.

    origins: sites whose pages may, wherever the browser has found this server.
    hosts: names of this server, beside those that the machine itself has.
    """

    def __init__(self, origins: Sequence[str], hosts: Iterable[str]) -> None:
        self._origins = frozenset(origins)
        self._hosts = {host.lower() for host in hosts} | {socket.gethostname().lower()}
        # the resolver may take its time: until it has answered the name does not count
        start_deaf_thread(self._add_full_name, "name of this machine")

    def _add_full_name(self) -> None:
        with contextlib.suppress(UnicodeError):  # the machine's name is none in DNS
            self._hosts.add(socket.getfqdn().lower())

    def check(self, headers: Headers) -> None:
        """Raises Refused(403) for a request that a browser sent for a page that may not publish."""
        origin, fetch_site = headers.get("Origin"), headers.get("Sec-Fetch-Site")
        if origin in self._origins:
            return
        if origin is None and not any(name.lower().startswith("sec-fetch-") for name in headers):
            return
        host = _authority(headers.get("Host") or "")
        if _from_another_site(fetch_site, origin, host):
            raise Refused(
                403, "a page of another site may not publish here (server.cors_origins lists who may)"
            )
        if host is None or not self._is_ours(host.host):
            shown = f"under the name {host.host}" if host else "whose Host is no name"
            raise Refused(
                403, f"a page {shown} may not publish here (server.hosts lists the names of this server)"
            )

    def _is_ours(self, host: str) -> bool:
        name = host.removesuffix(".")
        return (
            name == "localhost"
            or name.endswith(".localhost")  # RFC 6761 section 6.3: no browser asks anybody for these
            or name in self._hosts
            or plain_address(name.strip("[]")) is not None
        )


def _from_another_site(fetch_site: str | None, origin: str | None, host: _Authority | None) -> bool:
    """Whether a browser sent a request for a page of another site than the one it was sent to.

    fetch_site, origin: the headers Sec-Fetch-Site and Origin; host: what the header Host names.
    """
    if fetch_site is not None:
        return fetch_site not in ("same-origin", "none")
    return origin is not None and not _same_host(origin, host)


def _same_host(origin: str, host: _Authority | None) -> bool:
    scheme, separator, rest = origin.partition("://")
    theirs = _authority(rest)
    default = _DEFAULT_PORTS.get(scheme)
    if not separator or default is None or theirs is None or host is None:  # "null", and whatever is no URL
        return False
    return (theirs.host, theirs.port or default) == (host.host, host.port or default)


def _authority(text: str) -> _Authority | None:
    """A name or an address, perhaps with a port; None for anything else."""
    match = _AUTHORITY.fullmatch(text.lower())
    return _Authority(match[1], match[2] or "") if match else None
