"""A URL path, read as the topics of a publish. What subscribers ask for is core.events.subscription.

Both are percent-decoded as UTF-8 before anything else, so that `/` and `,` separate in either spelling.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

from core.errors import Refused

PRIVATE = "private"
MOST_TOPICS = 64  # of an event
_REMEMBERED_PATHS = 1000  # of publishers, who use few
# bytes: the topics of a long path take kilobytes, and anybody may send others and others
_LONGEST_REMEMBERED = 128


class PublishPath(NamedTuple):
    """Where an event is published."""

    topics: tuple[str, ...]  # as published, repeats included, without the leading `private`
    private: bool
    text: str  # pubsub_path: "/" and the topics, the leading `private` included
    all_topics: frozenset[str]  # what subscriptions and rules look at; a private event's hold `private`


def publish_path(path: str) -> PublishPath:
    """A decoded path that was checked before, read as the topics of an event."""
    parts = split(path)
    private = parts[:1] == [PRIVATE]
    topics = tuple(parts[1:] if private else parts)
    return PublishPath(topics, private, "/" + "/".join(parts), frozenset(parts))


V = TypeVar("V")


class ByPath(dict[str, V]):
    """What holds for all events of a path: looked for where it is not there, and kept for some paths.

    Threads may share it.
    """

    def __init__(self, look: Callable[[PublishPath], V]) -> None:
        super().__init__()
        self._look = look

    def __missing__(self, path: str) -> V:
        """Look for it."""
        found = self._look(publish_path(path))
        if len(path) <= _LONGEST_REMEMBERED:
            if len(self) >= _REMEMBERED_PATHS:
                self.clear()
            self[path] = found
        return found


def decode(raw_path: str) -> str:
    """A path from a URL, as text. Raises Refused(400) where its bytes are not UTF-8."""
    try:
        # aiohttp hands over bytes that are no UTF-8 as surrogates (PEP 383): turn them back before decoding
        return unquote_to_bytes(raw_path.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeError:
        raise Refused(400, "the path is not UTF-8 (percent-encode its bytes)") from None


def split(path: str) -> list[str]:
    """The topics in a path, in their order: empty ones are none."""
    return [part for part in path.split("/") if part]


def parse_publish_path(raw_path: str) -> PublishPath:
    """`/private/fruits/apples` -> topics fruits, apples, and private. Raises Refused(400)."""
    parse = _parse_short_path if len(raw_path) <= _LONGEST_REMEMBERED else _parse_path
    return parse(raw_path)


def _parse_path(raw_path: str) -> PublishPath:
    return checked_publish_path(decode(raw_path))


_parse_short_path = lru_cache(_REMEMBERED_PATHS)(_parse_path)


def checked_publish_path(path: str) -> PublishPath:
    """A decoded path, read as the topics of an event. Raises Refused(400)."""
    if "," in path:
        raise Refused(400, "a path to publish on has no comma (commas separate what a subscriber asks for)")
    read = publish_path(path)
    if len(read.topics) > MOST_TOPICS:
        raise Refused(
            400, f"the path has {len(read.topics)} topics, the most that an event can have is {MOST_TOPICS}"
        )
    return read
