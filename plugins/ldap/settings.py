"""The section `clients.ldap` of pypubsub.yaml: a directory of those who are not in the ACL file.

What each key means to an operator stands in pypubsub.yaml and docs/access.md.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictStr

from core.auth.rights_config import AnyGrants
from core.config import Duration, PositiveDuration
from core.settings import Config, FilePath, PluginSection, as_list


def _check_ldap_uri(value: str) -> str:
    if not re.fullmatch(r"ldaps?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?", value, re.ASCII):
        raise ValueError("ldap://host or ldaps://host, perhaps with a port, nothing behind it")
    return value.rstrip("/")


def _check_user_dn(value: str) -> str:
    if "%s" not in value or "%" in value.replace("%s", ""):
        raise ValueError("a dn with %s for the user's name: uid=%s,ou=people,dc=example,dc=org")
    return value


def _check_pattern(value: object) -> str:
    if isinstance(value, dict) or (isinstance(value, str) and value.endswith(":")):
        raise ValueError("a filter without a colon at its end, which makes a key of it in YAML")
    if not isinstance(value, str) or "%s" not in value or "%" in value.replace("%s", "") or "=" not in value:
        raise ValueError("a filter with %s for the user's name: member=uid=%s,ou=people,dc=example,dc=org")
    return value


LdapUri = Annotated[StrictStr, AfterValidator(_check_ldap_uri)]
UserDn = Annotated[StrictStr, AfterValidator(_check_user_dn)]
Pattern = Annotated[str, BeforeValidator(_check_pattern)]


class LdapConfig(PluginSection):
    """clients.ldap: a directory of those who are not in the ACL file."""

    uri: Annotated[tuple[LdapUri, ...], BeforeValidator(as_list), Field(min_length=1)]  # asked in this order
    start_tls: StrictBool = False
    ca_file: FilePath | None = None  # PEM file; None: the system's authorities
    verify: StrictBool = True  # the directory's certificate
    user_dn: UserDn
    base_scope: StrictStr
    membership_patterns: tuple[Pattern, ...] = ()
    acl: dict[StrictStr, AnyGrants]  # by the dn of a group or of a user
    timeout: PositiveDuration = 5.0  # for a connection, and for an answer
    refresh: PositiveDuration = 60.0
    grace: Duration = 600.0

    def warnings(self, config: Config) -> list[str]:  # noqa: ARG002
        """What an operator should know about valid settings, one line each."""
        found = []
        plain = any(uri.startswith("ldap:") for uri in self.uri)
        if plain and not self.start_tls:
            found.append("clients.ldap.uri: passwords go there unencrypted: use ldaps or start_tls")
        if self.start_tls and not plain:
            found.append("clients.ldap.start_tls: has no effect with ldaps, which is encrypted anyhow")
        if not self.verify:
            found.append("clients.ldap.verify: is off, so anybody in between can take the directory's place")
        if not self.verify and self.ca_file:
            found.append("clients.ldap.ca_file: has no effect while clients.ldap.verify is off")
        for dn, grants in self.acl.items():
            found += [f"clients.ldap.acl.{dn}.{warning}" for warning in grants.warnings()]
        return found
