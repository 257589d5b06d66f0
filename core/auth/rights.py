"""What somebody may read and publish: one object, which live matching, replay and publishing all ask.

A segment is a set of topics. Who holds it can read the private events that have all of them. The `private`
that an event's path begins with is not one of its topics here, so no segment is met by it.
"""

from typing import NamedTuple

from core.events.subscription import Alternative, Subscription
from core.events.topics import PRIVATE, PublishPath

Segment = frozenset[str]

EVERY_EVENT: Segment = frozenset()  # written `all` in the files; an empty list there is refused
MOST_FILED = 2000  # alternatives that one subscriber's private events are filed under


class Rights(NamedTuple):
    """The rights of one user. Public events need none."""

    readable: frozenset[Segment] = frozenset()  # private events that have every topic of one of them
    publishable: frozenset[str] = frozenset()  # secure topics it may publish on

    def can_read(self, path: PublishPath) -> bool:
        """Whether events of this path may be read, as far as rights go. Everybody can read public ones."""
        if not path.private:
            return True
        topics = frozenset(path.topics)
        return any(segment <= topics for segment in self.readable)

    def can_publish(self, secure_topics: frozenset[str]) -> bool:
        """Whether an event that has these secure topics, all of them, may be published."""
        return secure_topics <= self.publishable

    def can_read_all_of(self, other: "Rights") -> bool:
        """Whether all that can be read with other rights can be read with these, too."""
        return all(any(segment <= topics for segment in self.readable) for topics in other.readable)

    def __or__(self, other: "Rights") -> "Rights":
        return Rights(self.readable | other.readable, self.publishable | other.publishable)


NO_RIGHTS = Rights()


def is_for(path: PublishPath, subscription: Subscription, rights: Rights) -> bool:
    """Whether events of a path are for who asks for this and has these rights, live or in a replay."""
    return subscription.meets(path) and rights.can_read(path)


def private_alternatives(subscription: Subscription, readable: frozenset[Segment]) -> frozenset[Alternative]:
    """What a private event's topics must hold so that somebody wants it and can read it, for the topic index.

    Where that would be too many alternatives, only what must be held for it to be read.
    """
    if len(subscription.alternatives) * len(readable) > MOST_FILED:
        return readable
    # without `private`, which every private event has
    wanted = {alternative - {PRIVATE} for alternative in subscription.alternatives}
    return frozenset(alternative | segment for alternative in wanted for segment in readable)
