"""The topic index: which channels want an event, without a look at the others.

It is an inverted index. A channel is whatever stands for one subscription (see core.delivery.channel), which
is met when the event has every topic of one of its batches. Each batch is filed under one of its topics, the
one with the fewest batches so far, so that publishing looks only at what is filed under the event's own
topics. The same batch of several channels is filed once. No I/O, no await.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

from core.events.subscription import Batch

C = TypeVar("C", bound=Hashable)


class Registry(Generic[C]):
    """Channels, filed by the batches of their subscriptions."""

    def __init__(self) -> None:
        self._by_topic: dict[str, dict[Batch, set[C]]] = {}
        self._topic_of: dict[Batch, str] = {}
        self._everything: set[C] = set()  # channels with the empty batch, which every event meets

    def add(self, channel: C, batches: frozenset[Batch]) -> None:
        """File a channel under each batch of its subscription."""
        for batch in batches:
            self._channels_of(batch).add(channel)

    def remove(self, channel: C, batches: frozenset[Batch]) -> None:
        """Undo add(); what nobody asks for any more leaves the index."""
        for batch in batches:
            channels = self._channels_of(batch)
            channels.discard(channel)
            if batch and not channels:
                topic = self._topic_of.pop(batch)
                del self._by_topic[topic][batch]
                if not self._by_topic[topic]:
                    del self._by_topic[topic]

    def match(self, topics: frozenset[str]) -> set[C]:
        """The channels that an event with these topics is for, each once."""
        found = set(self._everything)
        for topic in topics:
            if filed := self._by_topic.get(topic):
                for batch, channels in filed.items():
                    if batch <= topics:
                        found |= channels
        return found

    def __bool__(self) -> bool:
        """False when nothing is filed."""
        return bool(self._everything or self._by_topic or self._topic_of)

    def _channels_of(self, batch: Batch) -> set[C]:
        if not batch:
            return self._everything
        topic = self._topic_of.get(batch)
        if topic is None:
            topic = min(batch, key=lambda candidate: len(self._by_topic.get(candidate, ())))
            self._topic_of[batch] = topic
        return self._by_topic.setdefault(topic, {}).setdefault(batch, set())
