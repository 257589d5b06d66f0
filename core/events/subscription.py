"""What a subscriber asks for: alternatives of topics, from the path of its URL."""

from typing import Final, final

from core.errors import Refused
from core.events.topics import PublishPath, decode, split

Alternative = frozenset[str]  # topics that an event must have all of

MOST_TOPICS_ASKED_FOR = 1000  # by a subscription, in all
MOST_ALTERNATIVES = 200  # of a subscription: each costs memory, and time for each event of a replay


@final
class Subscription:
    """What is asked for, met by an event that has every topic of one of the alternatives. Immutable.

    Subscriptions that are equal are met by the same events: subscribers who have them share what they get.
    core.delivery.registry asks many at once.
    """

    __slots__ = ("_hash", "alternatives")

    def __init__(self, alternatives: frozenset[Alternative]) -> None:
        self.alternatives: Final = alternatives
        self._hash: Final = hash(alternatives)

    def meets(self, path: PublishPath) -> bool:
        """Whether events of this path are asked for. Rights are another question."""
        topics = path.all_topics
        return any(alternative <= topics for alternative in self.alternatives)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subscription) and self.alternatives == other.alternatives

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Subscription({sorted(map(sorted, self.alternatives))})"


EVERYTHING = Subscription(frozenset({frozenset()}))


def parse_subscription(raw_path: str) -> Subscription:
    """`/a/b,c/d` -> {{a, b}, {c, d}}; `/` -> every event. Raises Refused(400)."""
    path = decode(raw_path)
    parts = path.split(",")
    alternatives: frozenset[Alternative] = frozenset()
    if len(parts) <= MOST_TOPICS_ASKED_FOR:  # more are too many without a look, repeats and empty ones too
        alternatives = frozenset(frozenset(topics) for part in parts if (topics := split(part)))
    if len(alternatives) > MOST_ALTERNATIVES or len(parts) > MOST_TOPICS_ASKED_FOR:
        raise Refused(
            400, f"more than {MOST_ALTERNATIVES} alternatives: ask for fewer, or open several streams"
        )
    if sum(map(len, alternatives)) > MOST_TOPICS_ASKED_FOR:
        raise Refused(
            400, f"more than {MOST_TOPICS_ASKED_FOR} topics in all: ask for fewer, or open several streams"
        )
    if alternatives:
        return Subscription(alternatives)
    if "," in path:
        raise Refused(400, "nothing but commas in the path: ask for topics (/fruits,tools) or for all (/)")
    return EVERYTHING
