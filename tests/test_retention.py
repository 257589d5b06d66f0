"""Events leave when they are too old by the rule that is theirs, or are too many, and no others do."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import build
from core.errors import ConfigError
from core.events.cursor import Mark, Stamps
from core.events.event import Draft, Event, opening_of
from core.events.replay import Gone, ReplayRequest
from core.events.store import StoreError
from core.events.topics import publish_path
from daemon import Daemon, StartDaemon
from plugins.backlog import database, sealing
from plugins.backlog.database import BacklogFile
from plugins.backlog.file import StoredBacklog
from plugins.backlog.memory import Backlog
from plugins.backlog.retention import Retention
from plugins.backlog.settings import BacklogConfig
from storage import files_of
from stores import Delivered, positions_in, running, selected
from wire import EVERYTHING, START_NS

FORMS = pytest.mark.parametrize("form", ["memory", "rows", "blocks"])
IN_FILES = pytest.mark.parametrize("form", ["rows", "blocks"])
KEEP: Mapping[str, Mapping[str, int]] = {"b/long": {}, "a": {"max_age": 10}, "private/c": {"max_age": 20}}


class World:
    """Its clocks, and where its stores are: in memory, or in a file, whose old events may be in blocks."""

    def __init__(self, form: str, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.path = None if form == "memory" else directory / "backlog.db"
        self.seals = form == "blocks"
        self.ns = START_NS
        self.since_boot = 500.0
        for module in (database, sealing):
            patch.setattr(module, "BLOCK_EVENTS", 3)
        patch.setattr(database, "_SEALED_FROM", 1 if self.seals else 1000)

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.ns += round(seconds * 1e9)
        self.since_boot += seconds

    @contextlib.asynccontextmanager
    async def life(self, **config: Any) -> AsyncIterator["Life"]:
        """A store with these settings."""
        delivered = Delivered()
        stamps = Stamps(lambda: self.ns, lambda: round(self.since_boot * 1e9))
        chosen = BacklogConfig(**{"size": 1000, "memory": 1} | config)
        async with running(chosen, self.path, delivered, stamps, lambda: self.since_boot) as store:
            yield Life(self, store, delivered)


class Life:
    """A store in a world."""

    def __init__(self, world: World, store: Backlog, delivered: Delivered) -> None:
        self.world = world
        self.store = store
        self.delivered = delivered

    async def publish(self, *paths: str) -> list[Event]:
        """Publish an event on each, and see them sealed, but for the last."""
        for path in paths:
            published = publish_path(path)
            await self.store.append([Draft(published, opening_of({"a": "x"}, published, 1 << 20))])
            self.world.passes(0.001)
        if isinstance(self.store, StoredBacklog):
            while await self.store._in(self.store._writing, self.store._file.seal):
                pass
            assert self.world.seals == bool(self.sealed) or len(self.delivered) < 6
        return self.delivered[-len(paths) :]

    @property
    def sealed(self) -> int:
        """How many events are in blocks."""
        assert isinstance(self.store, StoredBacklog)
        return sum(leaving.held.sealed for leaving in self.store._file._leaving.values())

    async def held(self, path: str = "/") -> list[str]:
        """The paths of what is replayed after a pruning, of all who may see everything."""
        await self.store.prune()
        paths = {event.stamp.position: event.path.text for event in self.delivered}
        found: list[str] = []
        after = 0
        end = self.store.end(private=True)
        while after < end:
            page = await self.store.read(after, end, selected(path, private=True))
            found += [paths.get(position, "of an earlier life") for position in positions_in(page)]
            after = page.end
        return found

    async def verdict(self, path: str, after: Event | None = None, since: float | None = None) -> str | None:
        """What a reader is told who may see everything."""
        now = await self.store.now(private=True)
        asked = ReplayRequest(cursor=after.stamp.cursor) if after else ReplayRequest(since=since)
        selection = selected(path, private=True)
        return (await self.store.place(asked, Mark(now.position, now.timestamp), selection)).verdict


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "c", "private"]), min_size=1, max_size=3).map("/".join),
        max_size=5,
        unique=True,
    ),
    st.lists(st.sampled_from(["a", "b", "c", "d", "private"]), max_size=4).map(
        lambda parts: "/" + "/".join(parts)
    ),
)
@settings(deadline=None)
def test_the_first_rule_counts_whose_topics_an_event_has(rules: list[str], path: str) -> None:
    """Wherever they stand in its path; max_age counts for events that have those of none."""
    config = BacklogConfig(max_age=5, keep={rule: {"max_age": 10 + n} for n, rule in enumerate(rules)})  # type: ignore[misc]
    retention = Retention(config)
    topics = set(path.split("/"))
    ages = [10 + n for n, rule in enumerate(rules) if set(rule.split("/")) <= topics]
    assert retention.rules[retention.rule_of[path]].max_age == ([*ages, 5])[0]


@FORMS
async def test_events_leave_by_the_rule_that_is_theirs(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of other rules beside them stay, in the same block too; private events by theirs."""
    world = World(form, tmp_path, monkeypatch)
    paths = ["/a", "/long/b", "/x", "/private/c", "/a/b", "/private/a", "/a/b/long", "/private/c/d", "/c"] * 3
    async with world.life(max_age=30, keep=KEEP) as life:
        await life.publish(*paths)
        assert await life.held() == paths
        world.passes(12)
        of_a = {"/a", "/a/b", "/private/a"}
        assert await life.held() == [path for path in paths if path not in of_a]
        world.passes(10)
        of_c = {"/private/c", "/private/c/d"}
        assert await life.held() == [path for path in paths if path not in of_a | of_c]
        world.passes(10)
        assert await life.held() == [path for path in paths if "long" in path]
        world.passes(10_000)
        last = await life.publish("/a")
        assert await life.held() == [path for path in paths if "long" in path] + ["/a"]
        assert await life.verdict("/a", last[0]) == "complete"


@FORMS
async def test_a_block_leaves_whole_or_is_thinned_out(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who asks for what stays is told complete; for what has left, partial, as far as it has."""
    world = World(form, tmp_path, monkeypatch)
    async with world.life(keep={"a": {"max_age": 10}}) as life:
        before = await life.publish("/b")
        await life.publish(*["/a"] * 5, "/b", *["/a"] * 5)
        world.passes(8)
        later = await life.publish(*["/a", "/c"] * 4)
        world.passes(4)
        assert await life.held() == ["/b", "/b", *["/a", "/c"] * 4]
        assert await life.held("/a") == ["/a"] * 4
        assert await life.verdict("/a", before[0]) == "partial"
        assert await life.verdict("/b", before[0]) == "complete"
        assert await life.verdict("/c,b", before[0]) == "complete"
        assert await life.verdict("/a,b", before[0]) == "partial"
        assert await life.verdict("/", before[0]) == "partial"
        assert await life.verdict("/a", later[0]) == "complete"
        world.passes(10)
        assert await life.held() == ["/b", "/b", *["/c"] * 4]
        assert await life.verdict("/a", later[0]) == "partial"
        assert await life.verdict("/c", later[0]) == "complete"


@IN_FILES
async def test_other_rules_after_a_restart_count_for_what_is_there(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to where the rules before have let go of events tells nothing of what the new ones keep."""
    world = World(form, tmp_path, monkeypatch)
    async with world.life(keep={"a": {"max_age": 10}, "b": {"max_age": 1000}}) as life:
        await life.publish(*["/a", "/b", "/c"] * 4)
        world.passes(12)
        assert await life.held() == ["/b", "/c"] * 4
    async with world.life(keep={"b": {"max_age": 10}, "c": {"max_age": 20}}) as life:
        assert len(await life.held("/b")) == 0
        assert len(await life.held("/c")) == 4
        world.passes(10)
        assert await life.held() == []
    async with world.life(keep={"b": {"max_age": 10}, "c": {"max_age": 20}}) as life:
        (event,) = await life.publish("/c")
        world.passes(15)
        assert await life.held() == ["/c"]
        assert await life.verdict("/c", event) == "complete"


@IN_FILES
async def test_other_rules_that_had_nothing_to_do_yet(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the life after that in which they came, they find what the rules before have passed over."""
    world = World(form, tmp_path, monkeypatch)
    async with world.life(keep={"a": {"max_age": 10}}) as life:
        await life.publish(*["/a", "/c"] * 4)
        world.passes(12)
        assert await life.held() == ["/c"] * 4
    for _ in range(2):
        async with world.life(keep={"c": {"max_age": 100}}) as life:
            assert len(await life.held()) == 4
    async with world.life(keep={"c": {"max_age": 100}}) as life:
        world.passes(100)
        assert await life.held() == []


@IN_FILES
async def test_rules_that_the_file_could_not_be_told_of(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since it could not be written at the start: what they have done is not taken for that of others."""
    world = World(form, tmp_path, monkeypatch)
    first = {"a": {"max_age": 10}}

    def fails(_: BacklogFile) -> int:
        raise StoreError("disk I/O error")

    async with world.life(keep=first) as life:
        await life.publish(*["/a"] * 6)
        world.passes(12)
        assert await life.held() == []
    with monkeypatch.context() as failing:
        failing.setattr(BacklogFile, "tidy_up", fails)
        async with world.life(
            keep={"b": {"max_age": 10}, "c": {"max_age": 10}, "d": {"max_age": 10}}
        ) as life:
            await life.publish(*["/a"] * 6, *["/b", "/c", "/d"] * 3)
            world.passes(12)
            assert await life.held() == ["/a"] * 6
    async with world.life(keep=first) as life:
        assert await life.held() == []


@IN_FILES
async def test_timestamps_go_on_after_those_of_events_that_have_left(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a restart with a clock set back, though only older ones are held: a time means one moment."""
    world = World(form, tmp_path, monkeypatch)
    async with world.life(keep={"a": {"max_age": 10}}) as life:
        await life.publish("/b")
        world.passes(1000)
        (left,) = await life.publish("/a")
        world.passes(20)
        assert await life.held() == ["/b"]
    world.ns -= 1500 * 10**9
    async with world.life(keep={"a": {"max_age": 10}}) as life:
        (event,) = await life.publish("/a")
        assert event.stamp.timestamp >= left.stamp.timestamp
        world.passes(20)
        assert await life.held("/a") == []
        assert await life.verdict("/a", since=left.stamp.timestamp) == "partial"


async def test_an_event_that_was_stored_behind_a_pruning_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it was too old by then, since it had waited: who reads gets it as long as it is in the file."""
    world = World("rows", tmp_path, monkeypatch)
    async with world.life(keep={"a": {"max_age": 10}}, memory=1_000_000) as life:
        store = life.store
        assert isinstance(store, StoredBacklog)
        await life.publish("/b")
        waiting = Event(publish_path("/a"), '{"a": "x"', store._stamps.next())
        world.passes(20)
        call = store._in

        async def call_and_store(thread: Any, function: Any, *arguments: Any, **named: Any) -> Any:
            result = await call(thread, function, *arguments, **named)
            if function == store._file.prune:
                monkeypatch.setattr(store, "_in", call)
                await store._take([waiting], None, (), ())
            return result

        monkeypatch.setattr(store, "_in", call_and_store)
        await store.prune()
        end = store.end(private=True)
        assert end == waiting.stamp.position
        page = await store.read(0, end, selected())
        assert page.gone == Gone()
        assert positions_in(page) == [event.stamp.position for event in life.delivered]


@pytest.mark.parametrize("path", ["/a/%s" % ("\0" * 300), "/é/%s" % ("ü" * 300)])
async def test_the_size_of_what_is_held_is_right_for_any_path(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or more and more, or less and less, would be held within the same max_bytes."""
    world = World("rows", tmp_path, monkeypatch)
    async with world.life(max_bytes=20_000) as life:
        await life.publish(*[path] * 100)
        held = len(await life.held())
        assert 2 <= held < 40
        await life.publish(*[path] * 100)
        assert len(await life.held()) == held
        assert isinstance(life.store, StoredBacklog)
        assert life.store._file._leaving["public"].held.row_size == held * len(life.delivered[-1].line)


@IN_FILES
async def test_what_is_held_is_counted_right(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After whatever has left, the counts are those that a new life makes of the file."""
    world = World(form, tmp_path, monkeypatch)
    settings = {"size": 20, "keep": {"a": {"max_age": 10}}, "max_bytes": 20_000}
    async with world.life(**settings) as life:
        assert isinstance(life.store, StoredBacklog)
        for n in range(12):
            await life.publish(*["/a", "/b", "/private/a"] * (n % 4))
            world.passes(4)
            await life.held()
        counts = {kind: leaving.held for kind, leaving in life.store._file._leaving.items()}
    async with world.life(**settings) as life:
        assert isinstance(life.store, StoredBacklog)
        assert {kind: leaving.held for kind, leaving in life.store._file._leaving.items()} == counts
        assert counts["public"].events <= 20 + 3


# The daemon

STORES = pytest.mark.parametrize("store", ["memory", "file"])


def backlog(store: str, tmp_path: Path, **settings: Any) -> dict[str, Any]:
    """Its configuration."""
    where = {"storage": str(tmp_path / "backlog.db")} if store == "file" else {}
    return {"server": {"backlog": settings | where}}


@STORES
async def test_others_events_that_left_are_not_missed(
    start_daemon: StartDaemon, store: str, tmp_path: Path
) -> None:
    """With size 3, five events on /busy: a reader of /quiet that resumes has missed nothing."""
    daemon = start_daemon(backlog(store, tmp_path, size=3))
    cursor = (await daemon.put("/quiet", {"n": 0})).headers["X-Cursor"]
    await daemon.put_all("/busy", [{"n": n} for n in range(5)])
    assert await daemon.replay("/quiet", X_Fetch_Since_Cursor=cursor) == ("complete", [])
    assert await daemon.replay("/quiet/never", X_Fetch_Since_Cursor=cursor) == ("complete", [])
    assert await daemon.replay("/busy", X_Fetch_Since_Cursor=cursor) == ("partial", [2, 3, 4])
    assert await daemon.replay("/quiet,busy", X_Fetch_Since_Cursor=cursor) == ("partial", [2, 3, 4])
    assert await daemon.replay("/", X_Fetch_Since_Cursor=cursor) == ("partial", [2, 3, 4])
    assert await daemon.replay("/quiet", **EVERYTHING) == ("partial", [])
    if store == "file":
        assert await asyncio.to_thread(daemon.stop) == 0
        daemon.start()
        assert await daemon.replay("/quiet", X_Fetch_Since_Cursor=cursor) == ("complete", [])
        assert await daemon.replay("/busy", X_Fetch_Since_Cursor=cursor) == ("partial", [2, 3, 4])


@STORES
async def test_events_leave_by_their_topics(start_daemon: StartDaemon, store: str, tmp_path: Path) -> None:
    """By the real clock: one that is kept for a second leaves beside others that are kept for an hour."""
    kept = {"brief": {"max_age": "1s"}, "b": {"max_age": "1h"}}
    daemon = start_daemon(backlog(store, tmp_path, size=100, max_age="1h", keep=kept))
    cursor = (await daemon.put("/a", {"n": 0})).headers["X-Cursor"]
    for n, path in enumerate(["/a/brief", "/b", "/brief", "/a"], 1):
        await daemon.put(path, {"n": n})
    while (await daemon.replay("/brief", **EVERYTHING))[1]:  # noqa: ASYNC110 (there is nothing to wait for)
        await asyncio.sleep(0.05)
    assert await daemon.replay("/", X_Fetch_Since_Cursor=cursor) == ("partial", [2, 4])
    assert await daemon.replay("/b", X_Fetch_Since_Cursor=cursor) == ("complete", [2])


async def publish_much(daemon: Daemon, count: int) -> None:
    """Events of 100 KB that cannot be compressed by much."""
    for start in range(0, count, 40):
        events = [{"n": n, "x": os.urandom(50_000).hex()} for n in range(start, start + 40)]
        await daemon.put_all("/much", events)


@STORES
async def test_max_bytes_bounds_what_is_held(start_daemon: StartDaemon, store: str, tmp_path: Path) -> None:
    """200 MB of events with 20 MB: in memory the process does not grow by much more, nor does the file."""
    config = backlog(store, tmp_path, size=100_000, max_bytes="20 MiB", memory="1 MiB")
    if store == "memory":
        del config["server"]["backlog"]["memory"]
    config["server"]["max_payload_size"] = "8 MiB"
    daemon = start_daemon(config)
    await publish_much(daemon, 400)
    before = memory_of(daemon)
    await publish_much(daemon, 1600)
    verdict, held = await daemon.replay("/much", **EVERYTHING)
    assert verdict == "partial"
    assert held == list(range(1600 - len(held), 1600))
    assert len(held) > (20 * 2**20 - 6 * 2**20) / 100_100
    if store == "memory":
        assert len(held) <= 20 * 2**20 / 100_000
        assert memory_of(daemon) < before + 30_000
    else:
        assert sum(path.stat().st_size for path in files_of(tmp_path / "backlog.db")) < 80 * 2**20


def memory_of(daemon: Daemon) -> int:
    """Its resident memory in KiB."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("keep", {"a,b": {"max_age": 1}}, "topics that an event must have all of"),
        ("keep", {"": {"max_age": 1}}, "topics that an event must have all of"),
        ("keep", {"/": {"max_age": 1}}, "topics that an event must have all of"),
        ("keep", {"a": {"max_ages": 1}}, "max_age"),
        ("keep", {"a": {"max_bytes": 1}}, "max_bytes"),
        ("keep", {"a": 5}, "keep"),
        ("keep", {"a": {"max_age": "often"}}, "a number of seconds"),
        ("keep", {1: {"max_age": 1}}, "keep"),
        ("keep", ["a"], "keep"),
        ("keep", {f"topic {n}": {} for n in range(101)}, "100"),
        ("max_bytes", 0, "more than 0"),
        ("max_bytes", "much", "a number of bytes"),
    ],
)
def test_settings_that_mean_nothing_are_refused(key: str, value: object, complaint: str) -> None:
    """In one line that names the key, and says what is meant."""
    with pytest.raises(ConfigError) as refused:
        build(BacklogConfig, {key: value}, Path("pypubsub.yaml"), ("server", "backlog"))
    (problem,) = refused.value.problems
    assert f"server.backlog.{key}" in problem
    assert complaint in problem
    assert "\n" not in problem
