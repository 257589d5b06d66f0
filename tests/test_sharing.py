"""Publishers share the server fairly: many events of one delay nobody else for long, and fill no memory."""

import asyncio
import contextlib
import re
from pathlib import Path

import pytest

from core.delivery.fanout import Fanout
from core.errors import Refused
from core.events.event import MAX_BATCH
from core.events.intake import Intake
from core.events.topics import publish_path
from core.events.turns import Turns
from core.events.waiting import Waiting
from core.settings import ServerConfig
from daemon import Daemon, StartDaemon
from plugins.backlog import file as backlog_storage
from plugins.backlog.database import Write
from plugins.backlog.file import StoredBacklog
from plugins.backlog.settings import BacklogConfig
from wire import TIMEOUT

NDJSON = {"Content-Type": "application/x-ndjson"}
CROWD = 14  # connections that bring batches at the same time


def peak_memory(daemon: Daemon) -> int:
    """The most memory that it has had, in MiB."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024


async def bring_batch(daemon: Daemon, number: int) -> int:
    """Publish as many events as a request may have, on a path of its own; the status."""
    return (await daemon.request("PUT", f"/batch/{number}", b"{}\n" * MAX_BATCH, NDJSON)).status


@pytest.mark.parametrize("in_file", [False, True])
async def test_one_event_does_not_wait_for_all_batches(
    in_file: bool, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Nor does a short batch: both are answered while most wait. All are published, in little memory."""
    backlog = {"size": 100, "storage": str(tmp_path / "backlog.db")} if in_file else {}
    daemon = start_daemon({"server": {"backlog": backlog}})
    await daemon.put("/one", {"n": 0})
    before = peak_memory(daemon)
    async with daemon.subscriber("/batch") as stream:
        batches = [asyncio.create_task(bring_batch(daemon, number)) for number in range(CROWD)]
        await stream.event()
    for answer in (
        await daemon.put("/one", {"n": 1}),
        await daemon.request("PUT", "/few", b"{}\n" * 100, NDJSON),
    ):
        assert answer.status == 202
        assert sum(batch.done() for batch in batches) < CROWD / 2
    assert await asyncio.gather(*batches) == [202] * CROWD
    assert peak_memory(daemon) - before < 28


async def test_a_batch_is_bounded_in_events(server: Daemon) -> None:
    """413 says how many there may be, before any is read; empty lines do not count."""
    most = b"{}\n" * MAX_BATCH
    async with server.subscriber("/after") as stream:
        answer = await server.request("PUT", "/after", most + b"not JSON\n", NDJSON)
        assert (answer.status, str(MAX_BATCH) in answer.text) == (413, True)
        assert (await server.request("PUT", "/a", b"\n \r\n" * 10_000 + most, NDJSON)).status == 202
        await server.put("/after", {"n": 1})
        assert (await stream.event())["n"] == 1


async def test_a_bad_line_is_named_by_its_number_and_column(server: Daemon) -> None:
    """Empty lines and spaces before it count."""
    answer = await server.request("PUT", "/a", b'\n{}\n \t\n\n  {"n": 1\n', NDJSON)
    assert (answer.status, answer.text) == (400, "line 5: not JSON: Expecting ',' delimiter at column 10\n")


# Turns


class Turn:
    """Somebody who brings events, and what becomes of that."""

    order: list[str]

    def __init__(self, turns: Turns, name: str, publisher: str, events: int, order: list[str]) -> None:
        self._end = asyncio.Event()
        self._order = order
        self.task = asyncio.create_task(self._run(turns, name, publisher, events))

    async def _run(self, turns: Turns, name: str, publisher: str, events: int) -> None:
        async with turns.turn(publisher, events):
            self._order.append(name)
            await self._end.wait()

    async def end(self) -> None:
        """Have it give its turn away."""
        self._end.set()
        await self.task
        await asyncio.sleep(0)


async def begun(*asked: tuple[str, str, int]) -> tuple[list[str], dict[str, Turn]]:
    """Publishers who bring events at the same time, each by a name, and the names of those who had a turn."""
    turns, order = Turns(), list[str]()
    found = {}
    for name, publisher, events in asked:
        found[name] = Turn(turns, name, publisher, events, order)
        await asyncio.sleep(0)
    return order, found


async def test_who_brings_less_goes_first() -> None:
    """And of those who bring as much, who came first."""
    order, turns = await begun(
        ("a", "A", 500), ("b", "B", 900), ("c", "C", 200), ("d", "D", 900), ("e", "E", 30)
    )
    for name in "aecbd":
        await turns[name].end()
    assert "".join(order) == "aecbd"


async def test_a_publisher_with_many_batches_has_no_more_turns() -> None:
    """Than one with a single batch, who is next."""
    order, turns = await begun(*((f"{n}", "A", 100) for n in range(5)), ("b", "B", 150))
    for name in "0b1234":
        await turns[name].end()
    assert "".join(order) == "0b1234"


async def test_nobody_waits_for_ever() -> None:
    """A long batch has its turn though shorter ones come without end."""
    turns, order = Turns(), list[str]()
    short = Turn(turns, "short", "A", 30, order)
    await asyncio.sleep(0)
    long = Turn(turns, "long", "B", 1000, order)
    while "long" not in order:
        following = Turn(turns, "short", "A", 30, order)
        await asyncio.sleep(0)
        await short.end()
        short = following
        assert len(order) < 100
    await long.end()
    await short.end()


@pytest.mark.parametrize("given", [False, True])
async def test_a_turn_of_one_who_has_left_is_anothers(given: bool) -> None:
    """Also if it was given the turn in that moment."""
    order, turns = await begun(("a", "A", 100), ("b", "B", 100), ("c", "C", 100))
    if given:
        turns["a"]._end.set()
        while not turns["a"].task.done():  # noqa: ASYNC110 (turn by turn)
            await asyncio.sleep(0)
    turns["b"].task.cancel()
    await asyncio.wait([turns["b"].task])
    await turns["a"].end()
    assert order == ["a", "c"]
    await turns["c"].end()


# What waits


def test_a_publisher_may_have_as_much_waiting_as_is_left_for_others() -> None:
    """Then 503 and Retry-After; there is room for others, and for it again once it has less waiting."""
    waiting = Waiting(1000)
    with contextlib.ExitStack() as held:
        held.enter_context(waiting.hold("A", 300))
        with waiting.hold("A", 200):
            with pytest.raises(Refused) as refused, waiting.hold("A", 1):
                pass
            assert (refused.value.status, "Retry-After" in refused.value.headers) == (503, True)
            with waiting.hold("B", 250), pytest.raises(Refused), waiting.hold("B", 1):
                pass
        held.enter_context(waiting.hold("A", 200))
    with waiting.hold("A", 5000):  # a body larger than all that may wait, alone
        pass


async def test_what_waits_for_the_disk_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many bytes, 503; what is stored together is bounded too, and goes in order."""
    monkeypatch.setattr(backlog_storage, "MOST_WAITING", 5000)
    monkeypatch.setattr(backlog_storage, "_GROUP_EVENTS", 10)
    outlet = Fanout(backlog=True)
    store = StoredBacklog(BacklogConfig(size=100), ServerConfig(), tmp_path / "backlog.db", outlet)
    groups = []
    write = store._file.store

    def noted(writes: list[Write], end: int, now: float) -> None:
        groups.append([len(each.events) for each in writes])
        write(writes, end, now)

    monkeypatch.setattr(store._file, "store", noted)
    intake = Intake(store, outlet, 600)
    await intake.open()
    path = publish_path("/a")
    answers = [intake.take(path, ['{"n": 1'] * count, None).answer for count in (4, 4, 4, 15, 1, 1, 100)]
    with pytest.raises(Refused) as refused:
        intake.take(path, ['{"n": 1'], None)
    assert (refused.value.status, "Retry-After" in refused.value.headers) == (503, True)
    assert not intake.at_once
    running = asyncio.create_task(store.run())
    async with asyncio.timeout(TIMEOUT):
        accepted = await asyncio.gather(*answers)
    assert intake.at_once
    assert groups == [[4, 4, 4], [15], [1, 1, 100]]
    cursors = [each.last.cursor for each in accepted]
    assert cursors == sorted(cursors)
    running.cancel()
    await asyncio.wait([running])
    await store.stop()
