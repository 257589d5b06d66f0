"""The directory: users who are not in the ACL file, and the rights of their groups.

Each user is asked for with its own name and password; there is no account of the server's own. An answer
holds for `refresh`. For open streams it is asked for again in the background, so that a changed group or a
locked account takes effect on them; while the directory is out they keep what they have, for `grace`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

from core.auth.login import (
    Credentials,
    Login,
    OpenStreams,
    Unanswered,
    WrongCredentials,
    digest_of,
    folded,
    problem_with_password,
    problem_with_user,
    too_many_at_a_time,
)
from core.auth.rights import NO_RIGHTS, Rights
from core.auth.rights_config import Grants
from core.errors import ConfigError, collected
from core.expiring import Expiring
from plugins import Plugin
from plugins.ldap.dn import Dn, parse_dn
from plugins.ldap.lookup import Outage, Question, check_uri
from plugins.ldap.servers import Crowded, Servers, Unasked
from plugins.ldap.settings import LdapConfig
from plugins.ldap.templates import Pattern, UserDn

MOST_STANDINGS = 10_000  # that are remembered
_ROUNDS = 10  # in `refresh`
_AT_A_TIME = 2  # that are asked again in the background: fewer than there are threads

_log = logging.getLogger("pypubsub.ldap")


@dataclass(eq=False)
class Standing:
    """What the directory said of a user with a password, shared by all streams of the two."""

    rights: Rights | None  # None: refused
    asked: float  # monotonic; when it last said so
    failing_since: float | None = None  # monotonic; when it was asked and could not say, and not since
    given_up: bool = False  # that has lasted for too long


@dataclass(frozen=True)
class Proof:
    """What a login rests on.

    The directory can only be asked with the password, so that is kept in memory: here, for as long as
    somebody holds the Login, which is as long as the stream is open. What is remembered beyond that has none.
    """

    credentials: Credentials = field(repr=False)
    standing: Standing


class Directory(Plugin):
    """The provider of the users of clients.ldap. Raises ConfigError. clock: monotonic, in seconds."""

    name = "ldap"
    configured = True  # whoever made it has a section to read it from

    def __init__(
        self, config: LdapConfig, streams: OpenStreams, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._streams = streams
        self._clock = clock
        problems: list[str] = []
        for uri in config.uri:
            with collected(problems):
                check_uri(uri)
        with collected(problems):
            self._user_dn = UserDn(config.user_dn)
        self._patterns = []
        for pattern in config.membership_patterns:
            with collected(problems):
                self._patterns.append(Pattern(pattern))
        with collected(problems):
            _parsed("base_scope", config.base_scope)
        with collected(problems):
            self._rights = _by_dn(config.acl)
        if problems:
            raise ConfigError(problems)
        self._servers = Servers(config)
        self._standings = self._nothing_known()
        self._reloaded = asyncio.Event()

    def plan(self) -> list[str]:
        """Who is asked."""
        return [f"directory: {', '.join(self._config.uri)}"]

    def _nothing_known(self) -> Expiring[bytes, Standing]:
        """A table of standings, by digest: each is kept for longer than a stream lasts that rests on it.

        That ends when the directory could not be asked for `grace`, which begins within `refresh`.
        """
        lifetime = 2 * self._config.refresh + self._config.grace
        return Expiring(lifetime, MOST_STANDINGS, self._clock)

    # Logging in

    def recall(self, credentials: Credentials) -> Login | None:
        """The answer to the same user and password, if it is not older than `refresh`."""
        standing = self._standings.get(_key(credentials))
        if (
            standing is None
            or standing.rights is None
            or self._clock() - standing.asked > self._config.refresh
        ):
            return None
        return Login(self, folded(credentials.user), standing.rights, Proof(credentials, standing))

    async def log_in(self, credentials: Credentials) -> Login:
        """Ask the directory. Raises WrongCredentials, Unanswered."""
        user, password = credentials.user, credentials.password
        if problem_with_user(user) or problem_with_password(password):
            raise WrongCredentials
        standings = self._standings  # not those that reload() puts in their place meanwhile
        key = _key(credentials)
        try:
            rights = await self._ask(credentials, open_stream=False)
        except WrongCredentials:
            if known := standings.get(key):
                standings.forget(key)
                if self._learn(known, None):
                    self._streams.rights_changed()
            raise
        except Crowded:
            raise too_many_at_a_time() from None
        except Outage as outage:  # the log has the reason
            message = "the directory cannot be asked: try again in a few seconds"
            raise Unanswered(message, asked=not isinstance(outage, Unasked)) from None
        standing = standings.get(key) or Standing(rights, self._clock())
        standings.put(key, standing)
        if self._learn(standing, rights):
            self._streams.rights_changed()
        return Login(self, folded(user), rights, Proof(credentials, standing))

    def claims(self, user: str) -> bool:  # noqa: ARG002 (any name might be one of its users)
        """Whether a name is for the directory alone: never, since it is the last to be asked."""
        return False

    async def pretend(self, credentials: Credentials) -> None:
        """Do nothing: every user is asked of the directory, known there or not."""

    async def _ask(self, credentials: Credentials, *, open_stream: bool) -> Rights:
        """What the directory says by now. Raises WrongCredentials, Outage."""
        user = credentials.user
        searches = [(pattern.pattern, pattern.filter_for(user)) for pattern in self._patterns]
        question = Question(self._user_dn.name_of(user), credentials.password, searches)
        dns = await self._servers.ask(question, credentials, open_stream=open_stream)
        if own := self._user_dn.dn_of(user):
            dns.add(own)
        granted = [self._rights[dn] for dn in self._rights.keys() & dns]
        return Rights(
            frozenset().union(*(rights.readable for rights in granted)),
            frozenset().union(*(rights.publishable for rights in granted)),
        )

    def _learn(self, standing: Standing, rights: Rights | None) -> bool:
        """Keep what the directory says by now; whether that is something else than before."""
        changed = standing.given_up or rights != standing.rights
        standing.rights = rights
        standing.asked = self._clock()
        standing.failing_since = None
        standing.given_up = False
        return changed

    # Open streams

    def rights_by_now(self, login: Login) -> Rights | None:
        """The newest; None if the credentials are refused by now, or if that is not known for `grace`."""
        standing = cast(Proof, login.proof).standing
        return None if standing.given_up else standing.rights

    async def run(self) -> None:
        """Ask again for open streams, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.refresh / _ROUNDS):
                    await self._reloaded.wait()
            # what would be too old before the next round is due in this one
            age = 0.0 if self._reloaded.is_set() else self._config.refresh * (1 - 1 / _ROUNDS)
            self._reloaded.clear()
            await self._ask_again(age)

    async def reload(self) -> None:
        """Ask again for all open streams at once, and forget what the directory said of others."""
        self._standings = self._nothing_known()
        self._servers.retry()
        self._reloaded.set()

    async def stop(self) -> None:
        """Ask no more."""
        self._servers.stop()

    async def _ask_again(self, age: float) -> None:
        """For each user of open streams about whom the last answer is that old (seconds)."""
        before = self._clock() - age
        due = {}
        for login in self._streams.logins():
            if login.provider is self:
                proof = cast(Proof, login.proof)
                if proof.standing.rights is not None and proof.standing.asked <= before:
                    due[proof.standing] = proof.credentials
        changes: list[Standing] = []
        given_up: list[Standing] = []
        turns = iter(due.items())
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_A_TIME):
                group.create_task(self._ask_in_turn(turns, changes, given_up))
        if given_up:
            _log.warning(
                "the directory has not answered for %g s (clients.ldap.grace): the streams of %d users end",
                self._config.grace,
                len(given_up),
            )
        if changes or given_up:
            self._streams.rights_changed()

    async def _ask_in_turn(
        self, turns: Iterator[tuple[Standing, Credentials]], changes: list[Standing], given_up: list[Standing]
    ) -> None:
        for standing, credentials in turns:
            rights: Rights | None
            began = self._clock()
            try:
                rights = await self._ask(credentials, open_stream=True)
            except WrongCredentials:
                rights = None
            except Outage:
                if standing.failing_since is None:
                    standing.failing_since = began
                if not standing.given_up and self._clock() - standing.failing_since >= self._config.grace:
                    standing.given_up = True
                    given_up.append(standing)
                continue
            key = _key(credentials)
            if self._standings.get(key) is standing:
                self._standings.put(key, standing)
            if self._learn(standing, rights):
                changes.append(standing)


def _key(credentials: Credentials) -> bytes:
    """One for each spelling: filters may tell apart what a bind does not, such as those for memberUid."""
    return digest_of(credentials.user, credentials.password)


# The configuration


def _by_dn(acl: Mapping[str, Grants]) -> dict[Dn, Rights]:
    """Rights by comparable dns. Raises ConfigError with all that are none."""
    rights: dict[Dn, Rights] = {}
    problems: list[str] = []
    for text, grants in acl.items():
        with collected(problems):
            dn = _parsed("acl", text)
            rights[dn] = rights.get(dn, NO_RIGHTS) | grants.rights
    if problems:
        raise ConfigError(problems)
    return rights


def _parsed(key: str, text: str) -> Dn:
    try:
        return parse_dn(text)
    except ValueError as error:
        example = "cn=committers,ou=groups,dc=example,dc=org"
        raise ConfigError(
            [f"clients.ldap.{key}: expected a dn such as {example}, got {text!r}: {error}"]
        ) from None
