"""For how long an event is kept, by its topics: `server.backlog.keep`, and `max_age` for all others."""

from typing import Final, NamedTuple

from core.events.subscription import Alternative
from core.events.topics import ByPath, PublishPath, split
from plugins.backlog.settings import BacklogConfig


class Rule(NamedTuple):
    """Events that have all of these topics are kept for so many seconds; 0: until others push them out."""

    topics: Alternative
    max_age: float


class Retention:
    """The rules, in their order: for an event the first counts whose topics it has. The last has none."""

    def __init__(self, config: BacklogConfig) -> None:
        self.rules: Final = [
            *(Rule(frozenset(split(topics)), kept.max_age) for topics, kept in config.keep.items()),
            Rule(frozenset(), config.max_age),
        ]
        self.rule_of: Final = ByPath(self._rule_of)  # its number

    def _rule_of(self, path: PublishPath) -> int:
        return next(number for number, rule in enumerate(self.rules) if rule.topics <= path.all_topics)

    @property
    def ends(self) -> bool:
        """Whether anything leaves because of its age."""
        return any(rule.max_age for rule in self.rules)

    @property
    def shortest(self) -> float:
        """The shortest time that anything is kept, in seconds; 0 if nothing leaves because of its age."""
        return min((rule.max_age for rule in self.rules if rule.max_age), default=0.0)

    @property
    def text(self) -> str:
        """By which it is noticed that they have been changed."""
        return ", ".join(f"/{'/'.join(sorted(topics))} {max_age:g}" for topics, max_age in self.rules)
