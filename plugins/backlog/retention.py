"""For how long an event is kept, by its topics: `server.backlog.keep`, and `max_age` for all others."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from core.events.subscription import Alternative
from core.events.topics import publish_path, split
from plugins.backlog.settings import BacklogConfig

_MOST_PATHS = 1000  # of which it is remembered by which rule they are kept


class Rule(NamedTuple):
    """Events that have all of these topics are kept for so many seconds; 0: until others push them out."""

    topics: Alternative
    max_age: float


class _Rules(dict[str, int]):
    """By path, the number of the rule by which its events are kept."""

    def __init__(self, rules: list[Rule]) -> None:
        super().__init__()
        self._rules = rules

    def __missing__(self, path: str) -> int:
        """Look, and remember it with some others."""
        if len(self) >= _MOST_PATHS:
            self.clear()
        topics = publish_path(path).all_topics
        number = self[path] = next(n for n, rule in enumerate(self._rules) if rule.topics <= topics)
        return number


class Retention:
    """The rules, in their order: for an event the first counts whose topics it has. The last has none."""

    def __init__(self, config: BacklogConfig) -> None:
        self.rules: Final = [
            *(Rule(frozenset(split(topics)), kept.max_age) for topics, kept in config.keep.items()),
            Rule(frozenset(), config.max_age),
        ]
        self.rule_of: Final[Mapping[str, int]] = _Rules(self.rules)

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
