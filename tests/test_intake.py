"""The one door for events: what it counts, and that all of a batch goes out."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

import pytest

from core.counters import counters
from core.errors import Refused
from core.events.event import Draft
from core.events.idempotency import QueueItem, idempotency_key
from core.events.intake import Intake
from core.events.store import PORTION, Accepted
from core.events.topics import publish_path
from plugins.backlog.unstored import Unstored
from stores import Delivered

Counted = dict[str, int]

PATH = publish_path("/a")
OPENING = '{"n": 1'


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """What is counted from now on."""
    monkeypatch.setattr(counters, "events", defaultdict(int))
    return counters.events


class Slow(Unstored):
    """A store that takes its time, and may refuse."""

    pending: asyncio.Future[Accepted]

    def _take(self, *_: object) -> asyncio.Future[Accepted]:
        self.pending = asyncio.get_running_loop().create_future()
        return self.pending


async def test_events_are_counted_whichever_way_they_come(counted: Counted) -> None:
    """One at once, some by a request, many in portions, and the items of a queue."""
    outlet = Delivered()
    intake = Intake(Unstored(outlet), outlet, 600)
    await intake.open()
    await intake.take_at_once(PATH, OPENING)
    assert counted == {"accepted": 1}
    await intake.take(PATH, [OPENING] * 3, None).answer
    assert counted == {"accepted": 4}
    await intake.take(PATH, [OPENING] * (PORTION + 1), None).answer
    await intake.take_items([Draft(PATH, OPENING)] * 2, [QueueItem("queue", b"1", 600)])
    assert counted == {"accepted": len(outlet)} == {"accepted": PORTION + 7}


async def test_events_that_are_brought_again_are_counted_apart(counted: Counted) -> None:
    """With the Idempotency-Key that they had before."""
    outlet = Delivered()
    intake = Intake(Unstored(outlet), outlet, 600)
    await intake.open()
    key = idempotency_key("somebody", "/a", "key", b"body")
    for _ in range(3):
        await intake.take(PATH, [OPENING] * 2, key).answer
    assert counted == {"accepted": 2, "repeated": 4}


async def test_events_that_the_store_refuses_are_not_counted(counted: Counted) -> None:
    """Nor those that it has not taken yet."""
    outlet = Delivered()
    store = Slow(outlet)
    intake = Intake(store, outlet, 600)
    await intake.open()
    ways: list[Callable[[], asyncio.Future[Accepted]]] = [
        lambda: intake.take_at_once(PATH, OPENING),
        lambda: intake.take(PATH, [OPENING], None).answer,
        lambda: intake.take_items([Draft(PATH, OPENING)], [QueueItem("queue", b"1", 600)]),
    ]
    for take in ways:
        counted.clear()
        answer = take()
        store.pending.set_exception(Refused(503, "no"))
        await asyncio.sleep(0)
        assert answer.exception()
        assert not counted
        answer = take()
        assert not counted
        store.pending.set_result(Accepted(await store.now(private=False), 1))
        await asyncio.sleep(0)
        assert answer.done()
        assert counted == {"accepted": 1}


class Crowded(Delivered):
    """An outlet that has room in the next turn of the loop."""

    async def wait_for_capacity(self) -> None:
        """Wait for that."""
        await asyncio.sleep(0)


async def test_a_batch_whose_publisher_has_left_is_waited_for() -> None:
    """And what came behind it, which no stop may forget."""
    outlet = Crowded()
    store = Unstored(outlet)
    intake = Intake(store, outlet, 600)
    await intake.open()
    intake.take(PATH, [OPENING] * (3 * PORTION), None)
    await asyncio.sleep(0)
    behind = intake.take(PATH, [OPENING], None).answer
    assert len(outlet) < 3 * PORTION
    assert not store.stamps_at_once
    await intake.drain(60)
    assert len(outlet) == 3 * PORTION + 1
    assert behind.done()
    assert store.stamps_at_once
