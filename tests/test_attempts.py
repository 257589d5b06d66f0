"""How many wrong guesses there may be, and who is kept out by those of others."""

import asyncio
from typing import Any

import pytest

from core.auth.attempts import Attempts, TooManyAttempts
from core.expiring import Expiring
from daemon import Daemon, StartDaemon, basic

ACL: dict[str, Any] = {
    name: {"password": "secret", "topics": ["deploy"]} for name in ("alice", "bob", "carol")
}
SECURE = {"secure_topics": ["deploy"]}


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def fail(attempts: Attempts, address: str, user: str) -> int:
    """Guess wrong until told to stop. How many guesses there were."""
    for guesses in range(1000):
        try:
            attempts.check(address, user, exempt=False)
            attempts.begin(address, user)
        except TooManyAttempts:
            return guesses
    raise AssertionError("there is no limit")


def test_a_user_can_be_guessed_at_a_few_times_and_then_slowly() -> None:
    """Ten at once, then one every six seconds."""
    clock = Clock()
    attempts = Attempts(clock)
    assert fail(attempts, "192.0.2.1", "alice") == 10
    with pytest.raises(TooManyAttempts) as refused:
        attempts.check("192.0.2.1", "alice", exempt=False)
    assert refused.value.status == 429
    clock.now += int(refused.value.headers["Retry-After"])
    assert fail(attempts, "192.0.2.1", "alice") == 1
    clock.now += 60
    assert fail(attempts, "192.0.2.1", "alice") == 10


def test_the_same_guesses_elsewhere_count_for_themselves() -> None:
    """Another user, another address; but addresses of one IPv6 network are one."""
    attempts = Attempts(Clock())
    assert fail(attempts, "192.0.2.1", "alice") == 10
    assert fail(attempts, "192.0.2.1", "bob") == 10
    assert fail(attempts, "192.0.2.2", "alice") == 10
    assert fail(attempts, "2001:db8::1", "alice") == 10
    assert fail(attempts, "2001:db8::ffff:2", "alice") == 0
    assert fail(attempts, "2001:db8:0:1::1", "alice") == 10


@pytest.mark.parametrize(("network", "steps"), [("2001:db8:0:{:x}::1", 1), ("2001:db8:0:{:x}00::1", 2)])
def test_a_wide_ipv6_network_is_not_as_many_addresses_as_it_has(network: str, steps: int) -> None:
    """A /56 has four times the guesses of a /64, a /48 four times those of a /56: at a user, and in all."""
    attempts = Attempts(Clock())
    assert sum(fail(attempts, network.format(n), "alice") for n in range(256)) == 10 * 4**steps
    attempts = Attempts(Clock())
    guesses = sum(fail(attempts, network.format(n), f"user{n}-{m}") for n in range(256) for m in range(6))
    assert guesses == 50 * 4**steps
    assert fail(attempts, "2001:db8:1::1", "alice") == 10


def test_one_network_does_not_keep_out_its_neighbours() -> None:
    """A /64 has not guesses enough to use up those of the wider ones."""
    attempts = Attempts(Clock())
    for n in range(6):
        fail(attempts, "2001:db8::1", f"user{n}")
    assert fail(attempts, "2001:db8::1", "carol") == 0
    assert fail(attempts, "2001:db8:0:1::1", "carol") == 10


def test_an_address_cannot_try_many_users() -> None:
    """Fifty guesses in all."""
    attempts = Attempts(Clock())
    users = 0
    while fail(attempts, "192.0.2.1", f"user{users}"):
        users += 1
    assert users == 5


def test_who_is_exempt_passes_until_very_many_were_refused() -> None:
    """Of the same user: else somebody could tell a right guess from wrong ones, as often as they like."""
    clock = Clock()
    attempts = Attempts(clock)
    assert fail(attempts, "192.0.2.1", "alice") == 10
    for _ in range(98):
        with pytest.raises(TooManyAttempts):
            attempts.check("192.0.2.1", "alice", exempt=False)
    attempts.check("192.0.2.1", "alice", exempt=True)
    for _ in range(2):
        with pytest.raises(TooManyAttempts):
            attempts.check("192.0.2.1", "alice", exempt=False)
    with pytest.raises(TooManyAttempts):
        attempts.check("192.0.2.1", "alice", exempt=True)
    attempts.check("192.0.2.1", "bob", exempt=True)
    clock.now += 60
    attempts.check("192.0.2.1", "alice", exempt=True)


def test_what_succeeds_is_not_counted() -> None:
    """However often."""
    attempts = Attempts(Clock())
    for _ in range(100):
        attempts.begin("192.0.2.1", "alice")
        attempts.succeeded("192.0.2.1", "alice")
    assert fail(attempts, "192.0.2.1", "alice") == 10


def test_a_table_forgets_what_is_old_and_what_is_too_much() -> None:
    """The oldest first."""
    clock = Clock()
    table: Expiring[str, int] = Expiring(lifetime=10, limit=2, clock=clock)
    table.put("a", 1)
    clock.now += 5
    table.put("b", 2)
    table.put("a", 3)
    table.put("c", 4)
    assert [table.get(key) for key in "abc"] == [3, None, 4]
    clock.now += 10
    assert [table.get(key) for key in "abc"] == [None, None, None]
    table.put("d", 5)
    assert len(table) == 1


async def guess(server: Daemon, user: str, count: int) -> list[int]:
    """The statuses of that many wrong guesses."""
    return [
        (await server.request("PUT", "/deploy", {}, basic(user, f"wrong{n}"))).status for n in range(count)
    ]


async def test_who_guesses_is_stopped(start_daemon: StartDaemon) -> None:
    """With 429, which says when to ask again; then the right password is not tried either."""
    server = start_daemon({"clients": SECURE}, acl=ACL)
    assert await guess(server, "alice", 12) == [401] * 10 + [429] * 2
    refused = await server.request("PUT", "/deploy", {}, basic("alice"))
    assert refused.status == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    async with server.subscriber("/", basic("alice")) as stream:
        assert stream.status == 429
    assert (await server.put("/a", {})).status == 202  # without credentials


async def test_others_behind_the_same_proxy_go_on(start_daemon: StartDaemon) -> None:
    """Other users, and who has shown the same right credentials before, also the guessed user itself."""
    server = start_daemon({"clients": SECURE}, acl=ACL)
    assert (await server.request("PUT", "/deploy", {}, basic("carol"))).status == 202
    for user in ("alice", "carol"):
        assert 429 in await guess(server, user, 12)
    assert (await server.request("PUT", "/deploy", {}, basic("bob"))).status == 202
    await server.reload(ACL | {"dave": {"password": "secret"}})
    assert (await server.request("PUT", "/deploy", {}, basic("carol"))).status == 202
    assert (await server.request("PUT", "/deploy", {}, basic("alice"))).status == 429


async def test_a_client_s_own_address_counts_behind_a_proxy(start_daemon: StartDaemon) -> None:
    """One that the trusted proxy reports."""
    server = start_daemon(
        {"server": {"trusted_proxies": ["127.0.0.1"]}, "clients": SECURE},
        acl=ACL,
    )

    async def ask(password: str, address: str) -> int:
        headers = basic("alice", password) | {"X-Forwarded-For": address}
        return (await server.request("PUT", "/deploy", {}, headers)).status

    statuses = [await ask(f"wrong{n}", "192.0.2.1") for n in range(11)]
    assert statuses[-1] == 429
    assert await ask("wrong", "192.0.2.2") == 401
    assert await ask("secret", "192.0.2.2") == 202


async def test_guesses_at_the_same_time_are_stopped_too(start_daemon: StartDaemon) -> None:
    """Each counts before it is known to be wrong."""
    server = start_daemon({"clients": SECURE}, acl=ACL)
    answers = await asyncio.gather(
        *(server.request("PUT", "/deploy", {}, basic("alice", f"wrong{n}")) for n in range(60))
    )
    assert sorted(answer.status for answer in answers) == [401] * 10 + [429] * 50
