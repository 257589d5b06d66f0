"""The topic index: which channels want an event, without a look at the others.

It is an inverted index. A channel is whatever stands for one subscription (see core.delivery.channel), which
is met when the event has every topic of one of its alternatives. Each alternative is filed under one of its
topics, the one with the fewest so far, so that publishing looks only at what is filed under the event's own
topics. The same alternative of several channels is filed once. No I/O, no await.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

from core.events.subscription import Alternative

C = TypeVar("C", bound=Hashable)


class Registry(Generic[C]):
    """Channels, filed by the alternatives of their subscriptions."""

    def __init__(self) -> None:
        self._by_topic: dict[str, dict[Alternative, set[C]]] = {}
        self._topic_of: dict[Alternative, str] = {}
        self._everything: set[C] = set()  # channels with the empty alternative, which every event meets

    def add(self, channel: C, alternatives: frozenset[Alternative]) -> None:
        """File a channel under each alternative of its subscription."""
        for alternative in alternatives:
            self._channels_of(alternative).add(channel)

    def remove(self, channel: C, alternatives: frozenset[Alternative]) -> None:
        """Undo add(); what nobody asks for any more leaves the index."""
        for alternative in alternatives:
            channels = self._channels_of(alternative)
            channels.discard(channel)
            if alternative and not channels:
                topic = self._topic_of.pop(alternative)
                del self._by_topic[topic][alternative]
                if not self._by_topic[topic]:
                    del self._by_topic[topic]

    def match(self, topics: frozenset[str]) -> set[C]:
        """The channels that an event with these topics is for, each once."""
        found = set(self._everything)
        for topic in topics:
            if filed := self._by_topic.get(topic):
                for alternative, channels in filed.items():
                    if alternative <= topics:
                        found |= channels
        return found

    def __bool__(self) -> bool:
        """False when nothing is filed."""
        return bool(self._everything or self._by_topic or self._topic_of)

    def _channels_of(self, alternative: Alternative) -> set[C]:
        if not alternative:
            return self._everything
        topic = self._topic_of.get(alternative)
        if topic is None:
            topic = min(alternative, key=lambda candidate: len(self._by_topic.get(candidate, ())))
            self._topic_of[alternative] = topic
        return self._by_topic.setdefault(topic, {}).setdefault(alternative, set())
