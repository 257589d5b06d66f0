"""The ACL file: what it may hold, how it is refused, passwords, and reloading it under open streams."""

import asyncio
import gc
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core import yaml_file
from core.auth.authentication import Authentication
from core.auth.login import Login, WrongCredentials
from core.auth.rights import EVERY_EVENT, Rights
from core.errors import ConfigError
from core.events.topics import publish_path
from core.settings import load
from daemon import ROOT, StartDaemon, basic
from directory import NoStreams
from plugins import sections
from plugins.acl import provider as acl
from plugins.acl.passwords import cost_class, hash_password, is_password, problem_with_hash
from plugins.acl.provider import AclFile
from plugins.acl.users import read_users

ARGON2ID = hash_password("secret")
A_HASH = "$argon2id$v=19$m=65536,t=3,p=4$z4UNy+bltuNB0/2b6oOmMQ$xQv1dHxmbMN/FuDHeST2PSAUfE90+G3oCy0DgCcUxAQ"
BCRYPT = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
IN_THE_WILD = """\
# ACL for authenticated users
testuser:
  password: foobar
  acl:
    # Topics are AND'ed together
    title_of_my_first_access_segment:
      - git
      - privaterepo.git
    allow_email_access_for_foobar:
      - email
      - example.org
      - dev
deployer:
  password: "s3cret: with a colon"
  topics:
    - deploy
  acl: ~
"""


def acl_file(directory: Path, text: str) -> Path:
    """A file with that text, which only its owner can read."""
    path = directory / "acl.yaml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_file_of_0_7_is_read_as_it_is(tmp_path: Path) -> None:
    """Segments of topics to see, secure topics to publish on; a part may be missing or null."""
    users = read_users(acl_file(tmp_path, IN_THE_WILD))
    assert users
    testuser, deployer = users.by_name["testuser"], users.by_name["deployer"]
    assert testuser.rights.readable == {
        frozenset({"git", "privaterepo.git"}),
        frozenset({"email", "example.org", "dev"}),
    }
    assert testuser.rights.publishable == frozenset()
    assert deployer.rights == (frozenset(), frozenset({"deploy"}))
    assert deployer.password == "s3cret: with a colon"


def test_all_grants_every_private_event(tmp_path: Path) -> None:
    """In the place of a list."""
    users = read_users(acl_file(tmp_path, "a: {password: x, acl: {every: all}}"))
    assert users
    assert users.by_name["a"].rights.readable == {EVERY_EVENT}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "~\n"])
def test_a_file_with_nothing_in_it_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    """The one that comes with the server has comments only. `{}` on the other hand says: nobody."""
    assert read_users(acl_file(tmp_path, text)) is None
    assert read_users(tmp_path / "missing.yaml") is None
    nobody = read_users(acl_file(tmp_path, "{}"))
    assert nobody
    assert nobody.by_name == {}


# what stands in the file, what the refusal says; SECRET may not be shown
BROKEN = [
    ("alice: {password: 1234567}", r"alice\.password: expected text: put quotes around it, got a number"),
    ("alice: {password: yes}", r"alice\.password: expected text: put quotes around it, got true or false"),
    ("alice: {password: 2026-11-24}", r"alice\.password: .*a date"),
    ("alice: {password: [SECRET]}", r"alice\.password: .*got a list"),
    ("alice: {password: ''}", r"alice\.password: expected a password is not empty|a password is not empty"),
    ('alice: {password: "SECRET\\n"}', r"alice\.password: .*control characters"),
    ('alice: {password: "\\ud800"}', r"line 1: not YAML: found invalid Unicode character escape code"),
    ("alice: {password: '$2y$18$" + "a" * 53 + "'}", r"alice\.password: .*bcrypt hash of cost 4 to 15"),
    (
        f"alice: {{password: '{A_HASH.replace('t=3', 't=0')}'}}",
        r"alice\.password: .*argon2id hash of at most",
    ),
    (f"alice: {{password: '{A_HASH.replace('m=65536', 'm=4000000')}'}}", r"alice\.password: .*at most m="),
    ("alice: {password: '$6$SECRET'}", r"alice\.password: .*argon2id or bcrypt"),
    ("alice: {password: '$2y$05$SECRET'}", r"alice\.password: .*argon2id or bcrypt"),
    ("alice: {password: '$argon2id$v=19$SECRET'}", r"alice\.password: .*argon2id or bcrypt"),
    (
        "alice: {password: SECRET, acl: {s: []}}",
        r'alice\.acl\.s: expected a list .* "all" .*got an empty list',
    ),
    ("alice: {password: SECRET, acl: {s: ~}}", r"alice\.acl\.s: expected a list .*got nothing"),
    ("alice: {password: SECRET, acl: {s: git}}", r"alice\.acl\.s: expected a list"),
    ("alice: {password: SECRET, acl: [git]}", r"alice\.acl: expected keys below it"),
    ("alice: {password: SECRET, topics: deploy}", r"alice\.topics: expected a list"),
    ("alice: SECRET", r"alice: expected keys below it, got text"),
    ("alice:", r"alice: expected keys below it, got nothing"),
    ("12345: {password: SECRET}", r"expected users' names as keys, in quotes"),
    ("'a:SECRET': {password: SECRET}", r"a\.\.\.: .*no colon"),
    ("'alice ': {password: SECRET}", r"alice\.\.\.: .*no spaces around it"),
    ("[SECRET]", r"expected users' names as keys, got a list"),
    ("SECRET", r"expected users' names as keys, got text"),
    ("alice: {password: *SECRET}", r"line 1: not YAML"),
    ("alice: {password: !SECRET x}", r"line 1: not YAML"),
    ("alice: {password: SECRET\n", r"not YAML"),
    ("alice: {password: SECRET}\nalice: {password: x}", r"line 2: not YAML: a key stands twice"),
    ("alice: {password: x, acl: {s: [a], s: [b]}}", r"line 1: not YAML: a key stands twice"),
    ("alice: {password: x, note: {a: 1,\n a: 2}}", r"line 2: not YAML: a key stands twice"),
    ("a: &a {acl: {s: [a]}}\nalice: {<<: *a, <<: *a, password: x}", r"line 2: .* a key stands twice"),
    ("alice: &a {password: SECRET, more: *a}", r"line 1: not YAML: a value that holds itself"),
    ("alice: {password: !!int SECRET}", r"not YAML: ValueError"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_broken_file_is_refused_with_the_path_of_the_key(tmp_path: Path, text: str, message: str) -> None:
    """And nothing is shown of what may be a password."""
    path = acl_file(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as refusal:
        read_users(path)
    assert "SECRET" not in str(refusal.value)
    assert "1234567" not in str(refusal.value)
    assert str(refusal.value).startswith(f"{path}: ")


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    """Of all users."""
    with pytest.raises(ConfigError) as refusal:
        read_users(acl_file(tmp_path, "a: {password: 1}\nb: {password: x, acl: {s: []}, topics: 3}\nc:"))
    assert len(refusal.value.problems) == 4


def test_keys_that_are_merged_do_not_stand_twice(tmp_path: Path) -> None:
    """YAML's `<<`, with which a user overrides what another has."""
    users = read_users(acl_file(tmp_path, "a: &a {password: x, topics: [t]}\nb: {<<: *a, password: y}"))
    assert users
    assert users.by_name["b"].password == "y"
    assert users.by_name["b"].rights.publishable == {"t"}


# what stands in the file, what the warning says; each without the file before it
HARMLESS = [
    ("alice: {password: HASH, note: x}", "alice.note: unknown key; known here: acl, password, topics"),
    ("alice: {password: HASH, topic: [deploy]}", "alice.topic: unknown key, did you mean topics?"),
    ("alice: {password: HASH, 5: x}", "alice.5: unknown key; known here: acl, password, topics"),
    ("alice: {acl: {s: [git]}}", "alice.password: is missing, so nobody can log in as this user"),
    ("alice: {password: ~, acl: {s: []}}", "alice.password: is missing, so nobody can log in as this user"),
    ("common: &c [git]\nalice: {password: HASH, acl: {s: *c}}", "common: is a list and no user, so it"),
    ("hash: &h HASH\nalice: {password: *h}", "hash: is text and no user, so it grants nothing by itself"),
    ("team: &t {s: [git]}\nalice: {password: HASH, acl: *t}", "team.password: is missing, so nobody"),
    (
        "alice: {password: HASH, acl: {s: [git, 5]}}",
        "alice.acl.s[1]: expected a topic: .*, got a number: this",
    ),
    (
        "alice: {password: HASH, acl: {s: [a/b]}}",
        "alice.acl.s[0]: expected a topic: .*: this segment gran",
    ),
    ("alice: {password: HASH, acl: {s: ['a,b']}}", "alice.acl.s[0]: expected a topic: .*"),
    ("alice: {password: HASH, acl: {s: [git, '']}}", "alice.acl.s[1]: expected a topic: .*"),
    ("alice: {password: HASH, acl: {s: [[git]]}}", "alice.acl.s[0]: expected a topic: .*, got a list"),
    ("alice: {password: HASH, topics: [a/b]}", "alice.topics[0]: expected a topic: .*: it grants nothing"),
    ("alice: {password: HASH, acl: {s: [private, git]}}", 'alice.acl.s: begins with "private"'),
    ("alice: {password: HASH, acl: {s: [private]}}", 'alice.acl.s: begins with "private"'),
]


@pytest.mark.parametrize(("text", "said"), HARMLESS)
def test_what_grants_nothing_is_a_warning(tmp_path: Path, text: str, said: str) -> None:
    """With the user and the key; everybody else's rights are as they stand there."""
    path = acl_file(tmp_path, f"{text.replace('HASH', repr(ARGON2ID))}\nbob: {{password: '{ARGON2ID}'}}")
    users = read_users(path)
    assert users
    (warning,) = users.warnings
    assert re.match(re.escape(f"{path}: {said}").replace(r"\.\*", ".*"), warning), warning
    assert "bob" in users.by_name
    if alice := users.by_name.get("alice"):
        assert {topic for segment in alice.rights.readable for topic in segment} <= {"git", "private"}


def test_a_segment_with_private_within_is_what_it_says(tmp_path: Path) -> None:
    """As for /private/svn/private/committers/commit, which is in use: no warning."""
    text = f"alice: {{password: '{ARGON2ID}', acl: {{s: [svn, private, committers]}}}}"
    users = read_users(acl_file(tmp_path, text))
    assert users
    assert users.warnings == []
    assert users.by_name["alice"].rights.can_read(publish_path("/private/svn/private/committers/commit"))


def test_a_segment_of_a_directory_that_begins_with_private_is_warned_of(tmp_path: Path) -> None:
    """As one of the file."""
    acl = {"cn=a,dc=example": {"s": ["private", "git"]}, "cn=b,dc=example": ["svn", "private"]}
    (tmp_path / "pypubsub.yaml").write_text(
        yaml.safe_dump(
            {"clients": {"ldap": {"uri": "ldaps://h", "user_dn": "uid=%s", "base_scope": "dc=a", "acl": acl}}}
        )
    )
    warnings = load(tmp_path / "pypubsub.yaml", sections()).warnings()
    (warning,) = [warning for warning in warnings if "ldap" in warning]
    assert 'clients.ldap.acl.cn=a,dc=example.acl.s: begins with "private"' in warning


def test_a_user_without_a_password_is_nobody_elsewhere(tmp_path: Path) -> None:
    """Taking the password out of the file does not hand the name to the directory."""
    path = acl_file(tmp_path, "Alice: {acl: {s: [git]}}\ncommon: &c [git]")
    users = AclFile(path, read_users(path), NoStreams())
    assert users.claims("alice")
    assert not users.claims("common")


def test_there_are_not_thousands_of_lines(tmp_path: Path) -> None:
    """Of one kind of mistake."""
    entries = "".join(f"user{n}: {{password: x, mail: a@b}}\n" for n in range(500))
    users = read_users(acl_file(tmp_path, entries))
    assert users
    assert len(users.by_name) == 500
    assert len(users.warnings) < 110
    assert users.warnings[-1].endswith("and 400 more of this kind")
    with pytest.raises(ConfigError) as refusal:
        read_users(acl_file(tmp_path, "".join(f"user{n}: {{password: 5}}\n" for n in range(500))))
    assert len(refusal.value.problems) < 110


# Aliases

DOUBLED = "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
BOMBS = {
    "lists": "a0: &a0 [x, x]\n" + DOUBLED,
    "sections": "a0: &a0 {x: y}\n" + DOUBLED.replace("[", "{x: ").replace(", ", ", y: ").replace("]", "}"),
    "merges": "a0: &a0 {x: y}\n" + DOUBLED.replace("[", "{<<: [").replace("]", "]}"),
    "one list, very often": f"a: &a [{'x, ' * 2000}]\nb: [{'*a, ' * 2000}]\n",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("option", ["--acl", "--config"])
def test_aliases_of_aliases_are_refused(tmp_path: Path, bomb: str, option: str) -> None:
    """In both files: thirty levels are more than any memory holds."""
    path = acl_file(tmp_path, bomb)
    (tmp_path / "pypubsub.yaml").write_text("clients: {payloaders: [127.0.0.1]}")
    command = [sys.executable, "pypubsub.py", "--check", "--config", str(tmp_path / "pypubsub.yaml")]
    with_bomb = ["prlimit", f"--as={2**30}", *command, option, str(path)]
    result = subprocess.run(with_bomb, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (
        1,
        f"{path}: its aliases (*name) stand for more than 1000000 values\n",
    )


def test_ordinary_aliases_are_read(tmp_path: Path) -> None:
    """Lists, sections and passwords that several users share."""
    text = f"""
        .hash: &hash "{ARGON2ID}"
        .committers: &committers [git, commits]
        .team: &team {{acl: {{commits: *committers, mail: [mail]}}, topics: [deploy]}}
        alice: {{<<: *team, password: *hash}}
        bob: {{password: *hash, acl: {{commits: *committers}}}}
    """
    users = read_users(acl_file(tmp_path, text))
    assert users
    assert users.by_name["alice"].rights == Rights(
        frozenset({frozenset({"git", "commits"}), frozenset({"mail"})}), frozenset({"deploy"})
    )
    assert users.by_name["bob"].rights.readable == {frozenset({"git", "commits"})}
    assert [warning.split(": ")[1] for warning in users.warnings] == [
        ".hash",
        ".committers",
        ".team.password",
    ]


def test_a_large_file_is_read_without_a_look_for_garbage(tmp_path: Path) -> None:
    """Which would hold up all that the server does, for up to a second; one comes behind it. By libyaml."""
    path = acl_file(tmp_path, "".join(f"user{n}: {{password: x, acl: {{s: [a, b]}}}}\n" for n in range(3000)))
    looked: list[str] = []
    gc.callbacks.append(lambda phase, _: looked.append(phase))
    try:
        users = read_users(path)
    finally:
        gc.callbacks.pop()
    assert users
    assert len(users.by_name) == 3000
    assert looked.count("start") <= 1
    assert gc.isenabled()
    assert isinstance(yaml_file._Loader(b""), yaml.CSafeLoader)


async def test_a_reload_stalls_nobody(start_daemon: StartDaemon) -> None:
    """Publishes are answered all the time while a large file is read; rights change in one step."""
    acl = "".join(
        f"user{n}: {{password: '{A_HASH}', acl: {{s: [a, b], t: [c, d, e{n}]}}}}\n" for n in range(1500)
    )
    server = start_daemon(acl={"alice": ALICE})
    async with server.subscriber("/", basic("alice")) as stream:
        server.write_acl(f"alice: {{password: secret, acl: {{ci: [ci]}}}}\n{acl}")
        server.signal(signal.SIGHUP)
        loaded = asyncio.create_task(server.until_logged("1501 users"))
        answered = 0
        while not loaded.done():
            assert (await server.put("/private/git", {"n": answered})).status == 202
            answered += 1
        await loaded
        assert answered > 10
        await server.put("/private/ci", {"n": "last"})
        seen: list[Any] = []
        while not seen or seen[-1] != "last":
            seen.append((await stream.event())["n"])
    assert seen[:-1] == list(range(len(seen) - 1))


def test_an_operator_is_warned(tmp_path: Path) -> None:
    """Of plain passwords, of a file that others can read, of a topic that will not do what it seems to."""
    path = acl_file(tmp_path, f"a: {{password: x}}\nb: {{password: '{ARGON2ID}', acl: {{s: [private]}}}}")
    path.chmod(0o606)
    users = read_users(path)
    assert users
    plain, read, written, marked = users.warnings
    assert plain.startswith(f"{path}: a: the password is plain text")
    assert "chmod o-r" in read
    assert "chmod o-w" in written
    assert "b.acl.s" in marked
    path = acl_file(tmp_path, f"a: {{password: '{ARGON2ID}', acl: {{s: [git]}}}}")
    users = read_users(path)
    assert users
    assert users.warnings == []


@pytest.mark.parametrize(
    "stored",
    ["secret", ARGON2ID, BCRYPT, BCRYPT.replace("$2b$", "$2y$")],
    ids=["plain", "argon2id", "bcrypt", "htpasswd"],
)
def test_passwords_are_plain_or_hashes(stored: str) -> None:
    """Argon2id and bcrypt, also as htpasswd writes it."""
    assert problem_with_hash(stored) is None
    assert is_password(stored, "secret")
    for wrong in ("Secret", "secret ", "", "secre", stored + "x", "s" * 100, "\0", "sécret"):
        assert not is_password(stored, wrong), wrong


def test_bcrypt_looks_at_72_bytes() -> None:
    """As with every other program: the hash of a longer password was made from these."""
    stored = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert is_password(stored, "x" * 80)
    assert not is_password(stored, "x" * 71)


def test_what_a_hash_costs_is_told_by_its_kind_and_parameters() -> None:
    """The salt does not count; plain text costs nothing."""
    assert cost_class(ARGON2ID) == cost_class(hash_password("other"))
    assert cost_class(BCRYPT) != cost_class(ARGON2ID)
    assert cost_class("plain") is None


@settings(max_examples=20, deadline=None)
@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_a_plain_password_is_only_itself(password: str) -> None:
    """Whatever characters it has."""
    if problem_with_hash(password) is None and not password.startswith("$"):
        assert is_password(password, password)
        assert not is_password(password, password + "x")


@pytest.mark.parametrize("stored", ["secret", ARGON2ID, BCRYPT], ids=["plain", "argon2id", "bcrypt"])
async def test_a_user_logs_in_to_follow_and_to_publish(start_daemon: StartDaemon, stored: str) -> None:
    """With the password of whatever kind; a wrong one is refused, and says what would be right."""
    user = {"password": stored, "acl": {"s": ["git"]}, "topics": ["deploy"]}
    server = start_daemon({"clients": {"secure_topics": ["deploy"], "payloaders": []}}, acl={"alice": user})
    assert (await server.request("PUT", "/deploy", {}, basic("alice"))).status == 202
    refused = await server.request("PUT", "/deploy", {}, basic("alice", "wrong"))
    assert (refused.status, refused.text) == (401, "wrong user or password\n")
    assert refused.headers["WWW-Authenticate"] == 'Basic realm="PyPubSub", charset="UTF-8"'
    assert (await server.request("PUT", "/other", {}, basic("alice"))).status == 403
    async with server.subscriber("/git", basic("alice")) as stream:
        assert (await server.request("PUT", "/private/git/deploy", {}, basic("alice"))).status == 202
        assert (await stream.event())["pubsub_path"] == "/private/git/deploy"
    async with server.subscriber("/git", basic("alice", "wrong")) as stream:
        assert stream.status == 401


async def test_secure_topics_need_every_right(start_daemon: StartDaemon) -> None:
    """Whatever the address; who has them may publish from any address."""
    acl = {
        "both": {"password": "secret", "topics": ["deploy", "release"]},
        "one": {"password": "secret", "topics": ["deploy"]},
    }
    for payloaders in (["127.0.0.1"], []):
        clients = {"secure_topics": ["deploy", "release"], "payloaders": payloaders}
        server = start_daemon({"clients": clients}, acl=acl)
        table = [
            ("/deploy", None, 401),
            ("/deploy", "one", 202),
            ("/release", "one", 403),
            ("/deploy/release", "one", 403),
            ("/a/release/deploy", "both", 202),
            ("/private/release", "both", 202),
            ("/Deploy", "one", 202 if payloaders else 403),
            ("/other", "both", 202 if payloaders else 403),
        ]
        for path, user, status in table:
            headers = basic(user) if user else {}
            assert (path, user, (await server.request("PUT", path, {}, headers)).status) == (
                path,
                user,
                status,
            )


async def test_an_idempotency_key_is_the_user_s_own(start_daemon: StartDaemon) -> None:
    """The same key of another user is another key, where credentials are needed."""
    acl = {name: {"password": "secret", "topics": ["deploy"]} for name in ("alice", "bob")}
    server = start_daemon({"clients": {"secure_topics": ["deploy"]}}, acl=acl)
    key = {"Idempotency-Key": "k"}
    cursors = [
        (await server.request("PUT", "/deploy", {"n": 1}, headers | key)).headers["X-Cursor"]
        for headers in (basic("alice"), basic("bob"), basic("alice"), basic("bob"))
    ]
    assert len(set(cursors)) == 2
    assert cursors[:2] == cursors[2:]


async def test_wrong_credentials_may_be_taken_as_none(start_daemon: StartDaemon) -> None:
    """`clients.wrong_credentials: anonymous`, as 0.7 did: the public stream, a publish by the address."""
    clients = {"wrong_credentials": "anonymous", "secure_topics": ["deploy"]}
    server = start_daemon({"clients": clients}, acl={"alice": {"password": "secret", "acl": {"s": ["git"]}}})
    for headers in (basic("alice", "wrong"), {"Authorization": "nonsense"}):
        async with server.subscriber("/git", headers) as stream:
            await server.put("/private/git", {})
            assert (await server.request("PUT", "/git", {}, headers)).status == 202
            assert (await stream.event())["pubsub_path"] == "/git"
        assert (await server.request("PUT", "/deploy", {}, headers)).status == 403


async def test_without_a_file_nobody_logs_in(start_daemon: StartDaemon) -> None:
    """Credentials are ignored; with a file that says `{}` they are all wrong."""
    async with start_daemon().subscriber("/", basic("alice")) as stream:
        assert stream.status == 200
    async with start_daemon(acl="{}").subscriber("/", basic("alice")) as stream:
        assert stream.status == 401


ALICE = {"password": "secret", "acl": {"git": ["git"], "mail": ["mail"]}}
BOB = {"password": "secret", "acl": {"git": ["git"]}}


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
async def test_a_reload_takes_effect_on_open_streams(
    start_daemon: StartDaemon, number: signal.Signals
) -> None:
    """Rights that are gone stop, new ones begin, a removed user's stream ends, all others go on."""
    server = start_daemon(acl={"alice": ALICE, "bob": BOB})
    async with (
        server.subscriber("/", basic("alice")) as alice,
        server.subscriber("/", basic("bob")) as bob,
        server.subscriber("/") as anonymous,
    ):
        await server.put("/private/git", {"n": 1})
        assert (await alice.event())["n"] == (await bob.event())["n"] == 1
        server.write_acl({"alice": {"password": "secret", "acl": {"ci": ["ci"], "mail": ["mail"]}}})
        server.signal(number)
        await server.until_logged("1 users")
        for path in ("/private/git", "/private/ci", "/private/mail", "/git"):
            await server.put(path, {})
        assert [(await alice.event())["pubsub_path"] for _ in range(3)] == [
            "/private/ci",
            "/private/mail",
            "/git",
        ]
        assert b'"n"' not in await bob.rest()
        assert (await anonymous.event())["pubsub_path"] == "/git"
    assert "subscriber 127.0.0.1 (bob) of / left" in server.logged("left after")
    async with server.subscriber("/", basic("bob")) as stream:
        assert stream.status == 401


async def test_a_changed_password_ends_what_the_old_one_opened(start_daemon: StartDaemon) -> None:
    """At once, and the old one is not remembered as right."""
    server = start_daemon({"clients": {"secure_topics": ["deploy"]}}, acl={"alice": ALICE})
    async with server.subscriber("/", basic("alice")) as stream:
        await server.reload({"alice": ALICE | {"password": "changed", "topics": ["deploy"]}})
        await stream.rest()
    assert (await server.request("PUT", "/deploy", {}, basic("alice"))).status == 401
    assert (await server.request("PUT", "/deploy", {}, basic("alice", "changed"))).status == 202


@pytest.mark.parametrize(
    "text", ["alice: {password: 5}", "alice: [", "", "[]", "alice: {password: x, acl: {s: []}}"]
)
async def test_a_file_that_cannot_be_used_changes_nothing(start_daemon: StartDaemon, text: str) -> None:
    """The old rights hold, for open streams and new ones, and the log says so."""
    server = start_daemon(acl={"alice": ALICE})
    async with server.subscriber("/", basic("alice")) as stream:
        line = await server.reload(text)
        assert "the rights are as before" in line
        await server.put("/private/git", {"n": 1})
        assert (await stream.event())["n"] == 1
        async with server.subscriber("/", basic("alice")) as another:
            assert another.status == 200
    server.acl_path.unlink()
    server.signal(signal.SIGHUP)
    assert "the rights are as before" in await server.until_logged("is missing or empty")


async def test_a_pipe_in_the_place_of_the_file_holds_up_nothing(start_daemon: StartDaemon) -> None:
    """Reading it would never end, and no reload would follow."""
    server = start_daemon(acl={"alice": ALICE})
    server.acl_path.unlink()
    os.mkfifo(server.acl_path)
    server.signal(signal.SIGHUP)
    assert "is no regular file" in await server.until_logged("cannot be read")
    await server.until_logged("not taken over")
    server.acl_path.unlink()
    assert "1 users" in await server.reload({"bob": BOB})
    assert server.stop() == 0


async def test_a_file_that_comes_later_is_taken_over(start_daemon: StartDaemon) -> None:
    """By a reload, without a restart."""
    server = start_daemon()
    assert "1 users" in await server.reload({"alice": ALICE})
    async with server.subscriber("/", basic("alice")) as stream:
        await server.put("/private/git", {"n": 1})
        assert (await stream.event())["n"] == 1


def run_pypubsub(*options: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run it to its end, with something on stdin."""
    command = [sys.executable, "pypubsub.py", *options]
    return subprocess.run(
        command, cwd=ROOT, input=given, capture_output=True, text=True, timeout=30, check=False
    )


def test_a_broken_file_stops_the_start(tmp_path: Path) -> None:
    """With the problems of both files, in one go."""
    path = acl_file(tmp_path, "alice: {password: 5}")
    config = tmp_path / "pypubsub.yaml"
    config.write_text("server: {prot: 1}")
    for options, status in (([], 2), (["--check"], 1)):
        result = run_pypubsub("--config", str(config), "--acl", str(path), *options)
        assert result.returncode == status
        assert "server.prot: unknown key" in result.stderr
        assert "alice.password: expected text" in result.stderr


def test_check_tells_of_users_without_their_passwords(tmp_path: Path) -> None:
    """How many there are, and what is to be warned of."""
    path = acl_file(tmp_path, "alice: {password: hunter2}")
    config = tmp_path / "pypubsub.yaml"
    config.write_text("clients: {payloaders: [127.0.0.1]}")
    result = run_pypubsub("--config", str(config), "--acl", str(path), "--check")
    assert result.returncode == 0
    assert "users: 1 in the ACL file" in result.stdout
    assert f"warning: {path}: alice: the password is plain text" in result.stdout
    assert "hunter2" not in result.stdout + result.stderr


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The kind of each stored password that is looked at, from now on."""
    kinds: list[str | None] = []

    def noting(stored: str, claimed: str) -> bool:
        kinds.append(cost_class(stored))
        return is_password(stored, claimed)

    monkeypatch.setattr(acl, "is_password", noting)
    return kinds


def log_in(authentication: Authentication, user: str, password: str) -> Awaitable[Login | None]:
    """Ask as a client from some address."""
    return authentication.log_in([basic(user, password)["Authorization"]], "192.0.2.1")


async def test_right_credentials_are_verified_once(tmp_path: Path, verified: list[str | None]) -> None:
    """A hundred log-ins at the same time, and a hundred more, cost one look at the hash."""
    users = read_users(acl_file(tmp_path, f"alice: {{password: '{ARGON2ID}'}}"))
    authentication = Authentication([AclFile(tmp_path / "acl.yaml", users, NoStreams())], anonymous=False)
    for _ in range(2):
        logins = await asyncio.gather(*(log_in(authentication, "alice", "secret") for _ in range(100)))
        assert {login.user for login in logins if login} == {"alice"}
    assert len(verified) == 1


async def test_a_user_who_is_not_there_costs_as_much_as_a_wrong_password(
    tmp_path: Path, verified: list[str | None]
) -> None:
    """Of any user: each kind of hash in the file is verified once, so the time tells nothing about users."""
    text = f"alice: {{password: '{ARGON2ID}'}}\nbob: {{password: '{BCRYPT}'}}\ncarol: {{password: plain}}"
    users = read_users(acl_file(tmp_path, text))
    authentication = Authentication([AclFile(tmp_path / "acl.yaml", users, NoStreams())], anonymous=False)
    for user in ("alice", "bob", "carol", "nobody", "ALICE"):
        verified.clear()
        with pytest.raises(WrongCredentials):
            await log_in(authentication, user, "wrong")
        assert sorted(kind for kind in verified if kind) == sorted(
            [cost_class(BCRYPT) or "", cost_class(ARGON2ID) or ""]
        ), user


# --hash-password


def hash_at_terminal(*typed: str) -> tuple[int, str]:
    """The exit status and what is printed, when this is typed at the questions."""
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "pypubsub.py", "--hash-password"],
        cwd=ROOT,
        stdin=other_end,
        stdout=subprocess.PIPE,
        stderr=other_end,
        start_new_session=True,
        text=True,
    )
    os.close(other_end)
    for line in typed:
        shown = b""
        while not shown.rstrip().endswith(b":"):  # the question
            shown += os.read(terminal, 1000)
        os.write(terminal, line.encode() + b"\n")
    printed, _ = process.communicate(timeout=30)
    os.close(terminal)
    return process.returncode, printed


def test_a_password_is_asked_for_twice() -> None:
    """At a terminal; only the hash goes to stdout."""
    status, printed = hash_at_terminal("sécret", "sécret")
    assert status == 0
    assert is_password(printed.strip(), "sécret")
    assert hash_at_terminal("secret", "Secret") == (1, "")


@pytest.mark.parametrize(
    ("given", "message"), [("", "a password is not empty"), ("a\0b\n", "control"), ("\n", "not empty")]
)
def test_what_is_no_password_is_not_hashed(given: str, message: str) -> None:
    """One line says why."""
    result = run_pypubsub("--hash-password", given=given)
    assert result.returncode == 1
    assert result.stdout == ""
    assert message in result.stderr


def test_a_password_may_come_from_another_program() -> None:
    """One line, which is not asked for twice."""
    result = run_pypubsub("--hash-password", given="secret\n")
    assert is_password(result.stdout.strip(), "secret")
    assert result.stderr == ""
