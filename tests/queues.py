"""Queues of a test's own, and daemons that read them."""

import asyncio
import re
import secrets
from pathlib import Path
from typing import Any

from aws import Moto
from daemon import Daemon
from wire import Stream


def new_queue(moto: Moto, *, fifo: bool = False, **attributes: Any) -> str:
    """A queue that no other test knows; attributes as Moto.create_queue() has them."""
    return moto.create_queue(f"queue-{secrets.token_hex(6)}{'.fifo' if fifo else ''}", **attributes)


def reading(moto: Moto, *queues: str, sections: dict[str, Any] | None = None, **settings: Any) -> Any:
    """The configuration of a daemon that reads queues, given by name or URL, in sections of their names.

    sections: others of the file; settings: of each queue.
    """
    named = {queue.rpartition("/")[2]: moto.settings(queue, **settings) for queue in queues}
    return {**(sections or {}), "sqs": named}


def backlog(storage: Any = None, size: int = 20_000, **server: Any) -> dict[str, Any]:
    """The sections of a daemon with a backlog, in memory or in a file."""
    settings = {"size": size} | ({"storage": str(storage)} if storage else {})
    return {"server": {"backlog": settings} | server}


def stored_in(store: str, directory: Path, **server: Any) -> dict[str, Any]:
    """The sections of a daemon with such a backlog."""
    if store == "none":
        return {"server": server}
    return backlog(directory / "backlog.db" if store == "file" else None, **server)


async def restart(daemon: Daemon) -> None:
    """Stop it, and start it again."""
    assert await asyncio.to_thread(daemon.stop) == 0
    daemon.start()


async def numbers(stream: Stream, count: int) -> list[Any]:
    """The "n" of so many next events."""
    return [(await stream.event()).get("n") for _ in range(count)]


async def next_line(stream: Stream) -> bytes:
    """The bytes of the next event, past any pings."""
    while (line := await stream.chunk()).startswith(b'{"stillalive": '):
        pass
    return line


async def nothing_else_on(stream: Stream, daemon: Daemon) -> None:
    """Check that no other event was on its way before now."""
    answer = await daemon.put("/the/end", {"n": "the end"})
    assert answer.status == 202
    assert await numbers(stream, 1) == ["the end"]


def without_stamp(line: bytes) -> str:
    """The line of an event, without what only its stamp decides."""
    text, times = re.subn(
        r'"pubsub_timestamp": \d+\.\d+, "pubsub_cursor": "[0-9a-f-]{36}"', "STAMP", line.decode()
    )
    assert times == 1, line
    return text
