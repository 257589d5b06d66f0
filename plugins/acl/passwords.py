"""Passwords of the ACL file: as plain text, or as a hash by argon2id or bcrypt in modular-crypt format."""

import getpass
import hmac
import re
import sys
from typing import Final

import argon2
import bcrypt

from core.auth.login import problem_with_password

_ARGON2ID = re.compile(
    r"(\$argon2id\$v=19\$m=(\d+),t=(\d+),p=(\d+))\$[A-Za-z0-9+/]{11,}\$[A-Za-z0-9+/]{16,}", re.ASCII
)
_BCRYPT = re.compile(r"(\$2[aby]\$(\d\d))\$[./A-Za-z0-9]{53}", re.ASCII)
_ANY_HASH = re.compile(
    r"\$(argon2[a-z]*|2[a-z]?|[1567]|g?y|apr1|md5|sha1|scrypt|pbkdf2[a-z0-9-]*)\$", re.ASCII
)  # as Unix and web servers write them
_BCRYPT_BYTES = 72  # more of a password bcrypt does not look at, and htpasswd and others cut it off there
_MOST_MEMORY, _MOST_ROUNDS, _MOST_LANES = 1024**2, 20, 16  # KiB (1 GiB), a number, threads
_MOST_COST = 15  # some seconds: a wrong password costs as much as the costliest hash in the file
_HASHER: Final = argon2.PasswordHasher()


def hash_password(password: str) -> str:
    """Its hash, by argon2id with the parameters that RFC 9106 recommends for little memory (64 MiB)."""
    return _HASHER.hash(password)


def print_hash() -> int:
    """Ask for a password, twice at a terminal, and print its hash: --hash-password. The exit status."""
    at_terminal = sys.stdin.isatty()
    try:
        password = getpass.getpass() if at_terminal else sys.stdin.readline().rstrip("\r\n")
        problem = problem_with_password(password)
        if problem is None and at_terminal and getpass.getpass("Again: ") != password:
            problem = "the two passwords differ"
    except (EOFError, KeyboardInterrupt):
        problem = "no password was given"
    except UnicodeError:
        problem = "a password is text in UTF-8"
    if problem:
        print(problem, file=sys.stderr)
        return 1
    print(hash_password(password))
    return 0


def problem_with_hash(stored: str) -> str | None:
    """What is wrong with a stored password that looks like a hash; None for a good one, or plain text."""
    if not is_hash(stored):
        return None
    if match := _ARGON2ID.fullmatch(stored):
        memory, rounds, lanes = map(int, match.groups()[1:])
        if 8 * lanes <= memory <= _MOST_MEMORY and 1 <= rounds <= _MOST_ROUNDS and 1 <= lanes <= _MOST_LANES:
            return None
        return f"an argon2id hash of at most m={_MOST_MEMORY},t={_MOST_ROUNDS},p={_MOST_LANES}"
    if match := _BCRYPT.fullmatch(stored):
        return None if 4 <= int(match[2]) <= _MOST_COST else f"a bcrypt hash of cost 4 to {_MOST_COST}"
    return "a whole hash by argon2id or bcrypt (--hash-password makes one)"


def is_hash(stored: str) -> bool:
    """Whether it is meant as a hash: kinds that are not known are refused, not compared as plain text."""
    return _ANY_HASH.match(stored) is not None


def cost_class(stored: str) -> str | None:
    """What tells how long verifying takes: a hash's kind and parameters, None for plain text."""
    match = _ARGON2ID.fullmatch(stored) or _BCRYPT.fullmatch(stored)
    return match[1] if match else None


def is_password(stored: str, claimed: str) -> bool:
    """Whether a claimed password is the stored one. For a hash this takes a while."""
    if not is_hash(stored):
        return hmac.compare_digest(_digest(stored), _digest(claimed))
    if stored.startswith("$argon2id$"):
        try:
            return _HASHER.verify(stored, claimed)
        except argon2.exceptions.VerificationError:
            return False
    return bcrypt.checkpw(claimed.encode()[:_BCRYPT_BYTES], stored.encode())


def _digest(text: str) -> bytes:
    """Of equal length for all, so that comparing tells nothing about it."""
    return hmac.digest(b"plain", text.encode(), "sha256")
