"""A clock that is set, forward or back and by years, makes no event leave the backlog, nor stay for ever."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.events.cursor import Stamps
from core.events.event import Draft
from core.events.topics import publish_path
from plugins.backlog import file as backlog_storage
from plugins.backlog.memory import Backlog
from plugins.backlog.settings import BacklogConfig
from stores import IN_MEMORY, Delivered, positions_in, running, selected

YEAR = 365.25 * 86_400
MAX_AGE = 1000
PATHS = ("/a", "/private")
STORES = pytest.mark.parametrize("in_file", [False, True])


class World:
    """Its clocks: the time of day, and those that nobody sets. Seconds."""

    def __init__(self) -> None:
        self.wall = 1_800_000_000.0
        self.since_boot = 500.0
        self.boot = "first"

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.wall += seconds
        self.since_boot += seconds

    def restarts(self, seconds: float) -> None:
        """The machine is off for so long."""
        self.wall += seconds
        self.since_boot, self.boot = 20.0, self.boot + " another"

    def stamps(self) -> Stamps:
        """By these clocks."""
        return Stamps(lambda: int(self.wall * 1e9), lambda: int(self.since_boot * 1e9))


class Life:
    """A store in a world."""

    def __init__(self, world: World, store: Backlog, delivered: Delivered) -> None:
        self.world = world
        self.store = store
        self.delivered = delivered

    async def publish(self, count: int = 1) -> list[int]:
        """Publish events, a public and a private one each time; the positions."""
        before = len(self.delivered)
        for _ in range(count):
            await self.store.append([Draft(publish_path(path), '{"a": 1') for path in PATHS])
        return [event.stamp.position for event in self.delivered[before:]]

    async def held(self) -> list[int]:
        """The positions of what is held after a pruning."""
        await self.store.prune()
        found: list[int] = []
        after = 0
        while after < self.store.end(private=True):
            page = await self.store.read(after, self.store.end(private=True), selected(private=True))
            found += positions_in(page)
            after = page.end
        return found


@contextlib.asynccontextmanager
async def living(world: World, directory: Path | None) -> AsyncIterator[Life]:
    """A store in a file in that directory, or in memory."""
    config = BacklogConfig(size=1000, max_age=MAX_AGE)
    delivered = Delivered()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backlog_storage, "this_boot", lambda: world.boot)
        path = directory / "backlog.db" if directory else None
        async with running(config, path, delivered, world.stamps(), lambda: world.since_boot) as store:
            yield Life(world, store, delivered)


@STORES
@pytest.mark.parametrize("published", [0, 1])
async def test_a_jump_of_the_clock_makes_nothing_leave(in_file: bool, published: int, tmp_path: Path) -> None:
    """Forward for two seconds by ten years, whether or not anything is published meanwhile; time does."""
    world = World()
    async with living(world, tmp_path if in_file else None) as life:
        before = await life.publish(3)
        world.passes(100)
        world.wall += 10 * YEAR
        before += await life.publish(published)
        for _ in range(2):
            assert await life.held() == before
            world.passes(1)
        world.wall -= 10 * YEAR
        after = await life.publish(3)
        assert await life.held() == before + after
        world.passes(MAX_AGE - 50)
        assert await life.held() == before[6:] + after
        after += await life.publish()
        world.passes(100)
        assert await life.held() == after[-2:]
        world.passes(MAX_AGE)
        assert await life.held() == []


@STORES
async def test_a_clock_that_was_wrong_at_the_start(in_file: bool, tmp_path: Path) -> None:
    """A machine without a clock of its own begins in 1970, and is then told the time."""
    world = World()
    now, world.wall = world.wall, 1000.0
    async with living(world, tmp_path if in_file else None) as life:
        events = await life.publish(2)
        world.passes(60)
        world.wall = now
        events += await life.publish(2)
        assert await life.held() == events
        world.passes(MAX_AGE - 30)
        assert await life.held() == events[4:]
        world.passes(40)
        assert await life.held() == []


@pytest.mark.parametrize("looked", [False, True])
async def test_a_start_with_a_wrong_clock(looked: bool, tmp_path: Path) -> None:
    """Makes nothing leave: its time is not believed. That since the machine's start is."""
    world = World()
    async with living(world, tmp_path) as life:
        events = await life.publish(2)
        world.passes(100)
        if looked:
            assert await life.held() == events
    world.restarts(60)
    world.wall += 10 * YEAR
    async with living(world, tmp_path) as life:
        events += await life.publish()
        assert await life.held() == events
        world.passes(MAX_AGE - 150)
        assert await life.held() == events
    world.wall -= 10 * YEAR
    world.passes(100)  # the server is stopped meanwhile, the machine is not
    async with living(world, tmp_path) as life:
        world.passes(30)
        assert await life.held() == (events[4:] if looked else events)
        world.passes(40)
        assert await life.held() == []


async def test_events_of_a_life_after_a_stop_are_not_taken_for_older(tmp_path: Path) -> None:
    """Their stamps go on from the last one, which was ahead of the clock, and not from the stop's end."""
    world = World()
    async with living(world, tmp_path) as life:
        world.wall += YEAR
        events = await life.publish()
        world.wall -= YEAR
        assert await life.held() == events
    world.passes(MAX_AGE - 100)
    async with living(world, tmp_path) as life:
        world.passes(1)
        events += await life.publish()
        assert await life.held() == events
        world.passes(200)
        assert await life.held() == events[2:]
        world.passes(MAX_AGE - 100)
        assert await life.held() == []


@pytest.mark.parametrize("in_file", [False, True])
@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["publish", "publish", "clock", "stopped", "off", "wait"]),
            st.floats(0, 60),
            st.floats(-YEAR, YEAR) | st.floats(-2, 2),
        ),
        max_size=40,
    )
)
async def test_what_leaves_is_old(in_file: bool, steps: list[tuple[str, float, float]]) -> None:
    """Whatever becomes of the clocks: no event leaves before its time, and each soon after."""
    world = World()
    lived = 0.0  # seconds, but for those in which the machine is off
    published: dict[int, float] = {}
    async with contextlib.AsyncExitStack() as lives:
        with TemporaryDirectory(dir=IN_MEMORY) as name:
            directory = Path(name) if in_file else None
            life = await lives.enter_async_context(living(world, directory))
            for what, seconds, jump in steps:
                match what:
                    case "publish":
                        published |= dict.fromkeys(await life.publish(), lived)
                    case "clock":
                        world.wall = max(world.wall + jump, 0.0)
                    case "stopped" | "off" if in_file:
                        await lives.aclose()
                        if what == "off":
                            world.restarts(seconds)
                        else:
                            world.passes(seconds)
                            lived += seconds
                        life = await lives.enter_async_context(living(world, directory))
                world.passes(seconds)
                lived += seconds
                held = set(await life.held())
                ages = {position: lived - at for position, at in published.items()}
                assert {position for position, age in ages.items() if age < MAX_AGE - 1} <= held
                late = 125 * (1 + sum(each[0] == "off" for each in steps))  # what a file was not told is lost
                assert held <= {position for position, age in ages.items() if age < MAX_AGE + late}
            await lives.aclose()


async def test_events_of_a_life_after_a_long_stop_are_as_old_as_they_are(tmp_path: Path) -> None:
    """Though their stamps are behind by more than max_age: they go on from those that were ahead."""
    world = World()
    async with living(world, tmp_path) as life:
        await life.publish()
        world.wall += YEAR
        await life.publish()
        await life.held()
        world.wall -= YEAR
    world.passes(2 * MAX_AGE)
    async with living(world, tmp_path) as life:
        events = []
        for _ in range(5):
            world.passes(1)
            events += await life.publish()
        assert await life.held() == events


async def test_events_of_a_short_life_after_the_clock_was_set_back_are_not_taken_for_older(
    tmp_path: Path,
) -> None:
    """Also if that life was over before anybody looked at how old events are."""
    world = World()
    async with living(world, tmp_path) as life:
        world.passes(100)
        await life.publish()
    world.wall -= MAX_AGE
    world.passes(200)
    async with living(world, tmp_path) as life:
        world.passes(1)
        events = await life.publish()
    world.passes(MAX_AGE - 100)
    async with living(world, tmp_path) as life:
        assert await life.held() == events
        world.passes(150)
        assert await life.held() == []
