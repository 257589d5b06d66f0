"""One question to one server of a directory: are these credentials right, and which groups is the user in.

Runs in a thread, and comes to an end: every step (the connection, the TLS handshake, each answer as a whole)
has `timeout` seconds. Whatever a server does wrong is an Outage. The password goes nowhere but into the bind,
over a connection that is as safe as the configuration demands.
"""

import contextlib
import logging
import math
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ldap3
from ldap3.core.exceptions import LDAPCommunicationError, LDAPExceptionError, LDAPStartTLSError
from ldap3.core.results import (
    RESULT_CODES,
    RESULT_CONSTRAINT_VIOLATION,
    RESULT_INAPPROPRIATE_AUTHENTICATION,
    RESULT_INVALID_CREDENTIALS,
    RESULT_INVALID_DN_SYNTAX,
    RESULT_NO_SUCH_OBJECT,
    RESULT_SUCCESS,
    RESULT_UNWILLING_TO_PERFORM,
)

from core.auth.login import WrongCredentials
from core.errors import ConfigError
from plugins.ldap.dn import Dn, parse_dn
from plugins.ldap.settings import LdapConfig

MOST_ANSWER_BYTES = 1024**2  # some ten thousand groups
MOST_MESSAGE_BYTES = 16 * 1024  # one group; ldap3 takes minutes to read a number that is as long as an answer
_WRONG = frozenset(
    (
        RESULT_INVALID_CREDENTIALS,  # what a directory should answer to all of these
        RESULT_NO_SUCH_OBJECT,
        RESULT_INVALID_DN_SYNTAX,
        RESULT_INAPPROPRIATE_AUTHENTICATION,  # an entry without a password
        RESULT_UNWILLING_TO_PERFORM,  # a locked account
        RESULT_CONSTRAINT_VIOLATION,  # too many failed attempts
    )
)


_log = logging.getLogger("pypubsub.ldap")


class Outage(Exception):  # noqa: N818 (it says what is the matter)
    """A server cannot be asked, or did not answer what it was asked.

    reason: for the log: what is wrong, and what to look at. Holds nothing that a client sent.
    silent: no connection, or no answer to the bind, so that the next one to ask would wait in vain.
    """

    def __init__(self, reason: str, *, silent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.silent = silent


@dataclass(frozen=True)
class Question:
    """Of one user. searches: each pattern as the configuration has it, and the filter for this user."""

    name: str  # to bind as
    password: str = field(repr=False)
    searches: Sequence[tuple[str, str]]


def ask(uri: str, config: LdapConfig, question: Question, unwanted: Callable[[], bool]) -> set[Dn]:
    """The dns of the user's groups. Raises WrongCredentials, Outage.

    unwanted: whether nobody waits for the answer any more.
    """
    if not question.password:
        raise WrongCredentials  # to a directory it means: as nobody, and that succeeds
    with _connected(uri, config, question) as connection:
        _bind(connection)
        found = []
        for pattern, query in question.searches:
            if unwanted():
                raise Outage("stopped")
            found += _search(connection, config, pattern, query)
    return _readable(found)  # here, in the thread: of thousands this takes a while


def check_uri(uri: str) -> None:
    """Raises ConfigError if nobody can be asked there."""
    try:
        ldap3.Server(uri, get_info=ldap3.NONE)
    except LDAPExceptionError as error:
        problem = f"clients.ldap.uri: expected ldap://host or ldaps://host:636, got {uri!r}: {error}"
        raise ConfigError([problem]) from None


# The connection


@contextlib.contextmanager
def _connected(uri: str, config: LdapConfig, question: Question) -> Iterator[ldap3.Connection]:
    """A connection on which the password may be sent."""
    start_tls = config.start_tls and not uri.startswith("ldaps:")
    tls = _Tls(config) if uri.startswith("ldaps:") or start_tls else None
    connection = ldap3.Connection(
        ldap3.Server(uri, get_info=ldap3.NONE, tls=tls, connect_timeout=config.timeout),
        user=question.name,
        password=question.password.encode(),  # type: ignore[arg-type]  # as text it would be changed (SASLprep)
        authentication=ldap3.SIMPLE,
        client_strategy=ldap3.SYNC,
        auto_referrals=False,  # a server may name any other, which would get the password
        auto_range=False,  # nor may it have ldap3 ask on and on
        check_names=False,
        auto_escape=False,
        read_only=True,
    )
    try:
        with _outages("it cannot be reached", silent=(Exception,)):
            connection.open(read_server_info=False)
            connection.socket = _BoundedSocket(connection.socket, config.timeout)
            connection.strategy.receiving = partial(_short_messages, connection.strategy.receiving)
        if start_tls:
            with _outages("it does not do StartTLS (clients.ldap.start_tls)", silent=(Exception,)):
                connection.start_tls(read_server_info=False)
                if not isinstance(connection.socket.inner, ssl.SSLSocket):  # ldap3 may return all the same
                    raise ConnectionError("it has not begun")
        yield connection
    finally:
        if connection.socket is not None:  # ldap3 leaves open what has failed half-way
            connection.socket.close()


def _short_messages(receiving: Callable[[], list[bytes]]) -> list[bytes]:
    """The messages that ldap3 is about to read. Raises OSError."""
    messages = receiving()
    if any(len(message) > MOST_MESSAGE_BYTES for message in messages):
        raise OSError(f"a message of more than {MOST_MESSAGE_BYTES} bytes")
    return messages


class _BoundedSocket:
    """What ldap3 talks through: an answer as a whole has its time and its size.

    ldap3 by itself has a time for each piece of one, so that a server could keep it for ever.
    """

    def __init__(self, inner: socket.socket, timeout: float) -> None:
        self.inner = inner
        self._timeout = timeout
        self._deadline = 0.0
        self._left = 0  # bytes

    def sendall(self, request: bytes) -> None:
        """Send a request; the answer's time begins."""
        self._deadline = time.monotonic() + self._timeout
        self._left = MOST_ANSWER_BYTES
        self.inner.settimeout(self._timeout)
        self.inner.sendall(request)

    def recv(self, size: int) -> bytes:
        """Some more of the answer."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("timed out")
        self.inner.settimeout(remaining)
        received = self.inner.recv(size)
        self._left -= len(received)
        if self._left < 0:
            raise OSError(f"an answer of more than {MOST_ANSWER_BYTES} bytes")
        return received

    def shutdown(self, how: int) -> None:
        """Shut the socket down, as socket.shutdown()."""
        self.inner.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self.inner.close()


class _Tls(ldap3.Tls):
    """TLS by Python's own rules for chain and host name, in place of ldap3's, which knows no IP addresses."""

    def __init__(self, config: LdapConfig) -> None:
        super().__init__()
        self._timeout = config.timeout
        try:
            # read anew each time: a new ca_file is used at once
            self._context = ssl.create_default_context(cafile=config.ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise Outage(
                f"clients.ldap.ca_file: {config.ca_file}: no certificates in PEM: {error}", silent=True
            ) from None
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not config.verify:
            self._context.check_hostname = False
            self._context.verify_mode = ssl.CERT_NONE

    def wrap_socket(self, connection: Any, do_handshake: bool = False) -> None:  # noqa: ARG002 (always)
        """Begin TLS; raises if the certificate is not right."""
        plain = connection.socket
        begun = isinstance(plain, _BoundedSocket)  # StartTLS
        if begun:
            plain = plain.inner
            plain.settimeout(self._timeout)
        safe = self._context.wrap_socket(plain, server_hostname=connection.server.host)
        connection.socket = _BoundedSocket(safe, self._timeout) if begun else safe


# Questions


def _bind(connection: ldap3.Connection) -> None:
    with _outages("it does not answer whether a password is right", silent=(TimeoutError,)):
        connection.bind(read_server_info=False)
        result = connection.result
        code, kind = int(result["result"]), result["type"]
    if kind != "bindResponse":
        raise Outage("it does not answer whether a password is right: something else came")
    if code in _WRONG:
        raise WrongCredentials
    if code != RESULT_SUCCESS:
        raise Outage(
            f"it does not say whether a password is right: {RESULT_CODES[code]} ({code})", silent=False
        )


def _search(connection: ldap3.Connection, config: LdapConfig, pattern: str, query: str) -> list[bytes]:
    about = f"a search below clients.ldap.base_scope {config.base_scope!r} for {pattern!r} fails"
    with _outages(about):
        connection.search(
            config.base_scope,
            query,
            search_scope=ldap3.SUBTREE,
            dereference_aliases=ldap3.DEREF_NEVER,
            attributes=[ldap3.NO_ATTRIBUTES],
            time_limit=math.ceil(config.timeout),
        )
        code, kind = int(connection.result["result"]), connection.result["type"]
        entries = [entry for entry in connection.response or () if entry["type"] == "searchResEntry"]
        found = [bytes(entry["raw_dn"]) for entry in entries]
    if kind != "searchResDone":
        raise Outage(f"{about}: something else came")
    if code == RESULT_NO_SUCH_OBJECT:
        raise Outage(f"{about}: base_scope is not there, or the user may not see it")
    if code != RESULT_SUCCESS:  # with fewer groups than there are, rights would be lost without a word
        raise Outage(f"{about}: {RESULT_CODES[code]} ({code})")
    return found


def _readable(found: Iterable[bytes]) -> set[Dn]:
    """Dns as a server sends them, without those that are none."""
    dns = set()
    passed_over = 0
    for raw in found:
        try:
            dns.add(parse_dn(raw.decode()))
        except ValueError:  # the server's fault; such a one can be nobody's right
            passed_over += 1
    if passed_over:
        _log.debug("the directory has sent %d names of groups that are no dn", passed_over)
    return dns


@contextlib.contextmanager
def _outages(about: str, *, silent: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever ldap3 raises into an Outage. silent: what makes it one of a server that is not there."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (ldap3 reads an answer by hand: bytes that are none raise anything)
        raise Outage(f"{about}: {_in_words(error)}", silent=isinstance(error, silent)) from None


def _in_words(error: Exception) -> str:
    """Without what came from the server, which might have sent back what it got."""
    if not isinstance(error, LDAPCommunicationError | LDAPStartTLSError | OSError):
        return f"an answer that is none ({type(error).__name__})"
    if len(error.args) > 1 and isinstance(error.args[1], list):  # ldap3's, of a host with several addresses
        return "; ".join(f"{address[0]}: {_in_words(cause)}" for cause, address in error.args[1])
    words = " ".join(str(error).split())
    return "its host name is not known" if words == "invalid server address" else words
