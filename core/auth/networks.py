"""Who is asking: networks and certificates that may publish, addresses behind trusted proxies."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from netaddr import AddrFormatError, IPAddress, IPNetwork, IPSet

from core.settings import UNIX

MOST_PROXIES = 20  # that a request may have come through
_LONGEST_ENTRY = 1000  # characters of a forwarding header, of which one proxy has written all
_CACHED_ADDRESSES = 10_000


class Networks:
    """A set of networks, asked by address; the answers are kept, for a bounded number of addresses."""

    def __init__(self, networks: Iterable[IPNetwork | str]) -> None:
        listed = list(networks)
        self._unix = UNIX in listed
        self._set = IPSet([network.cidr for network in listed if isinstance(network, IPNetwork)])
        self._holds = lru_cache(_CACHED_ADDRESSES)(self._look_up)

    def hold(self, address: str | None) -> bool:
        """Whether an address is in one of the networks. "unix": a peer of a unix socket; None: not known."""
        return address is not None and self._holds(address)

    def _look_up(self, address: str) -> bool:
        if address == UNIX:
            return self._unix
        return IPAddress(address) in self._set


class CertificateNames:
    """A set of names, asked by certificate: the common names in its subject, and its alternative names."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._dns_names = frozenset(name.lower() for name in self._names if name.isascii())

    def hold(self, certificate: Mapping[str, Any] | None) -> bool:
        """Whether a certificate bears one of the names. It must have been verified.

        certificate: as SSLSocket.getpeercert() gives it; None and {}: there is none.
        Names are compared as a whole and exactly, but for the case of DNS names (RFC 4343: of ASCII letters).
        """
        if not certificate:
            return False
        for part in certificate.get("subject", ()):
            if any(kind == "commonName" and name in self._names for kind, name in part):
                return True
        for kind, name in certificate.get("subjectAltName", ()):
            if kind == "DNS" and name.isascii() and name.lower() in self._dns_names:
                return True
            if kind in ("email", "URI") and name in self._names:
                return True
        return False


def plain_address(text: str) -> str | None:
    """An address as netaddr writes it, IPv4-mapped ones as IPv4; None if it is no address."""
    try:
        address = IPAddress(text.partition("%")[0])  # without an IPv6 scope such as %eth0
    except (AddrFormatError, ValueError):
        return None
    return str(address.ipv4() if address.is_ipv4_mapped() else address)


@lru_cache(1000)
def networks_of(address: str) -> tuple[str, ...]:
    """What somebody may have all of, the narrowest first: an IPv4 address; of IPv6 a /64, a /56, a /48."""
    if ":" not in address:
        return (address,)
    return tuple(str(IPNetwork(f"{address}/{length}").cidr) for length in (64, 56, 48))


def queues_of(address: str) -> tuple[str, ...]:
    """Where an address waits in core.auth.fair_line: networks, the widest first; of IPv4 also its /24."""
    if "." in address and ":" not in address:
        return (f"{address.rpartition('.')[0]}.0/24", address)
    return networks_of(address)[::-1]


def site_of(address: str) -> str:
    """What counts as one address: of IPv6 its /64, since one host may have all of that."""
    return networks_of(address)[0]


def publisher_address(
    peer: str | None, trusted_proxies: Networks, x_forwarded_for: Sequence[str], forwarded: Sequence[str]
) -> str | None:
    """The address a request comes from, as far as it can be believed.

    peer: the address at the other end of the connection, "unix" for a unix socket, None if not known.
    x_forwarded_for, forwarded (RFC 7239): the values of the headers, in the order received.

    The lists are read from the right, each entry only on the word of a trusted proxy to its right, and no
    further than to the first that is none. Anything else in the place of an address, more than MOST_PROXIES,
    or two headers that do not agree, gives None: it raises nobody's rights.
    """
    if not trusted_proxies.hold(peer):
        return peer
    chains = []
    if x_forwarded_for:
        chains.append(_from_the_right(x_forwarded_for))
    if forwarded:
        chains.append(map(_for_of, _from_the_right(forwarded)))
    if not chains:
        return peer
    addresses = {_first_untrusted(chain, trusted_proxies) for chain in chains}
    return addresses.pop() if len(addresses) == 1 else None


def _from_the_right(values: Sequence[str]) -> Iterator[str]:
    """The entries of lists with commas, the last one first. Each is cut out when it is asked for."""
    for value in reversed(values):
        end = len(value)
        while end >= 0:
            comma = value.rfind(",", 0, end)
            yield value[comma + 1 : end]
            end = comma


def _first_untrusted(nodes: Iterator[str], trusted_proxies: Networks) -> str | None:
    """The first that is no trusted proxy, or else the last of them all."""
    address: str | None = None
    for number, node in enumerate(nodes):
        address = _node_address(node) if number < MOST_PROXIES and len(node) <= _LONGEST_ENTRY else None
        if not trusted_proxies.hold(address):
            return address
    return address


def _node_address(node: str) -> str | None:
    """An entry of a forwarding header: an address, perhaps in quotes, with a port, IPv6 in brackets."""
    text = node.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return plain_address(text)


def _for_of(element: str) -> str:
    """The `for` of an element of Forwarded, which has one; else "".

    A comma or semicolon in quotes breaks one up, into what is no address.
    """
    if len(element) > _LONGEST_ENTRY:
        return ""
    pairs = (pair.partition("=") for pair in element.split(";"))
    nodes = [node for name, _, node in pairs if name.strip().lower() == "for"]
    return nodes[0] if len(nodes) == 1 else ""
