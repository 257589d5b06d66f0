#!/usr/bin/env python3
"""The PyPubSub server: its parts, a day of its life, and the command line.

The file goes by the order of a day: start, publish, subscribe, reload, stop. An event comes in by _publish():
who asks, what they send, the store; nearly all, which are plain, by publish_at_once(). It goes out by
_subscribe(): what is asked for, the stream's head, then the subscriber serves itself until it is gone. What
both need lives in core/, and what hangs off the server in plugins/.
"""

from core.signals import hold_back_reloads, take_signals
from core.standard_files import occupy

occupy()  # before anything opens a file
hold_back_reloads()  # before anything that takes time

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage

from core import logs
from core.auth.admission import AccessControl, Asker
from core.auth.authentication import Authentication
from core.auth.login import Login, NotLoggedIn, Provider
from core.command_line import loop_factory, parse_arguments
from core.counters import counters
from core.delivery.catch_up import CatchUpContext, Follower
from core.delivery.channel import selection_of
from core.delivery.fanout import PING_TURNS, Fanout, Listener
from core.delivery.subscriber import Subscriber
from core.delivery.wire import Wire, wire_form
from core.errors import RETRY_AFTER, ConfigError, Refused, StartError, collected
from core.events.batch import count_ndjson, parse_ndjson_in_slices
from core.events.cursor import Mark, Stamp
from core.events.event import parse_payload
from core.events.idempotency import idempotency_key
from core.events.intake import Intake, Source
from core.events.replay import Placement, ReplayRequest
from core.events.store import Accepted, Store
from core.events.subscription import Subscription
from core.events.topics import PublishPath, parse_publish_path
from core.http.answers import ALLOWED_METHODS, Answers, happens
from core.http.connection import connection_of, shown_path
from core.http.requests import check_spoken, holds_lines, only_one, read_body, read_subscription
from core.http.server import HttpServer, ListeningSockets, listening_plan
from core.http.tls import Tls
from core.settings import Config, load
from plugins import plugins_of, sections
from plugins.acl.passwords import print_hash
from plugins.acl.users import read_users

log = logging.getLogger("pypubsub")

MOST_GROWTH = 100  # times max_payload_size that a batch's lines may have, which all hold its path
END_OF_INPUT = 0.01  # seconds until nc -N, into which requests are piped, has closed its side
ASKER = web.RequestKey("asker", Asker)  # what a request keeps of its own, in aiohttp's dictionary for that


class Server:
    """The daemon: an HTTP server, its subscribers, and the plugins that hang off it (plugins.Host)."""

    def __init__(self, config: Config, acl_path: Path) -> None:
        """Put the parts together; nothing is opened yet. Raises ConfigError."""
        self.config = config
        self.acl_path = acl_path
        self._stop = asyncio.Event()
        self._fanout = Fanout(backlog=False)
        self._plugins = plugins_of(self)
        self._store = self._only_store()
        self._fanout.backlog = self._store.can_be_read
        self._fanout.listeners = [plugin for plugin in self._plugins if isinstance(plugin, Listener)]
        self.intake = Intake(self._store, self._fanout, config.server.idempotency_window)
        self._catch_up = CatchUpContext(self._fanout, self._store, config.server.ping_interval)
        self._authentication = Authentication(
            [plugin for plugin in self._plugins if isinstance(plugin, Provider)],
            anonymous=config.clients.wrong_credentials == "anonymous",
        )
        self._access = AccessControl(config, self._authentication)
        self._answers = Answers(config.server, self._fanout, self._stop)
        self.plain_response = self._answers.plain_response
        self.note_refusal = self._answers.note_refusal
        self._tls = Tls(config.server.tls)
        self._publishing = 0  # publishes let in and not answered yet
        self._reload_asked = asyncio.Event()
        self._no_publishing = asyncio.Event()  # set when, after _stop, the last publish is answered
        self._no_subscribers = asyncio.Event()  # set when, after _stop, the last subscriber has left

    @property
    def outlet(self) -> Fanout:
        """Where the store delivers events."""
        return self._fanout

    def _only_store(self) -> Store:
        """Raises ConfigError if there is another one, or none."""
        stores = [plugin for plugin in self._plugins if isinstance(plugin, Store)]
        if len(stores) != 1:
            raise ConfigError(
                [f"{self.config.path}: expected one plugin that stores events, got {len(stores)}"]
            )
        return stores[0]

    @property
    def _sources(self) -> list[Source]:
        return [plugin for plugin in self._plugins if isinstance(plugin, Source)]

    # Start

    def warnings(self) -> list[str]:
        """What an operator should know about valid settings, one line each."""
        found = self.config.warnings()
        if not (self.config.publishers_are_named or self._sources):
            found.append(f"{self.config.path}: clients.payloaders: is empty, so nobody may publish")
        for plugin in self._plugins:
            found += plugin.warnings()
        return found

    def plan(self) -> list[str]:
        """What would be served, and to whom: lines for --check."""
        lines = listening_plan(self.config.server) + self.config.plan_of_publishers()
        for plugin in self._plugins:
            lines += plugin.plan()
        return lines + self.config.plan_of_secure_topics()

    def check(self) -> None:
        """Look whether it could start. Raises StartError."""
        self._tls.check()
        for plugin in self._plugins:
            plugin.check()

    async def run(self) -> None:
        """Serve until a signal says to stop. Raises StartError."""
        loop = asyncio.get_running_loop()
        log.debug("event loop: %s", type(loop).__module__.partition(".")[0])
        take_signals(loop, self._on_stop_signal, leave_at_once, self._on_reload_signal)
        others = sum(source.files for source in self._sources)
        http = HttpServer(self, self.config.server, files_of_others=others)
        listeners = ListeningSockets(http, self.config.server.head_timeout)
        try:
            await self._open(listeners)
            if self._stop.is_set():  # it may have taken long
                return
            if http.limits.most < self.config.server.max_connections:
                log.info("the limit of open files allows for %d connections", http.limits.most)
            await self._serve(listeners)
        finally:
            await listeners.stop()
            await http.stop(0.1)  # _drain() has waited already
            await self._authentication.stop()
            for plugin in reversed(self._plugins):
                await plugin.stop()
        log.info("in all: %s", counters.summary())
        if self._answers.refusals.counts:
            log.info("refused in all: %s", self._answers.refusals.summary())
        log.info("stopped")

    async def _open(self, listeners: ListeningSockets) -> None:
        """Start the plugins, then listen. Raises StartError."""
        for plugin in self._plugins:
            await plugin.start()
        await self.intake.open()
        if self._stop.is_set():
            return
        self._tls.load()
        await listeners.listen(self.config.server, self._tls.context)

    async def _serve(self, listeners: ListeningSockets) -> None:
        """Do what lasts, until the stop."""
        async with asyncio.TaskGroup() as tasks:  # the death of one of them ends the server
            sources: list[asyncio.Task[None]] = []
            lasting: list[asyncio.Task[None]] = []
            for plugin in self._plugins:
                running = sources if isinstance(plugin, Source) else lasting
                running.append(tasks.create_task(plugin.run(), name=plugin.name))
            lasting += [
                tasks.create_task(self._ping(), name="ping"),
                tasks.create_task(self._drop_stalled(), name="drop stalled readers"),
                tasks.create_task(self._reload_when_asked(), name="reload"),
            ]
            await self._stop.wait()
            await self._drain(listeners, sources)
            for task in lasting:
                task.cancel()

    async def _ping(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self.config.server.ping_interval / PING_TURNS
            await asyncio.sleep(due - loop.time())
            counters.note_lag(loop.time() - due)
            self._fanout.ping(time.time())
            self.intake.watch_clock()

    async def _drop_stalled(self) -> None:
        timeout = self.config.server.write_timeout
        while True:
            await asyncio.sleep(timeout / 10)
            now = asyncio.get_running_loop().time()
            for subscriber in list(self._fanout):
                if subscriber.has_stalled(now, timeout):
                    subscriber.drop("stalled", f"took nothing for {timeout:g} seconds")

    # Requests

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Whatever goes wrong in it is answered too."""
        self._answers.requests += 1
        arrived = asyncio.get_running_loop().time()
        try:
            return await self._route(request)
        except Refused as refused:
            if request.method == "GET" or isinstance(refused, NotLoggedIn):
                await self._answers.hold_back(arrived)
            return self._answers.refusal(request, refused, self._asker(request).shown)
        except ConnectionError:
            raise  # nobody is there to be answered
        except Exception:
            log.exception("error in %s %s", request.method, shown_path(request))
            if request.writer.output_size:
                raise ConnectionError("an answer is under way, which no error can follow") from None
            failed = Refused(500, "an error in the server, which its log explains", close=True)
            return self._answers.refusal(request, failed, connection_of(request).peer)

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._stop.is_set():
            raise Refused(503, "the server is stopping", headers=RETRY_AFTER, close=True)
        if refused := connection_of(request).refusal():
            raise refused
        check_spoken(request)
        match request.method:
            case "GET":
                return await self._subscribe(request)
            case "PUT" | "POST":
                return await self._publish(request)
            case "HEAD":
                return self._answers.no_content(request)
            case "OPTIONS":
                return self._answers.options(request)
        raise Refused(
            405,
            f"{request.method} is not known here: PUT or POST publishes, GET subscribes",
            headers={"Allow": ALLOWED_METHODS},
        )

    def refuse_malformed(self, request: web.BaseRequest, refused: Refused) -> web.StreamResponse:
        """The answer to what never became a request for handle()."""
        self._answers.requests += 1
        return self._answers.refusal(request, refused, connection_of(request).peer)

    def _asker(self, request: web.BaseRequest) -> Asker:
        """Where a request comes from. Looked for once a request."""
        if ASKER not in request:
            request[ASKER] = self._access.asker(connection_of(request).peer, request.headers)
        return request[ASKER]

    # Publish

    async def _publish(self, request: web.BaseRequest) -> web.Response:
        self._publishing += 1
        try:
            path = parse_publish_path(request.rel_url.raw_path)
            self._answers.requests -= path.private  # handle() has counted it, and it must not show
            only_one(request.headers, "Idempotency-Key")
            asker, certificate = self._asker(request), request.get_extra_info("peercert")
            publisher, login = await self._access.authorize(asker, request.headers, certificate, path)
            body = await read_body(request, self.config.server.max_payload_size)
            ask = None
            if (key := request.headers.get("Idempotency-Key")) is not None:
                ask = idempotency_key(publisher, path.text, key, body)
            events = count_ndjson(body) if holds_lines(request) else 1
            with self.intake.waiting.hold(publisher, len(body)):
                async with self.intake.turn(publisher, events):
                    openings = await self._parse(request, path, body)
                    await self.intake.ready(len(openings))
                    if login:
                        self._access.check_rights(login, path)  # again: by now it may have lost them
                    taken = self.intake.take(path, openings, ask)
            # shielded: a publisher who hangs up undoes nothing, and may ask again meanwhile
            accepted = await asyncio.shield(taken.answer)
            return self._answers.accepted_response(request, path, accepted, replayed=taken.replayed)
        except Refused:
            counters.events["refused"] += 1
            raise
        finally:
            self._publish_ended()

    async def _parse(self, request: web.BaseRequest, path: PublishPath, body: bytes) -> list[str]:
        """The openings of the event, or the events, in a body. Raises Refused, and then none is published."""
        config = self.config.server
        if holds_lines(request):
            most = MOST_GROWTH * config.max_payload_size
            return await parse_ndjson_in_slices(body, path, config.max_line_size, most)
        return [parse_payload(body, path, config.max_line_size)]

    def _publish_ended(self) -> None:
        self._publishing -= 1
        if self._stop.is_set() and not self._publishing:
            self._no_publishing.set()

    def publish_at_once(
        self, peer: str | None, message: RawRequestMessage, body: bytes
    ) -> asyncio.Future[Accepted] | None:
        """_publish() for a plain publish that may be taken, with nothing to wait for before; else None."""
        if not body or self._stop.is_set() or not self.intake.at_once:
            return None
        config = self.config.server
        try:
            path = parse_publish_path(message.url.raw_path)
            if len(body) > config.max_payload_size or not self._access.is_open(peer, path):
                return None
            opening = parse_payload(body, path, config.max_line_size)
        except Refused:
            return None
        taken = self.intake.take_at_once(path, opening)
        self._answers.requests += not path.private
        if not taken.done():
            self._publishing += 1
            # the connection adds the callback that answers: both run in the same turn, before a stop goes on
            taken.add_done_callback(partial(self._taken_at_once, path))
        return taken

    def _taken_at_once(self, path: PublishPath, taken: asyncio.Future[Accepted]) -> None:
        """It has been stored, or was refused: then it comes again, by handle()."""
        if taken.cancelled() or taken.exception():
            self._answers.requests -= not path.private
        self._publish_ended()

    # Subscribe

    async def _subscribe(self, request: web.BaseRequest) -> web.StreamResponse:
        subscription, asked = read_subscription(request, self._store.latest)
        login = await self._access.log_in(self._asker(request), request.headers)
        wire = self._wire_for(request)
        if not request.headers.get("User-Agent"):
            await asyncio.sleep(END_OF_INPUT)
        now, placement = await self._place(asked, subscription, login, wire)
        # without a backlog nothing suspends from the stamp to join(): no event is missed in between
        response = self._answers.stream(request, wire.content_type, now.cursor, placement.verdict)
        writer = await response.prepare(request)
        if writer is None or request.transport is None:
            raise ConnectionError("the client left before its stream began")
        self._begin_stream(request, request.transport, subscription, wire, login, now, placement)
        return response

    def _wire_for(self, request: web.BaseRequest) -> Wire:
        user_agent = request.headers.get("User-Agent", "")
        http_1_0 = request.version < HttpVersion11
        oldschool = any(name in user_agent for name in self.config.clients.oldschoolers)
        # svnpubsub's clients do not say who they are
        return wire_form(http_1_0=http_1_0, nul_terminated=oldschool or (http_1_0 and not user_agent))

    def _begin_stream(
        self,
        request: web.BaseRequest,
        transport: asyncio.Transport,
        subscription: Subscription,
        wire: Wire,
        login: Login | None,
        now: Stamp,
        placement: Placement,
    ) -> None:
        """Take a connection, whose stream's head has been sent, from aiohttp, and have it served."""
        peer = self._asker(request).shown or "a peer already gone"
        stream = connection_of(request).hand_over(transport)
        with ExitStack() as undo:  # if this fails, nobody else would
            undo.callback(transport.abort)
            subscriber = Subscriber(
                f"{peer} ({login.user})" if login else peer,
                subscription,
                wire,
                transport,
                stream,
                stream.drain,
                self.config.server.subscriber_buffer,
                login,
            )
            self._fanout.add(subscriber)
            undo.callback(self._fanout.remove, subscriber)
            self._review(subscriber)  # its rights may have changed since it logged in
            serving = stream.serve(Follower(subscriber, now.position, self._catch_up).begin(placement))
            undo.pop_all()
        # a callback: the task may be cancelled before it runs
        serving.add_done_callback(partial(self._on_left, subscriber, shown_path(request), time.monotonic()))

    async def _place(
        self, asked: ReplayRequest | None, subscription: Subscription, login: Login | None, wire: Wire
    ) -> tuple[Stamp, Placement]:
        """The moment at which a stream begins, and where the subscriber begins to read.

        Raises Refused(503), WrongCredentials.
        """
        while True:
            rights = self._access.rights_by_now(login)
            selection = selection_of(subscription, rights, wire)
            now = await self._store.now(private=selection.reads_private)
            # what was stamped before is delivered
            await self._store.settle(now.position, private=selection.reads_private)
            placement = await self._store.place(asked, Mark(now.position, now.timestamp), selection)
            if self._access.rights_by_now(login).readable == rights.readable:
                return now, placement  # else its rights changed while it was placed

    def _on_left(self, subscriber: Subscriber, path: str, since: float, serving: asyncio.Task[None]) -> None:
        if not serving.cancelled() and (error := serving.exception()):
            log.error("error in the stream %s", path, exc_info=error)
            subscriber.drop("error", "an error in the server")
        self._fanout.remove(subscriber)
        if self._stop.is_set() and not self._fanout:
            self._no_subscribers.set()
        log.info(
            "subscriber %s of %s left after %.1f s: %s",
            subscriber.peer,
            path,
            time.monotonic() - since,
            subscriber.end_reason or "the client disconnected",
        )

    # Reload

    def _on_reload_signal(self, number: signal.Signals) -> None:
        log.info("%s: reloading", number.name)
        self._reload_asked.set()

    async def _reload_when_asked(self) -> None:
        """Reload once for all the signals that came meanwhile."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            try:
                await self._reload()
            except Exception:  # no reason to end the streams
                log.exception("error in a reload: what was not reloaded stays as it was")

    async def _reload(self) -> None:
        """Read again what may change while the server runs. What cannot be used is logged, and not taken."""
        for plugin in self._plugins:
            await plugin.reload()
        await self._tls.reload()

    def logins(self) -> Iterator[Login]:
        """The log-ins of all open streams."""
        return (subscriber.login for subscriber in self._fanout if subscriber.login)

    def rights_changed(self) -> None:
        """Have every open stream get what its user may see by now, and no more."""
        for subscriber in list(self._fanout):
            self._review(subscriber)

    def _review(self, subscriber: Subscriber) -> None:
        login = subscriber.login
        if login is None or subscriber.end_reason is not None:
            return
        rights = self._authentication.rights_by_now(login)
        if rights is None:
            subscriber.cut_off("credentials", "its credentials no longer hold")
        elif rights != subscriber.rights:
            self._fanout.change_rights(subscriber, rights)

    # Stop

    def _on_stop_signal(self, number: signal.Signals) -> None:
        log.info("%s: stopping, with %d subscribers", number.name, len(self._fanout))
        self._stop.set()

    async def _drain(self, listeners: ListeningSockets, sources: list[asyncio.Task[None]]) -> None:
        """Stop accepting, let publishes under way end, send what is queued, close the streams.

        Publishers have until half of drain_timeout has passed, the store until three quarters, and readers
        the rest: so a publisher who never ends costs no event its place in the store, and no stream its end.
        """
        loop = asyncio.get_running_loop()
        begun, timeout = loop.time(), self.config.server.drain_timeout
        stored_by, end = begun + timeout * 3 / 4, begun + timeout
        await listeners.stop()
        for source in sources:
            source.cancel()  # which ends when what it has under way is stored and deleted
        if not self._publishing:
            self._no_publishing.set()
        published = asyncio.create_task(self._no_publishing.wait(), name="wait for publishes")
        await asyncio.wait([published, *sources], timeout=timeout / 2)
        published.cancel()
        if self._publishing:
            log.warning("%d publishes did not end in time and are cut off", self._publishing)
        await self.intake.drain(stored_by - loop.time())
        try:
            async with asyncio.timeout_at(stored_by):
                await self._store.flush()
        except TimeoutError:
            log.warning("the backlog could not be written in time: the last events are not stored")
        self._fanout.flush()
        await self._end_streams(end - loop.time())

    async def _end_streams(self, patience: float) -> None:
        """Close all streams, once what waits for their readers is read, or so many seconds have passed."""
        for subscriber in list(self._fanout):
            subscriber.finish("server_stops", "the server stops")
        if self._fanout and not await happens(self._no_subscribers, patience):
            log.warning("%d subscribers did not read in time and are cut off", len(self._fanout))
            for subscriber in list(self._fanout):
                subscriber.drop("server_stops", "the server stops")


def leave_at_once(number: signal.Signals) -> None:
    """End the process, whatever is under way."""
    log.warning("%s again: leaving at once", number.name)
    logs.write_last_lines()
    os._exit(1)


# The command line


def server_of(config_path: Path, acl_path: Path) -> Server:
    """A server by both files. Raises ConfigError with all problems of the two."""
    try:
        config = load(config_path, sections())
    except ConfigError as error:
        problems = list(error.problems)
        with collected(problems):
            read_users(acl_path)  # so that one look tells what is wrong with both
        raise ConfigError(problems) from error
    return Server(config, acl_path)


def check(server: Server) -> int:
    """Print what would be served, and every problem with it: --check. The exit status."""
    for line in server.plan():
        print(line)
    for warning in server.warnings():
        print(f"warning: {warning}")
    try:
        server.check()
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Run the daemon. 0: stopped by a signal, or checked and found good; 1: not so; 2: not configured."""
    if sys.argv[1:2] == ["backlog"]:
        from plugins.backlog import commands  # noqa: PLC0415 (and SQLite with them)

        return commands.main(sys.argv[2:])
    arguments = parse_arguments()
    if arguments.hash_password:
        return print_hash()
    try:
        server = server_of(arguments.config, arguments.acl)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1 if arguments.check else 2
    if arguments.check:
        return check(server)
    logs.begin(arguments.log_level)
    for warning in server.warnings():
        log.warning("%s", warning)
    try:
        with asyncio.Runner(loop_factory=loop_factory(arguments.loop)) as runner:
            runner.run(server.run())
    except StartError as error:
        log.error("%s", error)  # noqa: TRY400 (one clear line, no traceback)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
