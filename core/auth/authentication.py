"""From the header Authorization to a login: ask the providers, once for many who ask the same at a time.

Who guesses is stopped (core.auth.attempts), but not who has shown the same right credentials from the same
address within a day: so no guessing of others behind the same proxy keeps them out. From any other address
right credentials are no better than wrong ones then, or the answers would tell them apart.

Of one site only so many are under way at a time. More wait here, and are counted when they have begun: a
crowd behind a proxy that logs in all at once, such as after a restart, is not taken for one who guesses.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

from core.auth.attempts import Attempts, TooManyAttempts
from core.auth.fair_line import PATIENCE
from core.auth.login import (
    Credentials,
    Login,
    Provider,
    Unanswered,
    WrongCredentials,
    alike,
    parse_credentials,
    too_many_at_a_time,
)
from core.auth.networks import queues_of, site_of
from core.auth.rights import Rights
from core.counters import counters
from core.errors import Refused
from core.expiring import Expiring

log = logging.getLogger("pypubsub.log-in")

_RECOGNISED_FOR = 86_400.0  # seconds
_MOST_RECOGNISED = 20_000  # credentials at an address
_AT_A_TIME = 20  # log-ins of one site: fewer than the failed ones that an address may have


class Authentication:
    """Asks providers of users, in their order.

    anonymous: wrong credentials are no error, but as good as none.
    """

    def __init__(self, providers: Sequence[Provider], *, anonymous: bool) -> None:
        self._providers = providers
        self._anonymous = anonymous
        self._attempts = Attempts()
        self._recognised: Expiring[tuple[str, bytes], None] = Expiring(_RECOGNISED_FOR, _MOST_RECOGNISED)
        self._under_way: dict[bytes, asyncio.Task[Login]] = {}  # by digest
        self._of_sites: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @property
    def configured(self) -> bool:
        """Whether there is a provider. If there is none, nobody can log in, and credentials are ignored."""
        return any(provider.configured for provider in self._providers)

    async def log_in(self, authorization: Sequence[str], address: str) -> Login | None:
        """Who somebody is; None if nobody is claimed, or nobody could tell.

        authorization: the values of the header; address: where the request comes from.
        Raises WrongCredentials, TooManyAttempts, Unanswered.
        """
        if not authorization or not self.configured:
            return None
        try:
            login = await self._identify(parse_credentials(authorization), address)
        except Unanswered:
            counters.log_ins["unanswered"] += 1
            raise
        except (WrongCredentials, TooManyAttempts) as refused:
            counters.log_ins["too_many" if isinstance(refused, TooManyAttempts) else "wrong"] += 1
            if self._anonymous:
                return None
            raise
        counters.log_ins["right"] += 1
        return login

    async def _identify(self, credentials: Credentials, address: str) -> Login:
        here = (site_of(address), credentials.digest)
        if here in self._recognised:
            try:
                return await self._find_out(replace(credentials, recognised=True), address)
            except WrongCredentials:
                self._recognised.forget(here)
                raise
        of_site = self._of_sites.setdefault(here[0], asyncio.Semaphore(_AT_A_TIME))
        try:
            async with asyncio.timeout(PATIENCE):
                await of_site.acquire()
        except TimeoutError:
            raise too_many_at_a_time() from None
        try:
            login = await self._find_out(credentials, address)
        finally:
            of_site.release()
        self._recognised.put(here, None)
        return login

    async def _find_out(self, credentials: Credentials, address: str) -> Login:
        user = alike(credentials.user)
        self._attempts.check(address, user, exempt=credentials.recognised)
        if login := self._recall(credentials):
            return login
        task = self._under_way.get(credentials.digest)
        if task is None:
            counted = None if credentials.recognised else (address, user)
            task = self._begin(replace(credentials, networks=queues_of(address)), counted)
        # shielded: others may wait for the same, and a guess that is taken back would not be counted
        return await asyncio.shield(task)

    def _recall(self, credentials: Credentials) -> Login | None:
        for provider in self._providers:
            if (login := provider.recall(credentials)) and self.rights_by_now(login) is not None:
                return login
        return None

    def _begin(self, credentials: Credentials, counted: tuple[str, str] | None) -> asyncio.Task[Login]:
        """Ask the providers. counted: the address and user that a failure counts against; None: nobody."""
        if counted:
            self._attempts.begin(*counted)
        task = asyncio.create_task(self._attempt(credentials, counted), name="log in")
        self._under_way[credentials.digest] = task
        task.add_done_callback(lambda done: self._ended(credentials.digest, done))
        return task

    def _ended(self, digest: bytes, task: asyncio.Task[Login]) -> None:
        del self._under_way[digest]
        if not task.cancelled() and not isinstance(error := task.exception(), Refused | None):
            log.error("error in a log-in", exc_info=error)  # everybody who waited for it may have left

    async def _attempt(self, credentials: Credentials, counted: tuple[str, str] | None) -> Login:
        try:
            login = await self._ask(credentials)
        except Unanswered as unanswered:
            if counted and not unanswered.asked:  # so that nobody learnt anything
                self._attempts.succeeded(*counted)
            raise
        if counted:
            self._attempts.succeeded(*counted)
        return login

    async def _ask(self, credentials: Credentials) -> Login:
        refused_by: Provider | None = None
        for provider in self._providers:
            try:
                login = await provider.log_in(credentials)
            except WrongCredentials:
                refused_by = provider
                break
            if login and self.rights_by_now(login) is not None:
                return login
        for provider in self._providers:
            if provider is not refused_by:
                await provider.pretend(credentials)
        raise WrongCredentials

    def rights_by_now(self, login: Login) -> Rights | None:
        """What a login is worth by now; None if the same credentials would be refused."""
        for provider in self._providers:
            if provider is login.provider:
                break
            if provider.claims(login.user):  # since it was given
                return None
        return login.provider.rights_by_now(login)

    async def stop(self) -> None:
        """End what is under way."""
        for task in self._under_way.values():
            task.cancel()
        if self._under_way:
            await asyncio.wait(list(self._under_way.values()))
