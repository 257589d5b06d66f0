"""Plugins: what hangs off the server. Here is what a plugin is, and the table of those that there are.

A plugin is a package whose `__init__` has two things, and imports nothing that is slow or may be missing:

    Settings            the model of its section (core.settings.PluginSection); None if it has none
    plugin(settings,    makes the plugin: an object whose class derives from Plugin. It is called where the
           host)        section is there. Raises ConfigError

An optional library is imported by the module that uses it, which plugin() imports. What a plugin is good for
is told by its methods: the server picks out those that play a role.

    Store      (core.events.store)    where events go before they go out; there is one
    Provider   (core.auth.login)      knows users
    Source     (core.events.intake)   brings events
    Listener   (core.delivery.fanout) hears of each event that goes out

docs/plugins.md shows one of thirty lines, and how to add it. These are there:

    backlog   the stores: the newest events, in memory or in a file, or none of them
    acl       the ACL file: users, and what they may read and publish
    ldap      the same from a directory
    sqs       events from queues of Amazon SQS
"""

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from core.auth.login import Login
from core.errors import ConfigError, collected
from core.events.intake import Intake
from core.events.store import Outlet
from core.settings import Config, PluginSection

# place of the section in pypubsub.yaml -> package, in the order in which they start; they stop in reverse
TABLE: Mapping[str, str] = {
    "server.backlog": "plugins.backlog",
    "acl": "plugins.acl",  # no section: the file that --acl names
    "clients.ldap": "plugins.ldap",
    "sqs": "plugins.sqs",
}


class Host(Protocol):
    """What a plugin may ask of the server that it hangs off."""

    config: Config
    acl_path: Path  # --acl
    intake: Intake  # where a source brings events; not there before start()

    @property
    def outlet(self) -> Outlet:
        """Where a store delivers events."""

    def logins(self) -> Iterable[Login]:
        """The log-ins of all open streams."""

    def rights_changed(self) -> None:
        """Have Provider.rights_by_now() asked for each of them, and streams get no more than that."""


class Plugin:
    """The life of a plugin. Each step does nothing unless a plugin has more to say."""

    name = ""  # for its task, and the log

    def plan(self) -> list[str]:
        """What --check says of it: lines."""
        return []

    def warnings(self) -> list[str]:
        """What an operator should know, beside PluginSection.warnings(): lines for --check and the log."""
        return []

    def check(self) -> None:
        """Look whether it could start, and change nothing. Raises StartError."""

    async def start(self) -> None:
        """Begin. Raises StartError, which stops the server's start: nothing is left out in silence."""

    async def run(self) -> None:
        """What it does until it is cancelled. If it raises, the server ends."""

    async def reload(self) -> None:
        """Read anew what may change while the server runs; what cannot be used is logged, and not taken."""

    async def stop(self) -> None:
        """Undo start(), also one that failed half-way."""


def sections(table: Mapping[str, str] = TABLE) -> dict[str, type[PluginSection]]:
    """The sections of all plugins, by their places in pypubsub.yaml."""
    found = {place: importlib.import_module(package).Settings for place, package in table.items()}
    return {place: model for place, model in found.items() if model}


def plugins_of(host: Host, table: Mapping[str, str] = TABLE) -> list[Plugin]:
    """The plugins that the configuration asks for. Raises ConfigError with all problems."""
    made: list[Plugin] = []
    problems: list[str] = []
    for place, package in table.items():
        module = importlib.import_module(package)
        settings = host.config.sections.get(place)
        if settings is None and module.Settings:
            continue
        with collected(problems):
            made.append(module.plugin(settings, host))
    if problems:
        raise ConfigError(problems)
    return made
