"""Queues of a test's own, daemons that read them, and what became of their items."""

import asyncio
import json
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aws import Moto
from aws_proxy import Reply
from daemon import Daemon
from wire import EVERYTHING, Stream

PATIENCE = 30.0  # seconds, on a machine that others use too; a guard, no test waits for it to pass
JSON_TYPE = {"Content-Type": "application/x-amz-json-1.0"}
TROUBLE = r" WARNING pypubsub.sqs: sqs {name}: (cannot|items stay)"
OVER = r" INFO pypubsub.sqs: sqs {name}: reads \S+ again"

Event = dict[str, Any]


# Queues, and their items


def new_name(*, fifo: bool = False) -> str:
    """The name of a queue that no other test has."""
    return f"queue-{secrets.token_hex(6)}{'.fifo' if fifo else ''}"


def new_queue(moto: Moto, *, fifo: bool = False, **attributes: Any) -> str:
    """A queue that no other test knows; attributes as Moto.create_queue() has them."""
    return moto.create_queue(new_name(fifo=fifo), **attributes)


def body(queue: str, n: int) -> Event:
    """Of an item, published on the topic that is the queue's name in the settings."""
    return {"pubsub_path": f"/{queue}", "queue": queue, "n": n}


def answered(content: Any, status: int = 200) -> Reply:
    """Of something that should be SQS; content: bytes as they are, or what becomes JSON."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Reply(status, raw, JSON_TYPE)


def received(moto: Moto, queue: str, number: int = 1, **parameters: Any) -> list[Event]:
    """Items that the test has in hand, as SQS hands them over."""
    return [
        {name: message[name] for name in ("MessageId", "ReceiptHandle", "Body", "MD5OfBody")}
        for message in moto.receive(queue, number, **parameters)
    ]


# Daemons that read them


def reading(moto: Moto, *queues: str, sections: dict[str, Any] | None = None, **settings: Any) -> Any:
    """The configuration of a daemon that reads queues, given by name or URL, in sections of their names.

    sections: others of the file; settings: of each queue.
    """
    named = {queue.rpartition("/")[2]: moto.settings(queue, **settings) for queue in queues}
    return {**(sections or {}), "sqs": named}


def config(
    queues: Mapping[str, Mapping[str, Any]], storage: Path | None = None, **server: Any
) -> dict[str, Any]:
    """The configuration of a daemon with these queues, a backlog in a file or in memory, and quick pings."""
    return backlog(storage, **{"ping_interval": 0.2, **server}) | {"sqs": queues}


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
    assert await stopped(daemon) == 0
    daemon.start()


async def stopped(daemon: Daemon) -> int:
    """Stop it, while the test's own servers go on; the exit status."""
    status = await asyncio.to_thread(daemon.stop)
    check_no_fault(daemon)
    return status


# What subscribers see


async def numbers(stream: Stream, count: int) -> list[Any]:
    """The "n" of so many next events."""
    return [(await stream.event()).get("n") for _ in range(count)]


async def replayed(daemon: Daemon, path: str) -> list[int]:
    """The numbers of all events on a path, from a replay that is complete."""
    verdict, found = await daemon.replay(path, **EVERYTHING)
    assert verdict == "complete"
    return found


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


# What the log says


def lines(daemon: Daemon, pattern: str, name: str) -> list[str]:
    """The lines of the log that tell of a queue: TROUBLE or OVER."""
    wanted = re.compile(pattern.format(name=re.escape(name)))
    return [line for line in daemon.log if wanted.search(line)]


async def until_lines(daemon: Daemon, pattern: str, name: str, number: int = 1) -> list[str]:
    """Wait for so many of them."""
    deadline = time.monotonic() + PATIENCE
    while len(found := lines(daemon, pattern, name)) < number:
        assert time.monotonic() < deadline, f"not {number} of {pattern} {name} in {daemon.log}"
        assert daemon.running, daemon.log
        await asyncio.sleep(0.05)
    return found


def check_told_once(daemon: Daemon, name: str, *kinds: str) -> None:
    """Each kind of trouble, in that order, once; then once that it is over; and no fault of the program's."""
    told = lines(daemon, TROUBLE, name)
    assert len(told) == len(kinds), told
    for line, kind in zip(told, kinds, strict=True):
        assert kind in line, told
    assert len(lines(daemon, OVER, name)) == bool(kinds), daemon.log
    check_no_fault(daemon)


def check_no_fault(daemon: Daemon) -> None:
    """Nothing in the log is a mistake of the program's own."""
    assert not [line for line in daemon.log if re.search("Traceback|never retrieved|Unclosed", line)], (
        daemon.log
    )
