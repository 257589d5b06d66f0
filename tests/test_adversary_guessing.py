"""Who guesses passwords, and who looks for them where they should not be: answers, logs, messages.

No test measures time: what is counted is how often passwords are verified, and at what cost.
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import argon2
import bcrypt
import pytest
import yaml

from attack import (
    LISTED,
    all_answers,
    authorization,
    fresh_address,
    publish,
    request,
    send,
)
from core.auth.attempts import Attempts, TooManyAttempts
from core.auth.authentication import Authentication
from core.auth.login import Credentials, WrongCredentials, parse_credentials
from core.errors import ConfigError
from core.expiring import Expiring
from daemon import ROOT, Daemon, StartDaemon, basic
from directory import NoStreams
from plugins.acl import provider as acl
from plugins.acl.passwords import cost_class, is_password
from plugins.acl.provider import AclFile, Verifier
from plugins.acl.users import read_users
from wire import credentials

RIGHT = "hunter2-right"
ALICE = {"password": RIGHT, "acl": {"every": "all"}, "topics": ["deploy"]}
ACL: dict[str, Any] = {
    "alice": ALICE,
    "bob": {"password": "hunter2-bob", "topics": ["deploy"]},
    "zoe": {"password": "hunter2-zoe", "topics": ["deploy"]},
}
CLIENTS = {"payloaders": [LISTED], "secure_topics": ["deploy"]}
USERS_CHANCES = 10  # of one user name from one address
ADDRESSES_CHANCES = 50


def guess(user: str, password: str = "guess", method: str = "PUT", headers: bytes = b"") -> bytes:
    """A request that tries a password."""
    return request(method, "/deploy", headers + authorization(credentials(user, password)))


async def use_up(server: Daemon, source: str, user: str = "alice") -> None:
    """Guess until there are no chances left."""
    for n in range(USERS_CHANCES):
        assert (await send(server, guess(user, f"guess {n}"), source)).status == 401


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon that all tests attack, each from addresses of its own."""
    daemon = Daemon(tmp_path_factory.mktemp("guessed"), {"clients": CLIENTS})
    daemon.write_acl(ACL)
    daemon.start()
    yield daemon
    assert daemon.stop() == 0


# On and on


@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
@pytest.mark.parametrize("user", ["alice", "nobody", "*)(uid=*"])
async def test_who_goes_on_guessing_is_stopped(daemon: Daemon, user: str, method: str) -> None:
    """429, and when to ask again; for a user who does not exist as well."""
    source = fresh_address()
    await use_up(daemon, source, user)
    answer = await send(daemon, guess(user, method=method), source)
    assert answer.status == 429
    assert 0 < int(answer.headers["retry-after"]) <= 60


async def test_the_right_password_is_no_use_to_who_was_stopped(daemon: Daemon) -> None:
    """Else a guesser would only have to go on."""
    source = fresh_address()
    await use_up(daemon, source, "zoe")
    assert (await send(daemon, guess("zoe", "hunter2-zoe"), source)).status == 429


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_the_right_password_is_no_use_to_who_was_stopped_while_its_user_is_active(
    daemon: Daemon, method: str
) -> None:
    """Else 429 would tell a wrong guess from the right one, as often and as fast as anybody likes."""
    assert (await send(daemon, guess("alice", RIGHT), fresh_address())).status == 202
    source = fresh_address()
    await use_up(daemon, source)
    assert (await send(daemon, guess("alice", RIGHT, method), source)).status == 429


async def test_who_is_known_goes_on_while_others_guess_at_the_same_address(daemon: Daemon) -> None:
    """Such as behind the same proxy."""
    source = fresh_address()
    assert (await send(daemon, guess("alice", RIGHT), source)).status == 202
    await use_up(daemon, source)
    assert (await send(daemon, guess("alice"), source)).status == 429
    assert (await send(daemon, guess("alice", RIGHT), source)).status == 202


async def test_who_is_known_goes_on_when_that_has_to_be_verified_anew(
    start_daemon: StartDaemon,
) -> None:
    """Here it was put into the file as a hash; an hour later it would be the same."""
    server = start_daemon({"clients": CLIENTS}, acl=ACL)
    source = fresh_address()
    assert (await send(server, guess("alice", RIGHT), source)).status == 202
    await use_up(server, source)
    await server.reload({**ACL, "alice": {**ALICE, "password": ARGON2[1]}})
    assert (await send(server, guess("alice", RIGHT), source)).status == 202


async def test_another_user_logs_in_where_one_is_guessed_at(daemon: Daemon) -> None:
    """Also for the first time."""
    source = fresh_address()
    await use_up(daemon, source, "nobody")
    assert (await send(daemon, guess("bob", "hunter2-bob"), source)).status == 202


async def test_a_user_who_is_guessed_at_logs_in_from_elsewhere(daemon: Daemon) -> None:
    """Nobody can lock a user out."""
    await use_up(daemon, fresh_address(), "bob")
    assert (await send(daemon, guess("bob", "hunter2-bob"), fresh_address())).status == 202


async def test_who_sends_no_credentials_is_not_touched(daemon: Daemon) -> None:
    """The address goes on publishing and following."""
    source = fresh_address()
    await use_up(daemon, source)
    assert (await send(daemon, request("PUT", "/a"), source)).status == 202
    assert (await send(daemon, request("GET", "/a"), source)).status == 200


SPELLINGS = ["Alice", "ALICE", "aLiCe", "alicE", "\uff41lice", "AlicE", "alIce", "aLice", "alICE", "ALice"]


async def test_spellings_of_a_name_share_their_chances(daemon: Daemon) -> None:
    """A directory takes them as the same."""
    source = fresh_address()
    for name in SPELLINGS:
        assert (await send(daemon, guess(name), source)).status == 401
    assert (await send(daemon, guess("alice"), source)).status == 429


async def test_many_names_do_not_give_many_chances(daemon: Daemon) -> None:
    """One address has only so many, whoever it guesses at."""
    source = fresh_address()
    for n in range(ADDRESSES_CHANCES):
        assert (await send(daemon, guess(f"user{n}"), source)).status == 401
    assert (await send(daemon, guess("one-more"), source)).status == 429


@pytest.mark.parametrize("name", ["X-Forwarded-For: {}", "Forwarded: for={}", "X-Real-IP: {}"])
async def test_a_forged_address_gives_no_new_chances(daemon: Daemon, name: str) -> None:
    """Nobody said that this client speaks for others."""
    source = fresh_address()
    for n in range(USERS_CHANCES):
        forged = name.format(f"192.0.2.{n}").encode() + b"\r\n"
        assert (await send(daemon, guess("alice", headers=forged), source)).status == 401
    forged = name.format("198.51.100.1").encode() + b"\r\n"
    assert (await send(daemon, guess("alice", headers=forged), source)).status == 429


@pytest.mark.parametrize("nonsense", ["", "nonsense", "unix", "192.0.2.{}, nonsense", "for=192.0.2.{}"])
async def test_nonsense_through_a_trusted_proxy_gives_no_new_chances(
    start_daemon: StartDaemon, nonsense: str
) -> None:
    """It is counted as the proxy's own."""
    server = start_daemon({"server": {"trusted_proxies": [LISTED]}}, acl=ACL)
    source = fresh_address()
    answers = []
    for n in range(USERS_CHANCES + 1):
        forged = b"X-Forwarded-For: " + nonsense.format(n).encode() + b"\r\n"
        answers.append((await send(server, guess("alice", headers=forged), source)).status)
    assert answers == [401] * USERS_CHANCES + [429]


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_guesses_at_the_same_moment_are_counted_before_they_are_verified(
    daemon: Daemon, method: str
) -> None:
    """Of a hundred, as many are looked at as one after the other would be."""
    source = fresh_address()
    guesses = (send(daemon, guess("alice", f"guess {n}", method), source) for n in range(100))
    statuses = Counter(answer.status for answer in await asyncio.gather(*guesses))
    assert statuses == {401: USERS_CHANCES, 429: 100 - USERS_CHANCES}


async def test_guesses_in_one_connection_are_counted(daemon: Daemon) -> None:
    """Whether or not their answers are waited for."""
    guesses = [guess("alice", f"guess {n}") for n in range(20)]
    sent = [*guesses, request("HEAD", "/", b"Connection: close\r\n")]
    answers = await all_answers(daemon, b"".join(sent), fresh_address())
    assert answers.count(b"HTTP/1.1 401 ") == USERS_CHANCES
    assert answers.count(b"HTTP/1.1 429 ") == 20 - USERS_CHANCES


async def test_wrong_credentials_are_as_good_as_none_where_that_is_wanted(start_daemon: StartDaemon) -> None:
    """clients.wrong_credentials: anonymous is no way to go on guessing either."""
    clients = {"payloaders": [LISTED], "secure_topics": ["deploy"], "wrong_credentials": "anonymous"}
    server = start_daemon({"clients": clients}, acl=ACL)
    source = fresh_address()
    deploys = [request("PUT", "/deploy", authorization(credentials("alice", f"{n}"))) for n in range(20)]
    assert {(await send(server, deploy, source)).status for deploy in deploys} == {403}
    right = request("PUT", "/deploy", authorization(credentials("alice", RIGHT)))
    assert (await send(server, right, source)).status == 403
    assert (await send(server, right, fresh_address())).status == 202


def test_counts_take_bounded_memory() -> None:
    """Many addresses push the oldest out; so they do where names change."""
    attempts = Attempts(clock=lambda: 0.0)
    for n in range(30_000):
        attempts.begin(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", f"user{n}")
    levels = [attempts._of_users._levels, attempts._of_addresses._levels]
    assert max(map(len, levels)) <= 20_000


def test_an_ipv6_network_is_one_address() -> None:
    """Whoever has one address of it has them all."""
    attempts = Attempts(clock=lambda: 0.0)
    for n in range(USERS_CHANCES):
        attempts.begin(f"2001:db8::{n}", "alice")
    with pytest.raises(TooManyAttempts):
        attempts.check("2001:db8::ffff:ffff", "alice", exempt=False)
    attempts.check("2001:db8:0:1::", "alice", exempt=False)


def test_a_table_keeps_only_so_many() -> None:
    """What is remembered of right credentials is bounded too."""
    table: Expiring[int, None] = Expiring(60.0, 100)
    for n in range(1000):
        table.put(n, None)
    assert len(table) == 100


# What a refusal costs


class Recorder(Verifier):
    """A verifier that notes what each verification costs."""

    def __init__(self) -> None:
        super().__init__()
        self.costs: list[str | None] = []

    async def verify(self, stored: str, claimed: str, credentials: Credentials) -> bool:
        """As the one that it is."""
        self.costs.append(cost_class(stored))
        return await super().verify(stored, claimed, credentials)


class Recorded(AclFile):
    """The users of a file; costs: of all verifications so far."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_users(path), NoStreams())
        self._verifier = recorder = Recorder()
        self.costs = recorder.costs


ARGON2 = {cost: argon2.PasswordHasher(cost, 8, 1).hash(RIGHT) for cost in (1, 2)}
BCRYPT = bcrypt.hashpw(RIGHT.encode(), bcrypt.gensalt(4)).decode()
STORED = {"plain": RIGHT, "quick": ARGON2[1], "thorough": ARGON2[2], "bcrypt": BCRYPT}
FILES = {
    "all kinds": ["plain", "quick", "thorough", "bcrypt"],
    "plain and bcrypt": ["plain", "bcrypt"],
    "one kind": ["thorough"],
    "plain": ["plain"],
}


def recorded(tmp_path: Path, names: Iterable[str]) -> Recorded:
    """A file with the users of these names."""
    path = tmp_path / "acl.yaml"
    path.write_text(yaml.safe_dump({name: {"password": STORED[name]} for name in names}))
    return Recorded(path)


@pytest.mark.parametrize("names", FILES.values(), ids=FILES)
async def test_every_refusal_costs_the_same(tmp_path: Path, names: list[str]) -> None:
    """A wrong password of any kind, a user who does not exist, another spelling of one who does.

    Plain text costs nothing that could be told.
    """
    users = recorded(tmp_path, names)
    costs = {}
    for user in [*names, *(name.upper() for name in names), "nobody", "*", "x" * 255]:
        users.costs.clear()
        authentication = Authentication([users], anonymous=False)
        with pytest.raises(WrongCredentials):
            await authentication.log_in([basic(user, "guess")["Authorization"]], "192.0.2.1")
        costs[user] = Counter(cost for cost in users.costs if cost)
    await users.stop()
    every_kind = Counter({cost for name in names if (cost := cost_class(STORED[name]))})
    assert costs == dict.fromkeys(costs, every_kind)


async def test_a_guess_that_is_taken_back_is_counted(tmp_path: Path) -> None:
    """Its client hangs up before the answer is there."""
    users = recorded(tmp_path, ["thorough"])
    authentication = Authentication([users], anonymous=False)
    for n in range(USERS_CHANCES):
        asked = asyncio.create_task(
            authentication.log_in([basic("thorough", f"{n}")["Authorization"]], "192.0.2.1")
        )
        await asyncio.sleep(0)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
    with pytest.raises(TooManyAttempts):
        await authentication.log_in([basic("thorough", RIGHT)["Authorization"]], "192.0.2.1")
    await authentication.stop()
    await users.stop()


async def test_who_was_stopped_costs_nothing(tmp_path: Path) -> None:
    """A flood of guesses does not keep the machine busy."""
    users = recorded(tmp_path, ["thorough"])
    authentication = Authentication([users], anonymous=False)
    guesses = [basic("thorough", f"{n}")["Authorization"] for n in range(100)]
    asked = (authentication.log_in([one], "192.0.2.1") for one in guesses)
    refused = Counter(type(answer) for answer in await asyncio.gather(*asked, return_exceptions=True))
    assert refused == {WrongCredentials: USERS_CHANCES, TooManyAttempts: 100 - USERS_CHANCES}
    assert len(users.costs) == USERS_CHANCES
    await users.stop()


@pytest.mark.parametrize("network", ["192.0.2.1", "2001:db8:0:{:x}::1"])
async def test_a_flood_of_guesses_delays_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    """Somebody from elsewhere, for the first time there, waits for a few of them, and not for all."""
    claimed: list[str] = []
    all_wait = threading.Event()

    def noting(stored: str, password: str) -> bool:
        all_wait.wait()
        claimed.append(password)
        return is_password(stored, password)

    monkeypatch.setattr(acl, "is_password", noting)
    users = recorded(tmp_path, ["thorough"])
    authentication = Authentication([users], anonymous=False)
    guesses = [
        asyncio.create_task(
            authentication.log_in([basic(f"user{n}", "guess")["Authorization"]], network.format(n))
        )
        for n in range(40)
    ]
    await asyncio.sleep(0)
    right = asyncio.create_task(
        authentication.log_in([basic("thorough", RIGHT)["Authorization"]], "198.51.100.1")
    )
    for _ in range(5):
        await asyncio.sleep(0)
    all_wait.set()
    assert await right
    assert claimed.index(RIGHT) < 6
    await asyncio.gather(*guesses, return_exceptions=True)
    assert len(claimed) == 41
    await users.stop()


HELD = {
    "malformed": authorization(b"garbage"),
    "twice": authorization(b"Basic eA==", b"Basic eA=="),
    "a wrong password": authorization(credentials("alice", "guess")),
    "nobody": authorization(credentials("nobody")),
    "another spelling": authorization(credentials("ALICE")),
}


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_refusal_is_held_back_whatever_was_wrong(start_daemon: StartDaemon, method: str) -> None:
    """However early or late that was found out: until the delay is over, or as here the server stops."""
    statuses = await held_back(start_daemon, [request(method, "/deploy", lines) for lines in HELD.values()])
    assert statuses == {401: len(HELD)}


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_who_was_stopped_is_held_back_as_well(start_daemon: StartDaemon, method: str) -> None:
    """Else the stop would be what tells a wrong guess from the right one, and fast."""
    guesses = [guess("bob", f"{n}", method) for n in range(USERS_CHANCES + 3)]
    assert await held_back(start_daemon, guesses) == {401: USERS_CHANCES, 429: 3}


async def held_back(start_daemon: StartDaemon, requests: list[bytes]) -> Counter[int]:
    """Make requests of which none is answered before the server stops; how many get which status then."""
    server = start_daemon({"server": {"refusal_delay": "1h"}, "clients": CLIENTS}, acl=ACL)
    source = fresh_address()
    held = [asyncio.create_task(send(server, sent, source)) for sent in requests]
    looks = arrived = 0
    while arrived < len(held):
        looks += 1
        arrived = int((await send(server, request("HEAD", "/"))).headers["x-requests"]) - looks
    right = await send(server, guess("alice", RIGHT), source)  # the same way, and behind them
    assert right.status == 202
    assert not [task for task in held if task.done()]
    server.signal(signal.SIGTERM)
    return Counter(answer.status for answer in await asyncio.gather(*held))


# Where secrets do not belong

SECRETS = ["hunter2", credentials("alice", RIGHT)[6:20].decode()]


def leaking(lines: Iterable[str]) -> list[str]:
    """The lines with a secret in them."""
    return [line for line in lines if any(secret in line for secret in SECRETS)]


RIGHT_LINE = authorization(credentials("alice", RIGHT))
LOUD = {
    "right": request("PUT", "/a", RIGHT_LINE),
    "right, a stream": request("GET", "/a", RIGHT_LINE),
    "right, refused": request("PUT", "/a,b", RIGHT_LINE),
    "right, a bad body": request("PUT", "/a", RIGHT_LINE, b"[1]"),
    "right, from another site": request("PUT", "/a", RIGHT_LINE + b"Origin: null\r\n"),
    "wrong password": request("PUT", "/a", authorization(credentials("alice", "hunter2-wrong"))),
    "wrong user": request("PUT", "/a", authorization(credentials("hunter2-user", "hunter2-wrong"))),
    "not encoded": request("PUT", "/a", authorization(b"Basic alice:" + RIGHT.encode())),
    "no scheme": request("PUT", "/a", authorization(RIGHT.encode())),
    "Bearer": request("GET", "/a", authorization(b"Bearer " + RIGHT.encode())),
    "twice": request("PUT", "/a", RIGHT_LINE * 2),
    "a control character": request("PUT", "/a", b"Authorization: Basic \x01" + RIGHT.encode() + b"\r\n"),
    "a NUL": request("PUT", "/a", RIGHT_LINE[:-2] + b"\0\r\n"),
    "folded": request("PUT", "/a", b"Authorization: Basic\r\n " + RIGHT.encode() + b"\r\n"),
    "no colon": request("PUT", "/a", b"Authorization " + RIGHT.encode() + b"\r\n"),
    "no name": request("PUT", "/a", b": " + RIGHT.encode() + b"\r\n"),
    "a name": request("PUT", "/a", RIGHT.encode() + b"\xff: x\r\n"),
    "a length": request("GET", "/a", b"Content-Length: " + RIGHT.encode() + b"\r\n"),
    "a coding": request("PUT", "/a", b"Transfer-Encoding: " + RIGHT.encode() + b"\r\n"),
    "a content coding": request("PUT", "/a", b"Content-Encoding: " + RIGHT.encode() + b"\r\n"),
    "a chunk": request("GET", "/a", b"Transfer-Encoding: chunked\r\n") + RIGHT.encode() + b"\r\n",
    "too long": request("PUT", "/a", authorization(credentials("alice", RIGHT + "x" * 9000))),
    "a method": RIGHT.encode() + b" / HTTP/1.1\r\n\r\n",
    "a version": b"GET / " + RIGHT.encode() + b"\r\n\r\n",
    "a first line": b"HTTP/1.1 200 " + RIGHT.encode() + b"\r\n\r\n",
    "a target": request("GET", f"http://alice:{RIGHT}@h/a"),
    "a target with a bad port": request("GET", f"http://alice:{RIGHT}@h:99999/a"),
    "a target without a host": request("GET", f"http://alice:{RIGHT}@/a"),
    "a target with a bad host": request("GET", f"http://alice:{RIGHT}@[::/a"),
    "an authority": request("CONNECT", f"alice:{RIGHT}@h:443"),
    "a query": request("GET", f"/a?password={RIGHT}&since=-1"),
    "a cursor": request("GET", f"/a?cursor={RIGHT}"),
    "an expectation": request("PUT", "/a", b"Expect: " + RIGHT.encode() + b"\r\n"),
    "a key": request("PUT", "/a", b"Idempotency-Key: \xff" + RIGHT.encode() + b"\r\n"),
    "an origin": request("PUT", "/a", b"Origin: http://alice:" + RIGHT.encode() + b"@h\r\n"),
    "a host": request("GET", "/a", b"Host: " + RIGHT.encode() + b"\r\n"),
}


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that logs all it can."""
    config = {"server": {"access_log": True}, "clients": CLIENTS}
    daemon = Daemon(tmp_path_factory.mktemp("talkative"), config)
    daemon.options = ["--log-level", "DEBUG"]
    daemon.environment = {"PYTHONASYNCIODEBUG": "1"}
    daemon.write_acl(ACL)
    daemon.start()
    yield daemon
    assert daemon.stop() == 0


@pytest.mark.parametrize("sent", LOUD.values(), ids=LOUD)
async def test_no_secret_shows_in_an_answer_or_in_the_log(talkative: Daemon, sent: bytes) -> None:
    """Wherever in a request it stands, although the log is at DEBUG."""
    already = len(talkative.log)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", talkative.port, local_addr=(fresh_address(), 0)
    )
    writer.write(sent)
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await publish(talkative, "/b")
    await talkative.until_logged(" PUT /b ")  # what came before it is logged by now
    lines = talkative.log[already:]
    if b"?password=" in sent or b"?cursor=" in sent:  # a query is no place for a secret
        lines = [line for line in lines if "pypubsub.access" not in line]
    assert not leaking([*lines, answer.decode()])


async def test_no_secret_shows_in_the_log_of_a_life(start_daemon: StartDaemon) -> None:
    """Its start, a stream, reloads with a warning and with an error, the stream's end, the stop."""
    server = start_daemon({"clients": {"payloaders": ["127.0.0.1"]}}, acl=ACL)
    async with server.subscriber("/", basic("alice", RIGHT)):
        await server.reload({**ACL, "carol": {"password": "hunter2-carol"}})
        await server.reload("alice: hunter2-nothing-else")
        await server.reload({})
        await server.until_logged("left after")
    assert server.stop() == 0
    assert not leaking(server.log)


def run(tmp_path: Path, acl: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`python3 pypubsub.py` with an ACL file, to its end."""
    (tmp_path / "pypubsub.yaml").write_text("clients: {payloaders: [127.0.0.1]}\n")
    (tmp_path / "acl.yaml").write_text(acl)
    files = ["--config", str(tmp_path / "pypubsub.yaml"), "--acl", str(tmp_path / "acl.yaml")]
    command = [sys.executable, "pypubsub.py", *files, *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_check_shows_no_secret(tmp_path: Path) -> None:
    """It tells how many users there are, and what is wrong with their passwords."""
    checked = run(tmp_path, yaml.safe_dump(ACL), "--check")
    assert checked.returncode == 0
    assert "users: 3" in checked.stdout
    assert not leaking([checked.stdout, checked.stderr])


def problems_with(tmp_path: Path, acl: str) -> list[str]:
    """What is said of an ACL file that is refused."""
    path = tmp_path / "acl.yaml"
    path.write_text(acl)
    with pytest.raises(ConfigError) as refused:
        read_users(path)
    return refused.value.problems


def told_of(tmp_path: Path, acl: str) -> list[str]:
    """What is said of an ACL file with a mistake: the problems with it, or the warnings."""
    path = tmp_path / "acl.yaml"
    path.write_text(acl)
    path.chmod(0o600)
    try:
        users = read_users(path)
    except ConfigError as refused:
        return refused.problems
    assert users
    return users.warnings


SECRET = "hunter2-in-the-file"
SLIPS: dict[str, str] = {
    "no key": f"alice: {SECRET}\n",
    "not indented": f"alice:\npassword: {SECRET}\nacl: {{}}\n",
    "no space": f"alice:\n  password:{SECRET}\n",
    "no space, more behind": f"alice:\n  password:{SECRET}\n  acl: {{}}\n",
    "no space in braces": f"alice: {{password:{SECRET}}}\n",
    "no colon": f"alice:\n  password {SECRET}\n",
    "as htpasswd has it": f"alice:{SECRET}\nbob:{SECRET}\n",
    "below the key": f"alice:\n  password:\n    {SECRET}: x\n",
    "in a list": f"alice:\n  password: [{SECRET}]\n",
    "a list of users": f"- alice: {SECRET}\n",
    "a colon in it": f"alice:\n  password: x: {SECRET}\n",
    "a misspelt key": f"alice:\n  pasword: {SECRET}\n",
    "as the rights": f"alice:\n  password: x\n  acl: {SECRET}\n",
    "as a segment": f"alice:\n  password: x\n  acl: {{team: {SECRET}}}\n",
    "as a topic": f'alice:\n  password: x\n  acl: {{team: ["{SECRET}/"]}}\n',
    "as secure topics": f"alice:\n  password: x\n  topics: {SECRET}\n",
    "twice": f"alice:\n  password: {SECRET}\n  password: {SECRET}2\n",
    "a user twice": f"alice: {{password: {SECRET}}}\nalice: {{password: {SECRET}2}}\n",
    "an alias": f"alice:\n  password: *{SECRET}\n",
    "an alias and more": f"alice:\n  password: *{SECRET}!\n",
    "an anchor": f"alice:\n  password: &{SECRET}\n",
    "a tag": f"alice:\n  password: !{SECRET} x\n",
    "a known tag": f"alice:\n  password: !!int {SECRET}\n",
    "a tag with a handle": f"alice:\n  password: !{SECRET}! x\n",
    "a tag with a line feed": f"alice:\n  password: !%0A{SECRET} x\n",
    "a tag with a quote": f"alice:\n  password: !it's'{SECRET} x\n",
    "a reserved character": f"alice:\n  password: @{SECRET}\n",
    "a percent sign": f"alice:\n  password: %{SECRET}\n",
    "an open quote": f'alice:\n  password: "{SECRET}\n',
    "an unknown escape": f'alice:\n  password: "\\{SECRET}"\n',
    "a block": f"alice:\n  password: |{SECRET}\n",
    "a block of lines": f"alice:\n  password: |\n    {SECRET}\n",
    "a merge": f"alice:\n  <<: {SECRET}\n",
    "a tab": f"alice:\n\tpassword: {SECRET}\n",
    "a control character": f'alice:\n  password: "{SECRET}\\x01"\n',
    "an unknown hash": f"alice:\n  password: $1$salt${SECRET}\n",
    "half a hash": f"alice:\n  password: $2y$10${SECRET}\n",
    "a NUL": f"alice:\n  password: {SECRET}\0\n",
    "in itself": f"alice: &a\n  password: {SECRET}\n  acl: *a\n",
    "two documents": f"alice: {{password: {SECRET}}}\n---\nbob: {SECRET}\n",
    "a directive": f"%YAML {SECRET}\n---\nalice: x\n",
}


@pytest.mark.parametrize("slip", SLIPS.values(), ids=SLIPS)
def test_a_slip_in_the_file_shows_no_secret(tmp_path: Path, slip: str) -> None:
    """It is told, with a word on where and nothing of what stands there."""
    told = told_of(tmp_path, slip)
    assert told
    assert all("acl.yaml: " in line for line in told)
    assert not leaking(told)


@pytest.mark.parametrize("options", [[], ["--check"]])
def test_a_refused_file_shows_no_secret_at_the_start(tmp_path: Path, options: list[str]) -> None:
    """Nor does a check of it: no traceback, with what it quotes."""
    refused = run(tmp_path, SLIPS["not indented"], *options)
    assert refused.returncode == (1 if options else 2)
    assert not leaking([refused.stdout, refused.stderr])


SLIPS_OF_A_KEY = {
    "a colon too many": f"alice:{SECRET}:\n  acl: {{}}\n",
    "an equals sign": f"alice:\n  password={SECRET}: x\n",
    "a comma for the colon": f"alice: {{password, {SECRET}: x}}\n",
    "no colon, but one behind": f"alice:\n  password {SECRET}: x\n",
}


@pytest.mark.parametrize("slip", SLIPS_OF_A_KEY.values(), ids=SLIPS_OF_A_KEY)
def test_a_slip_that_makes_a_key_of_a_password_shows_no_secret(tmp_path: Path, slip: str) -> None:
    """A colon in the wrong place does it."""
    told = told_of(tmp_path, slip)
    assert told
    assert not leaking(told)


NUMBERS = ["482915", "0x75e63", "482915.5", "1_2", "2024-01-01", "2024-01-01 10:00:00", "yes", "12:30:45"]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_password_that_yaml_does_not_read_as_text_is_refused_unseen(tmp_path: Path, number: str) -> None:
    """It would never match."""
    (problem,) = problems_with(tmp_path, f"alice:\n  password: {number}\n")
    assert "alice.password: expected text: put quotes around it" in problem
    assert number not in problem.replace(str(tmp_path), "")


def test_credentials_do_not_show_what_they_hold() -> None:
    """They may stand in any message."""
    sent = parse_credentials([basic("alice", RIGHT)["Authorization"]])
    assert isinstance(sent, Credentials)
    assert not leaking([repr(sent), str(sent)])


async def test_a_login_does_not_show_the_password(tmp_path: Path) -> None:
    """It is a task's result, which asyncio shows when it is slow and PYTHONASYNCIODEBUG is set."""
    users = recorded(tmp_path, ["plain"])
    login = await Authentication([users], anonymous=False).log_in(
        [basic("plain", RIGHT)["Authorization"]], "192.0.2.1"
    )
    await users.stop()
    assert login is not None
    assert not leaking([repr(login)])


def test_a_users_entry_does_not_show_the_password(tmp_path: Path) -> None:
    """Nor do all of them."""
    path = tmp_path / "acl.yaml"
    path.write_text(yaml.safe_dump(ACL))
    assert not leaking([repr(read_users(path))])
