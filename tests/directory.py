"""plugins/ldap/directory.py without the server around it, and servers that are no directory at all."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

from core.auth.login import Credentials, Login
from core.auth.rights import Rights
from plugins.ldap.directory import Directory
from plugins.ldap.settings import LdapConfig
from slapd import GROUPS, PASSWORDS, PEOPLE, SUFFIX

ACL = {
    f"cn=committers,{GROUPS}": ["commits"],
    "CN = board members , OU=Groups,dc=example,dc=org": {"acl": {"minutes": ["board"]}, "topics": ["votes"]},
    f"cn=posix,{GROUPS}": ["posix"],
    f"uid=Bob,{PEOPLE}": ["bob"],
}


def segments(*segments: str) -> frozenset[frozenset[str]]:
    """What somebody sees who has these segments, of one topic each."""
    return frozenset(frozenset([segment]) for segment in segments)


def ldap_config(*uris: str, **changes: Any) -> LdapConfig:
    """clients.ldap, for the users of slapd.py."""
    settings: dict[str, Any] = {
        "uri": uris,
        "user_dn": f"uid=%s,{PEOPLE}",
        "base_scope": SUFFIX,
        "membership_patterns": [f"member=uid=%s,{PEOPLE}", "(&(objectClass=posixGroup)(memberUid=%s))"],
        "acl": ACL,
        "timeout": 10,
    }
    return LdapConfig.model_validate(settings | changes)


def credentials(user: str, password: str | None = None) -> Credentials:
    """As the server hands them over."""
    return Credentials(user, PASSWORDS[user] if password is None else password, b"")


class NoStreams:
    """core.auth.login.OpenStreams where there is no server."""

    def logins(self) -> Sequence[Login]:
        """None."""
        return ()

    def rights_changed(self) -> None:
        """Nobody is told."""


class Streams:
    """The open streams: those whose login was added, until they are told to end."""

    def __init__(self) -> None:
        self.open: list[Login] = []
        self.changes = asyncio.Semaphore(0)  # rights_changed() that nobody has waited for yet
        self.told = 0  # times rights_changed()

    def logins(self) -> Iterator[Login]:
        """As core.auth.login.OpenStreams."""
        return iter(self.open)

    def rights_changed(self) -> None:
        """As core.auth.login.OpenStreams."""
        self.told += 1
        self.changes.release()

    async def until(self, login: Login, condition: Callable[[Rights | None], bool]) -> None:
        """Wait until the rights of a login are so; they are looked at only when the provider says so."""
        async with asyncio.timeout(20):
            while True:
                await self.changes.acquire()
                if condition(login.provider.rights_by_now(login)):
                    return


@contextlib.asynccontextmanager
async def running(config: LdapConfig, streams: Streams | None = None) -> AsyncIterator[Directory]:
    """A provider as the server runs it."""
    directory = Directory(config, streams or Streams())
    task = asyncio.create_task(directory.run())
    try:
        yield directory
        assert not task.done(), task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await directory.stop()


# A server of a test's own

Handler = Callable[["Peer"], Awaitable[None]]


class Peer:
    """Somebody who talks to a Fake."""

    def __init__(self, fake: "Fake", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._fake = fake
        self.number = fake.connections  # 1 for the first
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """The next request. Raises ConnectionError if the peer goes."""
        received = await self.reader.read(65536)  # ldap3 sends each in one piece
        if not received:
            raise ConnectionResetError
        self._fake.received += received
        return received

    def send(self, data: bytes) -> None:
        """Any bytes."""
        self.writer.write(data)

    async def silence(self) -> None:
        """Never answer, until the peer goes."""
        while True:
            await self.request()

    async def bind(self) -> None:
        """Take any password."""
        self.send(answer(await self.request(), BIND, 0))


class Fake:
    """A server that does what a test says, in the event loop of the test."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.received = b""  # from all peers; after TLS has begun, what was inside
        self.connections = 0
        self.open = 0  # of them
        self.came = asyncio.Condition()
        self.port = 0

    @property
    def uri(self) -> str:
        """Where it serves."""
        return f"ldap://127.0.0.1:{self.port}"

    @property
    def tls_uri(self) -> str:
        """The same, for those who begin with TLS."""
        return f"ldaps://127.0.0.1:{self.port}"

    async def until_connections(self, number: int) -> None:
        """Wait for that many connections."""
        async with self.came:
            await self.came.wait_for(lambda: self.connections >= number)

    async def until_closed(self) -> None:
        """Wait until all peers have gone."""
        async with asyncio.timeout(10), self.came:
            await self.came.wait_for(lambda: not self.open)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        async with self.came:
            self.connections += 1
            self.open += 1
            self.came.notify_all()
        try:
            await self._handler(Peer(self, reader, writer))
        except OSError:
            pass  # peers who go away, or whose TLS fails, are what the tests are about
        finally:
            writer.close()
            self.open -= 1
            async with self.came:
                self.came.notify_all()


@contextlib.asynccontextmanager
async def fake(handler: Handler, context: ssl.SSLContext | None = None) -> AsyncIterator[Fake]:
    """A running Fake. context: for TLS from the start."""
    served: set[asyncio.Task[None]] = set()
    that = Fake(handler)

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(that.serve(reader, writer))
        served.add(task)

    server = await asyncio.start_server(serve, "127.0.0.1", ssl=context)
    that.port = server.sockets[0].getsockname()[1]
    try:
        yield that
    finally:
        server.close()
        for task in served:
            task.cancel()
        for result in await asyncio.gather(*served, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


# RFC 4511, as bytes
BIND, SEARCH_ENTRY, SEARCH_DONE, SEARCH_REFERENCE, EXTENDED = b"\x61", b"\x64", b"\x65", b"\x73", b"\x78"


def element(tag: bytes, content: bytes) -> bytes:
    """One BER element."""
    size = len(content)
    length = bytes([size]) if size < 128 else b"\x84" + size.to_bytes(4, "big")
    return tag + length + content


def message(request: bytes, operation: bytes) -> bytes:
    """An LDAP message to that request."""
    start = 2 if request[1] < 128 else 2 + request[1] - 128
    number = request[start : start + 2 + request[start + 1]]
    return element(b"\x30", number + operation)


def answer(request: bytes, tag: bytes, code: int, text: bytes = b"", rest: bytes = b"") -> bytes:
    """The result of an operation, with a diagnostic message."""
    result = element(b"\x0a", bytes([code])) + element(b"\x04", b"") + element(b"\x04", text) + rest
    return message(request, element(tag, result))


def entry(request: bytes, dn: bytes) -> bytes:
    """Something found."""
    return message(request, element(SEARCH_ENTRY, element(b"\x04", dn) + element(b"\x30", b"")))
