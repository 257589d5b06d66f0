"""The ACL file: user -> password, segments of topics to see, secure topics to publish on.

Its format is that of PyPubSub 0.7. It is read at the start and on SIGHUP and SIGUSR2; a file that cannot be
used then changes nothing.
"""

import asyncio
import logging
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BeforeValidator, Field

from core.config import build, read_yaml, shown_key
from core.errors import ConfigError
from core.expiring import Expiring
from core.fair_line import PATIENCE, FairLine
from core.grants import Grants
from core.login import (
    Credentials,
    Login,
    OpenStreams,
    WrongCredentials,
    alike,
    digest_of,
    problem_with_password,
    problem_with_user,
    too_many_at_a_time,
)
from core.rights import Rights
from core.topics import PRIVATE
from plugins.acl_passwords import cost_class, is_hash, is_password, problem_with_hash

log = logging.getLogger("pypubsub.acl")

_VERIFYING = 2  # passwords at a time: each may take a core, and 64 MiB
_KEPT = 1  # more: no flood of guesses keeps out who is known
_REMEMBERED_FOR = 60.0  # seconds that right credentials need not be verified again
_MOST_REMEMBERED = 10_000


def _check_password(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("text: put quotes around it")  # noqa: TRY004 (pydantic reports this one)
    if problem := problem_with_password(value) or problem_with_hash(value):
        raise ValueError(problem)
    return value


class User(Grants):
    """One user's entry in the file."""

    shows_values: ClassVar[bool] = False  # in errors: a slip of a key may put the password anywhere

    password: Annotated[str, BeforeValidator(_check_password), Field(repr=False)]


class Users(NamedTuple):
    """What the file holds."""

    by_name: dict[str, User]
    warnings: list[str]


def read_users(path: Path) -> Users | None:
    """The users of an ACL file; None if there is no such file, or nothing in it (`{}` is nobody).

    Raises ConfigError with every problem in it; none shows a value, which may be a password.
    """
    try:
        mode = path.stat().st_mode
        content = read_yaml(path, "users' names as keys", secret=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    if content is None:
        return None
    users: dict[str, User] = {}
    problems = []
    for name, entry in content.items():
        try:
            users[name] = _user(path, name, entry)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return Users(users, [f"{path}: {warning}" for warning in _warnings(users, mode)])


def _user(path: Path, name: object, entry: Any) -> User:
    if not isinstance(name, str):
        raise ConfigError([f"{path}: expected users' names as keys, in quotes if they look like numbers"])
    if problem := problem_with_user(name):
        raise ConfigError([f"{path}: {shown_key(name)}: {problem}"])
    if isinstance(entry, dict):
        nothing = [key for key in User.model_fields if entry.get(key, "") is None]  # `topics: ~`
        entry = {key: value for key, value in entry.items() if key not in nothing}
    return build(User, entry, path, above=(name,))


def _warnings(users: dict[str, User], mode: int) -> list[str]:
    """What an operator should know about a valid file, one line each."""
    if not users:
        return []
    found = []
    plain = sorted(name for name, user in users.items() if not is_hash(user.password))
    if plain:
        found.append(
            f"{_some(plain)}: the password is plain text: put what --hash-password prints in its place"
        )
    if mode & stat.S_IROTH:
        found.append("can be read by every user of this machine: chmod o-r")
    if mode & stat.S_IWOTH:
        found.append("can be written by every user of this machine: chmod o-w")
    found += [
        f'{name}.acl.{segment}: has the topic "{PRIVATE}", which does not stand for private events here'
        for name, user in users.items()
        for segment, topics in user.acl.items()
        if PRIVATE in topics
    ]
    return found


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Verifier:
    """Verifies passwords in threads: two at a time, and one more of those who were right a while ago."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_VERIFYING + _KEPT, thread_name_prefix="passwords")
        self._line = FairLine(_VERIFYING, _KEPT)

    async def verify(self, stored: str, claimed: str, credentials: Credentials) -> bool:
        """As is_password(). credentials: of who has to wait for it. Raises Unanswered."""
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


class AclFile:
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
        self._use(users)

    def _use(self, users: Users | None) -> None:
        self.configured = users is not None
        self._users = users.by_name if users else {}
        self._rights = {name: user.rights for name, user in self._users.items()}
        self._proofs = {name: digest_of(name, user.password) for name, user in self._users.items()}
        self._alike = {alike(name) for name in self._users}
        classes = {cost_class(user.password): user.password for user in self._users.values()}
        self._decoys = {kind: stored for kind, stored in classes.items() if kind}

    async def run(self) -> None:
        """There is nothing to do."""

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
        self._use(users)
        log.info("%s: %d users", self._path, len(self._users))
        self._streams.rights_changed()

    def recall(self, credentials: Credentials) -> Login | None:
        """A password that was verified a short while ago, and is still the user's."""
        name = credentials.user
        if name not in self._users or self._right.get(credentials.digest) != self._proofs[name]:
            return None
        return Login(self, name, self._rights[name], self._proofs[name])

    async def log_in(self, credentials: Credentials) -> Login | None:
        """Raises WrongCredentials, Unanswered."""
        user = self._users.get(credentials.user)
        if user is None:
            if self.claims(credentials.user):
                await self.pretend(credentials)
                raise WrongCredentials
            return None
        proof = self._proofs[credentials.user]
        if not await self._verify(user.password, credentials):
            raise WrongCredentials
        self._right.put(credentials.digest, proof)
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
        for kind, stored in self._decoys.items():
            if kind != done:
                await self._verifier.verify(stored, "\0", credentials)

    def claims(self, user: str) -> bool:
        """Whether the file has it: then it is nobody else in a directory, in no spelling."""
        return alike(user) in self._alike

    def rights_by_now(self, login: Login) -> Rights | None:
        """None if the user, or the password that was shown, is no longer in the file."""
        return self._rights[login.user] if self._proofs.get(login.user) == login.proof else None
