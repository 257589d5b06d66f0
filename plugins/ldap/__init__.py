"""The directory: users who are not in the ACL file, and the rights of their groups.

Its parts:

    settings    its section of pypubsub.yaml
    directory   the provider: what is remembered, and asked again for open streams
    servers     which server is asked, by how many at a time, and what is done while none answers
    lookup      one question to one server, in a thread
    templates   where a user's name goes: the name to bind as, and filters
    dn          distinguished names
"""

from plugins import Host, Plugin
from plugins.ldap.settings import LdapConfig as Settings

__all__ = ["Settings", "plugin"]


def plugin(settings: Settings, host: Host) -> Plugin:
    """A provider of the directory's users. Raises ConfigError."""
    from plugins.ldap.directory import Directory  # noqa: PLC0415 (and ldap3 with it)

    return Directory(settings, host)
