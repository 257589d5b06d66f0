"""A backlog in memory and one in a file give the same events, and tell the public nothing of private ones."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.counters import counters
from core.events.cursor import Mark, Stamps
from core.events.event import Draft, Event
from core.events.idempotency import IdempotencyKey, QueueItem, ReplyCache, idempotency_key
from core.events.intake import Intake
from core.events.replay import Gone, Placement, ReplayRequest
from core.events.store import Accepted, Page, StoreError
from core.events.topics import publish_path
from core.settings import ServerConfig
from plugins.backlog import finding, recent, remembered
from plugins.backlog import memory as backlog
from plugins.backlog.database import BacklogFile, Write
from plugins.backlog.file import StoredBacklog
from plugins.backlog.memory import Backlog
from plugins.backlog.schema import KINDS
from plugins.backlog.settings import BacklogConfig
from stores import IN_MEMORY, Delivered, positions_in, running, selected
from wire import START_NS

BEGINNING = Mark(1, 0.0)
NOTHING = {kind: [0.0] for kind in KINDS}  # is too old


class Clock:
    """Nanoseconds, and seconds, set by hand."""

    def __init__(self) -> None:
        self.ns = START_NS

    def __call__(self) -> int:
        """The time."""
        return self.ns

    def seconds(self) -> float:
        """The same in seconds."""
        return self.ns / 1e9


class Life:
    """A store, and its publisher."""

    def __init__(self, store: Backlog, clock: Clock, delivered: Delivered) -> None:
        self.store = store
        self.clock = clock
        self.delivered = delivered

    async def publish(self, *paths: str) -> list[Event]:
        """Publish an event on each path, in one batch."""
        await self.store.append([Draft(publish_path(path), '{"a": "x"') for path in paths])
        return self.delivered[-len(paths) :]

    async def read(self, after: int, *, private: bool) -> list[int]:
        """The positions of all events that are held after a position."""
        found = []
        while after < self.store.end(private=private):
            page = await self.page(after, private=private)
            found += positions_in(page)
            assert after < page.end
            after = page.end
        return found

    async def page(self, after: int, *, private: bool, path: str = "/") -> Page:
        """What is held after a position, up to the size of a page."""
        return await self.store.read(after, self.store.end(private=private), selected(path, private=private))

    async def ask(self, asked: ReplayRequest, *, private: bool, path: str = "/") -> Placement:
        """Where a subscriber would begin."""
        stamp = await self.store.now(private=private)
        await self.store.settle(stamp.position, private=private)
        moment = Mark(stamp.position, stamp.timestamp)
        return await self.store.place(asked, moment, selected(path, private=private))


@contextlib.asynccontextmanager
async def living(
    directory: str | None, size: int, max_age: float = 0, memory: int = 1000
) -> AsyncIterator[Life]:
    """A store in a file in that directory, or in memory."""
    clock, delivered = Clock(), Delivered()
    path = f"{directory}/backlog.db" if directory else None
    config = BacklogConfig(size=size, max_age=max_age, storage=path, memory=memory)
    stamps = Stamps(clock, clock)
    async with running(config, Path(path) if path else None, delivered, stamps, clock.seconds) as store:
        yield Life(store, clock, delivered)


BATCHES = st.lists(
    st.lists(st.sampled_from(["/a", "/b/c", "/private/a", "/private", "/"]), min_size=1, max_size=5),
    max_size=12,
)


@pytest.mark.parametrize("in_file", [False, True])
@given(BATCHES, st.integers(1, 8), st.sampled_from([1, 400, 100_000]), st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_read_is_what_was_published(
    in_file: bool, batches: list[list[str]], size: int, memory: int, data: st.DataObject
) -> None:
    """From any position, with private events and without; or it is said that something is gone."""

    async def check() -> None:
        with TemporaryDirectory(dir=IN_MEMORY) as directory:
            async with living(directory if in_file else None, size, memory=memory) as life:
                published = [event for paths in batches for event in await life.publish(*paths)]
                assert life.delivered == published
                for private in (False, True):
                    await check_reading(life, published, size, private)

    async def check_reading(life: Life, published: Sequence[Event], size: int, private: bool) -> None:
        kinds = [
            [e for e in published if e.path.private == kind]
            for kind in ([False, True] if private else [False])
        ]
        held = sorted(event.stamp.position for kind in kinds for event in kind[-size:])
        gone = Gone(*(kind[-size - 1].stamp.position if len(kind) > size else 0 for kind in kinds))
        after = data.draw(st.sampled_from([0, *gone, *(event.stamp.position for event in published)]))
        assert await life.read(after, private=private) == [position for position in held if position > after]
        if after < life.store.end(private=private):
            assert (await life.page(after, private=private)).gone == gone

    asyncio.run(check())


@pytest.mark.parametrize("in_file", [False, True])
async def test_pages_are_bounded(in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a number of events, and by bytes: a page has at least one event."""
    for module in (recent, finding):
        monkeypatch.setattr(module, "PAGE_EVENTS", 3)
    async with living(str(tmp_path) if in_file else None, 100) as life:
        await life.publish(*["/a", "/private/a"] * 10)
        assert (await life.page(0, private=False)).events == 3
        for module in (recent, finding):
            monkeypatch.setattr(module, "PAGE_BYTES", 1)
        assert 0 < (await life.page(0, private=True)).events <= 2
        assert len(await life.read(0, private=False)) == 10
        assert len(await life.read(0, private=True)) == 20


async def test_nothing_is_read_before_it_is_delivered(tmp_path: Path) -> None:
    """A long batch is in the file at once, and delivered over several turns: who reads must not run ahead."""
    async with living(str(tmp_path), 1000) as life:
        publishing = asyncio.create_task(life.publish(*["/a"] * 600))
        while not life.delivered:  # noqa: ASYNC110 (turn by turn)
            await asyncio.sleep(0)
        end = life.store.end(private=False)
        page = await life.page(0, private=False)
        assert page.end == positions_in(page)[-1] == end
        assert len(await publishing) == len(life.delivered) == 600


@pytest.mark.parametrize("in_file", [False, True])
async def test_complete_is_not_claimed_while_events_leave(
    in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if they leave between the question and the look at what is held."""
    async with living(str(tmp_path) if in_file else None, 100, max_age=1) as life:
        (event,) = await life.publish("/a")
        life.clock.ns += 2 * 10**9
        look = life.store._first_since

        async def look_late(timestamp: float, private: bool) -> int | None:
            await life.store.prune()
            return await look(timestamp, private)

        monkeypatch.setattr(life.store, "_first_since", look_late)
        asked = ReplayRequest(since=event.stamp.timestamp)
        assert (await life.ask(asked, private=False)).verdict == "partial"


@pytest.mark.parametrize("in_file", [False, True])
async def test_a_replay_by_time_begins_no_later_than_its_stream(
    in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if all that was held is pushed out before the look at it: what came since must not be skipped."""
    async with living(str(tmp_path) if in_file else None, 1) as life:
        (event,) = await life.publish("/a")
        look = life.store._first_since

        async def look_late(timestamp: float, private: bool) -> int | None:
            await life.publish("/a", "/a")
            return await look(timestamp, private)

        monkeypatch.setattr(life.store, "_first_since", look_late)
        placement = await life.ask(ReplayRequest(since=event.stamp.timestamp), private=False)
        assert event.stamp.position < placement.after < life.delivered[1].stamp.position


async def test_all_items_are_looked_at_once_in_a_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many old events leave in it: a million items take a good part of a second each time."""
    looks: list[float] = []
    monkeypatch.setattr(remembered, "forget_items", lambda _, now: looks.append(now))
    monkeypatch.setattr(backlog, "_PRUNING_PAUSES", (60, 60))  # none by itself
    async with living(str(tmp_path), 5000, max_age=1) as life:
        await life.publish(*["/a"] * 2500)
        looks.clear()
        life.clock.ns += 2 * 10**9
        await life.store.prune()
        end = life.store.end(private=False)
        assert await life.page(end - 1, private=False) == Page(end, gone=Gone(end))
    assert len(looks) == 1


async def test_what_a_failed_commit_has_left_behind_is_undone(tmp_path: Path) -> None:
    """Its publishers were refused, and may have asked again, so it must not turn up when SQLite finds it."""
    async with living(str(tmp_path), 10) as life:
        await life.publish("/a")
        end = life.store.end(private=False)
    file = BacklogFile(tmp_path / "backlog.db", 10, window=600)
    file.open(BEGINNING, from_the_start=False)

    def store(path: str, key: bytes) -> int:
        event = Event(publish_path(path), '{"a": "x"', life.store._stamps.next())
        write = Write(
            [event], IdempotencyKey(key, b""), Accepted(event.stamp, 1), [QueueItem("queue", key, 600)]
        )
        file.store([write], end, life.clock.seconds())
        return event.stamp.position

    store("/a", b"refused")
    store("/private/a", b"refused, too")
    file.has_failed = True
    kept = store("/a", b"kept")
    assert positions_in(file.read(0, 2**60, selected(private=True))) == [end, kept]
    assert [answer.key.scope for answer in file.remembered(life.clock.seconds())] == [b"kept"]
    assert [key for key, _ in file.remembered_items("queue", life.clock.seconds())] == [b"kept"]
    later = [store("/a", b"%d" % n) for n in range(8)]
    assert positions_in(file.read(0, 2**60, selected(private=True))) == [end, kept, *later]
    file.close_reader()
    file.close_writer()


@contextlib.contextmanager
def opened(directory: Path, window: float = 600) -> Iterator[tuple[BacklogFile, Callable[..., None]]]:
    """A file, and what publishes an event into it that came from items, or with an Idempotency-Key."""
    file = BacklogFile(directory / "backlog.db", 10, window)
    file.open(BEGINNING, from_the_start=True)
    file.open_reader()
    clock = Clock()
    stamps = Stamps(clock, clock)

    def store(now: float, *items: QueueItem, ask: IdempotencyKey | None = None) -> None:
        event = Event(publish_path("/a"), '{"a": "x"', stamps.next())
        file.store([Write([event], ask, Accepted(event.stamp, 1), items)], 0, now)

    try:
        yield file, store
    finally:
        file.close_reader()
        file.close_writer()


def test_items_are_remembered_for_their_window_by_queue(tmp_path: Path) -> None:
    """The oldest first, with what is left of it; then they leave the file."""
    with opened(tmp_path) as (file, store):
        store(1000, QueueItem("one", b"a", 100))
        store(1050, QueueItem("one", b"b", 100), QueueItem("two", b"a", 10))
        assert file.remembered_items("one", 1060) == [(b"a", 40), (b"b", 90)]
        assert file.remembered_items("two", 1059) == [(b"a", 1)]
        assert file.remembered_items("two", 1061) == []
        file.prune(NOTHING, 1120)
        assert file.remembered_items("one", 0) == [(b"b", 1150)]
        assert file.remembered_items("two", 0) == []


def test_the_newest_items_of_each_queue_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those of another queue nor the answers to publishers push them out, nor they those."""
    monkeypatch.setattr(remembered, "MAX_ITEMS", 5)
    monkeypatch.setattr(remembered, "MAX_REMEMBERED", 3)
    with opened(tmp_path) as (file, store):
        for n in range(20):
            store(1000 + n, QueueItem("busy", b"%d" % n, 600))
            if n < 2:
                store(1000 + n, QueueItem("quiet", b"%d" % n, 600), ask=IdempotencyKey(b"%d" % n, b""))
        file.prune(NOTHING, 1020)
        busy = [key for key, _ in file.remembered_items("busy", 1020)]
        assert busy[-5:] == [b"15", b"16", b"17", b"18", b"19"]
        assert len(busy) <= 6
        assert [key for key, _ in file.remembered_items("quiet", 1020)] == [b"0", b"1"]
        assert len(file.remembered(1020)) == 2
        for n in range(20):
            store(1020 + n, ask=IdempotencyKey(b"key %d" % n, b""))
        file.prune(NOTHING, 1040)
        assert [key for key, _ in file.remembered_items("quiet", 1040)] == [b"0", b"1"]
        assert 3 <= len(file.remembered(1040)) <= 4


def test_a_file_keeps_the_answers_of_those_who_have_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it got too many: a pruning lets go of the oldest of the publisher who has the most."""
    monkeypatch.setattr(remembered, "MAX_REMEMBERED", 20)
    with opened(tmp_path) as (file, store):

        def held(publisher: str) -> int:
            known = idempotency_key(publisher, "/a", "key", b"").publisher
            return [each.key.publisher for each in file.remembered(1000)].count(known)

        store(1000, ask=IdempotencyKey(b"0", b""))  # of an earlier version, which did not note the publisher
        for n in range(100):
            if n < 3:
                store(1000, ask=idempotency_key("quiet", "/a", str(n), b""))
            store(1001 + n, ask=idempotency_key("busy", "/a", str(n), b""))
        file.prune(NOTHING, 1101)
        assert (held("quiet"), held("busy"), len(file.remembered(1000))) == (3, 16, 20)
        newest = {each.key.scope for each in file.remembered(1000)}
        assert idempotency_key("busy", "/a", "99", b"").scope in newest


async def test_a_file_lets_go_of_answers_that_had_to_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for one: it holds as many as memory does, and over a restart the same ones."""
    monkeypatch.setattr(ReplyCache.__init__, "__defaults__", (5, time.monotonic))
    path = publish_path("/a")
    asks = [idempotency_key("quiet", "/a", "key", b"")]
    asks += [idempotency_key("busy", "/a", str(n), b"") for n in range(20)]
    held = []
    for _ in range(2):
        outlet = Delivered()
        store = StoredBacklog(BacklogConfig(size=50), ServerConfig(), tmp_path / "backlog.db", outlet)
        intake = Intake(store, outlet, 600)
        await intake.open()
        held.append([ask for ask in asks if intake._replies.find(ask)])
        running = asyncio.create_task(store.run())
        if not held[0]:
            for ask in asks:
                await intake.take(path, ['{"n": 1'], ask).answer
        held.append([ask for ask in asks if intake._replies.find(ask)])
        running.cancel()
        await asyncio.wait([running])
        await store.stop()
        with contextlib.closing(sqlite3.connect(tmp_path / "backlog.db")) as connection:
            stored = [name for (name,) in connection.execute("SELECT scope FROM answers")]
        assert {ask.name for ask in held[1]} <= set(stored)
        assert len(stored) <= 6  # the next write lets go of the last one
    assert held[1] == held[2] == held[3] == [asks[0], *asks[-4:]]


def test_an_answer_that_made_room_can_come_back_in_the_same_transaction(tmp_path: Path) -> None:
    """What was asked for last is what a file remembers, as memory does."""
    with opened(tmp_path) as (file, _):
        clock = Clock()
        stamps = Stamps(clock, clock)

        def write(key: bytes, *gone: bytes) -> Write:
            event = Event(publish_path("/a"), '{"a": "x"', stamps.next())
            return Write([event], IdempotencyKey(key, b""), Accepted(event.stamp, 1), (), gone)

        file.store([write(b"one"), write(b"two", b"one"), write(b"one", b"two"), write(b"three")], 0, 1000)
        assert {each.key.scope for each in file.remembered(1000)} == {b"one", b"three"}
        file.store([write(b"one", b"one"), write(b"four", b"three")], 0, 1000)
        assert {each.key.scope for each in file.remembered(1000)} == {b"one", b"four"}


def test_transactions_are_counted(tmp_path: Path) -> None:
    """Those that failed apart, and the time that the others took."""
    with opened(tmp_path) as (_, store):
        commits, spent, failed = counters.commits, counters.commit_ns, counters.failed_commits
        store(1000)
        store(1000)
        assert (counters.commits - commits, counters.failed_commits - failed) == (2, 0)
        assert 0 < counters.commit_ns - spent < 60 * 10**9
        with pytest.raises(StoreError):
            store(1000, QueueItem("queue", None, 600))  # type: ignore[arg-type]
        assert (counters.commits - commits, counters.failed_commits - failed) == (2, 1)


def test_items_of_a_write_that_fails_are_not_remembered(tmp_path: Path) -> None:
    """Their events are not stored either, so they have to come again."""
    with opened(tmp_path) as (file, store):
        store(1000, QueueItem("queue", b"a", 600))
        with pytest.raises(StoreError):
            store(1000, QueueItem("queue", b"b", 600), QueueItem("queue", None, 600))  # type: ignore[arg-type]
        assert file.remembered_items("queue", 1000) == [(b"a", 600)]
        assert file.read(0, 2**62, selected(private=True)).events == 1


class View(NamedTuple):
    """All that a client without rights can get out of a store at a moment."""

    placements: list[Placement]
    lines: list[bytes]
    gone: Gone


async def view(life: Life, moments: Sequence[float]) -> View:
    """Ask for a replay since each moment, and read all that is held."""
    placements = [await life.ask(ReplayRequest(since=moment), private=False) for moment in moments]
    everything = await life.ask(ReplayRequest(since=-1), private=False)
    page = await life.page(everything.after, private=False)
    lines = bytes(page.data).splitlines(keepends=True)
    lines = [line[: -len('-8cc6-f1b2ba5f9751"}\n')] for line in lines]  # but for what is random
    return View([*placements, everything], lines, page.gone)


@pytest.mark.parametrize("in_file", [False, True])
async def test_the_public_sees_the_same_with_private_events_and_without(
    in_file: bool, tmp_path: Path
) -> None:
    """The same history, with the same clock: bodies, order, positions, verdicts, and the time of pruning."""

    async def history(private_events: int) -> list[View]:
        views = []
        async with living(mkdtemp(dir=tmp_path) if in_file else None, 5, max_age=20) as life:
            moments = [life.clock.seconds()]
            for second in range(40):
                life.clock.ns = START_NS + second * 10**9
                await life.publish("/a")
                moments.append(life.clock.seconds())
                for n in range(private_events):
                    life.clock.ns += 10**6
                    await life.publish("/private/a", f"/private/b/{n}")
                if second > 20:
                    life.clock.ns = START_NS + second * 10**9 + 5 * 10**8
                    await life.store.prune()
                life.clock.ns = START_NS + second * 10**9 + 9 * 10**8
                views.append(await view(life, moments))
        return views

    without = await history(0)
    assert await history(3) == without
    assert await history(40) == without
    assert {placement.verdict for seen in without for placement in seen.placements} >= {"partial", "complete"}


async def test_private_events_are_replayed_to_those_who_may_see_them(tmp_path: Path) -> None:
    """Their own loss is theirs to know: complete is not claimed for a private range that has left."""
    for directory in (None, str(tmp_path)):
        async with living(directory, 3) as life:
            before = await life.store.now(private=True)
            await life.publish("/private/a", "/a")
            await life.publish(*["/private/a"] * 3)
            asked = ReplayRequest(cursor=before.cursor)
            assert (await life.ask(asked, private=False)).verdict == "complete"
            placement = await life.ask(asked, private=True)
            assert placement.verdict == "partial"
            assert len(await life.read(placement.after, private=True)) == 4
