"""A URL path, read as the topics of a publish or as a subscription.

Both are percent-decoded as UTF-8 before anything else, so that `/` and `,` separate in either spelling.
"""

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from core.errors import Refused

Batch = frozenset[str]  # topics that an event must have all of
Subscription = frozenset[Batch]  # met by an event that has every topic of one batch

EVERYTHING: Subscription = frozenset({frozenset()})
PRIVATE = "private"
MOST_TOPICS = 64  # of an event
MOST_TOPICS_ASKED_FOR = 1000  # by a subscription, in all
MOST_BATCHES = 200  # of a subscription: each costs memory, and time for each event of a replay
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
    parts = _split(path)
    private = parts[:1] == [PRIVATE]
    topics = tuple(parts[1:] if private else parts)
    return PublishPath(topics, private, "/" + "/".join(parts), frozenset(parts))


def meets(subscription: Subscription, topics: frozenset[str]) -> bool:
    """Whether a subscription wants an event with these topics. core.delivery.registry asks many at once."""
    return any(batch <= topics for batch in subscription)


def _decode(raw_path: str) -> str:
    """The path as text. Raises Refused(400) where its bytes are not UTF-8."""
    try:
        # aiohttp hands over bytes that are no UTF-8 as surrogates (PEP 383): turn them back before decoding
        return unquote_to_bytes(raw_path.encode("utf-8", "surrogateescape")).decode("utf-8")
    except UnicodeError:
        raise Refused(400, "the path is not UTF-8 (percent-encode its bytes)") from None


def _split(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def parse_publish_path(raw_path: str) -> PublishPath:
    """`/private/fruits/apples` -> topics fruits, apples, and private. Raises Refused(400)."""
    parse = _parse_short_path if len(raw_path) <= _LONGEST_REMEMBERED else _parse_path
    return parse(raw_path)


def _parse_path(raw_path: str) -> PublishPath:
    return checked_publish_path(_decode(raw_path))


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


def parse_subscription(raw_path: str) -> Subscription:
    """`/a/b,c/d` -> {{a, b}, {c, d}}; `/` -> every event. Raises Refused(400)."""
    path = _decode(raw_path)
    parts = path.split(",")
    batches: Subscription = frozenset()
    if len(parts) <= MOST_TOPICS_ASKED_FOR:  # more are too many without a look, repeats and empty ones too
        batches = frozenset(frozenset(topics) for part in parts if (topics := _split(part)))
    if len(batches) > MOST_BATCHES or len(parts) > MOST_TOPICS_ASKED_FOR:
        raise Refused(400, f"more than {MOST_BATCHES} alternatives: ask for fewer, or open several streams")
    if sum(map(len, batches)) > MOST_TOPICS_ASKED_FOR:
        raise Refused(
            400, f"more than {MOST_TOPICS_ASKED_FOR} topics in all: ask for fewer, or open several streams"
        )
    if batches:
        return batches
    if "," in path:
        raise Refused(400, "nothing but commas in the path: ask for topics (/fruits,tools) or for all (/)")
    return EVERYTHING
