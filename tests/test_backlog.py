"""Who was away gets what it missed, and is told whether that is all of it."""

import asyncio
import json
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from commands import done
from core.events.cursor import TICKS_PER_SECOND, position_of, stamp_at
from daemon import Daemon, StartDaemon
from wire import EVERYTHING

STORES = ("memory", "file")
FAKETIME = next((str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), "")


@pytest.fixture
def with_backlog(start_daemon: StartDaemon, tmp_path: Path) -> StartDaemon:
    """Starts a daemon with a backlog: with_backlog("file", size=5, server={"ping_interval": 1})."""

    def start(store: str, server: dict[str, Any] | None = None, **settings: Any) -> Daemon:
        backlog: dict[str, Any] = {"size": 1000} | settings
        if store == "file":
            backlog["storage"] = str(tmp_path / "backlog.db")
        return start_daemon({"server": (server or {}) | {"backlog": backlog}})

    return start


async def cursors_of(daemon: Daemon, path: str, numbers: range) -> list[str]:
    """Publish {"n": …} for each number, one after the other: their cursors."""
    return [(await daemon.put(path, {"n": n})).headers["X-Cursor"] for n in numbers]


async def restart(daemon: Daemon) -> None:
    """Stop it, and start it again."""
    assert await asyncio.to_thread(daemon.stop) == 0
    daemon.start()


def cursor_at(seconds_from_now: float) -> str:
    """A cursor of our kind, of another moment."""
    return stamp_at(int((time.time() + seconds_from_now) * TICKS_PER_SECOND), 0.0).cursor


# What X-Replay says, case by case


async def test_without_a_backlog_it_is_none(server: Daemon) -> None:
    """Nothing is replayed, and that is said; without a question nothing is."""
    (cursor,) = await cursors_of(server, "/none", range(1))
    assert await server.replay("/none", **EVERYTHING) == ("none", [])
    assert await server.replay("/none", X_Fetch_Since_Cursor=cursor) == ("none", [])
    assert await server.replay("/none") == (None, [])


def test_without_a_backlog_nothing_of_it_is_there(start_daemon: StartDaemon) -> None:
    """It costs nothing: SQLite is not even loaded, and no thread stays but for signals, log and look-ups."""
    server = start_daemon(options=["--loop", "asyncio"])  # uvloop has threads of its own
    assert "sqlite" not in Path(f"/proc/{server.pid}/maps").read_text()
    deadline = time.monotonic() + 20
    while len(list(Path(f"/proc/{server.pid}/task").iterdir())) != 1 + 2 + 1 + 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)  # one more thread asks the resolver for the machine's name


@pytest.mark.parametrize("store", STORES)
async def test_after_a_cursor_it_is_complete(with_backlog: StartDaemon, store: str) -> None:
    """Each form of asking gives the events after it; no question, no replay."""
    daemon = with_backlog(store)
    cursors = await cursors_of(daemon, "/a", range(5))
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursors[1]) == ("complete", [2, 3, 4])
    assert await daemon.replay(f"/a?cursor={cursors[2]}") == ("complete", [3, 4])
    assert await daemon.replay("/a", Last_Event_ID=cursors[3]) == ("complete", [4])
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursors[4]) == ("complete", [])
    assert await daemon.replay("/a") == (None, [])


@pytest.mark.parametrize("store", STORES)
async def test_since_a_time_it_is_complete(with_backlog: StartDaemon, store: str) -> None:
    """Events of that very moment are included: pubsub_timestamp is what counts, to the last digit."""
    daemon = with_backlog(store)
    async with daemon.subscriber("/a") as stream:
        await cursors_of(daemon, "/a", range(5))
        times = [(await stream.event())["pubsub_timestamp"] for _ in range(5)]
    assert await daemon.replay("/a", X_Fetch_Since=repr(times[2])) == ("complete", [2, 3, 4])
    assert await daemon.replay(f"/a?since={times[3]!r}") == ("complete", [3, 4])
    assert await daemon.replay("/a", X_Fetch_Since=repr(times[4] + 1e-6)) == ("complete", [])


@pytest.mark.parametrize("store", STORES)
async def test_a_cursor_wins_and_only_one_replay_is_sent(with_backlog: StartDaemon, store: str) -> None:
    """Over a time and over Last-Event-ID."""
    daemon = with_backlog(store)
    cursors = await cursors_of(daemon, "/a", range(4))
    asked = {"X_Fetch_Since": "-1", "X_Fetch_Since_Cursor": cursors[1], "Last_Event_ID": cursors[0]}
    assert await daemon.replay("/a", **asked) == ("complete", [2, 3])


@pytest.mark.parametrize(("since", "of_file"), [("-1", "complete"), ("1", "complete"), ("7d", "partial")])
async def test_before_everything_on_a_fresh_store(
    with_backlog: StartDaemon, since: str, of_file: str
) -> None:
    """Partial: it cannot know what was before. A file that is asked for all it ever held has all of that."""
    for store, verdict in (("file", of_file), ("memory", "partial")):
        daemon = with_backlog(store)
        await cursors_of(daemon, "/a", range(2))
        assert await daemon.replay("/a", X_Fetch_Since=since) == (verdict, [0, 1])
        await asyncio.to_thread(daemon.stop)


async def test_memory_after_a_restart(with_backlog: StartDaemon) -> None:
    """A cursor of before is unknown, a time of before partial; what is held is sent."""
    daemon = with_backlog("memory")
    (cursor,) = await cursors_of(daemon, "/a", range(1))
    before = repr(time.time())
    await restart(daemon)
    await cursors_of(daemon, "/a", range(1, 3))
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursor) == ("unknown", [1, 2])
    assert await daemon.replay("/a", X_Fetch_Since=before) == ("partial", [1, 2])


async def test_a_file_after_a_restart(with_backlog: StartDaemon) -> None:
    """Cursors and times of before are as good as ever, and the events are what they were, byte for byte."""
    daemon = with_backlog("file")
    before = repr(time.time())
    async with daemon.subscriber("/a") as stream:
        await stream.chunk()
        cursors = await cursors_of(daemon, "/a/é%00/😀", range(3))
        seen = [await stream.chunk() for _ in range(3)]
    await restart(daemon)
    await cursors_of(daemon, "/a", range(3, 5))
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursors[0]) == ("complete", [1, 2, 3, 4])
    assert await daemon.replay("/a", X_Fetch_Since=before) == ("complete", [0, 1, 2, 3, 4])
    async with daemon.subscriber("/a/%C3%A9%00", {"X-Fetch-Since": "-1"}) as stream:
        assert [await stream.chunk() for _ in range(3)] == seen


async def test_a_file_that_was_taken_away(with_backlog: StartDaemon, tmp_path: Path) -> None:
    """The new one does not claim that nothing was before it."""
    daemon = with_backlog("file")
    (cursor,) = await cursors_of(daemon, "/a", range(1))
    await asyncio.to_thread(daemon.stop)
    (tmp_path / "backlog.db").unlink()
    daemon.start()
    await cursors_of(daemon, "/a", range(1, 3))
    assert await daemon.replay("/a", **EVERYTHING) == ("partial", [1, 2])
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursor) == ("unknown", [1, 2])


async def test_the_memory_of_a_file_can_be_made_to_begin_anew(
    with_backlog: StartDaemon, tmp_path: Path
) -> None:
    """As docs/backlog.md says for a copy that is put back, and the like: what is held stays."""
    daemon = with_backlog("file")
    (cursor,) = await cursors_of(daemon, "/a", range(1))
    await asyncio.to_thread(daemon.stop)
    done("restored", tmp_path / "backlog.db")
    daemon.start()
    assert await daemon.replay("/a", X_Fetch_Since="10m") == ("partial", [0])
    assert await daemon.replay("/a", **EVERYTHING) == ("partial", [0])
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursor_at(-60)) == ("unknown", [0])
    (now,) = await cursors_of(daemon, "/a", range(1, 2))
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=now) == ("complete", [])
    assert cursor < now


@pytest.mark.parametrize("store", STORES)
async def test_pruned_by_size(with_backlog: StartDaemon, store: str) -> None:
    """The cursor of an event that has left is a place all the same; partial once one after it has left."""
    daemon = with_backlog(store, size=3)
    cursors = await cursors_of(daemon, "/a", range(6))
    for restarted in (False, True):
        if restarted and store == "file":
            await restart(daemon)
        assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursors[0]) == ("partial", [3, 4, 5])
        assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursors[1]) == ("partial", [3, 4, 5])
        assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursors[2]) == ("complete", [3, 4, 5])
        assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursors[4]) == ("complete", [5])
        assert await daemon.replay("/a", **EVERYTHING) == ("partial", [3, 4, 5])


@pytest.mark.parametrize("store", STORES)
async def test_pruned_by_age(with_backlog: StartDaemon, store: str) -> None:
    """What is too old leaves by itself, whether or not anything is published."""
    daemon = with_backlog(store, max_age="1s")
    cursors = await cursors_of(daemon, "/a", range(3))
    while (held := await daemon.replay("/a", **EVERYTHING))[1]:
        assert held[1] == [0, 1, 2][-len(held[1]) :]
    assert held[0] == "partial"
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursors[0]) == ("partial", [])
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursors[2]) == ("complete", [])


async def test_a_smaller_size_holds_from_the_restart_on(with_backlog: StartDaemon) -> None:
    """What is too much leaves at the start."""
    daemon = with_backlog("file", size=100)
    await daemon.put_all("/a", [{"n": n} for n in range(50)])
    daemon.config["server"]["backlog"]["size"] = 10
    await restart(daemon)
    assert await daemon.replay("/a", **EVERYTHING) == ("partial", list(range(40, 50)))


@pytest.mark.parametrize("store", STORES)
async def test_a_cursor_of_a_private_event(with_backlog: StartDaemon, store: str) -> None:
    """Is a place like any other, for a client that may not see the event."""
    daemon = with_backlog(store, size=2)
    first, _ = await cursors_of(daemon, "/a", range(2))
    private = await cursors_of(daemon, "/private/a", range(10, 15))
    await cursors_of(daemon, "/a", range(2, 3))
    assert await daemon.replay("/", X_Fetch_Since_Cursor=private[0]) == ("complete", [2])
    assert await daemon.replay("/", X_Fetch_Since_Cursor=private[4]) == ("complete", [2])
    assert await daemon.replay("/", X_Fetch_Since_Cursor=first) == ("complete", [1, 2])
    assert await daemon.replay("/private", **EVERYTHING) == await daemon.replay("/private/a", **EVERYTHING)
    assert (await daemon.replay("/private", **EVERYTHING))[1] == []


async def test_the_public_cannot_tell_that_private_events_were_published(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """The same public history with private events in between and without: heads, bodies, order, verdicts."""

    async def history(private_events: int) -> list[Any]:
        storage = {"size": 4, "storage": str(tmp_path / f"{private_events}.db")}
        daemon = start_daemon({"server": {"backlog": storage}})
        shown: list[Any] = []
        async with daemon.subscriber("/") as live:
            cursors = []
            for n in range(8):
                cursors += await cursors_of(daemon, "/a", range(n, n + 1))
                for _ in range(private_events):
                    await daemon.put("/private/a", {"n": "private"}, Idempotency_Key="k")
                    await daemon.put("/private/a", {"n": "private"})
            for asked in [{"X-Fetch-Since": "-1"}, *({"X-Fetch-Since-Cursor": cursor} for cursor in cursors)]:
                async with daemon.subscriber("/", asked) as stream:
                    ours = {"X-Cursor", "Date", "X-Subscribers"}  # the stream before may still be counted
                    shown.append([item for item in stream.headers.items() if item[0] not in ours])
                    shown.append([event["n"] for event in await stream.replay()])
            shown.append([(await live.event())["n"] for _ in range(8)])
        shown.append((await daemon.request("HEAD", "/")).headers["X-Requests"])
        return shown

    assert await history(5) == await history(0)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    "cursor",
    [
        "1c4a1ac8-1b22-4d5f-8a5f-0f4c8a1e6f9b",  # as 0.7 has them
        "abcdefghijklmnopqrstuvwxyz0123456789",
        "------------------------------------",
        "0" * 36,
        "01a20b7f-d3af-74d1-023e-780b7e8b7f37",  # another variant
        "0f000000-0000-7000-8000-000000000000",  # in the year 2492
    ],
)
async def test_a_cursor_that_cannot_be_placed(with_backlog: StartDaemon, store: str, cursor: str) -> None:
    """Of another kind, or of the future: unknown, and nothing is replayed."""
    daemon = with_backlog(store)
    await cursors_of(daemon, "/a", range(2))
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursor) == ("unknown", [])


@pytest.mark.parametrize("store", STORES)
async def test_a_cursor_from_before_the_memory_began(with_backlog: StartDaemon, store: str) -> None:
    """Unknown, and what is held is sent."""
    daemon = with_backlog(store)
    await cursors_of(daemon, "/a", range(2))
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursor_at(-3600)) == ("unknown", [0, 1])


@pytest.mark.parametrize("store", STORES)
async def test_a_time_in_the_future(with_backlog: StartDaemon, store: str) -> None:
    """Complete: nothing has come since then. What comes from now on is live, as always."""
    daemon = with_backlog(store)
    await cursors_of(daemon, "/a", range(2))
    for since in (repr(time.time() + 3600), repr(time.time() + 80_000)):
        async with daemon.subscriber("/a", {"X-Fetch-Since": since}) as stream:
            assert stream.headers["X-Replay"] == "complete"
            assert await stream.replay() == []
            await cursors_of(daemon, "/a", range(2, 3))
            assert (await stream.event())["n"] == 2


@pytest.mark.parametrize("store", STORES)
async def test_a_malformed_question_is_refused(with_backlog: StartDaemon, store: str) -> None:
    """400, with the accepted forms."""
    daemon = with_backlog(store)
    for headers in ({"X-Fetch-Since": "NaN"}, {"X-Fetch-Since": "none"}, {"X-Fetch-Since-Cursor": "short"}):
        assert (await daemon.request("GET", "/a", headers=headers)).status == 400


# X-Cursor, a position


@pytest.mark.parametrize("store", STORES)
async def test_every_head_has_a_position_to_resume_at(with_backlog: StartDaemon, store: str) -> None:
    """It is no event's cursor, and what is published after the head comes after it: also over a restart."""
    daemon = with_backlog(store)
    cursors = await cursors_of(daemon, "/a", range(2))
    async with daemon.subscriber("/a") as stream:
        position = stream.headers["X-Cursor"]
    cursors += await cursors_of(daemon, "/a", range(2, 4))
    assert position not in cursors
    assert cursors[1] < position < cursors[2]
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=position) == ("complete", [2, 3])
    if store == "file":
        async with daemon.subscriber("/a") as stream:
            position = stream.headers["X-Cursor"]
        await asyncio.to_thread(daemon.stop, signal.SIGKILL)
        daemon.start()
        await cursors_of(daemon, "/a", range(4, 6))
        assert await daemon.replay("/a", X_Fetch_Since_Cursor=position) == ("complete", [4, 5])


@pytest.mark.parametrize("store", STORES)
async def test_a_position_loses_nothing_while_others_publish(with_backlog: StartDaemon, store: str) -> None:
    """What comes after the first ping is what resuming at the head's position gives, at full speed too."""
    daemon = with_backlog(store, size=100_000)
    done = asyncio.Event()

    async def publish() -> None:
        while not done.is_set():
            await daemon.put("/a", {"n": 0})

    publishers = [asyncio.create_task(publish()) for _ in range(4)]
    try:
        for _ in range(30):
            async with daemon.subscriber("/a", {"X-Fetch-Since-Cursor": cursor_at(0)}) as stream:
                position = stream.headers["X-Cursor"]
                replayed = [event["pubsub_cursor"] for event in await stream.replay()]
                live = [(await stream.event())["pubsub_cursor"] for _ in range(3)]
            async with daemon.subscriber("/a", {"X-Fetch-Since-Cursor": position}) as stream:
                again = [(await stream.event())["pubsub_cursor"] for _ in range(3)]
            assert again == live
            assert all(cursor < position for cursor in replayed)
    finally:
        done.set()
        await asyncio.gather(*publishers)


async def test_cursors_grow_over_restarts_when_the_clock_is_set_back(
    with_backlog: StartDaemon,
) -> None:
    """Also after a kill, and after positions that no event followed; time goes on from where it was."""
    assert FAKETIME, "the package libfaketime is not installed"
    daemon = with_backlog("file")
    seen: list[str] = []

    async def look() -> None:
        async with daemon.subscriber("/a") as stream:
            seen.append(stream.headers["X-Cursor"])

    for clock in ("+1h", "-1h", "+0", "-2h"):
        await asyncio.to_thread(daemon.stop, signal.SIGKILL)
        daemon.environment = {"FAKETIME": clock, "LD_PRELOAD": FAKETIME, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        daemon.start()
        await look()
        if clock != "+1h":
            seen += await cursors_of(daemon, "/a", range(1))
            await look()
    async with daemon.subscriber("/a", {"X-Fetch-Since": "-1"}) as stream:
        events = await stream.replay()
    assert seen == sorted(set(seen))
    times = [event["pubsub_timestamp"] for event in events]
    assert len(times) == 3
    assert times == sorted(times)


# A replay and what follows


@pytest.mark.parametrize("store", STORES)
async def test_the_first_ping_follows_the_replay(with_backlog: StartDaemon, store: str) -> None:
    """At once, and live events follow it."""
    daemon = with_backlog(store)
    await cursors_of(daemon, "/a", range(3))
    async with daemon.subscriber("/a", {"X-Fetch-Since": "-1"}) as stream:
        assert [event["n"] for event in await stream.replay()] == [0, 1, 2]
        await cursors_of(daemon, "/a", range(3, 5))
        assert [(await stream.event())["n"] for _ in range(2)] == [3, 4]


@pytest.mark.parametrize("store", STORES)
async def test_a_replay_goes_by_the_same_topics(with_backlog: StartDaemon, store: str) -> None:
    """An event comes once, however many parts of the path it meets."""
    daemon = with_backlog(store)
    for n, path in enumerate(["/a", "/b", "/a/b", "/c", "/b/c/a", "/"]):
        await daemon.put(path, {"n": n})
    for path, expected in {
        "/a": [0, 2, 4],
        "/a,b": [0, 1, 2, 4],
        "/b/a,c": [2, 3, 4],
        "/": [0, 1, 2, 3, 4, 5],
        "/d": [],
    }.items():
        assert (await daemon.replay(path, **EVERYTHING))[1] == expected


@pytest.mark.parametrize("store", STORES)
async def test_a_replay_in_the_old_forms(with_backlog: StartDaemon, store: str) -> None:
    """Bare lines for HTTP/1.0, a NUL for old clients: as live."""
    daemon = with_backlog(store)
    await cursors_of(daemon, "/a", range(2))
    nginx = {"X-Fetch-Since": "-1", "User-Agent": "nginx"}
    async with daemon.subscriber("/a", nginx, version="1.0") as stream:
        assert [json.loads(await stream.line())["n"] for _ in range(2)] == [0, 1]
    async with daemon.subscriber("/a", {"X-Fetch-Since": "-1", "User-Agent": "svnwcsub"}) as stream:
        for n in range(2):
            chunk = await stream.chunk()
            assert chunk.endswith(b"}\n\0")
            assert json.loads(chunk[:-1])["n"] == n


async def test_a_batch_is_stored_whole(with_backlog: StartDaemon) -> None:
    """And comes in order, live and again, with nothing in between, whatever others publish meanwhile."""
    daemon = with_backlog("file", size=100_000, server={"max_payload_size": "2 MiB"})
    async with daemon.subscriber("/a") as stream:
        others = asyncio.gather(*(daemon.put("/a", {"n": "other"}) for _ in range(100)))
        await daemon.put_all("/a", [{"n": n} for n in range(5000)])
        await others
        live = [(await stream.event())["n"] for _ in range(5100)]
    start = live.index(0)
    assert live[start : start + 5000] == list(range(5000))
    await asyncio.to_thread(daemon.stop, signal.SIGKILL)
    daemon.start()
    assert (await daemon.replay("/a", **EVERYTHING))[1] == live


# Asking twice


async def test_the_answer_to_a_key_outlives_a_crash(with_backlog: StartDaemon) -> None:
    """It was stored with the event: the same cursor again, and nothing published twice."""
    daemon = with_backlog("file")
    ndjson = "application/x-ndjson"
    first = await daemon.put("/a", {"n": 1}, Idempotency_Key="k")
    batch = await daemon.put("/b", b'{"n": 2}\n{"n": 3}\n', Idempotency_Key="k", Content_Type=ndjson)
    await asyncio.to_thread(daemon.stop, signal.SIGKILL)
    daemon.start()
    again = await daemon.put("/a", {"n": 1}, Idempotency_Key="k")
    assert again.status == 202
    assert again.headers["X-Cursor"] == first.headers["X-Cursor"]
    assert again.headers["Idempotency-Replayed"] == "true"
    again = await daemon.put("/b", b'{"n": 2}\n{"n": 3}\n', Idempotency_Key="k", Content_Type=ndjson)
    assert (again.text, again.headers["X-Cursor"]) == (batch.text, batch.headers["X-Cursor"])
    assert (await daemon.put("/a", {"n": 9}, Idempotency_Key="k")).status == 422
    assert (await daemon.replay("/", **EVERYTHING))[1] == [1, 2, 3]


async def test_the_answer_to_a_long_batch_outlives_a_crash(with_backlog: StartDaemon) -> None:
    """As for a short one."""
    daemon = with_backlog("file", size=10_000)
    body = b"".join(b'{"n": %d}\n' % n for n in range(1000))
    headers = {"Idempotency_Key": "k", "Content_Type": "application/x-ndjson"}
    first = await daemon.put("/a", body, **headers)
    await asyncio.to_thread(daemon.stop, signal.SIGKILL)
    daemon.start()
    again = await daemon.put("/a", body, **headers)
    assert (again.text, again.headers["X-Cursor"]) == ("accepted 1000 events\n", first.headers["X-Cursor"])
    assert len((await daemon.replay("/a", **EVERYTHING))[1]) == 1000


async def test_an_answer_is_forgotten_after_the_window_over_a_restart(
    with_backlog: StartDaemon,
) -> None:
    """The time that the server was away counts."""
    daemon = with_backlog("file", server={"idempotency_window": "1s"})
    first = await daemon.put("/a", {"n": 1}, Idempotency_Key="k")
    await restart(daemon)
    while (again := await daemon.put("/a", {"n": 1}, Idempotency_Key="k")).headers.get(
        "Idempotency-Replayed"
    ):
        assert again.headers["X-Cursor"] == first.headers["X-Cursor"]
    assert again.status == 202


def test_a_cursor_of_uuid_version_7_is_a_position() -> None:
    """The library of Python reads the same time out of it."""
    cursor = stamp_at(int(1_795_489_256.376 * TICKS_PER_SECOND), 0.0).cursor
    assert uuid.UUID(cursor).int >> 80 == 1_795_489_256_376
    assert position_of(cursor) == int(1_795_489_256.376 * TICKS_PER_SECOND)
