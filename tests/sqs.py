"""A daemon that reads queues, and what became of their items."""

import asyncio
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aws import Moto
from aws_proxy import Reply
from daemon import Daemon
from wire import EVERYTHING, Stream

TIMEOUT = 30.0  # seconds; a guard, no test waits for it to pass
JSON_TYPE = {"Content-Type": "application/x-amz-json-1.0"}
TROUBLE = r" WARNING pypubsub.sqs: sqs {name}: (cannot|items stay)"
OVER = r" INFO pypubsub.sqs: sqs {name}: reads \S+ again"

Event = dict[str, Any]


def named(name: str) -> str:
    """The name of a queue that no other test has."""
    base, dot, ending = name.partition(".")
    return f"{re.sub('[^A-Za-z0-9]+', '-', base)[:50]}-{secrets.token_hex(4)}{dot}{ending}"


def config(
    queues: Mapping[str, Mapping[str, Any]], storage: Path | None = None, **server: Any
) -> dict[str, Any]:
    """Settings with queues, and a backlog in a file, or in memory."""
    backlog: dict[str, Any] = {"size": 100_000}
    if storage is not None:
        backlog["storage"] = str(storage)
    return {"server": {"ping_interval": 0.2, "backlog": backlog, **server}, "sqs": queues}


def body(queue: str, n: int) -> Event:
    """Of an item, published on the topic that is the queue's name in the settings."""
    return {"pubsub_path": f"/{queue}", "queue": queue, "n": n}


def answered(content: Any, status: int = 200) -> Reply:
    """Of something that should be SQS; content: bytes as they are, or what becomes JSON."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Reply(status, raw, JSON_TYPE)


async def numbers(daemon: Daemon, path: str) -> list[int]:
    """The numbers of all events on a path, from a replay that is complete."""
    verdict, found = await daemon.replay(path, **EVERYTHING)
    assert verdict == "complete"
    return found


async def until_seen(stream: Stream, expected: Sequence[int]) -> None:
    """Read so many events, and compare their numbers."""
    assert [(await stream.event())["n"] for _ in expected] == list(expected)


def lines(daemon: Daemon, pattern: str, name: str) -> list[str]:
    """The lines of the log that tell of a queue: TROUBLE or OVER."""
    wanted = re.compile(pattern.format(name=re.escape(name)))
    return [line for line in daemon.log if wanted.search(line)]


async def until_lines(daemon: Daemon, pattern: str, name: str, number: int = 1) -> list[str]:
    """Wait for so many of them."""
    deadline = time.monotonic() + TIMEOUT
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


async def stopped(daemon: Daemon) -> int:
    """Stop it, while the test's own servers go on; the exit status."""
    status = await asyncio.to_thread(daemon.stop)
    check_no_fault(daemon)
    return status


def received(moto: Moto, queue: str, number: int = 1, **parameters: Any) -> list[Event]:
    """Items that the test has in hand, as SQS hands them over."""
    return [
        {name: message[name] for name in ("MessageId", "ReceiptHandle", "Body", "MD5OfBody")}
        for message in moto.receive(queue, number, **parameters)
    ]
