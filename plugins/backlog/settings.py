"""The section `server.backlog` of pypubsub.yaml: what is kept for subscribers who come later.

What each key means to an operator stands in pypubsub.yaml and docs/backlog.md.
"""

from typing import Annotated, ClassVar

from pydantic import Field, StrictInt

from core.config import Duration, Size
from core.settings import Config, FilePath, PluginSection


class BacklogConfig(PluginSection):
    """server.backlog: what is kept for subscribers who come later."""

    always: ClassVar[bool] = True

    size: Annotated[StrictInt, Field(ge=0)] = 0  # events of each kind, public and private; 0: no backlog
    max_age: Duration = 0.0  # seconds; 0: kept until pushed out
    storage: FilePath | None = None  # SQLite file; None: kept in memory only
    memory: Size = 64 * 1024**2  # bytes of the newest events that are held ready, beside the file

    def warnings(self, config: Config) -> list[str]:  # noqa: ARG002
        """What an operator should know about valid settings, one line each."""
        found = []
        if self.storage and not self.size:
            found.append("server.backlog.storage: has no effect while server.backlog.size is 0")
        if self.memory != BacklogConfig().memory and not self.storage:
            found.append("server.backlog.memory: has no effect without server.backlog.storage")
        return found
