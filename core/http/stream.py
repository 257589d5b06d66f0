"""The connection of a subscriber, once the head of its stream has been sent.

From then on nothing is HTTP any more: frames go out, and what comes in is of no interest. So the connection
is taken from aiohttp, which would hold the request, its answer and two tasks for as long as the stream lasts.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine

from core.http.limits import Connections, Entry

_TIME_TO_RESET = 1.0  # seconds


class Stream(asyncio.Protocol):
    """A subscriber's connection: whether it takes more (backpressure), and that it is gone.

    asyncio tells of that. What the subscriber sends is dropped.
    limits, peer, entry: where the connection counts, and as what, until it is gone.
    writing_paused: whether the kernel takes no more even now.
    """

    __slots__ = ("_drained", "_entry", "_limits", "_peer", "_task", "on_lost", "writing_paused")

    def __init__(self, limits: Connections, peer: str | None, entry: Entry, *, writing_paused: bool) -> None:
        self.writing_paused = writing_paused
        self.on_lost: Callable[[], None] | None = None  # called before the socket is closed
        self._limits = limits
        self._peer = peer
        self._entry = entry
        self._drained: asyncio.Future[None] | None = None  # while drain() waits
        self._task: asyncio.Task[None] | None = None

    def serve(self, serving: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run what serves the reader, and cancel it when the connection is gone."""
        self._task = asyncio.get_running_loop().create_task(serving)
        return self._task

    def watch(self, transport: asyncio.Transport) -> None:
        """Look once whether a reader that sends no more has gone, which shows when its head has been sent."""
        asyncio.get_running_loop().call_later(_TIME_TO_RESET, _abort_if_reset, transport)

    def pause_writing(self) -> None:
        """Note that more is written than the kernel takes: drain() waits from now on."""
        self.writing_paused = True

    def resume_writing(self) -> None:
        """Note that the kernel has taken everything, and let drain() return."""
        self.writing_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def drain(self) -> None:
        """Wait until the kernel has taken everything."""
        while self.writing_paused:
            self._drained = asyncio.get_running_loop().create_future()
            try:
                await self._drained
            finally:
                self._drained = None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """End what is served, and count the connection out: it is gone, whoever closed it."""
        if self.on_lost:
            self.on_lost()
            self.on_lost = None
        self._limits.leave(self._peer, self._entry)
        if self._task:
            self._task.cancel()
            self._task = None


def _abort_if_reset(transport: asyncio.Transport) -> None:
    if transport.is_closing():
        return
    if transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        transport.abort()
