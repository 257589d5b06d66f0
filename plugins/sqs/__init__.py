"""Events from queues of Amazon SQS.

Its parts:

    settings   its section of pypubsub.yaml
    source     all queues of the section, as one plugin
    queue      one queue: its items are read, published, and deleted
    client     the calls that read a queue, and what their answers and errors mean
    items      one item of a queue, read as an event
"""

from plugins import Host, Plugin
from plugins.sqs.settings import QueuesConfig as Settings
from plugins.sqs.source import Queues

__all__ = ["Settings", "plugin"]


def plugin(settings: Settings, host: Host) -> Plugin:
    """A source of the queues' items."""
    return Queues(settings.queues, host)
