"""All queues of the section `sqs`, as one plugin: it brings what is in them for as long as it runs."""

import asyncio
import importlib.util
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from core.errors import StartError
from plugins import Host, Plugin
from plugins.sqs.settings import QueueConfig

if TYPE_CHECKING:
    from plugins.sqs.queue import SqsQueue

AIOBOTO3 = "aioboto3>=15,<16"  # as in requirements.txt


class Queues(Plugin):
    """The queues, by the names of their sections."""

    name = "sqs"

    def __init__(self, queues: Mapping[str, QueueConfig], host: Host) -> None:
        self._configured = queues
        self._host = host
        self._queues: list[SqsQueue] = []

    @property
    def files(self) -> int:
        """How many connections to queues there may be."""
        return sum(queue.connections for queue in self._configured.values())

    def plan(self) -> list[str]:
        """A line for each queue."""
        return [f"sqs {name}: {queue.plan}" for name, queue in self._configured.items()]

    def check(self) -> None:
        """Raises StartError if the library for queues is not installed."""
        if importlib.util.find_spec("aioboto3") is None:
            raise StartError(f"sqs: aioboto3 is not installed: {sys.executable} -m pip install '{AIOBOTO3}'")

    async def start(self) -> None:
        """Load the library. Raises StartError."""
        self.check()
        from plugins.sqs.queue import SqsQueue  # noqa: PLC0415 (and aioboto3 with it)

        queues = self._configured.items()
        readers = {queue.identity_of(queue.url): name for name, queue in queues if queue.url}
        config, intake = self._host.config, self._host.intake
        self._queues = [SqsQueue(name, queue, config, intake, readers) for name, queue in queues]

    async def run(self) -> None:
        """Publish what comes, until cancelled: that ends when what is under way is stored and deleted."""
        async with asyncio.TaskGroup() as reading:
            for queue in self._queues:
                reading.create_task(queue.run(), name=queue.name)
