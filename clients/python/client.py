#!/usr/bin/env python3
"""Follow a PyPubSub server, and publish to it: one file to copy into a program of your own.

Needs Python 3.11 or later, and aiohttp.

    async for event in listen("https://pubsub.example.org/fruits"):
        print(event["pubsub_path"], event)

    cursor = await publish("https://pubsub.example.org/fruits/apples", {"colour": "red"})

The same from a shell, one event a line:

    python3 client.py https://pubsub.example.org/fruits
    python3 client.py publish https://pubsub.example.org/fruits/apples '{"colour": "red"}'

A server's stream has no end of its own: whatever ends it, listen() says so in the log, connects again, and
asks for what was published meanwhile.
"""

import argparse
import asyncio
import base64
import contextlib
import errno
import json
import logging
import os
import random
import re
import stat
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
from aiohttp.http import HttpProcessingError
from yarl import URL  # comes with aiohttp

Event = dict[str, Any]

CURSOR = re.compile("[0-9A-Za-z-]{36}")
MISSING = {  # what a server's verdict on a replay says about the events published since
    "partial": "events of the time away are missing",
    "unknown": "the server cannot tell whether events are missing",
    "none": "the server keeps no backlog, or does not tell: events of the time away may be missing",
}
TRY_AGAIN = (None, 429, 502, 503, 504)  # after such a status the same event may be accepted; None: no answer
MAX_LINE_BYTES = 16 * 1024 * 1024  # far above a server's limit (600,000): a guard against what is no PyPubSub
MAX_TEXT = 1000  # characters of what a server says that go into an error
PIECE_BYTES = 16 * 1024
READ_AHEAD = 1024  # pieces taken off the network while the consumer is busy
STEADY = 10.0  # seconds; the end of a stream that lived for less is a failure like a refusal
LONGEST_WISH = 86400.0  # seconds; no Retry-After is taken for more
NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # its sock_read says nothing when a stream goes on as no HTTP

log = logging.getLogger("pypubsub.client")


class StreamError(Exception):
    """The server's answer is not, or no longer, a stream of events."""


class RefusedError(StreamError):
    """The server answered a GET with something other than 200."""

    def __init__(self, status: int, text: str, retry_after: float) -> None:
        super().__init__(f"refused: {status} {text}".rstrip())
        self.status = status
        self.retry_after = retry_after


# Whatever can be wrong with a connection. HttpProcessingError and RuntimeError ("Connection closed.") are
# what the reader of a stream gets that went on as something other than HTTP.
BROKEN = (StreamError, aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError)


class PublishError(Exception):
    """An event was not accepted. `status` is the server's; None if no answer came: it may be published.
    `retry_after` is how many seconds the server asks to wait."""

    def __init__(self, status: int | None, text: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {text}".rstrip() if status else text)
        self.status = status
        self.text = text
        self.retry_after = retry_after


async def listen(
    url: str,
    *,
    user: str | None = None,
    password: str | None = None,
    silence: float = 11.0,
    max_wait: float = 60.0,
    cursor: str | None = None,
    since: str | float | None = None,
    cursor_file: str | os.PathLike[str] | None = None,
    on_replay: Callable[[str], object] | None = None,
) -> AsyncGenerator[Event, None]:
    """Yield the events of `url` for ever, one dict each, reconnecting whenever the stream ends, and going
    on after the event that was handled last. An event is handled when the next one is asked for.

    silence:     seconds without a byte after which the connection counts as dead; a server pings every 5
    max_wait:    the longest pause, in seconds, before connecting again, whatever a server asks for
    cursor:      start after it: the pubsub_cursor of an event, or what publish() returned
    since:       as long as there is no cursor, start with the events since then: Unix seconds, or a text that
                 the server takes for a time
    cursor_file: a path, to keep the cursor for the next run; a file that is there wins over cursor and since.
                 It is replaced as a whole after each event: however the program ends, it is sound, and one
                 event late at most. It is not forced onto the disk: a power cut may leave it older, or empty.
                 It keeps its mode; of a symbolic link, the file that it leads to is replaced
    on_replay:   called on each connection that asked for earlier events, before these, with the server's
                 verdict: "complete", "partial" (some are gone), "unknown" or "none" (it keeps no backlog, or
                 is too old to tell)

    Raises ValueError for a cursor, or a cursor file, that holds none; OSError if the file cannot be used:
    before anything is asked of the server, unless the file becomes useless later.

    Leaving the loop closes the connection as soon as the generator is collected; to have it closed at once:
    `async with contextlib.aclosing(listen(url)) as events: async for event in events: ...`
    """
    address, user, password = _split_credentials(url, user, password)
    position = _Position(cursor, since, cursor_file)
    failures = 0  # in a row, since the last stream that was steady
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=NO_TIMEOUT) as session:
        while True:
            began: float | None = None  # when the first line came
            in_program = False
            replay = position.headers()
            try:
                async with asyncio.timeout(silence):
                    response = await session.get(
                        address, headers=_headers(user, password) | replay, allow_redirects=False
                    )
                async with response, contextlib.aclosing(_lines(response, silence)) as lines:
                    async for line in lines:
                        event = _parse(line)
                        in_program = True
                        if began is None:
                            began = time.monotonic()
                            log.info("following %s", address)
                            position.at_head = response.headers.get("X-Cursor")
                            if replay:
                                _tell_of_replay(address, response.headers.get("X-Replay", "none"), on_replay)
                        if event is not None and event.keys() == {"stillalive"}:
                            position.pinged()
                        elif event is not None:
                            yield event
                            position.handled(event.get("pubsub_cursor"))
                        in_program = False
            except BROKEN as error:
                if in_program:
                    raise  # an error of on_replay, or of the cursor file
                if began is not None and time.monotonic() - began >= STEADY:
                    failures = 0
                pause = _pause(error, failures, max_wait)
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
    idempotency_key: str | None = None,
    retry_for: float = 30.0,
) -> str | None:
    """Publish one event under the topics in the path of `url`. Returns its cursor, or raises PublishError.

    payload:   the event, or the text of it (a JSON object)
    method:    POST or PUT, the same to a server
    timeout:   seconds to wait for the answer to one attempt
    session:   one of your own, to publish many events over the same connection
    idempotency_key: 1 to 255 visible ASCII characters that name the event, for the server to publish it once
               however often it comes; a random one if None
    retry_for: seconds during which the event is sent again, with its key, after no answer and after 429, 502,
               503 and 504; 0 for a single attempt. Over a restart of the server this is safe only if its
               backlog is durable: without, it forgets the keys, and may publish the event twice
    """
    address, user, password = _split_credentials(url, user, password)
    body = payload if isinstance(payload, str) else json.dumps(payload, allow_nan=False)
    headers = _headers(user, password) | {
        "Content-Type": "application/json",
        "Idempotency-Key": str(uuid.uuid4()) if idempotency_key is None else idempotency_key,
    }
    end = time.monotonic() + retry_for
    once: contextlib.AbstractAsyncContextManager[aiohttp.ClientSession]
    once = aiohttp.ClientSession() if session is None else contextlib.nullcontext(session)
    async with once as sender:
        failures = 0
        while True:
            try:
                return await _publish_once(sender, method, address, headers, body.encode(), timeout)
            except PublishError as error:
                left = end - time.monotonic()
                if error.status not in TRY_AGAIN or left <= 0:
                    raise
                pause = min(left, max(error.retry_after, backoff(failures, retry_for)))
                log.warning("not published: %s; again in %.2f s", error, pause)
            failures += 1
            await asyncio.sleep(pause)


async def _publish_once(
    sender: aiohttp.ClientSession,
    method: str,
    address: URL,
    headers: Mapping[str, str],
    body: bytes,
    patience: float,
) -> str | None:
    """One attempt."""
    limit = aiohttp.ClientTimeout(total=patience)
    try:
        async with sender.request(
            method, address, data=body, headers=headers, allow_redirects=False, timeout=limit
        ) as response:
            if 200 <= response.status < 300:
                return response.headers.get("X-Cursor")
            text = await _refusal_text(response, patience)
            raise PublishError(response.status, text, _retry_after(response))
    except BROKEN as error:
        raise PublishError(None, f"{address}: {_text(error, patience)}") from error


def _pause(error: Exception, failures: int, max_wait: float) -> float:
    """Seconds to wait before connecting again."""
    if not isinstance(error, RefusedError):
        return backoff(failures, max_wait)
    pause = long_pause(max_wait) if error.status in (401, 403) else backoff(failures, max_wait)
    return min(max_wait, max(error.retry_after, pause))


def backoff(failures: int, max_wait: float) -> float:
    """Seconds to wait after so many failures in a row: a random part of 1, 2, 4, 8... so that the clients of
    a restarted server do not come back all at once."""
    return random.uniform(0, min(max_wait, 2.0 ** min(failures, 30)))


def long_pause(max_wait: float) -> float:
    """Seconds to wait after a refusal that will not go away by itself: a password or a right is missing."""
    return random.uniform(max_wait / 2, max_wait)


class _Position:
    """Where the program is in the stream: what comes after the cursor is what it has yet to handle."""

    def __init__(
        self, cursor: str | None, since: str | float | None, file: str | os.PathLike[str] | None
    ) -> None:
        self.at_head: str | None = None  # the cursor of the moment when this connection's stream began
        self._since = since
        self._file = None if file is None else _CursorFile(file)
        if cursor is not None:
            _check_cursor(cursor, "cursor")
        self._cursor = (self._file and self._file.start()) or cursor

    def headers(self) -> dict[str, str]:
        """What asks for a replay from there, if there is such a place yet."""
        if self._cursor is not None:
            return {"X-Fetch-Since-Cursor": self._cursor}
        return {} if self._since is None else {"X-Fetch-Since": str(self._since)}

    def pinged(self) -> None:
        """A ping came: the first one says that everything up to the stream's head has come."""
        self.handled(self.at_head)
        self.at_head = None

    def handled(self, cursor: object) -> None:
        """Everything up to this cursor is handled; nothing new if there is none, as from some servers."""
        if not (isinstance(cursor, str) and CURSOR.fullmatch(cursor)):
            return
        self._cursor = cursor
        if self._file is not None:
            self._file.save(cursor)


class _CursorFile:
    """A file that holds a cursor. A new one is written beside it and takes its place: `NAME.PID.new`.
    Its methods raise OSError, which names it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._target = Path(os.path.realpath(path))  # absolute, for programs that change their directory

    def start(self) -> str | None:
        """The cursor in it; None if there is no file yet. Tries whether it can be replaced, and removes what
        a run that was killed has left beside it."""
        with self._naming():
            leftover = re.compile(re.escape(self._target.name) + r"\.[0-9]+\.new")
            with contextlib.suppress(PermissionError):  # a directory may be writable, and not readable
                for each in filter(leftover.fullmatch, os.listdir(self._target.parent)):
                    self._target.with_name(each).unlink()
            try:
                cursor = self._read()
            except FileNotFoundError:
                self._write_beside("").unlink()
                return None
        _check_cursor(cursor, f"cursor file {self._path}")
        self.save(cursor)
        return cursor

    def save(self, cursor: str) -> None:
        """Put this cursor in the place of what is there."""
        with self._naming():
            try:
                self._replace(cursor)
            except FileNotFoundError:  # another run that is just starting may have taken it for a leftover
                self._replace(cursor)

    @contextlib.contextmanager
    def _naming(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(f"cursor file {self._path}: {error.strerror}") from error

    def _read(self) -> str:
        mode = self._target.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe would be waited for, a device replaced
            raise OSError(errno.EINVAL, "is a directory" if stat.S_ISDIR(mode) else "is not a regular file")
        with self._target.open(errors="replace") as file:
            return file.read(MAX_TEXT).strip()

    def _replace(self, cursor: str) -> None:
        beside = self._write_beside(f"{cursor}\n")
        try:
            beside.replace(self._target)
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    def _write_beside(self, text: str) -> Path:
        """A new file, of the mode of the one that is there."""
        beside = self._target.with_name(f"{self._target.name}.{os.getpid()}.new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # follows no link
        try:
            with open(descriptor, "w") as file, contextlib.suppress(FileNotFoundError):
                file.write(text)
                mode = stat.S_IMODE(self._target.stat().st_mode)
                if mode != stat.S_IMODE(os.fstat(descriptor).st_mode):
                    os.fchmod(descriptor, mode)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        return beside


def _check_cursor(text: str, source: str) -> None:
    if not CURSOR.fullmatch(text):
        raise ValueError(f"{source}: expected 36 characters of 0-9, A-Z, a-z and -, got {text[:80]!r}")


def _tell_of_replay(address: URL, verdict: str, on_replay: Callable[[str], object] | None) -> None:
    """Say what a server's verdict on a replay means, unless all is well."""
    if verdict in MISSING:
        log.warning("%s: the replay was %s: %s", address, verdict, MISSING[verdict])
    if on_replay is not None:
        on_replay(verdict)


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
        text = await _refusal_text(response, silence)
        raise RefusedError(response.status, text, _retry_after(response))
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
    """The event of a line, or a ping; None if it is more than Python can take."""
    try:
        event = json.loads(line.decode())
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise StreamError(f"a line that is not JSON: {line[:80]!r}") from None
    except (RecursionError, ValueError):
        reason = "nested too deep, or with too long an integer, for this Python"
        log.error("an event left out, %s: %r...", reason, line[:80])  # noqa: TRY400
        return None
    if not isinstance(event, dict):
        raise StreamError(f"a line that is not a JSON object: {line[:80]!r}")
    return event


async def _refusal_text(response: aiohttp.ClientResponse, patience: float) -> str:
    """What a refusal says, in one line. Its body may be endless, broken or missing."""
    body = b""
    try:
        async with asyncio.timeout(patience):
            while len(body) < MAX_TEXT and (piece := await response.content.read(MAX_TEXT)):
                body += piece
    except BROKEN:
        pass  # the status, and what came of the text, say more than the reason why the rest did not come
    text = " ".join(body.decode(errors="replace").split()) or response.reason or ""
    location = response.headers.get("Location")
    return text[:MAX_TEXT] + (f" (Location: {location[:MAX_TEXT]})" if location else "")


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """The seconds that a server asks to wait, in so many words or until a date; 0 if it does not ask."""
    text = response.headers.get("Retry-After", "")
    if re.fullmatch("[0-9]+", text):
        seconds = float(text)
    else:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            seconds = 0.0
    return min(max(seconds, 0.0), LONGEST_WISH)


def _text(error: Exception, patience: float) -> str:
    """An error in one line."""
    if isinstance(error, TimeoutError):
        return f"nothing came for {patience:g} s"
    return " ".join(str(error)[:MAX_TEXT].split()) or type(error).__name__


# The command line.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help explains)\n")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError
    return seconds


def _positive_seconds(text: str) -> float:
    if not (seconds := _seconds(text)):
        raise ValueError
    return seconds


_seconds.__name__ = _positive_seconds.__name__ = "number of seconds"  # the word argparse uses in its message


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
    parser.add_argument("--cursor", help="start after the event with this cursor")
    parser.add_argument(
        "--since",
        metavar="TIME",
        help="start with the events since then: Unix seconds, ISO 8601, or 10m (ago)",
    )
    parser.add_argument(
        "--cursor-file",
        metavar="FILE",
        help="after each event printed, save its cursor there; the next run goes on from it",
    )
    parser.add_argument("--key", help="publish with this Idempotency-Key (a random one)")
    parser.add_argument(
        "--retry-for",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="publish again for so long while no answer comes, or 429, 502, 503 or 504 (30)",
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
        print(
            await publish(
                url,
                payload,
                user=user,
                password=password,
                idempotency_key=arguments.key,
                retry_for=arguments.retry_for,
            )
            or ""
        )
        return
    events = listen(
        arguments.words[0],
        user=user,
        password=password,
        silence=arguments.silence,
        max_wait=arguments.max_wait,
        cursor=arguments.cursor,
        since=arguments.since,
        cursor_file=arguments.cursor_file,
    )
    async for event in events:
        print(json.dumps(event), flush=True)


def main() -> int:
    """Returns the exit status: 1 if the event was not accepted, 2 for wrong arguments or a cursor file that
    cannot be used, 130 after Ctrl-C."""
    arguments = _arguments()
    logging.basicConfig(format="client.py: %(message)s", level=logging.INFO)
    try:
        asyncio.run(_run(arguments))
    except BrokenPipeError:  # whoever read the events has left, and what is still buffered can go nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (PublishError, ValueError, OSError) as error:
        print(f"client.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, PublishError) else 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
