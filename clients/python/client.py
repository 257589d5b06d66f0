#!/usr/bin/env python3
"""Follow a PyPubSub server, and publish to it: one file to copy into a program of your own.

Needs Python 3.11 or later, and aiohttp.

    async for event in listen("https://pubsub.example.org/fruits"):
        print(event["pubsub_path"], event)

    cursor = await publish("https://pubsub.example.org/fruits/apples", {"colour": "red"})

The same from a shell, one event a line:

    python3 client.py https://pubsub.example.org/fruits
    python3 client.py publish https://pubsub.example.org/fruits/apples '{"colour": "red"}'

A server's stream has no end of its own: whatever ends it, listen() says so in the log and connects again.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import logging
import os
import random
import sys
from collections.abc import AsyncGenerator, Mapping
from typing import Any, NoReturn

import aiohttp
from aiohttp.http import HttpProcessingError
from yarl import URL  # comes with aiohttp

Event = dict[str, Any]

MAX_LINE_BYTES = 16 * 1024 * 1024  # far above a server's limit (600,000): a guard against what is no PyPubSub
PIECE_BYTES = 16 * 1024
READ_AHEAD = 1024  # pieces taken off the network while the consumer is busy
NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # its sock_read says nothing when a stream goes on as no HTTP

log = logging.getLogger("pypubsub.client")


class StreamError(Exception):
    """The server's answer is not, or no longer, a stream of events."""


class RefusedError(StreamError):
    """The server answered a GET with something other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"refused: {status} {text}".rstrip())
        self.status = status


# Whatever can be wrong with a connection. HttpProcessingError and RuntimeError ("Connection closed.") are
# what the reader of a stream gets that went on as something other than HTTP.
BROKEN = (StreamError, aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError)


class PublishError(Exception):
    """An event was not accepted. `status` is the server's; None if no answer came: it may be published."""

    def __init__(self, status: int | None, text: str) -> None:
        super().__init__(f"{status} {text}".rstrip() if status else text)
        self.status = status
        self.text = text


async def listen(
    url: str,
    *,
    user: str | None = None,
    password: str | None = None,
    silence: float = 11.0,
    max_wait: float = 60.0,
) -> AsyncGenerator[Event, None]:
    """Yield the events of `url` for ever, one dict each, reconnecting whenever the stream ends.

    silence:  seconds without a byte after which the connection counts as dead; a server pings every 5 seconds
    max_wait: the longest pause, in seconds, before connecting again

    Leaving the loop closes the connection as soon as the generator is collected; to have it closed at once:
    `async with contextlib.aclosing(listen(url)) as events: async for event in events: ...`
    """
    address, user, password = _split_credentials(url, user, password)
    failures = 0  # in a row, since the last stream that gave a line
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=NO_TIMEOUT) as session:
        while True:
            following = False
            try:
                async with asyncio.timeout(silence):
                    response = await session.get(
                        address, headers=_headers(user, password), allow_redirects=False
                    )
                async with response, contextlib.aclosing(_lines(response, silence)) as lines:
                    async for line in lines:
                        if not following:
                            following, failures = True, 0
                            log.info("following %s", address)
                        event = _parse(line)
                        if event is not None:
                            yield event
            except BROKEN as error:
                pause = backoff(failures, max_wait)
                if isinstance(error, RefusedError) and error.status in (401, 403):
                    pause = long_pause(max_wait)
                log.warning("%s: %s; again in %.2f s", address, _text(error, silence), pause)
            failures += 1
            await asyncio.sleep(pause)


async def publish(
    url: str,
    payload: Mapping[str, Any] | str,
    *,
    user: str | None = None,
    password: str | None = None,
    method: str = "POST",
    timeout: float = 30.0,  # noqa: ASYNC109 - what callers know it as
    session: aiohttp.ClientSession | None = None,
) -> str | None:
    """Publish one event under the topics in the path of `url`. Returns its cursor, or raises PublishError.

    payload: the event, or the text of it (a JSON object)
    method:  POST or PUT, the same to a server; but aiohttp sends a PUT again by itself if the connection
             breaks before the answer, which can publish an event twice
    session: one of your own, to publish many events over the same connection
    """
    address, user, password = _split_credentials(url, user, password)
    body = payload if isinstance(payload, str) else json.dumps(payload, allow_nan=False)
    headers = _headers(user, password) | {"Content-Type": "application/json"}
    once: contextlib.AbstractAsyncContextManager[aiohttp.ClientSession]
    once = aiohttp.ClientSession() if session is None else contextlib.nullcontext(session)
    async with once as sender:
        try:
            async with sender.request(
                method,
                address,
                data=body.encode(),
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                if not 200 <= response.status < 300:
                    raise PublishError(response.status, await _refusal_text(response, timeout))
                return response.headers.get("X-Cursor")
        except BROKEN as error:
            raise PublishError(None, f"{address}: {_text(error, timeout)}") from error


def backoff(failures: int, max_wait: float) -> float:
    """Seconds to wait after so many failures in a row: a random part of 1, 2, 4, 8... so that the clients of
    a restarted server do not come back all at once."""
    return random.uniform(0, min(max_wait, 2.0 ** min(failures, 30)))


def long_pause(max_wait: float) -> float:
    """Seconds to wait after a refusal that will not go away by itself: a password or a right is missing."""
    return random.uniform(max_wait / 2, max_wait)


def _split_credentials(
    url: str, user: str | None, password: str | None
) -> tuple[URL, str | None, str | None]:
    """The URL without credentials, fit for a log, and the credentials: those given, else those in the URL."""
    try:
        address = URL(url)
        (address.raw_host or "").encode(
            "idna"
        )  # as the resolver will, whose error would not tell what is wrong
    except ValueError as error:
        raise ValueError(f"not a URL: {url}: {error}") from None
    if address.scheme not in ("http", "https") or not address.host:
        raise ValueError(f"expected http://host/topics or https://host/topics, got {url}")
    if user is None:
        user, password = address.user, address.password
    return address.with_user(None), user, password


def _headers(user: str | None, password: str | None) -> dict[str, str]:
    """The headers of every request."""
    headers = {
        "User-Agent": "pypubsub-client (python)",
        "Accept-Encoding": "identity",  # aiohttp asks for gzip by itself; a compressed stream comes in lumps
    }
    if user is not None:
        credentials = f"{user}:{password or ''}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(credentials).decode()}"
    return headers


async def _lines(response: aiohttp.ClientResponse, silence: float) -> AsyncGenerator[bytes, None]:
    """The lines of a stream, however it is cut into pieces, until it breaks: then what broke it is raised.
    What follows the last newline is half a line, and dropped."""
    if response.status != 200:
        raise RefusedError(response.status, await _refusal_text(response, silence))
    pieces: asyncio.Queue[bytes] = asyncio.Queue()
    room = asyncio.Semaphore(READ_AHEAD)

    async def read_ahead() -> None:
        """Take the bytes as they come, whatever the consumer does: aiohttp forgets the unread ones when
        a connection breaks, and the last events before a server's restart would be lost."""
        while piece := await _read(response.content, silence):
            await room.acquire()
            pieces.put_nowait(piece)
        raise StreamError("the server ended the stream")

    reader = asyncio.create_task(read_ahead())
    reader.add_done_callback(lambda _: pieces.put_nowait(b""))
    unfinished = bytearray()
    try:
        while piece := await pieces.get():
            room.release()
            start, *more = piece.split(b"\n")
            unfinished += start
            for rest in more:
                line = unfinished.strip(b"\0\r ")  # some servers send a NUL after the newline
                if line:
                    yield bytes(line)
                unfinished = bytearray(rest)
            if len(unfinished) > MAX_LINE_BYTES:
                raise StreamError(f"a line of more than {MAX_LINE_BYTES} bytes")
        await reader
    finally:
        reader.cancel()


async def _read(content: aiohttp.StreamReader, silence: float) -> bytes:
    """The next bytes, none at the end of the stream; TimeoutError if they do not come."""
    try:
        async with asyncio.timeout(silence):
            return await content.read(PIECE_BYTES)
    except TimeoutError:
        # A program that held up its event loop for so long finds the time over though bytes are there.
        async with asyncio.timeout(silence / 10):
            return await content.read(PIECE_BYTES)


def _parse(line: bytes) -> Event | None:
    """The event of a line, or None where there is none to pass on: the line is a ping."""
    try:
        event = json.loads(line.decode())
    except ValueError:
        raise StreamError(f"a line that is not JSON: {line[:80]!r}") from None
    except RecursionError:
        log.error("an event left out, nested too deep for this Python: %r...", line[:80])  # noqa: TRY400
        return None
    if not isinstance(event, dict):
        raise StreamError(f"a line that is not a JSON object: {line[:80]!r}")
    return None if event.keys() == {"stillalive"} else event


async def _refusal_text(response: aiohttp.ClientResponse, patience: float) -> str:
    """What a refusal says, in one line. Its body may be endless, broken or missing."""
    body = b""
    try:
        async with asyncio.timeout(patience):
            while len(body) < 1000 and (piece := await response.content.read(1000)):
                body += piece
    except BROKEN:
        pass  # the status, and what came of the text, say more than the reason why the rest did not come
    text = " ".join(body[:1000].decode(errors="replace").split()) or response.reason or ""
    return f"{text} (Location: {location})" if (location := response.headers.get("Location")) else text


def _text(error: Exception, patience: float) -> str:
    """An error in one line."""
    if isinstance(error, TimeoutError):
        return f"nothing came for {patience:g} s"
    return " ".join(str(error).split()) or type(error).__name__


# The command line.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help explains)\n")


def _positive_seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


_positive_seconds.__name__ = "number of seconds"  # the word argparse uses in its message


def _arguments() -> argparse.Namespace:
    parser = _Parser(
        prog="client.py",
        usage="client.py [options] URL\n       client.py [options] publish URL JSON",
        description="Print the events of a PyPubSub server, one a line, or publish one and print its cursor.",
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--user", metavar="NAME:PASSWORD", help="credentials")
    parser.add_argument(
        "--silence",
        type=_positive_seconds,
        default=11.0,
        metavar="SECONDS",
        help="reconnect when nothing came for so long (11)",
    )
    parser.add_argument(
        "--max-wait",
        type=_positive_seconds,
        default=60.0,
        metavar="SECONDS",
        help="the longest pause before a reconnect (60)",
    )
    arguments = parser.parse_intermixed_args()
    publishing = arguments.words[:1] == ["publish"]
    if len(arguments.words) != (3 if publishing else 1):
        parser.error("expected URL, or: publish URL JSON")
    if arguments.user is not None and ":" not in arguments.user:
        parser.error("--user: expected name:password")
    return arguments


async def _run(arguments: argparse.Namespace) -> None:
    user, _, password = arguments.user.partition(":") if arguments.user is not None else (None, None, None)
    if arguments.words[0] == "publish":
        _, url, payload = arguments.words
        print(await publish(url, payload, user=user, password=password) or "")
        return
    events = listen(
        arguments.words[0],
        user=user,
        password=password,
        silence=arguments.silence,
        max_wait=arguments.max_wait,
    )
    async for event in events:
        print(json.dumps(event), flush=True)


def main() -> int:
    """Returns the exit status: 1 if the event was not accepted, 2 for wrong arguments, 130 after Ctrl-C."""
    arguments = _arguments()
    logging.basicConfig(format="client.py: %(message)s", level=logging.INFO)
    try:
        asyncio.run(_run(arguments))
    except (PublishError, ValueError) as error:
        print(f"client.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, PublishError) else 2
    except BrokenPipeError:  # whoever read the events has left, and what is still buffered can go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
