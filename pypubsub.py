#!/usr/bin/env python3
"""The PyPubSub server: start-up, one event's way in and out, shutdown, command line.

A publish runs down _publish(): who asks, what they send, stamp it, hand it to the fan-out. A subscription
runs down _subscribe(): what is asked for, the stream's head, then the subscriber serves itself until it is
gone. What both need, and what plugins have to name, lives in core/.
"""

from core.signals import hold_back_reloads, take_signals
from core.standard_files import occupy

occupy()  # before anything opens a file
hold_back_reloads()  # before anything that takes time

import argparse
import asyncio
import getpass
import json
import logging
import os
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage

from core import __version__, logs
from core.auth.authentication import Authentication
from core.auth.login import (
    AUTHENTICATE,
    Login,
    NoStreams,
    NotLoggedIn,
    WrongCredentials,
    problem_with_password,
)
from core.auth.networks import UNIX, CertificateNames, Networks, publisher_address
from core.auth.rights import Rights
from core.auth.web_pages import WebPages
from core.delivery.catch_up import Follower, Surroundings, shared_parts
from core.delivery.fanout import PING_TURNS, Fanout
from core.delivery.subscriber import Subscriber
from core.delivery.wire import wire_form
from core.errors import RETRY_AFTER, ConfigError, Refused, StartError
from core.events.cursor import Mark, Stamp
from core.events.event import count_ndjson, parse_ndjson, parse_payload
from core.events.idempotency import ask_again
from core.events.intake import Intake
from core.events.replay import HEADERS, QUERY_KEYS, Placement, ReplayRequest, replay_request
from core.events.store import Accepted
from core.events.topics import PublishPath, parse_publish_path, parse_subscription
from core.events.turns import Slice
from core.http.body import inflate, refuse_form, too_large, without_mark
from core.http.connection import (
    MAX_HEAD,
    HttpServer,
    connection_of,
    continue_if_expected,
    head_too_large,
    is_spoken,
    receive,
    shown_path,
    size_of_fields,
)
from core.http.fields import only_known, only_one
from core.http.listening import Listeners, url
from core.http.plain_publish import accepted_answer
from core.http.refusals import Refusals
from core.http.tls import tls_context
from core.settings import BacklogConfig, Config, load
from plugins import check_aioboto3, check_directory, providers_for, queues_for, store_for
from plugins.acl.passwords import hash_password
from plugins.acl.users import Users, read_users

log = logging.getLogger("pypubsub")

SERVER = f"PyPubSub/{__version__}"  # in the head of every answer
NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")
STREAM_TYPE = "application/vnd.pypubsub-stream"
ALLOWED_METHODS = "GET, HEAD, OPTIONS, POST, PUT"
MOST_GROWTH = 100  # times max_payload_size that a batch's lines may have, which all hold its path
MAX_HELD_REFUSALS = 1000
MOST_QUERY_KEYS = 64
END_OF_INPUT = 0.01  # seconds until nc -N, into which requests are piped, has closed its side
LOOPS = ("auto", "asyncio", "uvloop")  # auto: uvloop if it is there
ADDRESS = "address"  # what a request keeps of its own, in aiohttp's dictionary for that
CORS_REQUEST_HEADERS = (
    "Accept, Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Fetch-Since, X-Fetch-Since-Cursor"
)
CORS_ANSWER_HEADERS = "Idempotency-Replayed, Retry-After, X-Cursor, X-Replay, X-Requests, X-Subscribers"


class Server:
    """The daemon: an HTTP server, and the subscribers it serves."""

    def __init__(self, config: Config, acl_path: Path, users: Users | None) -> None:
        self.config = config
        self._fanout = Fanout(backlog=bool(config.server.backlog.size))
        self._store = store_for(config.server, self._fanout)
        self._intake = Intake(self._store, self._fanout, config.server.idempotency_window)
        self._queues = queues_for(config, self._intake)
        self._reading: list[asyncio.Task[None]] = []  # the queues
        self._surroundings = Surroundings(
            self._fanout,
            self._store,
            asyncio.Lock(),
            ping_line,
            config.server.ping_interval,
            shared_parts(),
        )
        self._providers = providers_for(config.clients, acl_path, users, self)
        self._authentication = Authentication(
            self._providers, anonymous=config.clients.wrong_credentials == "anonymous"
        )
        self._publishers = Networks(config.clients.payloaders)
        self._certified = CertificateNames(config.certified_publishers)
        self._trusted_proxies = Networks(config.server.trusted_proxies)
        self._web_pages = WebPages(config.server.cors_origins, [*config.server.hosts, *config.server.bind])
        self._secure_topics = frozenset(config.clients.secure_topics)
        self._refusals = Refusals()
        queue_connections = sum(queue.connections for queue in config.sqs.values())
        self._http = HttpServer(self, config.server, files_of_others=queue_connections)
        self._runner = web.ServerRunner(self._http, shutdown_timeout=0.1)  # _drain() has waited already
        self._listeners = Listeners(self._http, config.server.head_timeout)
        self._tls_context: ssl.SSLContext | None = None  # for connections that come now
        self._publishing = 0  # publishes let in and not answered yet
        self._requests = 0  # so far, without private publishes, which must not show to everybody
        self._held_refusals = 0
        self._reload_asked = asyncio.Event()
        self._stop = asyncio.Event()
        self._no_publishing = asyncio.Event()  # set when, after _stop, the last publish is answered
        self._no_subscribers = asyncio.Event()  # set when, after _stop, the last subscriber has left

    # A life: listen, serve, drain

    async def run(self) -> None:
        """Serve until a signal says to stop. Raises StartError."""
        loop = asyncio.get_running_loop()
        log.debug("event loop: %s", type(loop).__module__.partition(".")[0])
        take_signals(loop, self._on_stop_signal, leave_at_once, self._on_reload_signal)
        await self._runner.setup()
        try:
            await self._intake.open()
            if self._stop.is_set():  # it may have taken long
                return
            await self._listen()
            most = self._http.limits.most
            if most < self.config.server.max_connections:
                log.info("the limit of open files allows for %d connections", most)
            async with asyncio.TaskGroup() as tasks:  # the death of one of them ends the server
                lasting = [
                    tasks.create_task(self._store.run(), name="store"),
                    tasks.create_task(self._ping(), name="ping"),
                    tasks.create_task(self._drop_stalled(), name="drop stalled readers"),
                    tasks.create_task(self._reload_when_asked(), name="reload"),
                    *(tasks.create_task(provider.run(), name=provider.name) for provider in self._providers),
                ]
                self._reading = [tasks.create_task(queue.run(), name=queue.name) for queue in self._queues]
                await self._stop.wait()
                await self._drain()
                for task in lasting:
                    task.cancel()
        finally:
            await self._listeners.stop()
            await self._runner.cleanup()
            await self._authentication.stop()
            for provider in self._providers:
                await provider.stop()
            await self._store.stop()
        if self._refusals.counts:
            log.info("refused in all: %s", self._refusals.summary())
        log.info("stopped")

    def _on_stop_signal(self, number: signal.Signals) -> None:
        log.info("%s: stopping, with %d subscribers", number.name, len(self._fanout))
        self._stop.set()

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
        for provider in self._providers:
            await provider.reload()
        if (tls := self.config.server.tls) is None:
            return
        try:
            self._tls_context = await asyncio.to_thread(tls_context, tls)
        except StartError as error:
            log.error("server.tls is not reloaded, the old certificates stay: %s", error)  # noqa: TRY400
        else:
            log.info("reloaded the certificates of server.tls, for new connections")

    async def _listen(self) -> None:
        server = self.config.server
        if server.tls:
            self._tls_context = tls_context(server.tls)
        for bind in server.bind:
            if bind.startswith("unix:"):
                self._listeners.listen_unix(Path(bind.removeprefix("unix:")))
                continue
            ipv4_too = server.takes_ipv4_too(bind)
            await self._listeners.listen_tcp(bind, server.port, ipv4_too=ipv4_too)
            if server.tls:
                await self._listeners.listen_tcp(
                    bind, server.tls.port, lambda: self._tls_context, ipv4_too=ipv4_too
                )

    async def _drain(self) -> None:
        """Stop accepting, let publishes under way end, send what is queued, close the streams."""
        await self._listeners.stop()
        half = self.config.server.drain_timeout / 2  # a publisher who never ends costs no stream its end
        for reading in self._reading:
            reading.cancel()  # which ends when what it has under way is stored and deleted
        if not self._publishing:
            self._no_publishing.set()
        published = asyncio.create_task(self._no_publishing.wait(), name="wait for publishes")
        await asyncio.wait([published, *self._reading], timeout=half)
        published.cancel()
        if self._publishing:
            log.warning("%d publishes did not end in time and are cut off", self._publishing)
        await self._intake.drain(half)
        try:
            async with asyncio.timeout(half):
                await self._store.flush()
        except TimeoutError:
            log.warning("the backlog could not be written in time: the last events are not stored")
        self._fanout.flush()
        for subscriber in list(self._fanout):
            subscriber.finish("the server stops")
        if self._fanout and not await happens(self._no_subscribers, half):
            log.warning("%d subscribers did not read in time and are cut off", len(self._fanout))
            for subscriber in list(self._fanout):
                subscriber.drop("the server stops")

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(self.config.server.ping_interval / PING_TURNS)
            self._fanout.ping(ping_line())
            self._intake.watch_clock()

    # The rights of open streams (core.auth.login.OpenStreams)

    def logins(self) -> Iterator[Login]:
        """Of all open streams."""
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
            subscriber.cut_off("its credentials no longer hold")
        elif rights != subscriber.rights:
            self._fanout.change_rights(subscriber, rights)

    async def _drop_stalled(self) -> None:
        timeout = self.config.server.write_timeout
        while True:
            await asyncio.sleep(timeout / 10)
            now = asyncio.get_running_loop().time()
            for subscriber in list(self._fanout):
                if subscriber.has_stalled(now, timeout):
                    subscriber.drop(f"took nothing for {timeout:g} seconds")

    # Requests

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request. Whatever goes wrong in it is answered too."""
        self._requests += 1
        arrived = asyncio.get_running_loop().time()
        try:
            return await self._route(request)
        except Refused as refused:
            if request.method == "GET" or isinstance(refused, NotLoggedIn):
                await self._hold_back(arrived)
            return self._refuse(request, refused, self._shown_peer(request))
        except ConnectionError:
            raise  # nobody is there to be answered
        except Exception:
            log.exception("error in %s %s", request.method, shown_path(request))
            if request.writer.output_size:
                raise ConnectionError("an answer is under way, which no error can follow") from None
            failed = Refused(500, "an error in the server, which its log explains", close=True)
            return self._refuse(request, failed, connection_of(request).peer)

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._stop.is_set():
            raise Refused(503, "the server is stopping", headers=RETRY_AFTER, close=True)
        connection = connection_of(request)
        if refused := connection.http.limits.refusal(connection.place):
            raise refused
        if not is_spoken(request):
            raise Refused(505, "HTTP/1.1 is known here, and HTTP/1.0", close=True)
        if size_of_fields(request) > MAX_HEAD:
            raise head_too_large()
        if request.headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":
            raise Refused(501, "Transfer-Encoding: only chunked is known here", close=True)
        match request.method:
            case "GET":
                return await self._subscribe(request)
            case "PUT" | "POST":
                return await self._publish(request)
            case "HEAD":
                return web.Response(status=204, headers=self._headers(request), content_type="text/plain")
            case "OPTIONS":
                return self._options(request)
        raise Refused(
            405,
            f"{request.method} is not known here: PUT or POST publishes, GET subscribes",
            headers={"Allow": ALLOWED_METHODS},
        )

    def refuse_malformed(self, request: web.BaseRequest, refused: Refused) -> web.StreamResponse:
        """The answer to what never became a request for handle()."""
        self._requests += 1
        return self._refuse(request, refused, connection_of(request).peer)

    def _refuse(self, request: web.BaseRequest, refused: Refused, peer: str | None) -> web.StreamResponse:
        """The answer to a refused request, which is also logged."""
        self.note_refusal(refused, f"{request.method} {shown_path(request)}", peer)
        response = self._answer(request, refused.status, refused.message, {"error": refused.message})
        response.headers.update(refused.headers)
        if refused.close or self._body_may_never_come(request):
            response.force_close()
        return response

    def note_refusal(self, refused: Refused, what: str, peer: str | None) -> None:
        """Count a refusal, and log it if there were not too many like it."""
        left_out = self._refusals.add(refused.status, refused.reason)
        if left_out is None or refused.quiet:
            return
        log.info("refused %s from %s: %d %s", what, peer, refused.status, refused.message)
        if left_out:
            log.info("left out %d lines of refusals like this one", left_out)

    async def _hold_back(self, arrived: float) -> None:
        """Answer a refused subscriber late: deployed readers ask again without a pause.

        So is who guesses passwords, and at a time that does not tell how far the guess got.
        """
        if self._held_refusals < MAX_HELD_REFUSALS:
            self._held_refusals += 1
            answered = arrived + self.config.server.refusal_delay
            try:
                await happens(self._stop, answered - asyncio.get_running_loop().time())
            finally:
                self._held_refusals -= 1

    def _body_may_never_come(self, request: web.BaseRequest) -> bool:
        """Whether the body of a refused request is not worth waiting for before the next request."""
        if request.content.is_eof():
            return False
        too_long = (request.content_length or 0) > self.config.server.max_payload_size
        return too_long or "Expect" in request.headers

    def _headers(self, request: web.BaseRequest) -> dict[str, str]:
        """What stands in the head of every answer."""
        headers = {
            "Server": SERVER,
            "X-Subscribers": str(len(self._fanout)),
            "X-Requests": str(self._requests),
        }
        if self.config.server.cors_origins:
            headers["Vary"] = "Origin"
            if (origin := request.headers.get("Origin")) in self.config.server.cors_origins:
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Allow-Credentials"] = "true"
                headers["Access-Control-Expose-Headers"] = CORS_ANSWER_HEADERS
        return headers

    def _answer(
        self, request: web.BaseRequest, status: int, text: str, fields: Mapping[str, Any]
    ) -> web.Response:
        """One line: of text, or of JSON for those who ask for it."""
        headers = self._headers(request)
        if "application/json" in request.headers.get("Accept", ""):
            content_type, text = "application/json", json.dumps(fields)
        else:
            content_type = "text/plain"
        return web.Response(status=status, headers=headers, content_type=content_type, text=text + "\n")

    def _options(self, request: web.BaseRequest) -> web.Response:
        headers = self._headers(request)
        headers["Allow"] = ALLOWED_METHODS
        if "Access-Control-Allow-Origin" in headers:
            headers["Access-Control-Allow-Methods"] = ALLOWED_METHODS
            headers["Access-Control-Allow-Headers"] = CORS_REQUEST_HEADERS
            headers["Access-Control-Max-Age"] = "3600"
        return web.Response(status=204, headers=headers)

    # An event's way in

    async def _publish(self, request: web.BaseRequest) -> web.Response:
        self._publishing += 1
        try:
            path = parse_publish_path(request.rel_url.raw_path)
            self._requests -= path.private
            only_one(request.headers, "Idempotency-Key")
            publisher, login = await self._authorize(request, path)
            body = await self._read_body(request)
            ask = None
            if (key := request.headers.get("Idempotency-Key")) is not None:
                ask = ask_again(publisher, path.text, key, body)
            events = count_ndjson(body) if request.content_type in NDJSON_TYPES else 1
            with self._intake.waiting.hold(publisher, len(body)):
                async with self._intake.turn(publisher, events):
                    openings = await self._parse(request, path, body)
                    await self._intake.ready(len(openings))
                    if login:
                        self._check_rights(login, path)  # again: by now it may have lost them
                    taken = self._intake.take(path, openings, ask)
            # shielded: a publisher who hangs up undoes nothing, and may ask again meanwhile
            return self._accepted(request, path, await asyncio.shield(taken.answer), replayed=taken.replayed)
        finally:
            self._published()

    def _published(self) -> None:
        self._publishing -= 1
        if self._stop.is_set() and not self._publishing:
            self._no_publishing.set()

    def publish_at_once(
        self, peer: str | None, message: RawRequestMessage, body: bytes
    ) -> asyncio.Future[Accepted] | None:
        """_publish() for a plain publish that may be taken, with nothing to wait for before."""
        if not body or self._stop.is_set() or not self._intake.at_once or not self._publishers.hold(peer):
            return None
        config = self.config.server
        try:
            path = parse_publish_path(message.url.raw_path)
            if not self._secure_topics.isdisjoint(path.all_topics) or len(body) > config.max_payload_size:
                return None
            opening = parse_payload(body, path, config.max_line_size)
        except Refused:
            return None
        taken = self._intake.take_at_once(path, opening)
        self._requests += not path.private
        if not taken.done():
            self._publishing += 1
            # the connection adds the callback that answers: both run in the same turn, before a stop goes on
            taken.add_done_callback(partial(self._stored, path))
        return taken

    def _stored(self, path: PublishPath, taken: asyncio.Future[Accepted]) -> None:
        """What was taken at once has been stored, or was refused: then it comes again, by handle()."""
        if taken.cancelled() or taken.exception():
            self._requests -= not path.private
        self._published()

    def accepted_answer(self, accepted: Accepted) -> bytes:
        """The answer to a plain publish."""
        fields = (
            f"X-Subscribers: {len(self._fanout)}\r\nX-Requests: {self._requests}\r\n"
            f"X-Cursor: {accepted.last.cursor}\r\n"
        )
        return accepted_answer(SERVER, fields, vary=bool(self.config.server.cors_origins))

    async def _authorize(self, request: web.BaseRequest, path: PublishPath) -> tuple[str, Login | None]:
        """The name of the user or address that publishes, and its login. Raises Refused if it may not."""
        headers = request.headers
        self._web_pages.check(headers)
        address = self._address(request)
        secured = self._secure_topics & path.all_topics
        # the certificate is the peer's: a proxy's says nothing of those for whom it speaks
        from_peer = address == connection_of(request).peer
        certified = from_peer and self._certified.hold(request.get_extra_info("peercert"))
        if not secured and address is not None and (certified or self._publishers.hold(address)):
            return address, None  # credentials change nothing, and publishers send some to whomever
        login = await self._log_in(request, address)
        if secured:
            if "Authorization" not in headers:
                topics = ", ".join(sorted(secured))
                raise Refused(401, f"credentials are needed to publish on {topics}", headers=AUTHENTICATE)
            if login is None:
                raise no_right_to(secured)
            self._check_rights(login, path)
            return login.name, login
        keys = "clients.payloaders" + (", payloader_certs" if self.config.certified_publishers else "")
        raise Refused(403, f"{address or 'an unknown address'} may not publish here (see {keys})")

    def _check_rights(self, login: Login, path: PublishPath) -> None:
        """Raises WrongCredentials, or Refused(403) for secure topics, by what a user may do by now."""
        secured = self._secure_topics & path.all_topics
        if not self._rights_by_now(login).may_say(secured):
            raise no_right_to(secured)

    def _address(self, request: web.BaseRequest) -> str | None:
        """Where a request comes from, None if that cannot be known. Looked for once a request."""
        if ADDRESS not in request:
            request[ADDRESS] = publisher_address(
                connection_of(request).peer,
                self._trusted_proxies,
                request.headers.getall("X-Forwarded-For", ()),
                request.headers.getall("Forwarded", ()),
            )
        address: str | None = request[ADDRESS]
        return address

    def _shown_peer(self, request: web.BaseRequest) -> str | None:
        """Where a request comes from, for the log."""
        peer, address = connection_of(request).peer, self._address(request)
        return peer if address == peer else f"{address or 'an unknown address'} via {peer}"

    async def _log_in(self, request: web.BaseRequest, address: str | None) -> Login | None:
        """Who asks, if they say so and it can be told. Raises Refused (401, 429, 503)."""
        credentials = request.headers.getall("Authorization", ())
        if not credentials:
            return None
        return await self._authentication.log_in(credentials, address or connection_of(request).peer or UNIX)

    async def _read_body(self, request: web.BaseRequest) -> bytes:
        """The body, inflated. Raises Refused."""
        limit = self.config.server.max_payload_size
        only_one(request.headers, "Content-Encoding")
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise Refused(
                415,
                "Content-Encoding: gzip, deflate and none are known here",
                headers={"Accept-Encoding": "gzip, deflate"},
            )
        if (request.content_length or 0) > limit:
            raise too_large(limit)
        continue_if_expected(request)
        body = await receive(request, limit)
        if encoding not in ("", "identity"):
            body = inflate(body, limit)
        body = without_mark(body)
        if not body:
            raise Refused(400, "there is no body: expected a JSON object")
        refuse_form(request.content_type, body)
        return body

    async def _parse(self, request: web.BaseRequest, path: PublishPath, body: bytes) -> list[str]:
        """The openings of the event, or the events, in a body. Raises Refused, and then none is published."""
        limit = self.config.server.max_line_size
        if request.content_type not in NDJSON_TYPES:
            return [parse_payload(body, path, limit)]
        openings = []
        piece = Slice()
        size, most = 0, MOST_GROWTH * self.config.server.max_payload_size
        for opening in parse_ndjson(body, path, limit):
            openings.append(opening)
            size += len(opening)
            if size > most:
                raise Refused(
                    413, f"the events' lines would have more than {most} bytes together: send fewer"
                )
            if not len(openings) % 10 and piece.over:
                await piece.next()
        return openings

    def _accepted(
        self, request: web.BaseRequest, path: PublishPath, accepted: Accepted, *, replayed: bool
    ) -> web.Response:
        _, cursor, timestamp = accepted.last
        if request.content_type in NDJSON_TYPES:
            events = "event" if accepted.events == 1 else "events"
            text = f"accepted {accepted.events} {events}"
            fields = {"cursor": cursor, "count": accepted.events}
        else:
            text = "accepted"
            fields = {"cursor": cursor, "timestamp": timestamp, "path": path.text}
        response = self._answer(request, 202, text, fields)
        response.headers["X-Cursor"] = cursor
        if replayed:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    # An event's way out

    async def _subscribe(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.rel_url.raw_query_string.count("&") >= MOST_QUERY_KEYS:
            raise Refused(400, f"there are more than {MOST_QUERY_KEYS} keys in the query")
        subscription = parse_subscription(request.rel_url.raw_path)
        only_known(request.query, QUERY_KEYS)
        only_one(request.query, *QUERY_KEYS)
        only_one(request.headers, *HEADERS)
        asked = replay_request(request.headers, request.query, max(time.time(), self._intake.latest))
        login = await self._log_in(request, self._address(request))
        user_agent = request.headers.get("User-Agent", "")
        http_1_0 = request.version < HttpVersion11
        oldschool = any(name in user_agent for name in self.config.clients.oldschoolers)
        # svnpubsub's clients do not say who they are
        wire = wire_form(http_1_0=http_1_0, nul_terminated=oldschool or (http_1_0 and not user_agent))
        if not user_agent:
            await asyncio.sleep(END_OF_INPUT)
        now, placement = await self._place(asked, login)
        response = web.StreamResponse(
            headers=self._headers(request)
            | {
                "X-Subscribers": str(len(self._fanout) + 1),
                "Content-Type": STREAM_TYPE,
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                "X-Cursor": now.cursor,
            }
        )
        if placement.verdict:
            response.headers["X-Replay"] = placement.verdict
        response.force_close()  # a stream's end is the connection's
        # without a backlog nothing suspends from the stamp to join(): no event is missed in between
        writer = await response.prepare(request)
        if writer is None or request.transport is None:
            raise ConnectionError("the client left before its stream began")
        peer = self._shown_peer(request) or "a peer already gone"
        transport = request.transport
        stream = connection_of(request).hand_over(transport)
        try:
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
        except BaseException:
            transport.abort()  # nobody else would any more
            raise
        self._fanout.add(subscriber)
        self._review(subscriber)  # its rights may have changed since it logged in
        serving = stream.serve(Follower(subscriber, now.position, self._surroundings).begin(placement))
        # a callback: the task may be cancelled before it runs
        serving.add_done_callback(partial(self._on_left, subscriber, shown_path(request), time.monotonic()))
        return response

    def _on_left(self, subscriber: Subscriber, path: str, since: float, serving: asyncio.Task[None]) -> None:
        if not serving.cancelled() and (error := serving.exception()):
            log.error("error in the stream %s", path, exc_info=error)
            subscriber.drop("an error in the server")
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

    async def _place(self, asked: ReplayRequest | None, login: Login | None) -> tuple[Stamp, Placement]:
        """The moment at which a stream begins, and where the subscriber begins to read.

        Raises Refused(503), WrongCredentials.
        """
        while True:
            private = self._sees_private(login)
            now = await self._intake.now(private=private)
            await self._store.settle(now.position, private=private)  # what was stamped before is delivered
            moment = Mark(now.position, now.timestamp)
            placement = await self._store.place(asked, moment, private=private)
            if self._sees_private(login) == private:
                return now, placement  # else its rights changed while it was placed

    def _sees_private(self, login: Login | None) -> bool:
        """Whether a subscriber may see any private events by now. Raises WrongCredentials."""
        return login is not None and bool(self._rights_by_now(login).sees)

    def _rights_by_now(self, login: Login) -> Rights:
        """Raises WrongCredentials if there are none any more."""
        rights = self._authentication.rights_by_now(login)
        if rights is None:
            raise WrongCredentials
        return rights


def no_right_to(secured: frozenset[str]) -> Refused:
    """The refusal of a user who may not publish on secure topics."""
    return Refused(403, f"these credentials give no right to publish on {', '.join(sorted(secured))}")


def leave_at_once(number: signal.Signals) -> None:
    """End the process, whatever is under way."""
    log.warning("%s again: leaving at once", number.name)
    logs.write_last_lines()
    os._exit(1)


async def happens(event: asyncio.Event, within: float) -> bool:
    """Wait for an event, up to so many seconds. Whether it came."""
    try:
        async with asyncio.timeout(within):
            return await event.wait()
    except TimeoutError:
        return False


def ping_line() -> bytes:
    """An object with the one key by which every client tells a ping from an event."""
    return b'{"stillalive": %a}\n' % time.time()  # as json.dumps() writes it, in a fifth of the time


# The command line


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, its help and its --version."""
    parser = argparse.ArgumentParser(
        description="PyPubSub: JSON events over HTTP, from publishers to subscribers."
    )
    parser.add_argument(
        "--config", type=Path, default="pypubsub.yaml", help="settings (default: %(default)s)"
    )
    parser.add_argument(
        "--acl", type=Path, default="pypubsub_acl.yaml", help="access rights (default: %(default)s)"
    )
    parser.add_argument(
        "--check", action="store_true", help="load everything, say what would be served, and exit"
    )
    parser.add_argument(
        "--hash-password",
        action="store_true",
        help="ask for a password, print its hash for the ACL, and exit",
    )
    parser.add_argument(
        "--loop",
        choices=LOOPS,
        default=LOOPS[0],
        help="event loop (auto: uvloop, which is faster, where it is installed; default: %(default)s)",
    )
    parser.add_argument("--version", action="version", version=f"PyPubSub {__version__}")
    parser.add_argument(
        "--log-level",
        type=str.upper,
        choices=["DEBUG", "INFO", "WARNING", "ERROR"],
        default="INFO",
        help="least level that is logged, to stderr (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def load_all(config_path: Path, acl_path: Path) -> tuple[Config, Users | None, list[str]]:
    """Both files, and what their owner should know about them. Raises ConfigError with all problems."""
    problems: list[str] = []
    try:
        users = read_users(acl_path)
    except ConfigError as error:
        problems = error.problems
        users = None
    try:
        config, warnings = load(config_path)
        providers_for(config.clients, acl_path, users, NoStreams())  # the dns of a directory, say
    except ConfigError as error:
        raise ConfigError(error.problems + problems) from error
    if problems:
        raise ConfigError(problems)
    return config, users, warnings + (users.warnings if users else [])


def check(config: Config, users: Users | None, warnings: Sequence[str]) -> int:
    """Print what would be served, and every problem with it. The exit status."""
    print_plan(config, users)
    for warning in warnings:
        print(f"warning: {warning}")
    server = config.server
    try:
        if server.tls:
            tls_context(server.tls)
        if server.backlog.size and server.backlog.storage:
            check_directory(Path(server.backlog.storage))
        if config.sqs:
            check_aioboto3()
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def print_plan(config: Config, users: Users | None) -> None:
    """What would be served, and to whom."""
    server, clients = config.server, config.clients
    for bind in server.bind:
        if bind.startswith("unix:"):
            print(f"serves {bind}")
            continue
        for address in (bind, "0.0.0.0") if server.takes_ipv4_too(bind) else (bind,):  # noqa: S104
            print(f"serves {url(address, server.port, tls=False)}")
            if server.tls:
                print(f"serves {url(address, server.tls.port, tls=True)}")
    certificates = [f"certificate {name}" for name in config.certified_publishers]
    print(f"publishers: {', '.join([*map(str, clients.payloaders), *certificates]) or 'nobody'}")
    print(f"backlog: {shown_backlog(server.backlog)}")
    print(f"users: {len(users.by_name) if users else 'none'} in the ACL file")
    if clients.ldap:
        print(f"directory: {', '.join(clients.ldap.uri)}")
    for name, queue in config.sqs.items():
        print(f"sqs {name}: {queue.plan}")
    if clients.secure_topics:
        print(f"secure topics: {', '.join(clients.secure_topics)}")


def print_hash() -> int:
    """Ask for a password, twice at a terminal, and print its hash. The exit status."""
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


def shown_backlog(backlog: BacklogConfig) -> str:
    """What is kept, in words."""
    if not backlog.size:
        return "none"
    age = f", for {backlog.max_age:g} seconds at most" if backlog.max_age else ""
    where = backlog.storage or "in memory"
    return f"{backlog.size} public and as many private events{age}, {where}"


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop, one of LOOPS; None: asyncio. Raises StartError."""
    if name == "asyncio":
        return None
    try:
        import uvloop  # noqa: PLC0415 (not there on every platform)
    except ImportError as error:
        if name == "auto":
            return None
        raise StartError(
            f"--loop uvloop: it is not installed: {sys.executable} -m pip install uvloop"
        ) from error
    return uvloop.new_event_loop


async def serve(config: Config, acl_path: Path, users: Users | None) -> None:
    """Run a server in this event loop until it is stopped."""
    await Server(config, acl_path, users).run()


def main() -> int:
    """Run the daemon. 0: stopped by a signal, or checked and found good; 1: not so; 2: not configured."""
    arguments = parse_arguments()
    if arguments.hash_password:
        return print_hash()
    try:
        config, users, warnings = load_all(arguments.config, arguments.acl)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1 if arguments.check else 2
    if arguments.check:
        return check(config, users, warnings)
    logs.begin(arguments.log_level)
    for warning in warnings:
        log.warning("%s", warning)
    try:
        with asyncio.Runner(loop_factory=loop_factory(arguments.loop)) as runner:
            runner.run(serve(config, arguments.acl, users))
    except StartError as error:
        log.error("%s", error)  # noqa: TRY400 (one clear line, no traceback)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
