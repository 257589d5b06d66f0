"""Users of a directory: who may log in, with which rights, and what becomes of their open streams."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import pytest
import trustme

from core.auth.login import Credentials, Login, WrongCredentials
from core.auth.rights import NO_RIGHTS, Rights
from core.errors import Refused
from directory import Streams, credentials, fake, ldap_config, running, segments
from plugins.ldap.directory import Directory, Proof, Standing
from plugins.ldap.lookup import Question, ask
from plugins.ldap.settings import LdapConfig
from slapd import PASSWORDS, PEOPLE, Slapd, dn_of


@pytest.fixture(scope="module")
def shared_slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    """For tests that neither change nor stop it."""
    slapd = Slapd(tmp_path_factory.mktemp("slapd"))
    slapd.start()
    yield slapd
    slapd.close()


@pytest.fixture
async def directory(shared_slapd: Slapd) -> AsyncIterator[Directory]:
    """The provider of its users."""
    async with running(ldap_config(shared_slapd.uri)) as directory:
        yield directory


# Logging in


@pytest.mark.parametrize(
    ("user", "rights"),
    [
        ("alice", Rights(segments("commits", "posix"))),
        ("bob", Rights(segments("board", "posix", "bob"), frozenset(["votes"]))),
        ("müller", Rights(segments("commits"))),
        ("o'brien, jr+x", Rights(segments("commits"))),
        ("carol", NO_RIGHTS),
    ],
)
async def test_a_user_has_the_rights_of_all_its_groups(
    directory: Directory, user: str, rights: Rights
) -> None:
    """And those of its own dn; somebody without any may log in all the same."""
    login = await directory.log_in(credentials(user))
    assert (login.name, login.rights) == (f"ldap {user}", rights)
    assert directory.rights_by_now(login) == rights


@pytest.mark.parametrize("user", ["alice", "Alice", "nobody", "o'brien", "alice,ou=people"])
async def test_a_wrong_password_is_refused(directory: Directory, user: str) -> None:
    """As is a user that there is not: nobody can tell them apart."""
    with pytest.raises(WrongCredentials, match=r"^wrong user or password$"):
        await directory.log_in(credentials(user, "bob's"))


async def test_spellings_of_a_name_are_one_user(directory: Directory) -> None:
    """To the server. But each is asked about by itself: filters may compare with case, as for memberUid."""
    rights = {"alice": Rights(segments("commits", "posix")), "ALICE": Rights(segments("commits"))}
    logins = {user: await directory.log_in(credentials(user, PASSWORDS["alice"])) for user in rights}
    assert {login.name for login in logins.values()} == {"ldap alice"}
    assert directory.recall(credentials("aLiCe", PASSWORDS["alice"])) is None
    for user, login in logins.items():
        recalled = directory.recall(credentials(user, PASSWORDS["alice"]))
        assert recalled is not None
        assert recalled.rights == directory.rights_by_now(login) == rights[user]


async def test_an_empty_password_is_refused_although_the_directory_takes_it(
    directory: Directory, shared_slapd: Slapd
) -> None:
    """To slapd a bind without a password is one as nobody, and succeeds."""
    assert shared_slapd.whoami(dn_of("alice"), "").strip() == "anonymous"
    with pytest.raises(WrongCredentials):
        await directory.log_in(credentials("alice", ""))
    with pytest.raises(WrongCredentials):
        ask(shared_slapd.uri, ldap_config(shared_slapd.uri), Question(dn_of("alice"), "", ()), lambda: False)


MALFORMED = [
    ("alice", ""),
    ("", "bob's"),
    (" alice", "bob's"),
    ("alice ", "bob's"),
    ("alice\N{NO-BREAK SPACE}", "bob's"),
    ("al\0ice", "bob's"),
    ("alice\n", "bob's"),
    ("al\N{ZERO WIDTH SPACE}ice", "bob's"),
    ("a" * 257, "bob's"),
    ("alice", "al\0ice"),
]


@pytest.mark.parametrize(("user", "password"), MALFORMED)
async def test_nobody_is_asked_about_malformed_credentials(user: str, password: str) -> None:
    """They never reach a directory, which might make something else of them."""
    async with fake(lambda peer: peer.silence()) as server, running(ldap_config(server.uri)) as directory:
        with pytest.raises(WrongCredentials):
            await directory.log_in(credentials(user, password))
        assert server.connections == 0


STRANGE = [
    "*",
    "*)(uid=*",
    "*)(objectClass=*",
    "alice)(|(uid=*",
    "alice))(|(memberUid=*",
    "alice,ou=admins",
    f"alice,{PEOPLE}",
    "alice\\",
    "alice\\,",
    "alice\\2cou=people",
    "alice\\00",
    "\\2a",
    "#616c696365",
    "alice+cn=bob",
    "uid=alice",
    '"alice"',
    "alice;bob",
    "<alice>",
    "%s",
    "&(uid=alice)",
    "!alice",
    "аlice",  # noqa: RUF001 (a Cyrillic letter)
]
LONGEST = "a" * 256  # too long for an entry in slapd
LOOK_ALIKES = ["ａｌｉｃｅ", "al\N{LATIN SMALL LIGATURE FI}ce"]  # noqa: RUF001 (fullwidth letters)


@pytest.mark.parametrize("user", [*STRANGE, *LOOK_ALIKES, LONGEST])
async def test_no_name_is_taken_for_another(directory: Directory, user: str) -> None:
    """With the password of a user whom it resembles, or that the filter would find."""
    for password in PASSWORDS.values():
        if user in LOOK_ALIKES and password == PASSWORDS["alice"]:
            continue  # slapd takes some of these as alice, who then she is
        with pytest.raises(WrongCredentials):
            await directory.log_in(credentials(user, password))


async def test_whoever_has_a_strange_name_has_nobody_elses_rights(slapd: Slapd) -> None:
    """Where users may choose their names themselves. All of them can log in."""
    async with running(ldap_config(slapd.uri)) as directory:
        for user in STRANGE:
            slapd.add(user, "mallory's")
            assert (await directory.log_in(credentials(user, "mallory's"))).rights == NO_RIGHTS, user
            slapd.join("committers", user)
            rights = (await directory.log_in(credentials(user, "mallory's"))).rights
            assert rights == Rights(segments("commits")), user


async def test_a_base_that_is_not_there_does_not_take_rights_away(
    shared_slapd: Slapd, caplog: pytest.LogCaptureFixture
) -> None:
    """It is an outage, and the log names the setting."""
    base_scope = "ou=nowhere,dc=example,dc=org"
    async with running(ldap_config(shared_slapd.uri, base_scope=base_scope)) as directory:
        with pytest.raises(Refused, match="cannot be asked"):
            await directory.log_in(credentials("alice"))
    assert f"clients.ldap.base_scope '{base_scope}'" in caplog.text


# TLS


class Certificates:
    """For a directory on 127.0.0.1, and the files of its authority and of another."""

    def __init__(self, path: Path) -> None:
        self._authority = trustme.CA()
        self.right = self._authority.issue_cert("127.0.0.1")
        self.for_another_name = self._authority.issue_cert("ldap.example.org")
        self.of_another_authority = trustme.CA().issue_cert("127.0.0.1")
        self.pem = self._authority.cert_pem.bytes()
        self.file = str(path / "ca")
        (path / "ca").write_bytes(self.pem)


@pytest.fixture(params=["ldaps", "StartTLS"])
def tls(request: pytest.FixtureRequest) -> str:
    """The two ways to TLS."""
    return cast(str, request.param)


def tls_config(slapd: Slapd, tls: str, **changes: object) -> LdapConfig:
    """Settings for one of the two."""
    uri = slapd.tls_uri if tls == "ldaps" else slapd.uri
    return ldap_config(uri, start_tls=tls == "StartTLS", **changes)


@pytest.fixture
def start_slapd(tmp_path: Path) -> Iterator[list[Slapd]]:
    """Those put into it are ended."""
    started: list[Slapd] = []
    yield started
    for slapd in started:
        slapd.close()


def tls_slapd(start_slapd: list[Slapd], tmp_path: Path, certificate: trustme.LeafCert) -> Slapd:
    """A directory that takes passwords over TLS only."""
    slapd = Slapd(tmp_path / "slapd", certificate=certificate, extra="security simple_bind=128")
    start_slapd.append(slapd)
    slapd.start()
    return slapd


async def test_passwords_go_over_tls(tls: str, start_slapd: list[Slapd], tmp_path: Path) -> None:
    """To a directory that takes them no other way."""
    certificates = Certificates(tmp_path)
    slapd = tls_slapd(start_slapd, tmp_path, certificates.right)
    async with running(tls_config(slapd, tls, ca_file=certificates.file)) as directory:
        login = await directory.log_in(credentials("alice"))
        assert login.rights == Rights(segments("commits", "posix"))
    async with running(ldap_config(slapd.uri)) as directory:
        with pytest.raises(Refused, match="cannot be asked"):
            await directory.log_in(credentials("alice"))


@pytest.mark.parametrize("certificate", ["for_another_name", "of_another_authority", "of_no_authority"])
async def test_a_directory_with_a_wrong_certificate_is_not_trusted(
    tls: str, start_slapd: list[Slapd], tmp_path: Path, caplog: pytest.LogCaptureFixture, certificate: str
) -> None:
    """Not with one for another host, and not with another authority's; unless `verify` is off."""
    certificates = Certificates(tmp_path)
    no_authority = certificate == "of_no_authority"
    slapd = tls_slapd(
        start_slapd, tmp_path, certificates.right if no_authority else getattr(certificates, certificate)
    )
    ca_file = None if no_authority else certificates.file  # None: those of the system
    async with running(tls_config(slapd, tls, ca_file=ca_file)) as directory:
        with pytest.raises(Refused, match="cannot be asked"):
            await directory.log_in(credentials("alice"))
    assert "certificate verify failed" in caplog.text
    async with running(tls_config(slapd, tls, verify=False)) as directory:
        await directory.log_in(credentials("alice"))


async def test_a_new_ca_file_is_used_at_once(
    tls: str, start_slapd: list[Slapd], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a restart; as long as it cannot be read, the directory is not asked, and the log says why."""
    certificates = Certificates(tmp_path)
    slapd = tls_slapd(start_slapd, tmp_path, certificates.right)
    file = tmp_path / "new"
    async with running(tls_config(slapd, tls, ca_file=str(file), timeout=0.5)) as directory:
        with pytest.raises(Refused, match="cannot be asked"):
            await directory.log_in(credentials("alice"))
        assert f"clients.ldap.ca_file: {file}" in caplog.text
        file.write_bytes(certificates.pem)
        await directory.reload()
        await directory.log_in(credentials("alice"))


# What is remembered


async def test_an_answer_is_remembered_for_refresh(slapd: Slapd) -> None:
    """For exactly that user and password, and then no longer."""
    config = ldap_config(slapd.uri, refresh=1000)
    async with running(config) as directory:
        assert directory.recall(credentials("alice")) is None
        login = await directory.log_in(credentials("alice"))
        with pytest.raises(WrongCredentials):
            await directory.log_in(credentials("bob", "wrong"))
        slapd.stop()
        recalled = directory.recall(credentials("alice"))
        assert recalled is not None
        assert (recalled.name, recalled.rights) == (login.name, login.rights)
        for user, password in (
            ("alice", "wrong"),
            ("bob", "wrong"),
            ("bob", PASSWORDS["alice"]),
            ("alice", ""),
        ):
            assert directory.recall(credentials(user, password)) is None
        slapd.start()
        await directory.reload()
        assert directory.recall(credentials("alice")) is None


async def test_an_answer_is_forgotten_after_refresh(shared_slapd: Slapd) -> None:
    """The directory is asked again, as somebody may have changed something."""
    now = 1000.0
    directory = Directory(ldap_config(shared_slapd.uri, refresh=60), Streams(), lambda: now)
    await directory.log_in(credentials("alice"))
    now += 60
    assert directory.recall(credentials("alice"))
    now += 0.1
    assert directory.recall(credentials("alice")) is None
    await directory.stop()


async def test_a_password_that_is_refused_by_now_is_forgotten(slapd: Slapd) -> None:
    """At once, where the directory was asked for another reason."""
    async with running(ldap_config(slapd.uri, refresh=1000)) as directory:
        await directory.log_in(credentials("alice"))
        slapd.set_password("alice", "new")
        with pytest.raises(WrongCredentials):
            await directory.log_in(credentials("alice"))
        assert directory.recall(credentials("alice")) is None
        await directory.log_in(credentials("alice", "new"))


async def test_not_more_than_so_many_answers_are_remembered(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was given longest ago is forgotten first."""
    monkeypatch.setattr(directory._standings, "_limit", 2)
    for user in ("alice", "bob", "alice", "carol"):
        await directory.log_in(credentials(user))
    assert directory.recall(credentials("alice"))
    assert directory.recall(credentials("carol"))
    assert directory.recall(credentials("bob")) is None


# Open streams


async def opened(directory: Directory, streams: Streams, user: str) -> Login:
    """A stream of a user."""
    login = await directory.log_in(credentials(user))
    streams.open.append(login)
    return login


async def test_a_changed_group_takes_effect_on_open_streams(slapd: Slapd) -> None:
    """Both ways, without anybody logging in again; on a stream opened with a remembered answer as well."""
    streams = Streams()
    async with running(ldap_config(slapd.uri, refresh=0.5), streams) as directory:
        await directory.log_in(credentials("carol"))
        carol = directory.recall(credentials("carol"))
        assert carol is not None
        streams.open.append(carol)
        alice = await opened(directory, streams, "alice")
        slapd.join("committers", "carol")
        await streams.until(carol, lambda rights: rights == Rights(segments("commits")))
        slapd.leave("committers", "carol")
        await streams.until(carol, lambda rights: rights == NO_RIGHTS)
        assert directory.rights_by_now(alice) == alice.rights


async def test_a_password_that_is_refused_by_now_ends_streams(slapd: Slapd) -> None:
    """As of a user who has left."""
    streams = Streams()
    async with running(ldap_config(slapd.uri, refresh=0.5), streams) as directory:
        alice = await opened(directory, streams, "alice")
        bob = await opened(directory, streams, "bob")
        slapd.set_password("alice", "new")
        await streams.until(alice, lambda rights: rights is None)
        assert directory.rights_by_now(bob) == bob.rights


async def test_a_login_tells_open_streams_what_it_has_found(slapd: Slapd) -> None:
    """Long before they are due."""
    streams = Streams()
    async with running(ldap_config(slapd.uri, refresh=1000), streams) as directory:
        carol = await opened(directory, streams, "carol")
        alice = await opened(directory, streams, "alice")
        slapd.join("committers", "carol")
        await directory.log_in(credentials("carol"))
        await streams.until(carol, lambda rights: rights == Rights(segments("commits")))
        slapd.set_password("alice", "new")
        with pytest.raises(WrongCredentials):
            await directory.log_in(credentials("alice"))
        await streams.until(alice, lambda rights: rights is None)


async def test_a_reload_asks_again_at_once(slapd: Slapd) -> None:
    """For all open streams."""
    streams = Streams()
    async with running(ldap_config(slapd.uri, refresh=1000), streams) as directory:
        carol = await opened(directory, streams, "carol")
        slapd.join("committers", "carol")
        await directory.reload()
        await streams.until(carol, lambda rights: rights == Rights(segments("commits")))


async def test_nothing_new_disturbs_nobody(slapd: Slapd) -> None:
    """Where all is as it was, the server is not told to look at all streams."""
    streams = Streams()
    async with running(ldap_config(slapd.uri, refresh=0.1), streams) as directory:
        alice = await opened(directory, streams, "alice")
        carol = await opened(directory, streams, "carol")
        slapd.join("committers", "carol")
        await streams.until(carol, lambda rights: rights == Rights(segments("commits")))
        slapd.join("board  members", "carol")
        await streams.until(carol, lambda rights: rights != Rights(segments("commits")))
        assert streams.told == 2, "once for each of the two changes"
        assert directory.rights_by_now(alice) == alice.rights


@pytest.mark.parametrize("how", ["stopped", "killed", "paused"])
async def test_open_streams_outlive_an_outage(
    slapd: Slapd, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """They keep their rights meanwhile; those who come get 503; afterwards changes take effect again."""
    caplog.set_level(logging.INFO)
    streams = Streams()
    async with running(ldap_config(slapd.uri, refresh=0.2, timeout=0.3), streams) as directory:
        carol = await opened(directory, streams, "carol")
        if how == "paused":
            slapd.pause()
        else:
            slapd.stop(signal.SIGKILL if how == "killed" else signal.SIGTERM)
        with pytest.raises(Refused) as caught:
            await directory.log_in(credentials("alice"))
        assert caught.value.status == 503
        assert caught.value.headers["Retry-After"]
        assert directory.rights_by_now(carol) == NO_RIGHTS
        if how == "paused":
            slapd.resume()
        else:
            slapd.start()
        slapd.join("committers", "carol")
        await streams.until(carol, lambda rights: rights == Rights(segments("commits")))
    lines = [line.getMessage() for line in caplog.records if line.name == "pypubsub.ldap"]
    assert len(lines) == 2, "once when it goes down, once when it is back"
    assert lines[0].startswith(f"the directory's server {slapd.uri} cannot be asked: ")
    assert lines[1] == f"the directory's server {slapd.uri} answers again"


async def test_streams_end_when_an_outage_lasts(slapd: Slapd, caplog: pytest.LogCaptureFixture) -> None:
    """For `grace`; the log says why they end."""
    streams = Streams()
    config = ldap_config(slapd.uri, refresh=0.1, timeout=0.2, grace=0.5)
    async with running(config, streams) as directory:
        carol = await opened(directory, streams, "carol")
        alice = await opened(directory, streams, "alice")
        slapd.stop()
        await streams.until(carol, lambda rights: rights is None)
        await streams.until(alice, lambda rights: rights is None) if directory.rights_by_now(alice) else None
    assert "the directory has not answered for 0.5 s (clients.ldap.grace)" in caplog.text


async def test_an_error_of_our_own_is_not_passed_over() -> None:
    """It ends run(), and with it the server."""

    class Broken(Streams):
        def logins(self) -> Iterator[Login]:
            raise RuntimeError("an error of our own")

    directory = Directory(ldap_config("ldap://127.0.0.1:1", refresh=0.01), Broken())
    with pytest.raises(RuntimeError, match="an error of our own"):
        await asyncio.wait_for(directory.run(), 10)
    await directory.stop()


async def test_an_error_of_our_own_in_a_lookup_is_not_passed_over() -> None:
    """The same."""
    streams = Streams()
    directory = Directory(ldap_config("ldap://127.0.0.1:1", refresh=0.01), streams)
    proof = Proof(cast(Credentials, None), Standing(NO_RIGHTS, 0))  # as none can be
    streams.open.append(Login(directory, "alice", NO_RIGHTS, proof))
    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(directory.run(), 10)
    assert isinstance(caught.value.exceptions[0], AttributeError)
    await directory.stop()
