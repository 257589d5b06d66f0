"""The HTTP server: its sockets that listen, and what they accept: counted before anything else, TLS or not.

The event loops have servers of their own, which accept whatever comes, and tell of a connection over TLS when
its handshake has ended, so that silent ones would be outside every limit. At the limit of open files uvloop's
hangs up on clients without a word.
"""

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from core import __version__
from core.auth.networks import Networks, plain_address
from core.errors import StartError
from core.http.connection import (
    IDLE_TIMEOUT,
    LINGER,
    Connection,
    Responder,
    connection_of,
    shown_path,
)
from core.http.heads import MAX_FIELD, MAX_FIELDS, MAX_TARGET
from core.http.limits import SURPLUS_TIMEOUT, Connections, Entry, room_for_connections
from core.http.unix_socket import UnixSocket
from core.settings import UNIX, ServerConfig
from core.trouble import Trouble

log = logging.getLogger("pypubsub")

ACCEPT_QUEUE = 1024  # connections waiting to be accepted: after a restart everybody comes back at once
AT_ONCE = 64  # connections that are accepted in one turn of the loop: events have their turn between
PAUSE = 0.05  # seconds until it is tried again, where nothing more can be accepted
QUIET = 10.0  # seconds between two lines about that, which clients can bring about

CurrentContext = Callable[[], ssl.SSLContext | None]  # the TLS context for a connection that comes now


class AccessLog(AbstractAccessLogger):
    """The access log: a line for each request, without its query and headers, where credentials may be."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Log a request and its answer. time: the seconds it took."""
        peer, path = connection_of(request).peer, shown_path(request)
        line = "%s %s %s %d %d bytes %.6f s"
        self.logger.info(line, peer, request.method, path, response.status, response.body_length, time)


class HttpServer(web.Server):
    """aiohttp's low-level server (every path is a topic: there is nothing to route), with our Connection."""

    def __init__(self, handler: Responder, settings: ServerConfig, files_of_others: int) -> None:
        """files_of_others: open files that the server must leave to connections that plugins make."""
        super().__init__(handler.handle, handler_cancellation=True)  # so a disconnect is noticed at once
        self._handler = handler
        self._settings = settings
        self.limits = Connections(
            *room_for_connections(settings.max_connections, files_of_others),
            settings.max_connections_per_address,
            Networks(settings.trusted_proxies),
        )

    def connection(self, peer: str | None, entry: Entry) -> Connection:
        """A new connection, which has been counted; it is opened by giving it to the event loop."""
        return Connection(
            self,
            self._handler,
            self.limits,
            peer,
            entry,
            self._settings.head_timeout,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=IDLE_TIMEOUT,
            lingering_time=LINGER,
            max_line_size=MAX_TARGET,
            max_field_size=MAX_FIELD,
            max_headers=MAX_FIELDS,
            auto_decompress=False,  # inflate() does it, and knows the limit
            logger=logging.getLogger("pypubsub.http"),
            access_log=logging.getLogger("pypubsub.access") if self._settings.access_log else None,
            access_log_class=AccessLog,
        )

    async def stop(self, within: float) -> None:
        """Close all connections: idle ones at once, others when they are answered, or after some seconds."""
        await asyncio.sleep(0)  # what has just come is handled first
        self.pre_shutdown()
        await self.shutdown(within)

    def turned_away(self, peer: str | None, entry: Entry) -> None:
        """Count and log a connection that is closed without an answer."""
        if refused := self.limits.refusal(entry):
            self._handler.note_refusal(refused, "a connection, without an answer,", peer)


class ListeningSockets:
    """All sockets that listen, and the connections over them that are not open yet.

    http: what serves the connections.
    handshake_timeout: seconds that a TLS handshake may take. asyncio's 60 are for links that are very slow.
    """

    def __init__(self, http: HttpServer, handshake_timeout: float) -> None:
        self._http = http
        self._handshake_timeout = handshake_timeout
        self._loop = asyncio.get_running_loop()
        self._listening: list[socket.socket] = []
        self._unix: list[UnixSocket] = []
        self._opening: set[asyncio.Task[None]] = set()  # which takes a turn or two of the loop
        self._handshakes: set[asyncio.Task[None]] = set()  # which take as long as their clients like
        self._trouble = Trouble(
            log, "cannot accept connections: %s", "connections are accepted again", quiet=QUIET
        )

    async def listen(self, settings: ServerConfig, context: CurrentContext) -> None:
        """Listen wherever the configuration says. Raises StartError."""
        for bind in settings.bind:
            if bind.startswith("unix:"):
                self.listen_unix(Path(bind.removeprefix("unix:")))
                continue
            ipv4_too = settings.takes_ipv4_too(bind)
            await self.listen_tcp(bind, settings.port, ipv4_too=ipv4_too)
            if settings.tls:
                await self.listen_tcp(bind, settings.tls.port, context, ipv4_too=ipv4_too)

    async def listen_tcp(
        self, bind: str, port: int, context: CurrentContext | None = None, *, ipv4_too: bool = False
    ) -> None:
        """Listen on an address, or on all of a name's. Raises StartError."""
        tls = context is not None
        try:
            sockets = await tcp_sockets(bind, port, ipv4_too=ipv4_too)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error
            raise StartError(f"cannot listen on {url(bind, port, tls=tls)}: {reason}") from error
        except ValueError as error:  # a name that cannot be looked up
            raise StartError(f"cannot listen on {url(bind, port, tls=tls)}: {error}") from error
        for listening in sockets:
            self._listen(listening, context)
        port = sockets[0].getsockname()[1]  # the kernel's choice where it was 0
        for address in (bind, "0.0.0.0") if ipv4_too else (bind,):  # noqa: S104 (what it is)
            log.info("PyPubSub %s serves %s", __version__, url(address, port, tls=tls))

    def listen_unix(self, path: Path) -> None:
        """Listen on a socket in the file system. Raises StartError."""
        unix_socket = UnixSocket(path, ACCEPT_QUEUE)
        self._unix.append(unix_socket)
        self._listen(unix_socket.listening, None)
        log.info("PyPubSub %s serves unix:%s", __version__, path)

    async def stop(self) -> None:
        """Accept no more, and cut off handshakes that are under way."""
        for listening in self._listening:
            self._loop.remove_reader(listening)
        for unix_socket in self._unix:
            unix_socket.close()
        for listening in self._listening:
            listening.close()
        self._listening.clear()
        self._unix.clear()
        for handshake in self._handshakes:
            handshake.cancel()
        await asyncio.gather(*self._opening, *self._handshakes, return_exceptions=True)

    def _listen(self, listening: socket.socket, context: CurrentContext | None) -> None:
        listening.setblocking(False)
        self._listening.append(listening)
        self._loop.add_reader(listening, self._accept, listening, context)

    def _accept(self, listening: socket.socket, context: CurrentContext | None) -> None:
        """Take what waits to be accepted, as far as there is room for it."""
        for _ in range(AT_ONCE):
            if not self._http.limits.has_room():
                limits = self._http.limits
                full = f"there are {limits.most}, and {limits.most_surplus} more to be refused"
                self._pause(listening, context, full)
                return
            try:
                accepted, address = listening.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:  # EMFILE, ENFILE, ENOBUFS, ENOMEM, ...
                self._pause(listening, context, error.strerror or str(error))
                return
            self._trouble.ended()
            peer = UNIX if listening.family == socket.AF_UNIX else plain_address(address[0])
            self._take(accepted, peer, context)

    def _pause(self, listening: socket.socket, context: CurrentContext | None, reason: str) -> None:
        """Leave what comes to the kernel for a moment, in which the loop would ask without end."""
        self._trouble.began(reason)
        self._loop.remove_reader(listening)
        self._loop.call_later(PAUSE, self._resume, listening, context)

    def _resume(self, listening: socket.socket, context: CurrentContext | None) -> None:
        if listening in self._listening:
            self._loop.add_reader(listening, self._accept, listening, context)

    def _take(self, accepted: socket.socket, peer: str | None, context: CurrentContext | None) -> None:
        """Count a connection, and have it opened."""
        entry = self._http.limits.enter(peer)
        if entry == "closed":
            accepted.close()
            self._http.turned_away(peer, entry)
            return
        opening = self._loop.create_task(self._open(accepted, peer, entry, context and context()))
        under_way = self._opening if context is None else self._handshakes
        under_way.add(opening)
        opening.add_done_callback(under_way.discard)

    async def _open(
        self, accepted: socket.socket, peer: str | None, entry: Entry, context: ssl.SSLContext | None
    ) -> None:
        """Have the event loop open a connection, over TLS with its handshake, and close it in the end."""
        connection = self._http.connection(peer, entry)
        connect = partial(self._loop.connect_accepted_socket, lambda: connection, accepted)
        try:
            if context is None:
                await connect()
            elif entry == "admitted":
                await connect(ssl=context, ssl_handshake_timeout=self._handshake_timeout)
            else:
                await connect(
                    ssl=context, ssl_handshake_timeout=SURPLUS_TIMEOUT, ssl_shutdown_timeout=SURPLUS_TIMEOUT
                )
        except OSError as error:
            log.debug("a connection from %s was not opened: %s", peer, error)
        finally:
            if not connection.opened:
                self._http.limits.leave(peer, entry)


async def tcp_sockets(host: str, port: int, *, ipv4_too: bool) -> list[socket.socket]:
    """Sockets that listen on all addresses of a host. Raises OSError, and ValueError for a name that is none.

    ipv4_too: whether one for IPv6 takes IPv4 as well.
    """
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                listening = socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and len(found) > 1:
                    continue  # localhost is ::1 as well, where the kernel has no IPv6
                raise
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not ipv4_too))
            listening.bind(address)
            listening.listen(ACCEPT_QUEUE)
    except BaseException:
        for listening in sockets:
            listening.close()
        raise
    return sockets


def listening_plan(settings: ServerConfig) -> list[str]:
    """What would be listened on: a line each."""
    lines = []
    for bind in settings.bind:
        if bind.startswith("unix:"):
            lines.append(f"serves {bind}")
            continue
        for address in (bind, "0.0.0.0") if settings.takes_ipv4_too(bind) else (bind,):  # noqa: S104
            lines.append(f"serves {url(address, settings.port, tls=False)}")
            if settings.tls:
                lines.append(f"serves {url(address, settings.tls.port, tls=True)}")
    return lines


def url(bind: str, port: int, *, tls: bool) -> str:
    """The URL of an address and a port that is listened on, as the log and --check write it."""
    return f"{'https' if tls else 'http'}://{f'[{bind}]' if ':' in bind else bind}:{port}"
