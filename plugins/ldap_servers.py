"""The servers of a directory: which one is asked, by how many at a time, and what is done while none answers.

Questions are asked in threads, a few at a time; others wait for their turn, for a bounded time. The server
that answered last is asked first. One that does not answer is left alone for as long as that has cost: if
that is all of them, questions fail at once.
"""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from core.login import WrongCredentials
from core.settings import LdapConfig
from core.trouble import Trouble
from plugins.ldap_lookup import Outage, Question, ask

MOST_AT_A_TIME = 4
MOST_WAITING = 100
_QUIET = 60.0  # seconds from one line of the log to the next about the same trouble

_log = logging.getLogger("pypubsub.ldap")


class Server:
    """One of clients.ldap.uri. pause: seconds for which it is left alone if it does not answer."""

    def __init__(self, uri: str, pause: float) -> None:
        self.uri = uri
        self._pause = pause
        self._trouble = trouble(f"the directory's server {uri}")
        self._out_until = 0.0  # monotonic
        self._answered_at = 0.0  # monotonic

    @property
    def left_alone(self) -> bool:
        """Whether it did not answer a moment ago."""
        return time.monotonic() < self._out_until

    def answered(self) -> None:
        """It has said what it was asked."""
        self._answered_at = time.monotonic()
        self._out_until = 0.0
        self._trouble.ended()

    def failed(self, outage: Outage, asked_at: float) -> None:
        """It has not. asked_at: monotonic."""
        self._trouble.began(outage.reason)
        # if it has answered others since, this user is the trouble, who may be so at will
        if outage.silent and self._answered_at < asked_at:
            self._out_until = time.monotonic() + self._pause

    def retry(self) -> None:
        """Do not leave it alone."""
        self._out_until = 0.0


class Servers:
    """All of clients.ldap.uri."""

    def __init__(self, config: LdapConfig) -> None:
        self._config = config
        self._servers = [Server(uri, config.timeout) for uri in config.uri]
        self._first = self._servers[0]  # to be asked
        self._crowd = trouble("the directory")
        self._pool = ThreadPoolExecutor(MOST_AT_A_TIME, thread_name_prefix="ldap")
        self._free = asyncio.Semaphore(MOST_AT_A_TIME)  # a turn is over when its thread is free again
        self._waiting = 0
        self._asking: set[asyncio.Future[list[bytes]]] = set()
        self._stopped = False

    def retry(self) -> None:
        """Forget what is known of them: ask at once, and in the order of the configuration."""
        self._first = self._servers[0]
        for server in self._servers:
            server.retry()

    def stop(self) -> None:
        """Ask no more, and wait for nobody: a thread that hangs ends by its own timeouts."""
        self._stopped = True
        for asking in list(self._asking):
            asking.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def ask(self, question: Question) -> list[bytes]:
        """The dns of the user's groups. Raises WrongCredentials, Outage."""
        failed = Outage("no server has answered a moment ago")
        for server in sorted(self._servers, key=lambda server: server is not self._first):
            if not server.left_alone and await self._turn(server):
                try:
                    return await self._ask(server, question)
                except Outage as outage:
                    failed = outage
        raise failed

    async def _turn(self, server: Server) -> bool:
        """Wait for a thread; whether the server is still to be asked. Raises Outage if that takes long."""
        if self._free.locked() and self._waiting >= MOST_WAITING:
            self._crowd.began(f"{MOST_WAITING} others wait for it")
            raise Outage("too many wait")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._config.timeout):
                await self._free.acquire()
        except TimeoutError:
            self._crowd.began(f"others keep it busy for {self._config.timeout:g} s (clients.ldap.timeout)")
            raise Outage("too many ask") from None
        finally:
            self._waiting -= 1
        if server.left_alone or self._stopped:
            self._free.release()
            return False
        self._crowd.ended()
        return True

    async def _ask(self, server: Server, question: Question) -> list[bytes]:
        """In a thread, which this one's turn has to give back."""
        asking = asyncio.get_running_loop().run_in_executor(
            self._pool, ask, server.uri, self._config, question, lambda: self._stopped
        )
        self._asking.add(asking)
        asking.add_done_callback(partial(self._done, server, time.monotonic()))
        try:
            return await asyncio.shield(asking)  # if the client goes, the thread is not free for that
        except asyncio.CancelledError:
            if asking.cancelled():  # by stop(): no reason to cancel whoever waits here
                raise Outage("the server stops") from None
            raise

    def _done(self, server: Server, asked_at: float, asking: asyncio.Future[list[bytes]]) -> None:
        """Learn from what came out, also if nobody waits for it any more."""
        self._asking.discard(asking)
        self._free.release()
        if self._stopped:
            return
        error = asking.exception()
        if error is None or isinstance(error, WrongCredentials):
            self._first = server
            server.answered()
        elif isinstance(error, Outage):
            server.failed(error, asked_at)


def trouble(subject: str) -> Trouble:
    """What the log says while it cannot be asked: once a minute, for a user may bring it about at will."""
    return Trouble(_log, f"{subject} cannot be asked: %s", f"{subject} answers again", _QUIET)
