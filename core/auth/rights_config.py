"""Rights as the configuration files write them: segments of topics to read, secure topics to publish on."""

from typing import Annotated

from pydantic import BeforeValidator, Field, StrictStr

from core.auth.rights import EVERY_EVENT, Rights, Segment
from core.config import Section, shown_key
from core.events.topics import PRIVATE
from core.settings import Topic


def _all_or_topics(value: object) -> object:
    if value == "all":
        return ()
    if isinstance(value, list) and value:
        return value
    raise ValueError('a list of topics that is not empty, or "all" for every private event')


SegmentTopics = Annotated[tuple[Topic, ...], BeforeValidator(_all_or_topics)]  # empty: all


class Grants(Section):
    """What a user of the ACL file, or a dn of the directory, is given."""

    acl: dict[StrictStr, SegmentTopics] = Field(default_factory=dict)  # by names that mean nothing here
    topics: tuple[Topic, ...] = ()  # secure topics that may be published on

    @property
    def rights(self) -> Rights:
        """What is granted here, as Rights."""
        readable: set[Segment] = {frozenset(topics) or EVERY_EVENT for topics in self.acl.values()}
        return Rights(frozenset(readable), frozenset(self.topics))

    def warnings(self) -> list[str]:
        """What an operator should know about valid grants, each with its key."""
        return [
            f'acl.{shown_key(segment)}: begins with "{PRIVATE}", which does not stand for private events'
            f" here: it is met by a second one in their path, as in /{PRIVATE}/a/{PRIVATE}"
            for segment, topics in self.acl.items()
            if topics[:1] == (PRIVATE,)
        ]


def _in_full(value: object) -> object:
    """The short forms of a grant: a list of topics, which is one segment, and segments alone."""
    if isinstance(value, list) or value == "all":
        return {"acl": {"topics": value}}
    if isinstance(value, dict) and not value.keys() <= {"acl", "topics"}:
        return {"acl": value}
    return value


AnyGrants = Annotated[Grants, BeforeValidator(_in_full)]  # in full, or in one of the short forms
