"""The section `server.backlog` of pypubsub.yaml: what is kept for subscribers who come later.

What each key means to an operator stands in pypubsub.yaml and docs/backlog.md.
"""

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, StrictInt, StrictStr

from core.config import Duration, Section, Size
from core.events.topics import split
from core.settings import Config, FilePath, PluginSection

IN_MEMORY_AT_MOST = 1024**3  # bytes of each kind, unless max_bytes says otherwise
_MOST_RULES = 100


def _check_topics(value: str) -> str:
    if "," in value or not split(value):
        raise ValueError("topics that an event must have all of: ci/logs")
    return value


class KeepConfig(Section):
    """server.backlog.keep.TOPICS: how long events are kept that have all of these topics."""

    max_age: Duration = 0.0  # seconds; 0: kept until pushed out


class BacklogConfig(PluginSection):
    """server.backlog: what is kept for subscribers who come later."""

    always: ClassVar[bool] = True

    size: Annotated[StrictInt, Field(ge=0)] = 0  # events of each kind, public and private; 0: no backlog
    max_age: Duration = 0.0  # seconds; 0: kept until pushed out
    max_bytes: Size | None = (
        None  # of each kind; None: IN_MEMORY_AT_MOST in memory, as many as there are in a file
    )
    # by topics, as in a subscription's path; the first that an event has counts, and max_age for all others
    keep: Annotated[
        dict[Annotated[StrictStr, AfterValidator(_check_topics)], KeepConfig], Field(max_length=_MOST_RULES)
    ] = {}  # noqa: RUF012 (pydantic copies it)
    storage: FilePath | None = None  # SQLite file; None: kept in memory only
    memory: Size = 64 * 1024**2  # bytes of the newest events that are held ready, beside the file

    def warnings(self, config: Config) -> list[str]:  # noqa: ARG002
        """What an operator should know about valid settings, one line each."""
        found = []
        if self.storage and not self.size:
            found.append("server.backlog.storage: has no effect while server.backlog.size is 0")
        if self.memory != BacklogConfig().memory and not self.storage:
            found.append("server.backlog.memory: has no effect without server.backlog.storage")
        if not self.size:
            ages = {"max_bytes": self.max_bytes, "keep": self.keep}
            found += [
                f"server.backlog.{key}: has no effect while server.backlog.size is 0"
                for key in ages
                if ages[key]
            ]
        return found
