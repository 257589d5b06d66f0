"""Who somebody is: credentials, what a provider of users answers to them, and for how long that holds.

Providers are plugins.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from core.auth.rights import Rights
from core.errors import RETRY_AFTER, Refused

LONGEST_USER = 255  # bytes in UTF-8: the time that Unicode's forms of a name take grows faster than the name
AUTHENTICATE = {"WWW-Authenticate": 'Basic realm="PyPubSub", charset="UTF-8"'}  # RFC 7617
_MAPPED_TO_NOTHING = {
    chr(code) for code in (0x34F, 0x1806, *range(0x180B, 0x180E), *range(0xFE00, 0xFE10), 0xFFFC)
}
_CONTROL_OR_HALF = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")  # Unicode's categories Cc and Cs
_KEY = secrets.token_bytes(32)  # so that a digest is of no use outside of this process


@dataclass(frozen=True)
class Credentials:
    """What a client claims. digest: stands for both, in tables that hold no password."""

    user: str
    password: str = field(repr=False)
    digest: bytes = field(repr=False)
    recognised: bool = False  # they were right a while ago, so this is hardly a guess
    networks: tuple[str, ...] = ()  # that they come from, the widest first


class NotLoggedIn(Refused):
    """Somebody who wanted to log in could not. Such an answer is held back, whatever the reason."""


class WrongCredentials(NotLoggedIn):
    """401: credentials that are malformed, or that no provider takes."""

    def __init__(self, message: str = "wrong user or password") -> None:
        super().__init__(401, message, headers=AUTHENTICATE)


class Unanswered(NotLoggedIn):
    """503: it cannot be found out now whether credentials are right.

    asked: somebody was asked, or would have been, were it not for all who ask; so it may have been a guess.
    """

    def __init__(self, message: str, *, asked: bool = True) -> None:
        super().__init__(503, message, headers=RETRY_AFTER)
        self.asked = asked


def too_many_at_a_time() -> Unanswered:
    """The refusal of who has waited for a turn in vain."""
    return Unanswered("too many log-ins at a time: try again in a few seconds")


class Login(NamedTuple):
    """Somebody whose credentials were right."""

    provider: "Provider"
    user: str  # one name for all spellings that the provider takes as the same
    rights: Rights  # by then; Provider.rights_by_now() tells what became of them
    proof: object  # the provider's own note of what was shown to it

    @property
    def name(self) -> str:
        """The user among those of all providers."""
        return f"{self.provider.name} {self.user}"


@runtime_checkable
class Provider(Protocol):
    """What the server asks of a provider of users."""

    name: str  # such as "file"

    @property
    def configured(self) -> bool:
        """Whether there is anybody to ask. Without any provider credentials are ignored."""

    def recall(self, credentials: Credentials) -> Login | None:
        """The answer that log_in() gave to the same credentials a short while ago, if it still holds."""

    async def log_in(self, credentials: Credentials) -> Login | None:
        """None if it has no such user. Raises WrongCredentials, Unanswered."""

    async def pretend(self, credentials: Credentials) -> None:
        """Take as long as for a wrong password, so that nobody can find out which users there are."""

    def claims(self, user: str) -> bool:
        """Whether this name, however spelled, is for this provider alone, though others may know it too."""

    def rights_by_now(self, login: Login) -> Rights | None:
        """What a login for an open stream is worth; None if its credentials would be refused now."""


class OpenStreams(Protocol):
    """What a provider may ask of the server."""

    def logins(self) -> Iterable[Login]:
        """The log-ins of all open streams."""

    def rights_changed(self) -> None:
        """Have Provider.rights_by_now() asked for each of them."""


def parse_credentials(authorization: Sequence[str]) -> Credentials:
    """The values of the header Authorization, as RFC 7617 has them. Raises WrongCredentials."""
    if len(authorization) != 1:
        raise WrongCredentials("Authorization: expected once")
    scheme, _, encoded = authorization[0].strip(" \t").partition(" ")
    if scheme.lower() != "basic":
        raise WrongCredentials("Authorization: only Basic is known here")
    try:
        decoded = base64.b64decode(encoded.strip(" ").encode("ascii"), validate=True).decode()
    except (UnicodeError, binascii.Error):
        raise WrongCredentials("Authorization: expected Basic, and user:password in Base64") from None
    user, colon, password = decoded.partition(":")
    if not colon or not user:
        raise WrongCredentials("Authorization: expected user:password")
    if problem := problem_with_user(user) or problem_with_password(password):
        raise WrongCredentials(f"Authorization: {problem}")
    return Credentials(user, password, digest_of(user, password))


def digest_of(user: str, password: str) -> bytes:
    """What stands for a user and a password, neither of which has a NUL."""
    return hmac.digest(_KEY, f"{user}\0{password}".encode(), hashlib.sha256)


def problem_with_user(user: str) -> str | None:
    """Why this can be nobody's name; None if it can."""
    if not user or ":" in user:
        return "a user's name is not empty and has no colon"
    if len(user.encode(errors="surrogatepass")) > LONGEST_USER:
        return f"a user's name has at most {LONGEST_USER} bytes"
    if user != user.strip() or _CONTROL_OR_HALF.search(user) or any(map(_is_format_character, user)):
        return "a user's name has no spaces around it and no control, format or half characters"
    return None


def problem_with_password(password: str) -> str | None:
    """Why this can be nobody's password; None if it can."""
    if not password:
        return "a password is not empty"  # to a directory, an empty one means: as nobody, and that succeeds
    if _CONTROL_OR_HALF.search(password):
        return "a password has no control characters and no half ones"  # RFC 7617 section 2, surrogates
    return None


def _is_format_character(character: str) -> bool:
    return unicodedata.category(character) == "Cf"


def folded(user: str) -> str:
    """One name for spellings that a directory takes as the same, and never for two that it may tell apart."""
    return " ".join(unicodedata.normalize("NFC", user).lower().split())


def alike(user: str) -> str:
    """One name for all spellings that a directory may take as the same, perhaps for some more (RFC 4518)."""
    if user.isascii():
        return " ".join(user.lower().split())
    visible = "".join(c for c in user if c not in _MAPPED_TO_NOTHING and not _is_format_character(c))
    lower = unicodedata.normalize("NFKC", visible).casefold().replace("i\u0307", "i")  # of a dotted capital I
    return " ".join(unicodedata.normalize("NFKC", lower).casefold().split())
