"""How fast the items of a queue become events, beside a program that only reads and deletes them."""

import asyncio
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import aioboto3

from aws import Moto
from bench.clients import WrongError, body, open_stream
from bench.figures import Figures, figure
from bench.readers import Background
from bench.servers import CPUS, DISK, cpu_seconds, running

_QUEUE = "bench"
_CONSUMERS = 4  # as many as the daemon has


def queues(events: int, rounds: int, size: int, directory: str = DISK) -> Figures:
    """Empty a queue, in turn by a bare loop of the library and by the daemon with a backlog in a file."""
    bare: list[float] = []
    published: list[float] = []
    cpu_us: list[float] = []
    with tempfile.TemporaryDirectory(prefix="pypubsub-bench-") as own:
        moto = Moto(Path(own))
        moto.start()
        try:
            moto.create_queue(_QUEUE)
            for _ in range(rounds):
                _fill(moto, events, size)
                bare.append(Background(_read_only, moto, events, nicer=0).result())
                _fill(moto, events, size)
                rate, cpu = _through_the_daemon(moto, events, directory)
                published.append(rate)
                cpu_us.append(1e6 * cpu / events)
        finally:
            moto.stop()
    return {
        "items_per_second": figure(published, bare, "the library alone"),
        "cpu_us_per_item": figure(cpu_us),
    }


def _fill(moto: Moto, items: int, size: int) -> None:
    moto.send_many(_QUEUE, (body(n, size).decode() for n in range(items)))


def _through_the_daemon(moto: Moto, items: int, directory: str) -> tuple[float, float]:
    """Items a second, and the daemon's CPU seconds."""
    settings = moto.settings(_QUEUE, consumers=_CONSUMERS)
    with running(directory, items, storage=True, queues={"bench": settings}) as daemon:
        cpu_before = cpu_seconds(daemon)
        stream = open_stream(daemon.port, "X-Fetch-Since: 0\r\n", path="/")
        numbers: list[int] = []
        begin = 0.0
        with stream.makefile("rb") as lines:
            for line in lines:
                if line.startswith(b'{"n": '):
                    begin = begin or time.monotonic()
                    numbers.append(int(line[6:].partition(b",")[0]))
                    if len(numbers) == items:
                        break
        seconds = time.monotonic() - begin
        stream.close()
        cpu = cpu_seconds(daemon) - cpu_before
        if sorted(numbers) != list(range(items)):
            raise WrongError("not every item of the queue came once")
        return len(numbers) / seconds, cpu


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
