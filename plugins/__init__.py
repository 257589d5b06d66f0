"""Plugins: what hangs off the server object. Each is loaded only if its section of pypubsub.yaml asks for it.

    acl      the ACL file: users, and what they may see and say
    ldap     the same from a directory
    backlog  the newest events, kept in memory or in a file
    sqs      events from queues of Amazon SQS

A plugin is a package: its parts are beside one another in its directory.
"""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.auth.login import OpenStreams, Provider
from core.errors import StartError
from core.events.intake import Intake
from core.events.store import Outlet, Store, Unstored
from core.settings import ClientsConfig, Config, ServerConfig
from plugins.acl.provider import AclFile
from plugins.acl.users import Users

if TYPE_CHECKING:
    from plugins.sqs.queue import SqsQueue

AIOBOTO3 = "aioboto3>=15,<16"  # as in requirements.txt


def check_directory(storage: Path) -> None:
    """Raises StartError if there is no directory for the backlog's file."""
    if not storage.parent.is_dir():
        raise StartError(f"server.backlog.storage: {storage}: there is no directory {storage.parent}")


def store_for(server: ServerConfig, outlet: Outlet) -> Store:
    """The store that server.backlog asks for, which delivers to the outlet. Raises StartError."""
    if not server.backlog.size:
        return Unstored(outlet)
    if server.backlog.storage:
        from plugins.backlog.file import StoredBacklog  # noqa: PLC0415 (and SQLite with it)

        path = Path(server.backlog.storage).resolve()
        check_directory(path)
        return StoredBacklog(server, path, outlet)
    from plugins.backlog.memory import Backlog  # noqa: PLC0415

    return Backlog(server.backlog, outlet)


def providers_for(
    clients: ClientsConfig, acl_path: Path, users: Users | None, streams: OpenStreams
) -> Sequence[Provider]:
    """Who is asked for users, in this order. Raises ConfigError.

    users: what the ACL file holds; streams: the server's.
    """
    providers: list[Provider] = [AclFile(acl_path, users, streams)]
    if clients.ldap:
        from plugins.ldap.directory import Directory  # noqa: PLC0415 (and ldap3 with it)

        providers.append(Directory(clients.ldap, streams))
    return providers


def check_aioboto3() -> None:
    """Raises StartError if the library for queues is not installed."""
    if importlib.util.find_spec("aioboto3") is None:
        raise StartError(f"sqs: aioboto3 is not installed: {sys.executable} -m pip install '{AIOBOTO3}'")


def queues_for(config: Config, intake: Intake) -> Sequence["SqsQueue"]:
    """The queues whose items are published. Raises StartError."""
    if not config.sqs:
        return ()
    check_aioboto3()
    from plugins.sqs.queue import SqsQueue  # noqa: PLC0415 (and aioboto3 with it)

    readers = {queue.identity_of(queue.url): name for name, queue in config.sqs.items() if queue.url}
    return [SqsQueue(name, config, intake, readers) for name in config.sqs]
