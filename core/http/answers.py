"""The answers that a request gets, beside the streams: their heads, CORS, refusals, and what is held back.

Every answer tells how many subscribers and requests there are, and is one line: of text, or of JSON for those
who ask for it.
"""

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence, Sized
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from aiohttp import web

from core import __version__
from core.errors import Refused
from core.events.store import Accepted
from core.events.topics import PublishPath
from core.http.connection import shown_path
from core.http.refusals import Refusals
from core.http.requests import holds_lines, may_never_come
from core.settings import ServerConfig

log = logging.getLogger("pypubsub")

SERVER = f"PyPubSub/{__version__}"  # in the head of every answer
ALLOWED_METHODS = "GET, HEAD, OPTIONS, POST, PUT"
MAX_HELD_REFUSALS = 1000
CORS_REQUEST_HEADERS = (
    "Accept, Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-Fetch-Since, X-Fetch-Since-Cursor"
)
CORS_ANSWER_HEADERS = "Idempotency-Replayed, Retry-After, X-Cursor, X-Replay, X-Requests, X-Subscribers"


class Answers:
    """What every answer is made of.

    subscribers: all of them, to be counted; stopping: set when the server stops, and nobody is held back.
    """

    def __init__(self, settings: ServerConfig, subscribers: Sized, stopping: asyncio.Event) -> None:
        self._settings = settings
        self._subscribers = subscribers
        self._stopping = stopping
        self._held_back = 0  # refusals
        self.requests = 0  # so far, without private publishes, which must not show to everybody
        self.refusals = Refusals()

    def head(self, request: web.BaseRequest) -> dict[str, str]:
        """What stands in the head of every answer."""
        counts = {"X-Subscribers": str(len(self._subscribers)), "X-Requests": str(self.requests)}
        return {"Server": SERVER} | counts | cors(self._settings.cors_origins, request.headers)

    def no_content(self, request: web.BaseRequest) -> web.Response:
        """The answer to HEAD."""
        return web.Response(status=204, headers=self.head(request), content_type="text/plain")

    def options(self, request: web.BaseRequest) -> web.Response:
        """The answer to OPTIONS: what may be asked, also by pages that ask before they send (preflight)."""
        headers = self.head(request)
        headers["Allow"] = ALLOWED_METHODS
        if "Access-Control-Allow-Origin" in headers:
            headers["Access-Control-Allow-Methods"] = ALLOWED_METHODS
            headers["Access-Control-Allow-Headers"] = CORS_REQUEST_HEADERS
            headers["Access-Control-Max-Age"] = "3600"
        return web.Response(status=204, headers=headers)

    def line(
        self, request: web.BaseRequest, status: int, text: str, fields: Mapping[str, Any]
    ) -> web.Response:
        """One line: the text, or the fields as JSON for those who ask for that."""
        headers = self.head(request)
        if "application/json" in request.headers.get("Accept", ""):
            content_type, text = "application/json", json.dumps(fields)
        else:
            content_type = "text/plain"
        return web.Response(status=status, headers=headers, content_type=content_type, text=text + "\n")

    def stream(
        self, request: web.BaseRequest, content_type: str, cursor: str, verdict: str | None
    ) -> web.StreamResponse:
        """The head of a stream for one more subscriber. cursor: where it begins; verdict: X-Replay."""
        headers = self.head(request) | {
            "X-Subscribers": str(len(self._subscribers) + 1),
            "Content-Type": content_type,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "X-Cursor": cursor,
        }
        if verdict:
            headers["X-Replay"] = verdict
        response = web.StreamResponse(headers=headers)
        response.force_close()  # a stream's end is the connection's
        return response

    # Publishes that are accepted

    def accepted_response(
        self, request: web.BaseRequest, path: PublishPath, accepted: Accepted, *, replayed: bool
    ) -> web.Response:
        """The answer to a publish. replayed: it had been published before, under its Idempotency-Key."""
        _, cursor, timestamp = accepted.last
        if holds_lines(request):
            events = "event" if accepted.events == 1 else "events"
            text = f"accepted {accepted.events} {events}"
            fields = {"cursor": cursor, "count": accepted.events}
        else:
            text = "accepted"
            fields = {"cursor": cursor, "timestamp": timestamp, "path": path.text}
        response = self.line(request, 202, text, fields)
        response.headers["X-Cursor"] = cursor
        if replayed:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    def plain_response(self, accepted: Accepted) -> bytes:
        """The answer to a plain publish, head and body as bytes (core.http.plain_publish)."""
        opening = _opening(bool(self._settings.cors_origins), int(time.time()))
        return (
            f"{opening}X-Subscribers: {len(self._subscribers)}\r\nX-Requests: {self.requests}\r\n"
            f"X-Cursor: {accepted.last.cursor}\r\n\r\naccepted\n"
        ).encode("ascii")

    # Refusals

    def refusal(self, request: web.BaseRequest, refused: Refused, peer: str | None) -> web.Response:
        """The answer to a refused request, which is also counted and logged. peer: as the log shows it."""
        self.note_refusal(refused, f"{request.method} {shown_path(request)}", peer)
        response = self.line(request, refused.status, refused.message, {"error": refused.message})
        response.headers.update(refused.headers)
        if refused.close or may_never_come(request, self._settings.max_payload_size):
            response.force_close()
        return response

    def note_refusal(self, refused: Refused, what: str, peer: str | None) -> None:
        """Count a refusal, and log it if there were not too many like it."""
        left_out = self.refusals.add(refused.status, refused.reason)
        if left_out is None or refused.quiet:
            return
        log.info("refused %s from %s: %d %s", what, peer, refused.status, refused.message)
        if left_out:
            log.info("left out %d lines of refusals like this one", left_out)

    async def hold_back(self, arrived: float) -> None:
        """Wait with a refusal until `refusal_delay` after the request came (loop time), or the server stops.

        Refused subscribers are answered late because deployed readers ask again without a pause. So is who
        guesses passwords, and at a time that does not tell how far the guess got.
        """
        if self._held_back < MAX_HELD_REFUSALS:
            self._held_back += 1
            answered = arrived + self._settings.refusal_delay
            try:
                await happens(self._stopping, answered - asyncio.get_running_loop().time())
            finally:
                self._held_back -= 1


@lru_cache(1)
def _opening(vary: bool, now: int) -> str:
    """How the head of an accepted publish begins, as aiohttp would write it. now: Unix seconds."""
    varies = "Vary: Origin\r\n" if vary else ""
    return (
        f"HTTP/1.1 202 Accepted\r\nServer: {SERVER}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: 9\r\nDate: {formatdate(now, usegmt=True)}\r\n{varies}"
    )


def cors(origins: Sequence[str], headers: Mapping[str, str]) -> dict[str, str]:
    """What an answer tells a browser about which pages may read it (Fetch Standard, CORS protocol).

    origins: server.cors_origins; headers: the request's.
    """
    if not origins:
        return {}
    told = {"Vary": "Origin"}
    origin = headers.get("Origin")
    if origin is not None and origin in origins:
        told["Access-Control-Allow-Origin"] = origin
        told["Access-Control-Allow-Credentials"] = "true"
        told["Access-Control-Expose-Headers"] = CORS_ANSWER_HEADERS
    return told


async def happens(event: asyncio.Event, within: float) -> bool:
    """Wait for an event, up to so many seconds. Whether it came."""
    try:
        async with asyncio.timeout(within):
            return await event.wait()
    except TimeoutError:
        return False
