"""The newest events, kept in memory or in a file, for subscribers who were away or have fallen behind.

Its parts:

    settings     its section of pypubsub.yaml
    unstored     the store where no backlog is asked for
    memory       the backlog in memory
    recent       the newest events in memory, public or private ones
    pages        what a reader gets at a time, from the parts in which events are kept
    departed     up to where events have left, by topic: what decides whether a replay is complete
    retention    for how long events are kept, by topic
    ages         how old events are, by a clock that nobody sets

    file         the backlog in a file: what is stored when, and what is read from where
    database     that file, an SQLite database: its events, and what it knows of itself
    block        old events, compressed together
    blocks       the table of blocks: which of them may hold what is looked for
    sealing      from rows, which the newest events are, to a block
    finding      where in the file events are that somebody wants
    leaving      what leaves the file, when it is too much or too old
    remembered   the answers and the items of queues that are in it
    schema       its tables
    sqlite_file  its connections, their transactions, and SQLite's log (-wal)
    progress     how far something is that takes minutes
    import_0_7   the file of PyPubSub 0.7, turned into such a one
    commands     what operators do with such a file
"""

from pathlib import Path

from core.errors import ConfigError
from plugins import Host, Plugin
from plugins.backlog.settings import BacklogConfig as Settings
from plugins.backlog.unstored import Unstored

__all__ = ["Settings", "plugin"]


def plugin(settings: Settings, host: Host) -> Plugin:
    """The store that the section asks for. Raises ConfigError."""
    if not settings.size:
        return Unstored(host.outlet)
    if settings.storage:
        from plugins.backlog.file import StoredBacklog  # noqa: PLC0415 (and SQLite with it)

        try:
            path = Path(settings.storage).resolve()
        except (OSError, RuntimeError) as error:  # links that lead back to themselves
            raise ConfigError([f"server.backlog.storage: {settings.storage}: {error}"]) from error
        return StoredBacklog(settings, host.config.server, path, host.outlet)
    from plugins.backlog.memory import Backlog  # noqa: PLC0415

    return Backlog(settings, host.outlet)
