"""What stands between a client and an AWS, and does not always let through what goes there."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
from aiohttp import web

from wire import TIMEOUT

OF_A_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class Do(Enum):
    """What becomes of a request, beside an answer of the proxy's own."""

    PASS = auto()
    HANG = auto()  # no answer, and the server hears nothing of it
    HOLD = auto()  # the server hears of it when release() says so
    CUT = auto()  # the connection ends without an answer, and the server hears nothing of it
    LOSE_ANSWER = auto()  # the server does it, and then the connection ends


class Reply(NamedTuple):
    """An answer of the proxy's own."""

    status: int
    body: bytes
    headers: dict[str, str]


@dataclass
class _Rule:
    action: Do | Reply
    operation: str | None  # None: any
    left: float  # requests that it is for


def refusal(status: int, code: str, message: str = "because of the test") -> Reply:
    """An error as SQS answers it, in its JSON protocol: refusal(400, "ThrottlingException")."""
    body = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": message}).encode()
    fault = "Sender" if status < 500 else "Receiver"
    return Reply(
        status,
        body,
        {"Content-Type": "application/x-amz-json-1.0", "x-amzn-query-error": f"{code};{fault}"},
    )


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in OF_A_CONNECTION}


class AwsProxy:
    """A proxy before an AWS, in the event loop of the test. To be used in `async with`.

    operations: what was asked for, such as "ReceiveMessage", whatever became of it.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._rules: list[_Rule] = []
        self._changed = asyncio.Condition()
        self._released = asyncio.Event()
        self._port = 0
        self._listener: asyncio.Server | None = None
        self.operations: list[str] = []
        self.connections = 0  # that were ever made
        self.hanging = 0  # requests that hang or are held, of clients that have not left
        self.passing = 0  # requests that the server has not answered

    @property
    def url(self) -> str:
        """Where it serves: the endpoint_url of a client."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        # It decompresses nothing and has no limit of its own for connections or time
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        self._server = web.Server(self._handle, handler_cancellation=True)
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        await self._server.shutdown(0)
        await self._session.close()

    # Connections

    async def accept(self) -> None:
        """Listen, on the same port as before."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._connected, "127.0.0.1", self._port)
        self._port = self._listener.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """End all connections, and refuse others until accept()."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.cut()

    def cut(self) -> None:
        """Reset all connections, whatever they are waiting for."""
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    def _connected(self) -> asyncio.Protocol:
        self.connections += 1
        return self._server()

    # Requests

    def on(self, operation: str | None, action: Do | Reply, times: float = float("inf")) -> None:
        """Do something with the next requests for an operation, such as "DeleteMessageBatch"; None: for any.

        What was said last comes first.
        """
        self._rules.insert(0, _Rule(action, operation, times))

    def heal(self) -> None:
        """Let all further requests through. Those that hang go on hanging."""
        self._rules.clear()

    def release(self) -> None:
        """Pass on what is held, and hold nothing any more."""
        self._rules = [rule for rule in self._rules if rule.action is not Do.HOLD]
        self._released.set()
        self._released = asyncio.Event()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something is so, as requests come and go. what: it is, for the error."""
        try:
            async with asyncio.timeout(TIMEOUT), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"not {what}: {self.hanging} hang, of {self.operations}") from None

    async def until_asked(self, operation: str, times: int = 1) -> None:
        """Wait until an operation was asked for so many times, since the beginning."""
        await self.until(lambda: self.operations.count(operation) >= times, f"{times} {operation}")

    async def until_hanging(self, number: int = 1) -> None:
        """Wait until so many requests hang; 0: until their clients have left."""
        await self.until(lambda: self.hanging == number, f"{number} hanging")

    async def until_idle(self) -> None:
        """Wait until the server has answered everything, or was told that nobody waits for it any more."""
        await self.until(lambda: self.passing == 0, "idle")

    def _action(self, operation: str) -> Do | Reply:
        for rule in self._rules:
            if rule.left > 0 and rule.operation in {None, operation}:
                rule.left -= 1
                return rule.action
        return Do.PASS

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        async with self._changed:
            self.operations.append(operation)
            self._changed.notify_all()
        action = self._action(operation)
        if isinstance(action, Reply):
            return web.Response(status=action.status, body=action.body, headers=action.headers)
        if action is Do.HANG:
            async with self._counted("hanging"):
                await asyncio.Event().wait()
        if action is Do.HOLD:
            async with self._counted("hanging"):
                await self._released.wait()
        response: web.Response | None = None
        if action is not Do.CUT:
            async with self._counted("passing"):
                response = await self._pass_on(request, body)
        if response is None or action is Do.LOSE_ANSWER:
            assert request.transport is not None
            request.transport.abort()
            raise asyncio.CancelledError
        return response

    async def _pass_on(self, request: web.BaseRequest, body: bytes) -> web.Response | None:
        """The answer of the server, or None if there is none."""
        # With the Host that the client has signed
        headers = {
            name: value for name, value in request.headers.items() if name.lower() not in OF_A_CONNECTION
        }
        try:
            async with self._session.request(
                request.method, self._upstream + request.path_qs, data=body, headers=headers
            ) as answer:
                content = await answer.read()
        except aiohttp.ClientError:
            return None
        return web.Response(status=answer.status, body=content, headers=_kept(answer.headers))

    @contextlib.asynccontextmanager
    async def _counted(self, counter: str) -> AsyncIterator[None]:
        await self._count(counter, 1)
        try:
            yield
        finally:
            await asyncio.shield(self._count(counter, -1))

    async def _count(self, counter: str, change: int) -> None:
        async with self._changed:
            setattr(self, counter, getattr(self, counter) + change)
            self._changed.notify_all()
