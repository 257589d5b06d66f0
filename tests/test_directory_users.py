"""Users of a directory, at the running server: what they see and say, and what an outage means to whom."""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from attack import authorization, request, send
from daemon import Daemon, StartDaemon, basic
from directory import BIND, SEARCH_DONE, Peer, answer, entry, fake
from slapd import GROUPS, PASSWORDS, PEOPLE, SUFFIX, Slapd
from wire import TIMEOUT
from wire import credentials as written

ACL = {
    f"cn=committers,{GROUPS}": ["commits"],
    "CN = board members , OU=Groups,dc=example,dc=org": {"acl": {"minutes": ["board"]}, "topics": ["votes"]},
    f"uid=Bob,{PEOPLE}": {"own": ["bob"], "more": ["commits", "core"]},
}
IN_THE_FILE = {"alice-bot": {"password": "secret", "acl": {"s": ["commits"]}}}

KNOWN = (202, 403)  # credentials are right, whether or not they give a right to secure topics


def settings(uri: str, **changes: Any) -> dict[str, Any]:
    """Those of a server that asks this directory."""
    ldap = {
        "uri": uri,
        "user_dn": f"uid=%s,{PEOPLE}",
        "base_scope": SUFFIX,
        "membership_patterns": [f"member=uid=%s,{PEOPLE}"],
        "acl": ACL,
    }
    return {
        "server": {"backlog": {"size": 100}},
        "clients": {"ldap": ldap | changes, "secure_topics": ["votes"]},
    }


def login(user: str) -> dict[str, str]:
    """The header with a user's right password."""
    return basic(user, PASSWORDS[user])


EVENTS = [
    "/private/commits",
    "/private/commits/core",
    "/private/board",
    "/private/bob",
    "/private",
    "/public",
]
SEES = {
    "alice": {"/private/commits", "/private/commits/core", "/public"},
    "ALICE": {"/private/commits", "/private/commits/core", "/public"},
    "müller": {"/private/commits", "/private/commits/core", "/public"},
    "o'brien, jr+x": {"/private/commits", "/private/commits/core", "/public"},
    "bob": {"/private/commits/core", "/private/board", "/private/bob", "/public"},
    "carol": {"/public"},
}


async def test_users_see_what_their_groups_and_their_own_dn_grant(
    start_daemon: StartDaemon, slapd: Slapd
) -> None:
    """Live and in a replay; in all three forms of a grant, however a dn is written."""
    server = start_daemon(settings(slapd.uri))
    for user, seen in SEES.items():
        headers = basic(user, PASSWORDS[user.lower()])
        expected = [path for path in EVENTS if path in seen]
        async with server.subscriber("/", headers) as live:
            cursor = live.headers["X-Cursor"]
            for path in EVENTS:
                await server.put(path, {})
            assert [(await live.event())["pubsub_path"] for _ in expected] == expected
        async with server.subscriber("/", headers | {"X-Fetch-Since-Cursor": cursor}) as stream:
            assert stream.headers["X-Replay"] == "complete"
            assert [event["pubsub_path"] for event in await stream.replay()] == expected


async def test_a_group_may_publish_on_a_secure_topic(start_daemon: StartDaemon, slapd: Slapd) -> None:
    """From any address; others may not."""
    config = settings(slapd.uri)
    config["clients"]["payloaders"] = []
    server = start_daemon(config)
    table = [("bob", 202), ("alice", 403), ("carol", 403)]
    for user, status in table:
        assert (user, (await server.request("PUT", "/votes", {}, login(user))).status) == (user, status)
    assert (await server.request("PUT", "/votes", {}, basic("bob", "wrong"))).status == 401
    assert (await server.put("/votes", {})).status == 401


async def test_the_file_comes_first(start_daemon: StartDaemon, slapd: Slapd) -> None:
    """A user whom it has is not asked of the directory, in no spelling of the name."""
    server = start_daemon(settings(slapd.uri), acl={"Alice": {"password": "secret"}})
    async with server.subscriber("/", basic("Alice")) as stream:
        assert stream.status == 200
    for user in ("Alice", "alice", "ALICE"):
        async with server.subscriber("/", basic(user, PASSWORDS["alice"])) as stream:
            assert stream.status == 401
    async with server.subscriber("/", login("bob")) as stream:
        assert stream.status == 200


async def test_a_change_in_the_directory_reaches_open_streams(
    start_daemon: StartDaemon, slapd: Slapd
) -> None:
    """A group that is left, one that is joined, an account whose password was changed."""
    server = start_daemon(settings(slapd.uri, refresh=0.5))
    async with (
        server.subscriber("/", login("alice")) as alice,
        server.subscriber("/", login("bob")) as bob,
        server.subscriber("/") as anybody,
    ):
        await server.put("/private/commits", {"n": 1})
        assert (await alice.event())["n"] == 1
        slapd.leave("committers", "alice")
        slapd.join("committers", "bob")
        n = 2
        while n:  # until the change has reached both
            await server.put("/private/commits", {"n": n})
            await server.put("/public", {"n": n})
            alice_sees, bob_sees = await alice.event(), await bob.event()
            if alice_sees["pubsub_path"] == "/private/commits":
                await alice.event()
            if bob_sees["pubsub_path"] == "/private/commits":
                await bob.event()
            n = (
                0
                if (alice_sees["pubsub_path"], bob_sees["pubsub_path"]) == ("/public", "/private/commits")
                else n + 1
            )
        slapd.set_password("bob", "changed")
        await bob.rest()
        await server.put("/public", {"n": "last"})
        while (await anybody.event())["n"] != "last":
            pass
    assert (await server.request("PUT", "/votes", {}, login("bob"))).status == 401
    assert (await server.request("PUT", "/votes", {}, basic("bob", "changed"))).status in KNOWN


async def test_a_reload_asks_the_directory_at_once(start_daemon: StartDaemon, slapd: Slapd) -> None:
    """Whatever `refresh` is."""
    server = start_daemon(settings(slapd.uri, refresh="1d"))
    async with server.subscriber("/", login("alice")) as alice:
        slapd.set_password("alice", "changed")
        assert (await server.request("PUT", "/votes", {}, login("alice"))).status in KNOWN  # it is remembered
        server.signal(signal.SIGHUP)
        await alice.rest()
    assert (await server.request("PUT", "/votes", {}, login("alice"))).status == 401


@pytest.mark.parametrize("outage", ["stopped", "killed", "silent"])
async def test_an_outage_concerns_those_who_need_the_directory(
    start_daemon: StartDaemon, slapd: Slapd, outage: str
) -> None:
    """They get 503 and may ask again; users of the file, and everybody without credentials, go on."""
    server = start_daemon(settings(slapd.uri, timeout=1), acl=IN_THE_FILE)
    async with server.subscriber("/", login("alice")) as alice:
        if outage == "silent":
            slapd.pause()
        else:
            slapd.stop(signal.SIGKILL if outage == "killed" else signal.SIGTERM)
        refused = await server.request("PUT", "/votes", {}, login("bob"))
        assert refused.status == 503
        assert refused.headers["Retry-After"]
        assert "directory" in refused.text
        async with server.subscriber("/", login("bob")) as stream:
            assert stream.status == 503
        async with server.subscriber("/", basic("alice-bot")) as bot, server.subscriber("/") as anybody:
            assert (await server.request("PUT", "/private/commits", {}, basic("alice-bot"))).status == 202
            assert (await server.put("/public", {})).status == 202
            for stream in (alice, bot):
                assert (await stream.event())["pubsub_path"] == "/private/commits"
            assert (await anybody.event())["pubsub_path"] == "/public"
    assert any("ERROR" in line or "WARNING" in line for line in server.log if "ldap" in line)
    if outage == "silent":
        slapd.resume()
    else:
        slapd.start()
    while (
        await server.request("PUT", "/votes", {}, login("bob"))
    ).status == 503:  # for some seconds nobody asks
        pass
    assert (await server.request("PUT", "/votes", {}, login("bob"))).status in KNOWN


async def test_streams_outlive_an_outage_that_is_short(start_daemon: StartDaemon, slapd: Slapd) -> None:
    """They keep their rights for `grace`, and end then."""
    server = start_daemon(settings(slapd.uri, refresh=0.2, grace=3, timeout=1))
    async with server.subscriber("/", login("alice")) as alice:
        slapd.stop()
        await server.until_logged("pypubsub.ldap")  # it was asked again, and did not answer
        await server.put("/private/commits", {"n": 1})
        assert (await alice.event())["n"] == 1
        await server.until_logged("grace")
        await alice.rest()
    async with server.subscriber("/") as anybody:
        assert anybody.status == 200


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("form", ["ldaps", "start_tls"])
async def test_a_directory_is_asked_over_tls(
    start_daemon: StartDaemon, tmp_path: Path, form: str, trusted: bool
) -> None:
    """If its certificate is by an authority of ca_file; otherwise it is as good as out."""
    authority, other = trustme.CA(), trustme.CA()
    (authority if trusted else other).cert_pem.write_to_path(tmp_path / "ca.pem")
    slapd = Slapd(tmp_path / "slapd", certificate=authority.issue_cert("127.0.0.1"))
    slapd.start()
    try:
        uri = slapd.tls_uri if form == "ldaps" else slapd.uri
        tls = {"ca_file": str(tmp_path / "ca.pem"), "start_tls": form == "start_tls"}
        server = start_daemon(settings(uri, **tls))
        async with server.subscriber("/", login("alice")) as stream:
            assert stream.status == (200 if trusted else 503)
    finally:
        slapd.close()


async def test_an_unchecked_certificate_is_warned_of_at_every_start(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """But taken."""
    slapd = Slapd(tmp_path / "slapd", certificate=trustme.CA().issue_cert("other.example.org"))
    slapd.start()
    try:
        server = start_daemon(settings(slapd.tls_uri, verify=False))
        assert any("clients.ldap.verify" in line and "WARNING" in line for line in server.log)
        async with server.subscriber("/", login("alice")) as stream:
            assert stream.status == 200
    finally:
        slapd.close()


async def test_a_log_in_in_another_spelling_takes_nothing_from_open_streams(
    start_daemon: StartDaemon, slapd: Slapd
) -> None:
    """Where a filter compares with case, as for memberUid: each spelling has what is found for it."""
    acl = {f"cn=posix,{GROUPS}": ["posix"]}
    server = start_daemon(settings(slapd.uri, membership_patterns=["memberUid=%s"], acl=acl))
    async with (
        server.subscriber("/", login("alice")) as exact,
        server.subscriber("/", basic("ALICE", PASSWORDS["alice"])) as other,
    ):
        for n in range(3):
            assert (await server.put("/private/posix", {"n": n})).status == 202
            assert (await exact.event())["n"] == n
            async with server.subscriber("/", basic("Alice", PASSWORDS["alice"])) as another:
                assert another.status == 200
        await server.put("/public", {})
        assert (await other.event())["pubsub_path"] == "/public"


# Guesses at users of a directory


class SlowDirectory:
    """It takes its time for a bind, and then takes every password but a guess."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()  # how often about alice, bob, and guesses
        self._changed = asyncio.Condition()

    async def handle(self, peer: Peer) -> None:
        """As directory.Handler."""
        sent = await peer.request()
        who = next((user for user in ("alice", "bob") if f"uid={user},".encode() in sent), "guess")
        async with self._changed:
            self.asked[who] += 1
            self._changed.notify_all()
        await asyncio.sleep(0.1)
        peer.send(answer(sent, BIND, 49 if who == "guess" else 0))
        search = await peer.request()
        found = entry(search, f"cn=committers,{GROUPS}".encode())
        peer.send(found + answer(search, SEARCH_DONE, 0))
        await peer.silence()

    async def until_asked(self, who: str, more: int) -> None:
        """Wait until it was asked so many more times about somebody."""
        enough = self.asked[who] + more
        async with asyncio.timeout(TIMEOUT), self._changed:
            await self._changed.wait_for(lambda: self.asked[who] >= enough)


@contextlib.asynccontextmanager
async def guessers(server: Daemon, sources: int, at_a_time: int) -> AsyncIterator[Counter[int]]:
    """Guesses from so many addresses, each at another user, without end; the statuses of their answers."""
    statuses: Counter[int] = Counter()

    async def guess_on(source: str, first: int) -> None:
        n = first
        while True:
            guess = request("GET", "/", authorization(written(f"{source} {n}", "guess")))
            statuses[(await send(server, guess, source)).status] += 1
            n += at_a_time

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(guess_on(f"127.0.0.{source + 2}", n))
            for source in range(sources)
            for n in range(at_a_time)
        ]
        yield statuses
        for task in tasks:
            task.cancel()


async def test_guessers_neither_end_streams_nor_keep_others_out(start_daemon: StartDaemon) -> None:
    """Streams keep their rights, who is known and who is new logs in. What is slow is not called out."""
    slow = SlowDirectory()
    async with fake(slow.handle) as directory:
        config = settings(directory.uri, refresh=0.2, grace=0.5, timeout=1)
        server = start_daemon(config | {"server": {"refusal_delay": 0.1}})
        async with server.subscriber("/", basic("alice")) as alice, guessers(server, 10, 15) as statuses:
            await slow.until_asked("guess", 40)
            new = await send(server, request("GET", "/", authorization(written("bob"))), "127.1.0.1")
            assert new.status == 200
            await slow.until_asked("alice", 6)  # which takes far more than `grace`
            assert (await server.put("/private/commits", {"n": 1})).status == 202
            assert (await alice.event())["n"] == 1
            async with server.subscriber("/", basic("alice")) as known:
                assert known.status == 200
            assert statuses.keys() <= {401, 429}
            told = [line for line in server.log if "answered" in line or "cannot be asked" in line]
            assert not told  # before the directory is closed


async def test_a_guess_that_a_directory_cannot_answer_is_a_guess(start_daemon: StartDaemon) -> None:
    """Whoever goes on is stopped, as if it had been wrong."""

    async def handler(peer: Peer) -> None:
        peer.send(answer(await peer.request(), BIND, 80))
        await peer.silence()

    async with fake(handler) as directory:
        server = start_daemon(settings(directory.uri))
        statuses = []
        for n in range(12):
            async with server.subscriber("/", basic("alice", f"guess {n}")) as stream:
                statuses.append(stream.status)
    assert statuses == [503] * 10 + [429] * 2


async def test_an_outage_does_not_turn_users_into_guessers(start_daemon: StartDaemon, slapd: Slapd) -> None:
    """Who asks again and again while nobody is asked may log in as soon as the directory is there."""
    server = start_daemon(settings(slapd.uri, timeout=30))
    slapd.stop()
    for _ in range(20):
        async with server.subscriber("/", login("alice")) as stream:
            assert stream.status == 503
    slapd.start()
    server.signal(signal.SIGHUP)
    await server.until_logged("reloading")
    async with server.subscriber("/", login("bob")) as stream:  # which is asked behind the reload
        pass
    async with server.subscriber("/", login("alice")) as stream:
        assert stream.status == 200


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_log_in_that_cannot_be_answered_is_held_back(start_daemon: StartDaemon, method: str) -> None:
    """As every refusal of one: until the delay is over, or as here the server stops."""
    config = settings("ldap://127.0.0.1:1")
    config["server"]["refusal_delay"] = "1h"
    server = start_daemon(config)
    asking = asyncio.create_task(send(server, request(method, "/votes", authorization(written("alice")))))
    await server.until_logged("cannot be asked")
    for _ in range(5):
        await send(server, request("HEAD", "/"))  # in which an answer that is not held back would be given
    server.signal(signal.SIGTERM)
    await server.until_logged("SIGTERM: stopping")
    await server.until_logged(f"refused {method}")  # and not before
    assert (await asking).status == 503


async def test_a_crowd_behind_one_address_logs_in(start_daemon: StartDaemon) -> None:
    """All at once, such as after a restart: they wait, and are not taken for one who guesses."""

    async def handler(peer: Peer) -> None:
        await peer.bind()
        search = await peer.request()
        found = entry(search, f"cn=Board Members,{GROUPS}".encode())
        peer.send(found + answer(search, SEARCH_DONE, 0))
        await peer.silence()

    async with fake(handler) as directory:
        server = start_daemon(settings(directory.uri))
        asking = (server.request("PUT", "/votes", {}, basic(f"user{n}")) for n in range(120))
        statuses = Counter(answer.status for answer in await asyncio.gather(*asking))
    assert statuses == {202: 120}


INJECTIONS = [
    "*",
    "*)(uid=*",
    "alice)(|(uid=*",
    "alice,ou=people,dc=example,dc=org",
    "alice+uid=bob",
    "alice\\",
    "alice\\2c",
    "\\2a",
    " alice",
    "alice ",
    "alice\0",
    "alice\u200b",
    "#616c696365",
    "",
    "a" * 5000,
]


@pytest.mark.parametrize("user", INJECTIONS, ids=[ascii(user)[:30] for user in INJECTIONS])
async def test_a_name_is_only_a_name(start_daemon: StartDaemon, slapd: Slapd, user: str) -> None:
    """With nobody's and with somebody's password: refused, by 401 as any wrong one."""
    server = start_daemon(settings(slapd.uri))
    for password in ("x", PASSWORDS["alice"], ""):
        async with server.subscriber("/private", basic(user, password)) as stream:
            assert stream.status == 401


async def test_an_empty_password_never_gets_to_the_directory(start_daemon: StartDaemon, slapd: Slapd) -> None:
    """Which would take it, as nobody's, and say yes."""
    assert "anonymous" in slapd.whoami(f"uid=alice,{PEOPLE}", "")
    server = start_daemon(settings(slapd.uri))
    for _ in range(3):
        assert (await server.request("PUT", "/votes", {}, basic("alice", ""))).status == 401
    slapd.stop()
    assert (await server.request("PUT", "/votes", {}, basic("alice", ""))).status == 401  # not 503


def test_a_directory_that_cannot_be_meant_stops_the_start(start_daemon: StartDaemon) -> None:
    """With the key, and what would be right."""
    with pytest.raises(AssertionError, match=r"the daemon ended") as ended:
        start_daemon(settings("ldap://x", acl={"committers": ["a"]}, base_scope="example.org"))
    assert "clients.ldap.acl: expected a dn such as" in str(ended.value)
    assert "clients.ldap.base_scope: expected a dn such as" in str(ended.value)


async def test_a_user_who_is_put_into_the_file_is_no_longer_the_directory_s(
    start_daemon: StartDaemon, slapd: Slapd
) -> None:
    """However the name is spelled: what it had open ends, and so the file can lock somebody out at once."""
    server = start_daemon(settings(slapd.uri), acl="{}")
    async with server.subscriber("/", login("alice")) as alice, server.subscriber("/", login("bob")) as bob:
        await server.reload({"ALICE": {"password": "secret"}})
        await alice.rest()
        await server.put("/private/commits/core", {"n": 1})
        assert (await bob.event())["n"] == 1
    for user in ("alice", "ALICE", "Alice", "al\u0131ce", "al\u0130ce", "\uff21lice"):
        assert (await server.request("PUT", "/votes", {}, basic(user, PASSWORDS["alice"]))).status == 401


async def test_the_log_names_the_client_behind_a_proxy(start_daemon: StartDaemon, slapd: Slapd) -> None:
    """So that an operator can see who guesses."""
    config = settings(slapd.uri)
    config["server"]["trusted_proxies"] = ["127.0.0.1"]
    server = start_daemon(config)
    headers = basic("alice", "wrong") | {"X-Forwarded-For": "192.0.2.7"}
    assert (await server.request("PUT", "/votes", {}, headers)).status == 401
    assert "from 192.0.2.7 via 127.0.0.1: 401" in await server.until_logged("refused PUT")
