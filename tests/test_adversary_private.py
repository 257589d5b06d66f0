"""Who tries to learn of private events: whether there are any, how many, what they hold.

Also a user who has lost rights, or its place in the file, at a reload.
"""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attack import LISTED, authorization, fresh_address, publish, request, send
from core.auth.rights import EVERY_EVENT, NO_RIGHTS, Rights
from core.delivery.catch_up import CatchUpContext, Follower
from core.delivery.fanout import Fanout
from core.delivery.subscriber import Subscriber
from core.delivery.wire import BARE
from core.events.replay import Placement
from core.events.selection import Selection
from core.events.store import Page
from core.events.subscription import EVERYTHING
from daemon import Daemon, StartDaemon, basic
from plugins.backlog.unstored import Unstored
from wire import Stream, credentials

MEMBER: dict[str, Any] = {"password": "secret", "acl": {"team": ["git"]}, "topics": ["deploy"]}
ACL: dict[str, Any] = {
    "alice": MEMBER,
    "bob": {"password": "secret", "acl": {"team": ["git"]}},
    "nothing": {"password": "secret"},
}
CLIENTS = {"payloaders": [LISTED], "secure_topics": ["deploy"]}
SIZE = 5  # events of each kind in the backlog


def config(backlog: str, folder: Path) -> dict[str, Any]:
    """Settings with one kind of backlog."""
    folder.mkdir(exist_ok=True)
    kinds: dict[str, dict[str, Any]] = {
        "none": {},
        "memory": {"size": SIZE},
        "file": {"size": SIZE, "storage": str(folder / "backlog.db")},
    }
    return {"server": {"backlog": kinds[backlog]}, "clients": CLIENTS}


BACKLOGS = pytest.mark.parametrize("backlog", ["none", "memory", "file"])


# What strangers can learn

# how a stranger asks; {moment}: a cursor from between the public events, a private event's if there are any
QUESTIONS = [
    "/",
    "/private",
    "/?since=-1",
    "/git?since=-1",
    "/private?since=-1",
    "/?since=10m",
    "/?since=2001-01-01",
    "/?cursor={public}",
    "/?cursor={moment}",
    "/private?cursor={moment}",
    "/?cursor=00000000-0000-7000-8000-000000000000",
    "/?cursor=ffffffff-ffff-7fff-bfff-ffffffffffff",
    "/?cursor=123e4567-e89b-42d3-a456-426614174000",
    "/?cursor=garbage",
    "/,",
]
# publishes of others, which are all refused
REFUSED = [
    request("PUT", "/private/git", body=b"{"),
    request("PUT", "/private/git", b"Idempotency-Key: \xff\r\n"),
    request("PUT", "/private/deploy"),
    request("PUT", "/private/deploy", authorization(credentials("eve"))),
    request("PUT", "/private/git", b"Sec-Fetch-Site: cross-site\r\n"),
]


async def seen_by_a_stranger(server: Daemon, login: dict[str, str], *, private: bool) -> list[Any]:
    """Publish, with private events in between or without, then all that the answers to the questions tell."""
    cursors = {}
    for n in range(SIZE):
        cursors["public"] = await publish(server, "/git", b'{"n": %d}' % n)
        async with server.subscriber("/") as stream:
            moment = stream.headers["X-Cursor"]
        await server.until_logged("subscriber .* left")
        if private:
            moment = await publish(server, "/private/git/a")
            for _ in range(SIZE + n):
                await publish(server, "/private/git/a")
            for sent in REFUSED:
                assert (await send(server, sent)).status in (400, 401, 403)
        if n < SIZE - 1:
            cursors["moment"] = moment
    seen: list[Any] = []
    for question in QUESTIONS:
        async with server.subscriber(question.format(**cursors), login) as stream:
            told = [stream.status, *(stream.headers.get(name) for name in TELLING)]
            seen.append((question, told, [event["n"] for event in await replay_of(stream)]))
        if stream.status == 200:
            await server.until_logged("subscriber .* left")
    for path in ("/", "/private", "/private/git"):
        answer = await send(server, request("HEAD", path, authorization(credentials("nothing"))))
        seen.append((path, answer.status, [answer.headers.get(name.lower()) for name in TELLING]))
    return seen


TELLING = ["X-Replay", "X-Requests", "X-Subscribers", "Content-Length", "Content-Type"]


async def replay_of(stream: Stream) -> list[dict[str, Any]]:
    """The events before the first ping; none if there is no stream."""
    return await stream.replay() if stream.status == 200 else []


@pytest.mark.parametrize("user", [None, "nothing"])
@BACKLOGS
async def test_a_stranger_sees_the_same_with_private_events_and_without(
    start_daemon: StartDaemon, backlog: str, user: str | None, tmp_path: Path
) -> None:
    """Replays, verdicts, counts and errors: neither that there are any shows, nor how many.

    There are more of them than the backlog holds; a stranger may also be a user without rights.
    """
    login = basic(user) if user else {}
    seen = []
    for private in (False, True):
        server = start_daemon(config(backlog, tmp_path / str(private)), acl=ACL)
        seen.append(await seen_by_a_stranger(server, login, private=private))
    quiet, busy = seen
    assert busy == quiet


@pytest.mark.parametrize("backlog", ["memory", "file"])
async def test_private_events_push_no_public_one_out(
    start_daemon: StartDaemon, backlog: str, tmp_path: Path
) -> None:
    """Each kind has its own room, so nobody can tell from what is missing."""
    server = start_daemon(config(backlog, tmp_path), acl=ACL)
    async with server.subscriber("/") as stream:
        start = stream.headers["X-Cursor"]
    for n in range(SIZE):
        await publish(server, "/git", b'{"n": %d}' % n)
    for _ in range(3 * SIZE):
        await publish(server, "/private/git")
    assert await server.replay("/", X_Fetch_Since_Cursor=start) == ("complete", list(range(SIZE)))


@pytest.mark.parametrize("backlog", ["memory", "file"])
async def test_a_private_events_cursor_is_like_any_other_of_its_moment(
    start_daemon: StartDaemon, backlog: str, tmp_path: Path
) -> None:
    """So nobody can find out by a question whether such an event was published."""
    server = start_daemon(config(backlog, tmp_path), acl=ACL)
    real = await publish(server, "/private/git")
    await publish(server, "/git", b'{"n": 1}')
    made_up = real[:-1] + ("0" if real[-1] != "0" else "1")
    answers = [await server.replay("/", X_Fetch_Since_Cursor=cursor) for cursor in (real, made_up)]
    assert answers == [("complete", [1])] * 2


@pytest.mark.parametrize("other", ["user", "address"])
async def test_another_publishers_key_tells_nothing(start_daemon: StartDaemon, other: str) -> None:
    """Whether it was used with this body, with another or not at all: the event is published, and new."""
    server = start_daemon({"clients": CLIENTS}, acl={**ACL, "carol": MEMBER})
    key = b"Idempotency-Key: k\r\n"
    path, source = "/private/git", fresh_address()
    who = {name: authorization(credentials(name)) for name in ("alice", "carol")}
    if other == "user":
        path = "/private/deploy"  # credentials count where they are needed
        sources = [source, source]
    else:
        who["carol"] = who["alice"]
        sources = [source, fresh_address()]
    requests = [request("PUT", path, key + who[name]) for name in ("alice", "carol")]
    first, same = [await send(server, sent, at) for sent, at in zip(requests, sources, strict=True)]
    assert first.status == same.status == 202
    assert "idempotency-replayed" not in same.headers
    assert same.headers["x-cursor"] != first.headers["x-cursor"]


async def test_a_key_is_of_no_use_on_another_spelling_of_a_public_path(start_daemon: StartDaemon) -> None:
    """The private path and the public one with the same topics are two."""
    server = start_daemon(acl=ACL)
    key = b"Idempotency-Key: k\r\n"
    private = await send(server, request("PUT", "/private/git", key))
    public = await send(server, request("PUT", "/git", key))
    assert public.headers["x-cursor"] != private.headers["x-cursor"]


REFUSALS = [
    (request("PUT", "{}/deploy", authorization(credentials("eve"))), 401),
    (request("PUT", "{}/deploy"), 401),
    (request("PUT", "{}/deploy", authorization(credentials("bob"))), 403),
    (request("PUT", "{}/x", b"Origin: null\r\n"), 403),
    (request("PUT", "{}/x", body=b"[]"), 400),
    (request("DELETE", "{}/x"), 405),
]


@pytest.mark.parametrize(("sent", "status"), REFUSALS)
async def test_a_refusal_does_not_tell_private_from_public(
    reloaded: Daemon, sent: bytes, status: int
) -> None:
    """The same words for both."""
    source = fresh_address()
    public, private = [
        await send(reloaded, sent.replace(b"{}/", path), source) for path in (b"/", b"/private/")
    ]
    assert (public.status, public.text) == (status, private.text)
    assert private.status == status


# A reload

LESS: dict[str, dict[str, Any]] = {
    "no rights": {**ACL, "alice": {"password": "secret"}},
    "other rights": {**ACL, "alice": {**MEMBER, "acl": {"team": ["mail"]}}},
    "tighter rights": {**ACL, "alice": {**MEMBER, "acl": {"team": ["git", "a", "b"]}}},
}
OUT: dict[str, dict[str, Any]] = {
    "removed": {"bob": ACL["bob"]},
    "nobody left": {},
    "another password": {**ACL, "alice": {**MEMBER, "password": "other"}},
    "another spelling": {"Alice": MEMBER, "bob": ACL["bob"]},
}


@pytest.mark.parametrize("acl", LESS.values(), ids=LESS)
@BACKLOGS
async def test_rights_that_are_taken_away_end_at_once(
    start_daemon: StartDaemon, backlog: str, acl: dict[str, Any], tmp_path: Path
) -> None:
    """The open stream goes on with what is public."""
    server = start_daemon(config(backlog, tmp_path), acl=ACL)
    async with server.subscriber("/git", basic("alice")) as stream:
        await publish(server, "/private/git/a")
        assert (await stream.event())["pubsub_path"] == "/private/git/a"
        await server.reload(acl)
        await publish(server, "/private/git/a")
        await publish(server, "/git")
        assert (await stream.event())["pubsub_path"] == "/git"


@pytest.mark.parametrize("acl", OUT.values(), ids=OUT)
@BACKLOGS
async def test_the_streams_of_credentials_that_no_longer_hold_end(
    start_daemon: StartDaemon, backlog: str, acl: dict[str, Any], tmp_path: Path
) -> None:
    """A user who is gone, or a password that was changed: nothing more comes."""
    server = start_daemon(config(backlog, tmp_path), acl=ACL)
    async with server.subscriber("/git", basic("alice")) as stream:
        await stream.replay()
        await server.reload(acl)
        await publish(server, "/private/git")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await stream.event()


@pytest.mark.parametrize("acl", OUT.values(), ids=OUT)
async def test_credentials_that_no_longer_hold_are_refused(
    start_daemon: StartDaemon, acl: dict[str, Any]
) -> None:
    """From the reload on, although they were found right a moment before."""
    server = start_daemon({"clients": CLIENTS}, acl=ACL)
    asked = request("PUT", "/deploy", authorization(credentials("alice")))
    assert (await send(server, asked)).status == 202
    await server.reload(acl)
    assert (await send(server, asked)).status == 401


async def test_a_reload_ends_no_other_users_stream(start_daemon: StartDaemon) -> None:
    """Neither a colleague's nor a stranger's."""
    server = start_daemon(acl=ACL)
    async with server.subscriber("/", basic("bob")) as bob, server.subscriber("/") as stranger:
        await server.reload(OUT["removed"])
        await publish(server, "/private/git")
        await publish(server, "/git")
        assert (await bob.event())["pubsub_path"] == "/private/git"
        assert (await stranger.event())["pubsub_path"] == "/git"


async def test_a_secure_topic_that_is_taken_away_is_refused(start_daemon: StartDaemon) -> None:
    """403 from the reload on, over a connection that is open already."""
    server = start_daemon(config("none", Path()), acl=ACL)
    asked = request("PUT", "/deploy", authorization(credentials("alice")))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(asked)
    assert b" 202 " in await reader.readuntil(b"\r\n\r\n")
    await server.reload({**ACL, "alice": {**MEMBER, "topics": ["other"]}})
    writer.write(asked + request("HEAD", "/", b"Connection: close\r\n"))
    assert b" 403 " in await reader.read()
    writer.close()


@pytest.mark.parametrize("acl", [OUT["removed"], LESS["no rights"]])
async def test_a_body_that_takes_its_time_publishes_nothing_when_the_right_is_gone(
    start_daemon: StartDaemon, acl: dict[str, Any]
) -> None:
    """A body may take a minute, in which the file was read anew."""
    server = start_daemon(config("none", Path()), acl=ACL)
    sent = request("PUT", "/deploy", authorization(credentials("alice")) + b"Expect: 100-continue\r\n")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent[:-1])
    assert b" 100 " in await reader.readuntil(b"\r\n\r\n")  # the rights have been looked at
    await server.reload(acl)
    writer.write(sent[-1:])
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert b" 202 " not in answer


async def test_a_batch_that_waits_publishes_nothing_when_the_right_is_gone(start_daemon: StartDaemon) -> None:
    """After its body is there; what it publishes came before whoever is told that the right is gone."""
    server = start_daemon(config("none", Path()), acl=ACL)
    batch = b'{"n":1}\n' * 10_000  # which takes a while to be read, and comes in one piece
    headers = b"Content-Type: application/x-ndjson\r\n" + authorization(credentials("alice"))
    async with server.subscriber("/") as stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        server.write_acl({**ACL, "alice": {**MEMBER, "topics": ["other"]}})
        writer.write(request("PUT", "/deploy", headers, batch))
        await writer.drain()
        await send(server, request("HEAD", "/"))  # behind which the body is there
        server.signal(signal.SIGHUP)
        await server.until_logged("3 users")
        await server.put("/marker", {})
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await server.put("/end", {})
        paths: list[str] = []
        while not paths or paths[-1] != "/end":
            paths.append((await stream.event())["pubsub_path"])
    deployed = paths.count("/deploy")
    assert paths == ["/deploy"] * deployed + ["/marker", "/end"]
    assert (b" 403 " in answer) == (deployed == 0)


# A reader who takes its time

LARGE = b'{"n": %d, "filling": "' + b"x" * 90_000 + b'"}'
NUMBER = 60  # of such events: more than the kernel and a subscriber's buffer hold
SLOW = {name: (LESS | OUT)[name] for name in ("no rights", "tighter rights", "removed", "another password")}


async def numbers_before_the_marker(stream: Stream) -> list[int]:
    """Of all events until there is one without a number, or the stream ends."""
    numbers = []
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while (number := (await stream.event()).get("n")) is not None:
            numbers.append(number)
    return numbers


@pytest.mark.parametrize("acl", SLOW.values(), ids=SLOW)
@pytest.mark.parametrize("waits", ["in the queue", "in the backlog", "in a replay"])
async def test_a_slow_reader_gets_nothing_more_of_what_waited_for_it(
    start_daemon: StartDaemon, waits: str, acl: dict[str, Any]
) -> None:
    """Private events that it was to get before the reload, wherever they wait."""
    size = 0 if waits == "in the queue" else 2 * NUMBER
    buffer = "1 MiB" if size else "64 MiB"
    server = start_daemon({"server": {"backlog": {"size": size}, "subscriber_buffer": buffer}}, acl=ACL)
    first = await publish(server, "/private/git", LARGE % 0)
    subscription = f"/git?cursor={first}"
    if waits == "in a replay":
        for n in range(1, NUMBER):
            await publish(server, "/private/git", LARGE % n)
    async with server.subscriber(subscription, basic("alice")) as stream:
        stream.stop_reading()
        if waits != "in a replay":
            for n in range(1, NUMBER):
                await publish(server, "/private/git", LARGE % n)
        await server.reload(acl)
        await publish(server, "/private/git", LARGE % NUMBER)
        await publish(server, "/git")
        stream.read_on()
        numbers = await numbers_before_the_marker(stream)
    assert len(numbers) < NUMBER - 1
    assert NUMBER not in numbers


async def test_a_slow_reader_who_may_see_more_keeps_its_stream(start_daemon: StartDaemon) -> None:
    """And gets all that waits for it."""
    server = start_daemon({"server": {"subscriber_buffer": "64 MiB"}}, acl=ACL)
    async with server.subscriber("/git", basic("alice")) as stream:
        stream.stop_reading()
        for n in range(NUMBER):
            await publish(server, "/private/git", LARGE % n)
        await server.reload({**ACL, "alice": {**MEMBER, "acl": {"every": "all"}}})
        await publish(server, "/git")
        stream.read_on()
        assert await numbers_before_the_marker(stream) == list(range(NUMBER))


class Pages(Unstored):
    """A backlog of three private events, a page each; its reader loses all rights before the second."""

    reader: Subscriber

    def end(self, *, private: bool) -> int:  # noqa: ARG002
        """The last of them."""
        return 3

    async def read(self, after: int, upto: int, selection: Selection, most: int | None = None) -> Page:  # noqa: ARG002
        """What comes next."""
        if after == 1:
            self.reader.rights = NO_RIGHTS
        frames = [b'{"n": %d}\n' % (after + 1)] if selection.wanted["/private/git"] else []
        return Page(after + 1, b"".join(frames), len(frames), after + 1)


class Unhindered:
    """A connection that takes everything."""

    writing_paused = False
    on_lost: Callable[[], None] | None = None


async def test_rights_that_go_in_the_middle_of_a_replay_end_there() -> None:
    """Also for a path of which the replay has shown events before."""
    here, there = socket.socketpair()
    reader, reading = await asyncio.open_connection(sock=there)
    _, writing = await asyncio.open_connection(sock=here)
    fanout = Fanout(backlog=True)
    store = Pages(fanout)
    transport = writing.transport
    assert isinstance(transport, asyncio.Transport)
    store.reader = Subscriber("", EVERYTHING, BARE, transport, Unhindered(), writing.drain, 1000)
    store.reader.rights = Rights(frozenset({EVERY_EVENT}))
    fanout.add(store.reader)
    context = CatchUpContext(fanout, store, 60.0, lambda: 0.0)
    follower = Follower(store.reader, 3, context)
    following = asyncio.create_task(follower.follow(Placement(0, "complete")))
    assert [await reader.readline() for _ in range(2)] == [b'{"n": 1}\n', b'{"stillalive": 0.0}\n']
    following.cancel()
    reading.close()
    writing.close()


# Files that change nothing

PASSWORD = "hunter2-wrong-file"
BAD: dict[str, str] = {
    "no YAML": f"alice: {{password: {PASSWORD}",
    "a tab": f"alice:\n\tpassword: {PASSWORD}\n",
    "no users": f"alice:{PASSWORD}\nbob:{PASSWORD}\n",
    "a list": f"- alice: {PASSWORD}\n",
    "a user twice": f"bob: {{password: {PASSWORD}}}\nbob: {{password: {PASSWORD}, acl: {{a: all}}}}\n",
    "no entry": "bob:\n",
    "a password alone": f"bob: {PASSWORD}\n",
    "a number for a password": "bob: {password: 482915}\n",
    "an empty password": 'bob: {password: ""}\n',
    "half a hash": "bob: {password: $argon2id$v=19$m=65536,t=3,p=4$c2FsdA}\n",
    "an unknown hash": f"bob: {{password: $1$salt${PASSWORD}}}\n",
    "an empty segment": f"bob: {{password: {PASSWORD}, acl: {{a: []}}}}\n",
    "a segment of no list": f"bob: {{password: {PASSWORD}, acl: {{a: git}}}}\n",
    "a NUL": "bob: {password: x\0}\n",
    "an alias": f"bob: {{password: *{PASSWORD}}}\n",
    "a tag": f"bob: {{password: !!python/object/apply:os.system [{PASSWORD}]}}\n",
    "two documents": f"bob: {{password: {PASSWORD}}}\n---\n{{}}\n",
    "empty": "",
    "a comment": "# nobody\n",
    "null": "~\n",
}


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A daemon that is given one bad file after the other."""
    daemon = Daemon(tmp_path_factory.mktemp("reloaded"), {"clients": CLIENTS})
    daemon.write_acl(ACL)
    daemon.start()
    yield daemon
    assert daemon.stop() == 0


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_a_file_that_cannot_be_used_changes_nothing(reloaded: Daemon, bad: str) -> None:
    """Who was let in is let in, who was not is not, an open stream goes on, and the log says so."""
    async with reloaded.subscriber("/git", basic("alice")) as stream:
        assert "error" in (await reloaded.reload(bad)).lower()
        eve = request("PUT", "/deploy", authorization(credentials("eve")))
        assert (await send(reloaded, eve, fresh_address())).status == 401
        await publish(reloaded, "/private/git")
        assert (await stream.event())["pubsub_path"] == "/private/git"
    async with reloaded.subscriber("/git", basic("bob")) as stream:
        await publish(reloaded, "/private/git")
        assert (await stream.event())["pubsub_path"] == "/private/git"


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_a_file_that_cannot_be_used_is_not_shown(reloaded: Daemon, bad: str) -> None:
    """A slip may put a password where it is not looked for."""
    already = len(reloaded.log)
    await reloaded.reload(bad)
    assert not [line for line in reloaded.log[already:] if PASSWORD in line or "482915" in line]


@pytest.mark.parametrize("gone", ["removed", "a directory"])
async def test_a_file_that_is_not_there_changes_nothing(start_daemon: StartDaemon, gone: str) -> None:
    """Such as in the moment when an editor puts another in its place."""
    server = start_daemon(acl=ACL)
    async with server.subscriber("/git", basic("alice")) as stream:
        server.acl_path.unlink()
        if gone == "a directory":
            server.acl_path.mkdir()
        server.signal(signal.SIGHUP)
        await server.until_logged("the rights are as before")
        await publish(server, "/private/git")
        assert (await stream.event())["pubsub_path"] == "/private/git"
