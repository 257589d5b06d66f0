"""The provider of the users in the ACL file (plugins/acl/users.py).

It is read at the start and on SIGHUP and SIGUSR2; a file that cannot be used then changes nothing.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.auth.fair_line import PATIENCE, FairLine
from core.auth.login import (
    Credentials,
    Login,
    OpenStreams,
    WrongCredentials,
    alike,
    too_many_at_a_time,
)
from core.auth.rights import Rights
from core.errors import ConfigError
from core.expiring import Expiring
from plugins import Plugin
from plugins.acl.passwords import cost_class, is_password
from plugins.acl.users import NOBODY, Users, read_users

log = logging.getLogger("pypubsub.acl")

_VERIFYING = 2  # passwords at a time: each may take a core, and 64 MiB
_KEPT = 1  # more: no flood of guesses keeps out who is known
_REMEMBERED_FOR = 60.0  # seconds that right credentials need not be verified again
_MOST_REMEMBERED = 10_000


class Verifier:
    """Verifies passwords in threads: two at a time, and one more of those who were right a while ago."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_VERIFYING + _KEPT, thread_name_prefix="passwords")
        self._line = FairLine(_VERIFYING, _KEPT)

    async def verify(self, stored: str, claimed: str, credentials: Credentials) -> bool:
        """Whether a password is right, found out in a thread. credentials: who waits. Raises Unanswered."""
        try:
            await self._line.wait(credentials.networks, first=credentials.recognised, patience=PATIENCE)
        except TimeoutError:
            raise too_many_at_a_time() from None
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, is_password, stored, claimed)
        finally:
            self._line.end()

    def stop(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class AclFile(Plugin):
    """A provider of the users in the file.

    path: the file; users: what read_users() found in it; streams: the server's.
    """

    name = "file"

    def __init__(self, path: Path, users: Users | None, streams: OpenStreams) -> None:
        self._path = path
        self._streams = streams
        self._verifier = Verifier()
        # digest of credentials -> that of the name and what the file had as its password
        self._right: Expiring[bytes, bytes] = Expiring(_REMEMBERED_FOR, _MOST_REMEMBERED)
        self.configured = users is not None
        self._users = users or NOBODY

    def plan(self) -> list[str]:
        """How many users there are."""
        return [f"users: {len(self._users.by_name) if self.configured else 'none'} in the ACL file"]

    def warnings(self) -> list[str]:
        """What was found when the file was read."""
        return self._users.warnings

    async def stop(self) -> None:
        """Let the threads end."""
        self._verifier.stop()

    async def reload(self) -> None:
        """Read the file again. What is no longer granted ends at once."""
        try:
            users = await asyncio.to_thread(read_users, self._path)
        except ConfigError as error:
            for problem in error.problems:
                log.error("%s", problem)  # noqa: TRY400 (one clear line, no traceback)
            log.error("%s: not taken over: the rights are as before", self._path)  # noqa: TRY400
            return
        if users is None:
            if self.configured:
                log.error(
                    "%s: is missing or empty: the rights are as before ({} in it takes them all away)",
                    self._path,
                )
            return
        for warning in users.warnings:
            log.warning("%s", warning)
        self.configured = True
        self._users = users  # in one step, whoever asks meanwhile
        log.info("%s: %d users", self._path, len(users.by_name))
        self._streams.rights_changed()

    def recall(self, credentials: Credentials) -> Login | None:
        """A password that was verified a short while ago, and is still the user's."""
        user = self._users.by_name.get(credentials.user)
        if user is None or self._right.get(credentials.digest) != user.proof:
            return None
        return Login(self, credentials.user, user.rights, user.proof)

    async def log_in(self, credentials: Credentials) -> Login | None:
        """Verify a password; None if the file has no such user. Raises WrongCredentials, Unanswered."""
        user = self._users.by_name.get(credentials.user)
        if user is None:
            if self.claims(credentials.user):
                await self.pretend(credentials)
                raise WrongCredentials
            return None
        if not await self._verify(user.password, credentials):
            raise WrongCredentials
        self._right.put(credentials.digest, user.proof)
        if login := self.recall(credentials):
            return login
        raise WrongCredentials  # by now: the file was read meanwhile

    async def _verify(self, stored: str, credentials: Credentials) -> bool:
        """A wrong password costs as much as any other of the file would."""
        if cost_class(stored) is None:  # plain text costs nothing, and need not wait its turn
            right = is_password(stored, credentials.password)
        else:
            right = await self._verifier.verify(stored, credentials.password, credentials)
        if right:
            return True
        await self._pretend(credentials, done=cost_class(stored))
        return False

    async def pretend(self, credentials: Credentials) -> None:
        """Verify a password that nobody has."""
        await self._pretend(credentials, done=None)

    async def _pretend(self, credentials: Credentials, done: str | None) -> None:
        for kind, stored in self._users.decoys.items():
            if kind != done:
                await self._verifier.verify(stored, "\0", credentials)

    def claims(self, user: str) -> bool:
        """Whether the file has it: then it is nobody else in a directory, in no spelling."""
        return alike(user) in self._users.alike

    def rights_by_now(self, login: Login) -> Rights | None:
        """None if the user, or the password that was shown, is no longer in the file."""
        user = self._users.by_name.get(login.user)
        return user.rights if user and user.proof == login.proof else None
