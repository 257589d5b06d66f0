"""The newest events, kept in memory or in a file, for subscribers who were away or have fallen behind.

settings     its section of pypubsub.yaml
memory       the backlog in memory
file         the backlog in a file: what is stored when, and what is read from where
database     that file, an SQLite database
import_0_7   the file of PyPubSub 0.7, turned into such a one
ages         how old events are, by a clock that nobody sets
"""

from pathlib import Path

from plugins import Host, Plugin
from plugins.backlog.settings import BacklogConfig as Settings
from plugins.backlog.unstored import Unstored

__all__ = ["Settings", "plugin"]


def plugin(settings: Settings, host: Host) -> Plugin:
    """The store that the section asks for."""
    if not settings.size:
        return Unstored(host.outlet)
    if settings.storage:
        from plugins.backlog.file import StoredBacklog  # noqa: PLC0415 (and SQLite with it)

        return StoredBacklog(settings, host.config.server, Path(settings.storage).resolve(), host.outlet)
    from plugins.backlog.memory import Backlog  # noqa: PLC0415

    return Backlog(settings, host.outlet)
