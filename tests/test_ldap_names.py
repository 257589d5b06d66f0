"""Names in a directory: how dns compare, and that a user's name stays a name wherever it is put."""

import contextlib
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ldap3.operation.search import FilterNode, parse_filter

from core.auth.login import problem_with_user
from core.errors import ConfigError
from directory import NoStreams, ldap_config
from plugins.ldap.directory import Directory
from plugins.ldap.dn import parse_dn
from plugins.ldap.templates import Pattern, UserDn
from slapd import PEOPLE

SAME = [
    ("cn=a,dc=x", "CN=A,DC=X"),
    ("cn=a,dc=x", " cn = a , dc = x "),
    ("cn=board members,dc=x", "cn=Board   Members,dc=x"),
    (r"cn=a\,b,dc=x", r"cn=a\2Cb,dc=x"),
    (r"cn=a\,b,dc=x", r"cn=a\2cb,dc=x"),
    ("cn=müller,dc=x", r"cn=m\c3\bcller,dc=x"),
    ("cn=MÜLLER,dc=x", r"cn=m\C3\BCller,dc=x"),
    ("cn=a+sn=b,dc=x", "sn=B + cn=A,dc=x"),
    (r"cn=\ a\ ,dc=x", "cn=a,dc=x"),
    (r"cn=\#a,dc=x", r"cn=\23a,dc=x"),
    (r"cn=a\=b", "cn=a=b"),
    ("2.5.4.3=a", "2.5.4.3=A"),
]
DIFFERENT = [
    ("cn=a,dc=x", "cn=b,dc=x"),
    ("cn=a,dc=x", "ou=a,dc=x"),
    ("cn=a,dc=x,dc=y", "cn=a,dc=y,dc=x"),
    ("cn=a,dc=x", "cn=a"),
    (r"cn=a\,dc=x", "cn=a,dc=x"),
    (r"cn=a\+sn=b", "cn=a+sn=b"),
    ("cn=a b", "cn=ab"),
    ("cn=strasse", "cn=straße"),
    ("cn=mark", "cn=mar\N{KELVIN SIGN}"),
    ("cn=alice", "cn=ａｌｉｃｅ"),  # noqa: RUF001 (fullwidth letters)
    ("cn=alice", "cn=аlice"),  # noqa: RUF001 (a Cyrillic one)
]
NO_DN = [
    "",
    "x",
    "cn",
    "=a",
    "cn=",
    "cn=a,",
    ",cn=a",
    "cn=a,,dc=x",
    "cn=a+",
    "c n=a",
    "cn=a;dc=x",
    'cn="a"',
    "cn=<a>",
]
NO_DN += ["cn=a\\", "cn=a\\x", r"cn=\ff", "cn=#0401", "cn=a\0", "1=a", "-a=b", "cn=\\4"]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_the_same_dn_are_equal(one: str, other: str) -> None:
    """By the rules of RFC 4514 and caseIgnoreMatch."""
    assert parse_dn(one) == parse_dn(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_dns_are_not_equal(one: str, other: str) -> None:
    """Least of all names that only look alike: to a directory they may be different users."""
    assert parse_dn(one) != parse_dn(other)


@pytest.mark.parametrize("text", NO_DN)
def test_what_is_no_dn_is_refused(text: str) -> None:
    """With a ValueError, and nothing else."""
    with pytest.raises(ValueError, match=r"expected|utf-8"):
        parse_dn(text)


@given(st.text())
def test_any_text_is_a_dn_or_is_refused(text: str) -> None:
    """A directory may send anything."""
    with contextlib.suppress(ValueError):
        parse_dn(text)


# Names of users

names = st.one_of(
    st.text(min_size=1),
    st.text(alphabet='ab,+"\\<>;=# *()&|!%s\0\ud7ffé', min_size=1),
    st.sampled_from(["*)(uid=*", "alice,ou=admins", "alice\\", "\\2c", "%s", "a\\,b", "#a", "*", "a)(b=c"]),
).filter(lambda name: not problem_with_user(name) and name.isprintable())


@given(names)
def test_a_name_stays_one_value_of_the_dn_that_a_user_binds_as(name: str) -> None:
    """As many RDNs as the template has, and the others are as they were."""
    user_dn = UserDn("uid=%s,ou=people,dc=example,dc=org")
    parsed = parse_dn(user_dn.name_of(name))
    assert len(parsed) == 4
    assert parsed[1:] == parse_dn("ou=people,dc=example,dc=org")
    assert [attribute for attribute, _ in parsed[0]] == ["uid"]
    assert user_dn.dn_of(name) == parsed
    escaped = user_dn.name_of(name).removeprefix("uid=").removesuffix(",ou=people,dc=example,dc=org")
    assert re.sub(r"\\(..)", lambda match: chr(int(match[1], 16)), escaped) == name


def structure(node: FilterNode) -> Any:
    """A filter without its values."""
    return node.tag, (node.assertion or {}).get("attr"), [structure(below) for below in node.elements]


def values(node: FilterNode) -> list[str]:
    """The values in a filter, as the server sees them."""
    raw = (node.assertion or {}).get("value")
    own = [] if raw is None else [raw if isinstance(raw, str) else raw.decode()]
    own = [
        re.sub(rb"\\(..)", lambda match: bytes.fromhex(match[1].decode()), v.encode()).decode() for v in own
    ]
    return own + [value for below in node.elements for value in values(below)]


def parsed_filter(pattern: Pattern, name: str) -> FilterNode:
    """The filter for a name, as ldap3 reads it."""
    read: Any = parse_filter
    found: FilterNode = read(pattern.filter_for(name), None, False, False, None, False)
    return found


PATTERN = f"(&(objectClass=*)(|(memberUid=%s)(!(cn=no-%s))(member=uid=%s,{PEOPLE})))"


@given(names)
def test_a_name_stays_a_value_of_the_filter(name: str) -> None:
    """The filter has the pattern's form, whatever the name, and the name is in it as it is."""
    pattern = Pattern(PATTERN)
    found = parsed_filter(pattern, name)
    assert structure(found) == structure(parsed_filter(pattern, "alice"))
    plain, prefixed, dn = values(found)
    assert plain == name
    assert prefixed == f"no-{name}"
    assert parse_dn(dn) == UserDn(f"uid=%s,{PEOPLE}").dn_of(name)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("uid=%s", r"(uid=a,\2a\5c)"),
        ("(uid=%s)", r"(uid=a,\2a\5c)"),
        (f"member=uid=%s,{PEOPLE}", rf"(member=uid=a\5c2C\2a\5c5C,{PEOPLE})"),
        (
            "member:1.2.840.113556.1.4.1941:=cn=%s,dc=x",
            r"(member:1.2.840.113556.1.4.1941:=cn=a\5c2C\2a\5c5C,dc=x)",
        ),
        (
            "(|(memberUid=%s)(uniqueMember=cn=%s,dc=x))",
            r"(|(memberUid=a,\2a\5c)(uniqueMember=cn=a\5c2C\2a\5c5C,dc=x))",
        ),
        ("owner=%s@example.org", r"(owner=a,\2a\5c@example.org)"),
    ],
)
def test_a_name_is_escaped_for_its_place(pattern: str, expected: str) -> None:
    """Within a dn for that first, then for the filter."""
    assert Pattern(pattern).filter_for("a,*\\") == expected


def test_a_name_at_a_domain_is_no_dn() -> None:
    """Active Directory's other form: nothing in it is escaped, and the user's own dn is not known."""
    user_dn = UserDn("%s@example.org")
    assert user_dn.name_of("jo, jr") == "jo, jr@example.org"
    assert user_dn.dn_of("jo") is None


# What the configuration may say


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("acl", {"committers": ["a"]}, "'committers'"),
        ("acl", {"cn=a,,dc=x": ["a"]}, "'cn=a,,dc=x'"),
        ("user_dn", "uid=%s,people", "'uid=%s,people'"),
        ("user_dn", "%s=alice,dc=x", "'%s=alice,dc=x'"),
        ("uri", "ldap://127.0.0.1:99999", "'ldap://127.0.0.1:99999'"),
        ("base_scope", "example.org", "'example.org'"),
        ("membership_patterns", ["(member=%s"], r"'(member=%s'"),
        ("membership_patterns", ["%s=a"], "'%s=a'"),
        ("membership_patterns", ["member=uid=%s,*"], "'member=uid=%s,*'"),
        ("membership_patterns", ["(uid=%s)(cn=a)"], "'(uid=%s)(cn=a)'"),
        ("membership_patterns", [r"cn=\%s"], r"'cn=\\%s'"),
    ],
)
def test_what_cannot_be_used_stops_the_start(key: str, value: Any, named: str) -> None:
    """With the setting's name, what stands there, and an example of what would be right."""
    with pytest.raises(ConfigError) as caught:
        Directory(ldap_config("ldap://x", **{key: value}), NoStreams())
    [problem] = caught.value.problems
    example = "ldap://host" if key == "uri" else "dc=example,dc=org"
    assert re.match(f"clients.ldap.{key}: expected .*{example}.*, got {re.escape(named)}: ", problem)


def test_all_problems_are_told_at_once() -> None:
    """Not one at each start."""
    settings = {"acl": {"a": ["x"], "b": ["x"]}, "user_dn": "u=%s,", "base_scope": ""}
    with pytest.raises(ConfigError) as caught:
        Directory(ldap_config("ldap://x", **settings), NoStreams())
    assert len(caught.value.problems) == 4
