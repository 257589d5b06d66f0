"""Who asks, and whether they may publish: by network, by certificate, or, on secure topics, by log-in.

Knows nothing of HTTP but names of header fields.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from core.auth import web_pages
from core.auth.authentication import Authentication
from core.auth.login import AUTHENTICATE, Login, WrongCredentials
from core.auth.networks import CertificateNames, Networks, publisher_address
from core.auth.rights import NO_RIGHTS, Rights
from core.errors import Refused
from core.events.topics import PublishPath
from core.settings import UNIX, Config


class Headers(web_pages.Headers, Protocol):
    """A request's header fields, some of which may be there several times."""

    def __contains__(self, name: object, /) -> bool: ...

    def getall(self, name: str, default: Sequence[str], /) -> Sequence[str]:
        """All values of a field, in the order received."""


class Asker(NamedTuple):
    """Where a request comes from."""

    peer: str | None  # the address at the other end of the connection, "unix", None if not known
    address: str | None  # whom it speaks for, as far as that can be believed: see publisher_address()

    @property
    def shown(self) -> str | None:
        """The address as the log shows it, and the proxy that it came by."""
        if self.address == self.peer:
            return self.peer
        return f"{self.address or 'an unknown address'} via {self.peer}"


class AccessControl:
    """Who somebody is, and who may publish: by the rules of the configuration."""

    def __init__(self, config: Config, authentication: Authentication) -> None:
        self._authentication = authentication
        self._publishers = Networks(config.clients.payloaders)
        self._certified = CertificateNames(config.certified_publishers)
        self._trusted_proxies = Networks(config.server.trusted_proxies)
        ours = [*config.server.hosts, *config.server.bind]
        self._web_pages = web_pages.WebPages(config.server.cors_origins, ours)
        self._secure_topics = frozenset(config.clients.secure_topics)
        self._keys = "clients.payloaders" + (", payloader_certs" if config.certified_publishers else "")

    def asker(self, peer: str | None, headers: Headers) -> Asker:
        """Where a request comes from, by its connection and what trusted proxies say."""
        x_forwarded_for, forwarded = headers.getall("X-Forwarded-For", ()), headers.getall("Forwarded", ())
        return Asker(peer, publisher_address(peer, self._trusted_proxies, x_forwarded_for, forwarded))

    def is_open(self, peer: str | None, path: PublishPath) -> bool:
        """Whether a peer who speaks for itself may publish on a path, whoever the user is."""
        return self._publishers.hold(peer) and self._secure_topics.isdisjoint(path.all_topics)

    def secured(self, path: PublishPath) -> frozenset[str]:
        """Those of an event's topics that only a user with a right to them may publish on."""
        return self._secure_topics & path.all_topics

    async def log_in(self, asker: Asker, headers: Headers) -> Login | None:
        """Who asks, if they say so and it can be told. Raises Refused (401, 429, 503)."""
        credentials = headers.getall("Authorization", ())
        if not credentials:
            return None
        return await self._authentication.log_in(credentials, asker.address or asker.peer or UNIX)

    async def authorize(
        self,
        asker: Asker,
        headers: Headers,
        certificate: Mapping[str, Any] | None,
        path: PublishPath,
    ) -> tuple[str, Login | None]:
        """The name of the user or address that publishes, and its login. Raises Refused if it may not.

        certificate: the peer's, verified, as SSLSocket.getpeercert() gives it; None or {}: there is none.
        """
        self._web_pages.check(headers)
        address, secured = asker.address, self.secured(path)
        # the certificate is the peer's: a proxy's says nothing of those for whom it speaks
        certified = address == asker.peer and self._certified.hold(certificate)
        if not secured and address is not None and (certified or self._publishers.hold(address)):
            return address, None  # credentials change nothing, and publishers send some to whomever
        login = await self.log_in(asker, headers)
        if secured:
            if "Authorization" not in headers:
                topics = ", ".join(sorted(secured))
                raise Refused(401, f"credentials are needed to publish on {topics}", headers=AUTHENTICATE)
            if login is None:
                raise no_right_to(secured)
            self.check_rights(login, path)
            return login.name, login
        raise Refused(403, f"{address or 'an unknown address'} may not publish here (see {self._keys})")

    def check_rights(self, login: Login, path: PublishPath) -> None:
        """Raises WrongCredentials, or Refused(403) for secure topics, by what a user may do by now."""
        secured = self.secured(path)
        if not self.rights_by_now(login).can_publish(secured):
            raise no_right_to(secured)

    def rights_by_now(self, login: Login | None) -> Rights:
        """What somebody may do by now. Raises WrongCredentials if the credentials no longer hold."""
        if login is None:
            return NO_RIGHTS
        rights = self._authentication.rights_by_now(login)
        if rights is None:
            raise WrongCredentials
        return rights


def no_right_to(secured: frozenset[str]) -> Refused:
    """The refusal of a user who may not publish on secure topics."""
    return Refused(403, f"these credentials give no right to publish on {', '.join(sorted(secured))}")
