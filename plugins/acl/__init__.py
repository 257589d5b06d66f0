"""The ACL file: users, and what they may see and say.

Its parts:

    provider    who is one of its users, and what they may see and say by now
    users       the file, read
    passwords   its passwords, plain and hashed
"""

from plugins import Host, Plugin
from plugins.acl.provider import AclFile
from plugins.acl.users import read_users

Settings = None  # it has a file of its own


def plugin(settings: None, host: Host) -> Plugin:  # noqa: ARG001
    """A provider of the file's users. Raises ConfigError with all problems in it."""
    return AclFile(host.acl_path, read_users(host.acl_path), host)
