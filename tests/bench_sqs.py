"""How fast the items of a queue become events, beside a program that only reads and deletes them."""

import argparse
import asyncio
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import aioboto3

from aws import Moto
from bench_tools import CPUS, body, cpu_seconds, in_background, open_stream, report, running, spread

_QUEUE = "bench"
_CONSUMERS = 4  # as many as the daemon has


def queues(arguments: argparse.Namespace) -> int:
    """Empty a queue, in turn by a bare loop of the library and by the daemon with a backlog in a file."""
    bare: list[float] = []
    published: list[float] = []
    wrong = 0
    cpu = 0.0
    with tempfile.TemporaryDirectory(prefix="pypubsub-bench-") as directory:
        moto = Moto(Path(directory))
        moto.start()
        try:
            moto.create_queue(_QUEUE)
            for _ in range(arguments.rounds):
                _fill(moto, arguments)
                bare.append(in_background(_read_only, moto, arguments.items, nicer=0).recv())
                _fill(moto, arguments)
                rate, cpu_used, complete = _through_the_daemon(moto, arguments)
                published.append(rate)
                cpu += cpu_used
                wrong += not complete
        finally:
            moto.stop()
    report(
        measured="sqs",
        consumers=_CONSUMERS,
        rounds_with_loss=wrong,
        **spread("items_per_second", published),
        **spread("bare_items_per_second", bare),
        **spread("ratio", [ours / theirs for ours, theirs in zip(published, bare, strict=True)], 2),
        server_cpu_us_per_item=round(cpu / arguments.items / arguments.rounds * 1e6),
    )
    return 1 if wrong else 0


def _fill(moto: Moto, arguments: argparse.Namespace) -> None:
    moto.send_many(_QUEUE, (body(n, arguments.size).decode() for n in range(arguments.items)))


def _through_the_daemon(moto: Moto, arguments: argparse.Namespace) -> tuple[float, float, bool]:
    """Items a second, the daemon's CPU seconds, and whether each came once."""
    settings = moto.settings(_QUEUE, consumers=_CONSUMERS)
    with running(arguments.directory, arguments.items, storage=True, queues={"bench": settings}) as daemon:
        cpu_before = cpu_seconds(daemon)
        stream = open_stream(daemon.port, "X-Fetch-Since: 0\r\n", path="/")
        numbers: list[int] = []
        begin = 0.0
        with stream.makefile("rb") as lines:
            for line in lines:
                if line.startswith(b'{"n": '):
                    begin = begin or time.monotonic()
                    numbers.append(int(line[6:].partition(b",")[0]))
                    if len(numbers) == arguments.items:
                        break
        seconds = time.monotonic() - begin
        stream.close()
        return (
            len(numbers) / seconds,
            cpu_seconds(daemon) - cpu_before,
            sorted(numbers) == list(range(arguments.items)),
        )


def _read_only(result: Connection, moto: Moto, items: int) -> None:
    os.sched_setaffinity(0, CPUS[:1])
    result.send(asyncio.run(_rate_of_reading(moto, items)))


async def _rate_of_reading(moto: Moto, items: int) -> float:
    """Items a second that are read and deleted."""
    session = aioboto3.Session(*moto.credentials, region_name="us-east-1")
    left = items
    begin = 0.0
    async with session.client("sqs", endpoint_url=moto.url) as client:

        async def consume() -> None:
            nonlocal left, begin
            url = moto.queue_url(_QUEUE)
            while left:
                answer = await client.receive_message(QueueUrl=url, MaxNumberOfMessages=10)
                begin = begin or time.monotonic()
                if messages := answer.get("Messages"):
                    left -= len(messages)
                    handles = [message["ReceiptHandle"] for message in messages]
                    entries = [{"Id": str(n), "ReceiptHandle": handle} for n, handle in enumerate(handles)]
                    await client.delete_message_batch(QueueUrl=url, Entries=entries)

        await asyncio.gather(*(consume() for _ in range(_CONSUMERS)))
    return items / (time.monotonic() - begin)
