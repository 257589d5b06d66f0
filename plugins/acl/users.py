"""The ACL file as it is read: user -> password, segments of topics to see, secure topics to publish on.

Its format is that of PyPubSub 0.7, whose files are taken as they are. What could give somebody more than was
meant, such as a segment without topics or a key that stands twice, is a problem, and the file is not used.
What only gives somebody less is a warning: an unknown key, a topic that no event can have, a user without a
password.
"""

import contextlib
import gc
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator

from core.auth.login import alike, digest_of, problem_with_password, problem_with_user
from core.auth.rights import Rights
from core.auth.rights_config import Grants
from core.config import MEANT, build, kind_of, read_secret_yaml, shown_key, suggestion
from core.errors import ConfigError
from core.settings import TOPIC_FORM, is_topic
from core.yaml_file import Document
from plugins.acl.passwords import cost_class, is_hash, problem_with_hash

_MOST_LINES = 100  # of problems, and of warnings, in one reading of the file
_KEYS = frozenset(("password", "acl", "topics"))  # of an entry


def _check_password(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("text: put quotes around it")  # noqa: TRY004 (pydantic reports this one)
    if problem := problem_with_password(value) or problem_with_hash(value):
        raise ValueError(problem)
    return value


class Entry(Grants):
    """One user's entry in the file."""

    shows_values: ClassVar[bool] = False  # in errors: a slip of a key may put the password anywhere

    password: Annotated[str, BeforeValidator(_check_password)]


@dataclass(frozen=True, slots=True)
class User:
    """One user. proof: stands for the name and what the file has as its password."""

    password: str = field(repr=False)
    rights: Rights
    proof: bytes = field(repr=False)


@dataclass(frozen=True)
class Users:
    """What the file holds, read once and asked often."""

    by_name: dict[str, User]
    warnings: list[str]
    alike: frozenset[str]  # the names, and those of users without a password, as login.alike() has them
    decoys: dict[str, str]  # of each kind of hash one: the kind -> a stored password


NOBODY = Users({}, [], frozenset(), {})


def read_users(path: Path) -> Users | None:
    """The users of an ACL file; None if there is no such file, or nothing in it (`{}` is nobody).

    Raises ConfigError with the problems. Neither they nor warnings show a value, which may be a password.
    """
    try:
        mode = path.stat().st_mode
        with _no_collections():
            document = read_secret_yaml(path, "users' names as keys")
            return None if document.content is None else _Reading(document).users(path, mode)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Keep Python from looking for garbage meanwhile.

    Among the nodes of thousands of users there is none, and a look at all of them stops every thread, each
    time for up to a second.
    """
    were_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if were_on:
            gc.enable()


class _Reading:
    """One reading of a file: its users, and what is to be said of it."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._by_name: dict[str, User] = {}
        self._locked_out: list[str] = []  # users without a password
        self._warnings: list[str] = []
        self._problems: list[str] = []
        self._suggestions: dict[object, str] = {}  # by unknown key: slow to find

    def users(self, path: Path, mode: int) -> Users:
        """Raises ConfigError."""
        for name, entry in self._document.content.items():
            try:
                self._read(path, name, entry)
            except ConfigError as error:
                self._problems += error.problems
        if self._problems:
            raise ConfigError(_shortened(self._problems))
        classes = {cost_class(user.password): user.password for user in self._by_name.values()}
        warnings = [*_of_the_file(self._by_name, mode), *_shortened(self._warnings)]
        return Users(
            self._by_name,
            [f"{path}: {warning}" for warning in warnings],
            frozenset(map(alike, [*self._by_name, *self._locked_out])),
            {kind: stored for kind, stored in classes.items() if kind},
        )

    def _read(self, path: Path, name: object, entry: Any) -> None:
        """One key at the top, and what is below it. Raises ConfigError."""
        if not isinstance(name, str):
            raise ConfigError([f"{path}: expected users' names as keys, in quotes if they look like numbers"])
        shown = str(shown_key(name))
        if not isinstance(entry, dict) and (isinstance(entry, list) or name in self._document.aliased):
            self._warnings.append(f"{shown}: is {kind_of(entry)} and no user, so it grants nothing by itself")
            return
        if isinstance(entry, dict):
            entry = {key: value for key, value in entry.items() if value is not None or key not in _KEYS}
            self._warn_of_unknown_keys(shown, entry)
            if "password" not in entry:
                self._locked_out.append(name)
                self._warnings.append(f"{shown}.password: is missing, so nobody can log in as this user")
                return
            entry = self._without_what_grants_nothing(shown, entry)
        if problem := problem_with_user(name):
            raise ConfigError([f"{path}: {shown}: {problem}"])
        read = build(Entry, entry, path, above=(name,))
        self._by_name[name] = User(read.password, read.rights, digest_of(name, read.password))
        self._warnings += [f"{shown}.{warning}" for warning in read.warnings()]

    def _warn_of_unknown_keys(self, shown: str, entry: dict[Any, Any]) -> None:
        """An entry without a password may have it in the place of a key, which is then not shown."""
        for key in (key for key in entry if key not in _KEYS):
            if key not in self._suggestions:
                self._suggestions[key] = suggestion(Entry, (key,))
            meant = self._suggestions[key]
            if "password" in entry or meant.startswith(MEANT):
                self._warnings.append(f"{shown}.{shown_key(str(key))}: unknown key{meant}")

    def _without_what_grants_nothing(self, shown: str, entry: dict[Any, Any]) -> dict[Any, Any]:
        """The known keys of an entry, without topics that no event can have. Lists without any stay."""
        kept = {key: entry[key] for key in _KEYS if key in entry}
        if isinstance(segments := kept.get("acl"), dict):
            kept["acl"] = {
                segment: topics
                for segment, topics in segments.items()
                if self._are_topics(topics, f"{shown}.acl.{shown_key(str(segment))}", "this segment")
            }
        if isinstance(topics := kept.get("topics"), list):
            self._are_topics(topics, f"{shown}.topics", "it")
            kept["topics"] = [topic for topic in topics if is_topic(topic)]
        return kept

    def _are_topics(self, topics: object, where: str, what: str) -> bool:
        """Whether all in a list are such as an event can have; says of each that is not."""
        if not isinstance(topics, list):
            return True  # which is for others to say
        wrong = [(place, topic) for place, topic in enumerate(topics) if not is_topic(topic)]
        for place, topic in wrong:
            found = "" if isinstance(topic, str) else f", got {kind_of(topic)}"
            self._warnings.append(f"{where}[{place}]: expected {TOPIC_FORM}{found}: {what} grants nothing")
        return not wrong


def _of_the_file(users: dict[str, User], mode: int) -> list[str]:
    """What an operator should know about a file with users, one line each."""
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
    return found


def _shortened(lines: list[str]) -> list[str]:
    """Not one for each of thousands of users."""
    more = len(lines) - _MOST_LINES
    return [*lines[:_MOST_LINES], f"and {more} more of this kind"] if more > 0 else lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
