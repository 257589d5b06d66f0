r"""Where a user's name goes: into the name to bind as, and into the filters that find the groups.

Each place has its own escaping. In `member=uid=%s,ou=people` the name is part of a dn that is part of a
filter, so it is escaped for the dn (RFC 4514) and that for the filter (RFC 4515); in `memberUid=%s` for the
filter only. However a name is spelled, it stays the value that `%s` stands for.
"""

import re

from ldap3.core.exceptions import LDAPExceptionError
from ldap3.operation.search import parse_filter
from ldap3.utils.conv import escape_filter_chars

from core.errors import ConfigError
from plugins.ldap.dn import Dn, escape_value, parse_dn

_PROBE = "a,b"  # a name that is not taken as part of a value's place unless it is escaped
_BEGINS_LIKE_DN = re.compile(r"\s*([A-Za-z][A-Za-z0-9-]*|[0-9]+(\.[0-9]+)+)\s*=", re.ASCII)


class UserDn:
    """clients.ldap.user_dn. Raises ConfigError."""

    def __init__(self, template: str) -> None:
        self._template = template
        # without = it is another form, such as Active Directory's name@domain
        self._is_dn = "=" in template
        if self._is_dn:
            try:
                parse_dn(template.replace("%s", escape_value(_PROBE)))
            except ValueError as error:
                raise ConfigError(
                    [
                        f"clients.ldap.user_dn: expected a dn such as uid=%s,ou=people,dc=example,dc=org, "
                        f"got {template!r}: {error}"
                    ]
                ) from None

    def name_of(self, user: str) -> str:
        """What a user binds as."""
        return self._template.replace("%s", escape_value(user) if self._is_dn else user)

    def dn_of(self, user: str) -> Dn | None:
        """The user's own dn; None if that cannot be told from what it binds as."""
        return parse_dn(self.name_of(user)) if self._is_dn else None


class Pattern:
    """One of clients.ldap.membership_patterns. Raises ConfigError."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        whole = pattern.strip()
        try:
            self._parts = _parts(whole if whole.startswith("(") else f"({whole})")
            parse_filter(self.filter_for(_PROBE), None, False, False, None, False)  # type: ignore[no-untyped-call]
        except (ValueError, LDAPExceptionError) as error:
            raise ConfigError(
                [
                    f"clients.ldap.membership_patterns: expected a filter such as "
                    f"member=uid=%s,ou=people,dc=example,dc=org, got {pattern!r}: {error}"
                ]
            ) from None

    def filter_for(self, user: str) -> str:
        """The filter that finds the groups of a user."""
        plain = escape_filter_chars(user, "utf-8")
        in_dn = escape_filter_chars(escape_value(user), "utf-8")
        return "".join(part.replace("%s", in_dn if is_dn else plain) for part, is_dn in self._parts)


def _parts(whole: str) -> list[tuple[str, bool]]:
    """A filter cut at its parentheses; whether the value that stands in a part is a dn. Raises ValueError."""
    return [(part, _has_dn(part)) for part in re.split(r"([()])", whole)]


def _has_dn(part: str) -> bool:
    attribute, _, value = part.partition("=")
    if "%s" in attribute:
        raise ValueError("%s is only expected behind =")
    if re.search(r"\\(?![0-9A-Fa-f]{2})", value):
        raise ValueError(r"expected two hexadecimal digits behind \ (for a \ itself: \5c)")
    if "%s" not in value or not _BEGINS_LIKE_DN.match(value):
        return False
    text = re.sub(rb"\\([0-9A-Fa-f]{2})", lambda match: bytes.fromhex(match[1].decode()), value.encode())
    parse_dn(text.decode().replace("%s", escape_value(_PROBE)))
    return True
