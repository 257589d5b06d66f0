"""Servers that hang, hang up, talk nonsense or refuse: nobody waits for good, and nothing is let slip."""

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from ldap3.utils.log import OFF, get_library_log_detail_level

import plugins.ldap.directory
import plugins.ldap.lookup
import plugins.ldap.servers
import plugins.ldap.templates
from core.auth.login import Unanswered, WrongCredentials
from core.auth.rights import NO_RIGHTS, Rights
from core.errors import Refused
from directory import (
    BIND,
    EXTENDED,
    SEARCH_DONE,
    SEARCH_REFERENCE,
    Fake,
    Peer,
    Streams,
    answer,
    credentials,
    element,
    entry,
    fake,
    ldap_config,
    message,
    running,
    segments,
)
from plugins.ldap.directory import Directory
from plugins.ldap.dn import Dn, parse_dn
from plugins.ldap.servers import KEPT, MOST_AT_A_TIME
from plugins.ldap.settings import LdapConfig
from slapd import GROUPS, PASSWORDS, Slapd
from wire import free_port

Certificate = tuple[ssl.SSLContext, str]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """For a server on 127.0.0.1, and the file of its authority."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    file = tmp_path_factory.mktemp("ca") / "pem"
    authority.cert_pem.write_to_path(str(file))
    return context, str(file)


def config_for(server: Fake, scheme: str = "ldap", timeout: float = 0.3, **changes: object) -> LdapConfig:
    """Settings with one search. scheme: ldap, ldaps, or StartTLS."""
    settings: dict[str, object] = {"membership_patterns": ["memberUid=%s"], "timeout": timeout}
    uri = server.tls_uri if scheme == "ldaps" else server.uri
    return ldap_config(uri, start_tls=scheme == "StartTLS", **(settings | changes))


async def refused(directory: Directory, user: str = "alice") -> Refused:
    """The refusal of somebody whom the directory does not answer about."""
    async with asyncio.timeout(15):  # far more than any `timeout` here; without one of those, far less
        with pytest.raises(Refused) as caught:
            await directory.log_in(credentials(user))
    assert caught.value.status == 503, caught.value
    assert caught.value.headers == {"Retry-After": "5"}
    assert caught.value.message == "the directory cannot be asked: try again in a few seconds"
    return caught.value


def check_log(caplog: pytest.LogCaptureFixture, *named: str) -> None:
    """One line, with what an operator has to know, and with nothing that a client has sent."""
    assert [record.levelname for record in caplog.records] == ["WARNING"], caplog.text
    for text in ("cannot be asked", *named):
        assert text in caplog.text
    for secret in (PASSWORDS["alice"], "alice", "p\\xe4", "p\\xc3"):
        assert secret not in caplog.text.replace("uid=alice,ou=people", "")


# Hanging


async def begin_tls(peer: Peer) -> None:
    """Say yes to StartTLS."""
    peer.send(answer(await peer.request(), EXTENDED, 0))


async def silence_after_start_tls(peer: Peer) -> None:
    """The TLS handshake is never answered."""
    await begin_tls(peer)
    await peer.silence()


async def silence_after_bind(peer: Peer) -> None:
    """The search is never answered."""
    await peer.bind()
    await peer.silence()


async def trickle(peer: Peer) -> None:
    """An answer that comes on and on, and never comes to its end."""
    request = await peer.request()
    for byte in answer(request, BIND, 0, b"x" * 100_000):
        peer.send(bytes([byte]))
        await peer.writer.drain()
        await asyncio.sleep(0.02)


async def entries_without_end(peer: Peer) -> None:
    """A search that finds more and more, slowly."""
    await peer.bind()
    request = await peer.request()
    while not peer.writer.is_closing():
        peer.send(entry(request, b"cn=x"))
        await peer.writer.drain()
        await asyncio.sleep(0.02)


HANGING: dict[str, tuple[str, Callable[[Peer], Awaitable[None]], str]] = {
    "bind": ("ldap", lambda peer: peer.silence(), "does not answer whether a password is right"),
    "TLS handshake": ("ldaps", lambda peer: peer.silence(), "cannot be reached"),
    "StartTLS": ("StartTLS", lambda peer: peer.silence(), "does not do StartTLS"),
    "TLS handshake after StartTLS": ("StartTLS", silence_after_start_tls, "does not do StartTLS"),
    "search": ("ldap", silence_after_bind, "clients.ldap.base_scope"),
    "trickling bind": ("ldap", trickle, "does not answer whether a password is right"),
    "search that goes on": ("ldap", entries_without_end, "clients.ldap.base_scope"),
}


@pytest.mark.parametrize("step", HANGING)
async def test_a_server_that_hangs_is_an_outage(caplog: pytest.LogCaptureFixture, step: str) -> None:
    """Whatever it does not answer, and if it is only the end of an answer."""
    scheme, handler, named = HANGING[step]
    async with fake(handler) as server, running(config_for(server, scheme)) as directory:
        await refused(directory)
        check_log(caplog, named, "timed out")


async def test_a_server_that_hangs_within_tls_is_an_outage(
    caplog: pytest.LogCaptureFixture, certificate: Certificate
) -> None:
    """The same times apply there."""
    context, ca_file = certificate
    async with (
        fake(lambda peer: peer.silence(), context) as server,
        running(config_for(server, "ldaps", ca_file=ca_file)) as directory,
    ):
        await refused(directory)
        check_log(caplog, "does not answer whether a password is right", "timed out")
        assert PASSWORDS["alice"].encode() in server.received


async def test_a_server_that_does_not_take_connections_is_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    """The kernel has no room for one more: it answers nothing at all."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(8):  # until it takes no more
            filling = stack.enter_context(socket.socket())
            filling.setblocking(False)
            filling.connect_ex(address)
        async with running(ldap_config(f"ldap://127.0.0.1:{address[1]}", timeout=0.3)) as directory:
            await refused(directory)
    check_log(caplog, "it cannot be reached", "timed out")


# Hanging up


async def hang_up(peer: Peer) -> None:
    """At once."""


async def hang_up_before_bind(peer: Peer) -> None:
    """When it knows the password."""
    await peer.request()


async def hang_up_within_bind(peer: Peer) -> None:
    """In the middle of the answer."""
    peer.send(answer(await peer.request(), BIND, 0)[:-3])


async def hang_up_before_search(peer: Peer) -> None:
    """After the bind."""
    await peer.bind()


async def hang_up_within_search(peer: Peer) -> None:
    """After a first group."""
    await peer.bind()
    peer.send(entry(await peer.request(), f"cn=posix,{GROUPS}".encode()))


HANGING_UP = [hang_up, hang_up_before_bind, hang_up_within_bind, hang_up_before_search, hang_up_within_search]


@pytest.mark.parametrize("handler", HANGING_UP, ids=lambda handler: handler.__name__)
async def test_a_server_that_hangs_up_is_an_outage(
    caplog: pytest.LogCaptureFixture, handler: Callable[[Peer], Awaitable[None]]
) -> None:
    """What it had found by then is not taken for all there is."""
    async with fake(handler) as server, running(config_for(server)) as directory:
        await refused(directory)
        check_log(caplog, server.uri)


@pytest.mark.parametrize("scheme", ["ldaps", "StartTLS"])
async def test_a_server_that_hangs_up_at_tls_is_an_outage(
    caplog: pytest.LogCaptureFixture, scheme: str
) -> None:
    """The same."""
    handler = begin_tls if scheme == "StartTLS" else hang_up
    async with fake(handler) as server, running(config_for(server, scheme)) as directory:
        await refused(directory)
        check_log(caplog, server.tls_uri if scheme == "ldaps" else server.uri)


async def test_nobody_at_that_port_is_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    """Nor at a host with a name that nobody has."""
    for host in (f"127.0.0.1:{free_port()}", "nobody.invalid"):
        async with running(ldap_config(f"ldap://{host}")) as directory:
            await refused(directory)
    assert "Connection refused" in caplog.text
    assert (
        "ldap://nobody.invalid cannot be asked: it cannot be reached: its host name is not known"
        in caplog.text
    )


# Nonsense

NONSENSE: dict[str, Callable[[bytes], bytes]] = {
    "text": lambda _: b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    "zeros": lambda _: bytes(1000),
    "ones": lambda _: b"\xff" * 1000,
    "an empty message": lambda _: b"\x30\x00\x30\x00",
    "no operation": lambda request: message(request, b""),
    "an empty operation": lambda request: message(request, element(BIND, b"")),
    "an unknown operation": lambda request: message(request, element(b"\x7e", b"")),
    "an unknown result": lambda request: answer(request, BIND, 111),
    "another's answer": lambda _: answer(b"\x30\x00\x02\x03\x7f\xff\xff", BIND, 0),
    "a found group": lambda request: entry(request, b"cn=x") + answer(request, BIND, 0),
    "the end of a search": lambda request: answer(request, SEARCH_DONE, 0),
    "no text": lambda request: answer(request, BIND, 0, b"\xff\xfe"),
    "a number without end": lambda _: element(b"\x30", element(b"\x02", b"\x7f" * 500_000)),
    "nested without end": lambda _: element(b"\x30", b"\x30\x80" * 5000),
    "lengths beyond the message": lambda _: element(b"\x30", b"\x02\x7f\x01\x61\x7f"),
    "what it got": lambda request: request,
}
SOUND = {"a found group", "no text"}  # strange, but a clear answer to the question


@pytest.mark.parametrize("kind", NONSENSE)
@pytest.mark.parametrize("step", ["bind", "search"])
async def test_nonsense_is_an_outage(caplog: pytest.LogCaptureFixture, step: str, kind: str) -> None:
    """It takes nobody in, whatever it looks like, and does not show up in the log."""

    async def handler(peer: Peer) -> None:
        if step == "search":
            await peer.bind()
        peer.send(NONSENSE[kind](await peer.request()))
        if step == "bind":  # go on as if it had been an answer
            peer.send(answer(await peer.request(), SEARCH_DONE, 0))
        await peer.silence()

    if step == "bind" and kind in SOUND:
        return
    if step == "search" and kind == "the end of a search":
        return
    async with fake(handler) as server, running(config_for(server)) as directory:
        await refused(directory)
        check_log(caplog, server.uri)
        if kind == "an unknown result":
            assert caplog.text.endswith("an answer that is none (KeyError)\n")  # not just: 111


async def test_a_server_cannot_have_more_asked() -> None:
    """ldap3 asks on by itself for an attribute that comes in ranges, of which there may be no end."""

    async def handler(peer: Peer) -> None:
        await peer.bind()
        ranged = element(b"\x04", b"member;range=0-1") + element(b"\x31", element(b"\x04", b"x"))
        attributes = element(b"\x30", element(b"\x30", ranged))
        while True:
            request = await peer.request()
            found = message(request, element(b"\x64", element(b"\x04", b"cn=x") + attributes))
            peer.send(found + answer(request, SEARCH_DONE, 0))

    async with fake(handler) as server, running(config_for(server, timeout=5)) as directory:
        await refused(directory)
        assert server.received.count(b"memberUid") == 1
        assert b"range" not in server.received


async def test_an_answer_is_not_taken_in_without_end(caplog: pytest.LogCaptureFixture) -> None:
    """A server may say that its answer has 2 GiB, and send them."""

    async def handler(peer: Peer) -> None:
        await peer.bind()
        await peer.request()
        peer.send(b"\x30\x84\x7f\xff\xff\xff")
        with contextlib.suppress(ConnectionError):
            while True:
                peer.send(bytes(65536))
                await peer.writer.drain()

    async with fake(handler) as server, running(config_for(server, timeout=30)) as directory:
        await refused(directory)
        check_log(caplog, "an answer of more than 1048576 bytes")


async def test_groups_with_names_that_are_no_dn_are_passed_over() -> None:
    """The others count."""

    async def handler(peer: Peer) -> None:
        await peer.bind()
        request = await peer.request()
        for dn in (b"", b"committers", b"cn=m\xfcller", b"cn=a\0b", f"cn=posix,{GROUPS}".encode()):
            peer.send(entry(request, dn))
        peer.send(answer(request, SEARCH_DONE, 0))

    acl = {f"cn=posix,{GROUPS}": ["posix"], "cn=müller": ["latin-1"]}
    async with fake(handler) as server, running(config_for(server, acl=acl)) as directory:
        assert (await directory.log_in(credentials("alice"))).rights == Rights(segments("posix"))


async def test_thousands_of_groups_are_read_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and all: nobody else waits for that."""
    groups = 4000
    threads: Counter[str] = Counter()

    def noting(text: str) -> Dn:
        threads[threading.current_thread().name.partition("_")[0]] += 1
        return parse_dn(text)

    async def handler(peer: Peer) -> None:
        await peer.bind()
        search = await peer.request()
        for n in range(groups):
            peer.send(entry(search, f"cn=group {n},{GROUPS}".encode()))
        peer.send(answer(search, SEARCH_DONE, 0))
        await peer.silence()

    acl = {f"cn=Group  {n},{GROUPS}": [f"topic {n}"] for n in range(0, groups, 1000)}
    async with (
        fake(handler) as server,
        running(config_for(server, timeout=30, acl=acl)) as directory,
    ):
        for module in (plugins.ldap.directory, plugins.ldap.lookup, plugins.ldap.templates):
            monkeypatch.setattr(module, "parse_dn", noting)
        login = await directory.log_in(credentials("alice"))
    assert login.rights == Rights(segments("topic 0", "topic 1000", "topic 2000", "topic 3000"))
    assert threads == {"ldap": groups, "MainThread": 1}  # of its own name


# Refusing

WRONG = [49, 32, 34, 48, 53, 19]
TROUBLE = [1, 2, 7, 8, 10, 11, 13, 50, 51, 52, 80]


@pytest.mark.parametrize("code", WRONG + TROUBLE)
async def test_only_some_results_of_a_bind_mean_wrong_credentials(
    caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """With all others nobody knows whether the password is right. The server's own words are not logged."""

    async def handler(peer: Peer) -> None:
        request = await peer.request()
        peer.send(answer(request, BIND, code, f"no {PASSWORDS['alice']} for alice".encode()))
        await peer.silence()

    async with fake(handler) as server, running(config_for(server)) as directory:
        if code in WRONG:
            with pytest.raises(WrongCredentials):
                await directory.log_in(credentials("alice"))
            assert not caplog.records
        else:
            await refused(directory)
            check_log(caplog, f"({code})")


@pytest.mark.parametrize("code", [1, 3, 4, 11, 32, 50, 51, 80])
async def test_a_search_that_fails_takes_no_rights_away(caplog: pytest.LogCaptureFixture, code: int) -> None:
    """Not even if it has found something by then; the log names the base and the pattern."""

    async def handler(peer: Peer) -> None:
        await peer.bind()
        request = await peer.request()
        peer.send(entry(request, f"cn=posix,{GROUPS}".encode()) + answer(request, SEARCH_DONE, code))
        await peer.silence()

    async with fake(handler) as server, running(config_for(server)) as directory:
        await refused(directory)
        check_log(caplog, "clients.ldap.base_scope 'dc=example,dc=org'", "'memberUid=%s'")


async def test_a_refused_start_tls_is_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    """And no reason to go on without: the password stays here."""

    async def handler(peer: Peer) -> None:
        peer.send(answer(await peer.request(), EXTENDED, 2))
        await peer.silence()

    async with fake(handler) as server, running(config_for(server, "StartTLS")) as directory:
        await refused(directory)
        check_log(caplog, "clients.ldap.start_tls")
        assert b"1.3.6.1.4.1.1466.20037" in server.received
        assert PASSWORDS["alice"].encode() not in server.received


@pytest.mark.parametrize("scheme", ["ldaps", "StartTLS"])
@pytest.mark.parametrize("wrong", ["name", "authority", "nothing"])
async def test_no_password_is_sent_to_a_server_with_a_wrong_certificate(
    certificate: Certificate, scheme: str, wrong: str
) -> None:
    """Which would get it, if it were right."""
    _, ca_file = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = trustme.CA()
    authority.issue_cert("localhost" if wrong == "name" else "127.0.0.1").configure_cert(context)
    own_ca_file = Path(ca_file).with_name(f"{scheme}-{wrong}")
    authority.cert_pem.write_to_path(str(own_ca_file))

    async def handler(peer: Peer) -> None:
        if scheme == "StartTLS":
            await begin_tls(peer)
            await peer.writer.start_tls(context)
        await peer.bind()
        await peer.silence()

    async with fake(handler, context if scheme == "ldaps" else None) as server:
        trusted = ca_file if wrong == "authority" else str(own_ca_file)
        async with running(config_for(server, scheme, ca_file=trusted)) as directory:
            await refused(directory)
        assert (PASSWORDS["alice"].encode() in server.received) == (wrong == "nothing")


@pytest.mark.parametrize("step", ["bind", "search", "found"])
async def test_referrals_are_not_followed(certificate: Certificate, step: str) -> None:
    """They may point anywhere, and whoever is there would be sent the password, if it likes without TLS."""
    context, ca_file = certificate
    async with fake(lambda peer: peer.silence()) as elsewhere:
        place = element(b"\x04", f"{elsewhere.uri}/dc=example".encode())

        async def handler(peer: Peer) -> None:
            if step == "bind":
                peer.send(answer(await peer.request(), BIND, 10, rest=element(b"\xa3", place)))
                await peer.silence()
            await peer.bind()
            request = await peer.request()
            if step == "search":
                peer.send(answer(request, SEARCH_DONE, 10, rest=element(b"\xa3", place)))
            else:
                reference = message(request, element(SEARCH_REFERENCE, place))
                peer.send(reference + answer(request, SEARCH_DONE, 0))
            await peer.silence()

        async with (
            fake(handler, context) as server,
            running(config_for(server, "ldaps", timeout=2, ca_file=ca_file)) as directory,
        ):
            if step == "found":
                assert (await directory.log_in(credentials("alice"))).rights == NO_RIGHTS
            else:
                await refused(directory)
        assert elsewhere.connections == 0


# Several servers


@pytest.fixture
async def slapd(tmp_path: Path) -> AsyncIterator[Slapd]:
    """A directory that works."""
    slapd = Slapd(tmp_path / "slapd")
    slapd.start()
    yield slapd
    slapd.close()


async def test_the_next_server_is_asked_if_one_cannot_be(
    slapd: Slapd, caplog: pytest.LogCaptureFixture
) -> None:
    """The one that has answered is asked first from then on: a dead one does not cost each login time."""
    async with fake(lambda peer: peer.silence()) as dead:
        config = ldap_config(f"ldap://127.0.0.1:{free_port()}", dead.uri, slapd.uri, timeout=0.5)
        async with running(config) as directory:
            for user in ("alice", "bob", "carol"):
                await directory.log_in(credentials(user))
            assert dead.connections == 1
            slapd.stop()
            await refused(directory)
            slapd.start()
            await directory.reload()
            await directory.log_in(credentials("alice"))
            assert dead.connections > 1, "a reload begins with the first one again"
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3, "each server once"


async def test_the_server_that_answered_last_is_asked_first(slapd: Slapd) -> None:
    """Also when the other one has been left alone for long enough."""
    async with fake(lambda peer: peer.silence()) as dead:
        async with running(ldap_config(dead.uri, slapd.uri, timeout=0.2)) as directory:
            await directory.log_in(credentials("alice"))
            until = time.monotonic() + 0.6
            while time.monotonic() < until:
                await directory.log_in(credentials("alice"))
        assert dead.connections == 1


async def test_no_connection_is_left_open() -> None:
    """Whatever came out."""

    async def handler(peer: Peer) -> None:
        request = await peer.request()
        if b"alice" in request:
            peer.send(answer(request, BIND, 0))
            peer.send(answer(await peer.request(), SEARCH_DONE, 0))
        else:
            peer.send(answer(request, BIND, 49))
        await peer.silence()

    async with fake(handler) as server, running(config_for(server, timeout=30)) as directory:
        await directory.log_in(credentials("alice"))
        with pytest.raises(WrongCredentials):
            await directory.log_in(credentials("bob"))
        await server.until_closed()


async def test_a_wrong_password_is_not_tried_at_the_next_server(slapd: Slapd) -> None:
    """An answer is an answer."""
    async with fake(lambda peer: peer.silence()) as second:
        async with running(ldap_config(slapd.uri, second.uri)) as directory:
            with pytest.raises(WrongCredentials):
                await directory.log_in(credentials("alice", "wrong"))
        assert second.connections == 0


async def test_nobody_waits_for_servers_that_did_not_answer_a_moment_ago() -> None:
    """One of them finds out; those who come next, or wait meanwhile, are told at once."""
    async with (
        fake(lambda peer: peer.silence()) as server,
        running(config_for(server, timeout=1)) as directory,
    ):
        await asyncio.gather(*(refused(directory) for _ in range(20)))
        await refused(directory)
        assert server.connections == MOST_AT_A_TIME


async def test_nobody_waits_for_a_turn_to_ask_such_a_server() -> None:
    """While others still do."""
    async with (
        fake(lambda peer: peer.silence()) as server,
        running(config_for(server, timeout=2)) as directory,
    ):
        first = asyncio.create_task(refused(directory))
        await asyncio.wait([first], timeout=1)
        others = [asyncio.create_task(refused(directory)) for _ in range(MOST_AT_A_TIME - 1 + 10)]
        await first
        await refused(directory)
        assert not all(task.done() for task in others)
        await asyncio.gather(*others)


async def test_a_server_is_tried_again_by_and_by() -> None:
    """By itself."""
    silent = True

    async def handler(peer: Peer) -> None:
        if silent:
            await peer.silence()
        await peer.bind()
        peer.send(answer(await peer.request(), SEARCH_DONE, 0))
        await peer.silence()

    async with fake(handler) as server, running(config_for(server)) as directory:
        await refused(directory)
        silent = False
        async with asyncio.timeout(10):
            while True:
                try:
                    await directory.log_in(credentials("alice"))
                    break
                except Refused as refusal:
                    assert refusal.status == 503  # noqa: PT017
                    await asyncio.sleep(0.05)


async def test_one_users_trouble_is_not_everybodys() -> None:
    """A server that answers, if only that it cannot tell, is asked again at once."""

    async def handler(peer: Peer) -> None:
        request = await peer.request()
        if b"alice" in request:
            peer.send(answer(request, BIND, 80))
        else:
            peer.send(answer(request, BIND, 0))
            peer.send(answer(await peer.request(), SEARCH_DONE, 0))
        await peer.silence()

    async with fake(handler) as server, running(config_for(server, timeout=30)) as directory:
        await refused(directory, "alice")
        assert (await directory.log_in(credentials("carol"))).rights == NO_RIGHTS


async def test_a_server_that_comes_and_goes_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has an account that it cannot tell of could bring that about at will."""
    caplog.set_level("INFO")

    async def handler(peer: Peer) -> None:
        request = await peer.request()
        peer.send(answer(request, BIND, 80 if b"alice" in request else 49))
        await peer.silence()

    async with fake(handler) as server, running(config_for(server)) as directory:
        for _ in range(5):
            await refused(directory, "alice")
            with pytest.raises(WrongCredentials):
                await directory.log_in(credentials("bob"))
    assert len([record for record in caplog.records if record.name == "pypubsub.ldap"]) == 2


# Many at a time, and the end


async def test_nobody_waits_too_long_for_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has waited in vain is told that there are too many. The directory is not said to be out."""
    monkeypatch.setattr(plugins.ldap.servers, "PATIENCE", 0.3)
    async with (
        fake(lambda peer: peer.silence()) as server,
        running(config_for(server, timeout=30)) as directory,
    ):
        asking = [asyncio.create_task(directory.log_in(credentials("alice"))) for _ in range(MOST_AT_A_TIME)]
        await server.until_connections(MOST_AT_A_TIME)
        for _ in range(3):
            with pytest.raises(Unanswered, match="too many log-ins at a time") as caught:
                await directory.log_in(credentials("bob"))
            assert caught.value.asked
        (line,) = caplog.messages
        assert line == "log-ins wait too long: the directory is asked by so many that 0.3 s are not enough"
        for task in asking:
            task.cancel()


async def test_who_is_known_has_a_turn_that_no_guess_can_take() -> None:
    """Although the server hangs for as many of those as may be asked about at a time."""

    async def handler(peer: Peer) -> None:
        request = await peer.request()
        if b"alice" in request:
            await peer.silence()
        peer.send(answer(request, BIND, 0))
        peer.send(answer(await peer.request(), SEARCH_DONE, 0))
        await peer.silence()

    async with fake(handler) as server, running(config_for(server, timeout=30)) as directory:
        asking = [asyncio.create_task(directory.log_in(credentials("alice"))) for _ in range(20)]
        await server.until_connections(MOST_AT_A_TIME)
        for _ in range(KEPT + 2):
            await directory.log_in(replace(credentials("bob"), recognised=True))
        assert server.connections == MOST_AT_A_TIME + KEPT + 2
        for task in asking:
            task.cancel()


async def test_a_burst_of_log_ins_is_served() -> None:
    """However many wait: what is bounded is the time."""

    async def handler(peer: Peer) -> None:
        await peer.bind()
        peer.send(answer(await peer.request(), SEARCH_DONE, 0))
        await peer.silence()

    async with fake(handler) as server, running(config_for(server, timeout=30)) as directory:
        logins = await asyncio.gather(
            *(directory.log_in(credentials(f"user{n}", "secret")) for n in range(150))
        )
        assert {login.rights for login in logins} == {NO_RIGHTS}


async def test_only_a_failure_of_the_directory_counts_towards_grace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And not that it was busy before: its first failure does not end a stream."""
    now = 1000.0
    code = 0

    async def handler(peer: Peer) -> None:
        peer.send(answer(await peer.request(), BIND, code))
        if code == 0:
            peer.send(answer(await peer.request(), SEARCH_DONE, 0))
        await peer.silence()

    streams = Streams()
    async with fake(handler) as server:
        directory = Directory(config_for(server, grace=600, refresh=60), streams, lambda: now)
        login = await directory.log_in(credentials("alice"))
        streams.open.append(login)
        now += 10_000  # in which nobody could be asked
        code = 80
        for passed in (0, 599):
            now += passed
            await directory._ask_again(0.0)
            assert directory.rights_by_now(login) == NO_RIGHTS
        now += 1
        await directory._ask_again(0.0)
        assert directory.rights_by_now(login) is None
        assert "the directory has not answered for 600 s" in caplog.text
        await directory.stop()


async def test_clients_that_go_leave_the_threads_to_nobody_else() -> None:
    """Before their questions are answered, or not; and what is learnt of the server by then counts."""
    async with (
        fake(lambda peer: peer.silence()) as server,
        running(config_for(server, timeout=2)) as directory,
    ):
        asking = [asyncio.create_task(directory.log_in(credentials("alice"))) for _ in range(MOST_AT_A_TIME)]
        await server.until_connections(MOST_AT_A_TIME)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await refused(directory)
        assert server.connections == MOST_AT_A_TIME


async def test_a_user_for_whom_a_server_hangs_is_not_everybodys_trouble() -> None:
    """As long as it answers others meanwhile."""

    async def handler(peer: Peer) -> None:
        request = await peer.request()
        if b"alice" not in request:
            peer.send(answer(request, BIND, 49))
        await peer.silence()

    async with fake(handler) as server, running(config_for(server, timeout=1)) as directory:
        hanging = asyncio.create_task(refused(directory, "alice"))
        await server.until_connections(1)
        with pytest.raises(WrongCredentials):
            await directory.log_in(credentials("bob"))
        await hanging
        with pytest.raises(WrongCredentials):
            await directory.log_in(credentials("bob"))


async def test_a_stop_does_not_wait_for_a_server_that_hangs() -> None:
    """Whoever waits is told; the thread ends by itself, and asks nothing more."""
    asked, proceed = asyncio.Event(), asyncio.Event()

    async def handler(peer: Peer) -> None:
        request = await peer.request()
        asked.set()
        await proceed.wait()
        peer.send(answer(request, BIND, 0))
        await peer.silence()

    async with fake(handler) as server:
        directory = Directory(config_for(server, timeout=50), Streams())
        asking = asyncio.create_task(refused(directory))
        await asked.wait()
        await directory.stop()
        await asking
        await refused(directory)
        proceed.set()
        await server.until_closed()
        assert server.connections == 1
        assert b"memberUid" not in server.received
    for thread in threading.enumerate():
        if thread.name.startswith("ldap"):
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()


async def test_open_streams_survive_whatever_a_server_does() -> None:
    """They keep their rights, and the round of asking goes on."""
    kinds = iter(NONSENSE.values())

    async def handler(peer: Peer) -> None:
        nonsense = next(kinds, None)
        if peer.number == 1 or nonsense is None:
            await peer.bind()
            request = await peer.request()
            found = b"" if peer.number == 1 else entry(request, f"cn=posix,{GROUPS}".encode())
            peer.send(found + answer(request, SEARCH_DONE, 0))
        else:
            await peer.bind()
            peer.send(nonsense(await peer.request()))
        await peer.silence()

    streams = Streams()
    async with (
        fake(handler) as server,
        running(config_for(server, timeout=0.2, refresh=0.05), streams) as directory,
    ):
        login = await directory.log_in(credentials("carol"))
        streams.open.append(login)
        await streams.until(login, lambda rights: rights == Rights(segments("posix")))


def test_ldap3_logs_nothing() -> None:
    """Its log would hold names, at least."""
    level: Callable[[], int] = get_library_log_detail_level
    assert level() == OFF
