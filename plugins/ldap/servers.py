"""The servers of a directory: which one is asked, by how many at a time, and what is done while none answers.

Questions are asked in threads, a few at a time; others wait for their turn (core.auth.fair_line). Those about
open streams and about credentials that were right a while ago come first. The server that answered last is
asked first. One that does not answer is left alone for as long as that has cost (circuit breaker): if that is
all of them, questions fail at once.
"""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from core.auth.fair_line import PATIENCE, FairLine
from core.auth.login import Credentials, WrongCredentials
from core.trouble import Trouble
from plugins.ldap.dn import Dn
from plugins.ldap.lookup import Outage, Question, ask
from plugins.ldap.settings import LdapConfig

MOST_AT_A_TIME = 4  # log-ins
KEPT = 1  # more, for open streams and for who is known
_QUIET = 60.0  # seconds from one line of the log to the next about the same trouble

_log = logging.getLogger("pypubsub.ldap")


class Unasked(Outage):
    """No server was asked, since none has answered a moment ago."""


class Crowded(Outage):
    """Others were asked about all the time; the servers may be well."""


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
        """Note that it has said what it was asked."""
        self._answered_at = time.monotonic()
        self._out_until = 0.0
        self._trouble.ended()

    def failed(self, outage: Outage, asked_at: float) -> None:
        """Note that it has not said what it was asked. asked_at: monotonic."""
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
        self._crowd = Trouble(
            _log, "log-ins wait too long: %s", "log-ins do not wait too long any more", _QUIET
        )
        self._pool = ThreadPoolExecutor(MOST_AT_A_TIME + KEPT, thread_name_prefix="ldap")
        self._line = FairLine(MOST_AT_A_TIME, KEPT)  # a turn is over when its thread is free again
        self._asking: set[asyncio.Future[set[Dn]]] = set()
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

    async def ask(self, question: Question, asker: Credentials, *, open_stream: bool) -> set[Dn]:
        """The dns of the user's groups. Raises WrongCredentials, Outage.

        open_stream: whether it is asked for one, which waits for its turn as long as that takes.
        """
        failed: Outage = Unasked("no server has answered a moment ago")
        for server in sorted(self._servers, key=lambda server: server is not self._first):
            if server.left_alone:
                continue
            if open_stream:
                await self._line.wait((), first=True, patience=None)
            else:
                await self._wait_for_turn(asker)
            if server.left_alone or self._stopped:  # by now
                self._line.end()
                continue
            try:
                return await self._ask(server, question)
            except Outage as outage:
                failed = outage
        raise failed

    async def _wait_for_turn(self, asker: Credentials) -> None:
        """Wait for a turn to ask. Raises Crowded."""
        try:
            await self._line.wait(asker.networks, first=asker.recognised, patience=PATIENCE)
        except TimeoutError:
            self._crowd.began(f"the directory is asked by so many that {PATIENCE:g} s are not enough")
            raise Crowded("too many ask") from None
        self._crowd.ended()

    async def _ask(self, server: Server, question: Question) -> set[Dn]:
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

    def _done(self, server: Server, asked_at: float, asking: asyncio.Future[set[Dn]]) -> None:
        """Learn from what came out, also if nobody waits for it any more."""
        self._asking.discard(asking)
        self._line.end()
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
