"""What somebody may see and say: one object, which live matching, replay and publishing all ask.

A segment is a set of topics. Who holds it sees the private events that have all of them. The `private` that
an event's path begins with is not one of its topics here, so no segment is met by it.
"""

from typing import NamedTuple

from core.events.subscription import Batch, Subscription
from core.events.topics import PRIVATE, PublishPath

Segment = frozenset[str]

EVERY_EVENT: Segment = frozenset()  # written `all` in the files; an empty list there is refused
MOST_FILED = 2000  # batches that one subscriber's private events are filed under


class Rights(NamedTuple):
    """The rights of one user. Public events need none."""

    sees: frozenset[Segment] = frozenset()  # private events that have every topic of one of them
    says: frozenset[str] = frozenset()  # secure topics it may publish on

    def may_see(self, path: PublishPath) -> bool:
        """Whether an event of this path may be seen."""
        if not path.private:
            return True
        topics = frozenset(path.topics)
        return any(segment <= topics for segment in self.sees)

    def may_say(self, secure_topics: frozenset[str]) -> bool:
        """Whether an event with all of these secure topics may be published."""
        return secure_topics <= self.says

    def see_all_of(self, other: "Rights") -> bool:
        """Whether all that others may see may be seen with these, too."""
        return all(any(segment <= topics for segment in self.sees) for topics in other.sees)

    def __or__(self, other: "Rights") -> "Rights":
        return Rights(self.sees | other.sees, self.says | other.says)


NO_RIGHTS = Rights()


def is_for(path: PublishPath, subscription: Subscription, rights: Rights) -> bool:
    """Whether events of a path are for who asks for this and has these rights, live or in a replay."""
    return subscription.meets(path) and rights.may_see(path)


def private_batches(subscription: Subscription, sees: frozenset[Segment]) -> frozenset[Batch]:
    """What a private event's topics must hold so that somebody wants it and may see it, for the topic index.

    Where that would be too many batches, only what must be held for it to be seen.
    """
    if len(subscription.batches) * len(sees) > MOST_FILED:
        return sees
    wanted = {batch - {PRIVATE} for batch in subscription.batches}  # which every private event meets
    return frozenset(batch | segment for batch in wanted for segment in sees)
