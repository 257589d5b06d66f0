"""Stores, fan-out and readers, searched for a way to break what `X-Replay` promises, by a model of it.

A machine of hypothesis publishes, lets time pass, stops the store and kills it, and opens readers of all
kinds: with rights and without, resuming by each other's cursors or by time, reading slowly or not at all.
Threads and turns of the event loop are steps that it takes when it likes, so that what it finds it finds
again: a write may come in the middle of a read, and fail. Old events are sealed, and leave by number, bytes
and age, by settings that change at a restart. An oracle holds all that was ever delivered, and says what each
reader must have got and must be told, and what the store must hold.

For longer searches see searching.py.
"""

import asyncio
import concurrent.futures
import contextlib
import itertools
import json
import math
import shutil
import socket
import sqlite3
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.auth.networks import Networks
from core.auth.rights import EVERY_EVENT, NO_RIGHTS, Rights, is_for
from core.delivery.catch_up import CatchUpContext, Follower
from core.delivery.channel import selection_of
from core.delivery.fanout import Fanout
from core.delivery.subscriber import Subscriber
from core.delivery.wire import BARE
from core.events import intake as intake_module
from core.events import local_store, turns
from core.events.cursor import TICKS_PER_SECOND, Mark, Stamps, position_of, stamp_at
from core.events.event import Event, position_in, timestamp_in
from core.events.intake import Intake
from core.events.replay import ReplayRequest
from core.events.subscription import parse_subscription
from core.events.topics import publish_path
from core.expiring import Expiring
from core.http.limits import Connections
from core.http.stream import Stream
from core.settings import ServerConfig
from plugins.backlog import block, blocks, database, departed, finding, leaving, memory, sealing
from plugins.backlog import file as backlog_storage
from plugins.backlog import recent as recent_module
from plugins.backlog.block import Summary
from plugins.backlog.departed import Departed
from plugins.backlog.file import StoredBacklog
from plugins.backlog.leaving import Leaving
from plugins.backlog.memory import Backlog, Kind
from plugins.backlog.schema import KINDS
from plugins.backlog.settings import BacklogConfig
from plugins.backlog.sqlite_file import SqliteFile
from searching import search
from storage import all_events
from stores import IN_MEMORY
from wire import START_NS

# so that a few events are many
MODULES = (local_store, intake_module, recent_module, finding, backlog_storage)
SMALL = {"PAGE_EVENTS": 3, "PAGE_BYTES": 4000, "PORTION": 2}
BOUNDS: dict[str, tuple[tuple[Any, ...], list[int]]] = {  # where a name is used, and what it may be
    "BLOCK_EVENTS": ((block, database, sealing), [2, 3]),
    "BLOCK_BYTES": ((block, sealing), [1500, 1 << 18]),
    "_SEALED_FROM": ((database,), [1, 1, 1, 1000]),
    "MOST_TOPICS": ((departed,), [2, 20_000, 20_000]),
    "_MOST_BLOCKS": ((finding,), [1, 2, 8]),
    "_MOST_ROWS": ((finding,), [2, 2000]),
    "_MOST_UNPACKED": ((blocks,), [1, 8]),
    "_TESTS_AT_ONCE": ((blocks,), [4, 20_000]),
    "_ROWS_AT_ONCE": ((leaving,), [1, 2, 1000]),
}
PATHS = ["/a", "/a", "/b", "/a/b", "/c/d", "/private/a", "/private/a", "/private/b", "/rare", "/b/rare"]
PATHS += ["/private/rare", "/"]
ASKED_PATHS = ["/", "/a", "/b", "/a/b", "/private", "/b,private/a", "/rare", "/rare", "/c,a/rare", "/d/c"]
ASKED_PATHS += ["/private/rare"]
RULES: list[dict[str, dict[str, int]]] = [
    {},
    {"a": {"max_age": 10}},
    {"b": {"max_age": 10}},
    {"a/b": {}, "a": {"max_age": 20}},
    {"rare": {"max_age": 100}, "private": {"max_age": 10}},
    {"private/b": {"max_age": 10}, "b": {"max_age": 40}, "d/c": {"max_age": 1}},
]
SETTINGS = st.fixed_dictionaries(
    {
        "size": st.sampled_from([1, 2, 4, 6, 6, 9, 12, 20]),
        "max_age": st.sampled_from([0, 10, 30]),
        "memory": st.sampled_from([1, 1, 3000, 1_000_000]),
        "max_bytes": st.sampled_from([None, None, 3000, 20_000]),
        "keep": st.sampled_from(RULES),
    }
)
RIGHTS = [
    NO_RIGHTS,
    NO_RIGHTS,
    Rights(frozenset({frozenset({"a"})})),
    Rights(frozenset({EVERY_EVENT})),
]
HOW = ["any", "any", "public", "last", "the same", "the same", "since", "all", "live", "never heard of"]
PING = b'{"stillalive": 0.0}\n'
NO_LIMITS = Connections(1, 0, 0, Networks([]))
BUFFER = 3000  # bytes that may wait for a reader
FILLINGS = (0, 0, 1500)  # bytes, of which a few events fill a socket

# what a search in a file must come to
REACHED = ["sealed", "read from a block", "thinned", "block dropped", "floor", "quiet reader", "failed write"]
REACHED += ["write in a read"]

R = TypeVar("R")

steps: Counter[str] = Counter()


class Thread(concurrent.futures.Executor):
    """A thread that works when it is told to."""

    def __init__(self) -> None:
        self._calls: deque[tuple[concurrent.futures.Future[Any], Callable[[], Any]]] = deque()

    def submit(
        self, call: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        """Have something called later."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._calls.append((future, lambda: call(*args, **kwargs)))
        return future

    def step(self) -> bool:
        """Make the next call; whether there was one."""
        if not self._calls:
            return False
        future, call = self._calls.popleft()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except Exception as error:  # noqa: BLE001 (whoever waits for it gets it)
                future.set_exception(error)
        return True

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """There is nothing to end."""


class Writer(sqlite3.Connection):
    """A connection to a disk that fails when it is told to, if something is written over it."""

    fails: ClassVar[bool] = False
    writes = False

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Execute a statement."""
        self.writes = self.writes or sql == "BEGIN IMMEDIATE"
        if sql == "COMMIT" and self.writes and Writer.fails:
            Writer.fails = False
            steps["failed write"] += 1
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, parameters)


class Known(NamedTuple):
    """An event as the oracle has it."""

    n: int
    position: int
    timestamp: float
    path: str

    @property
    def private(self) -> bool:
        """Whether it is a private one."""
        return publish_path(self.path).private

    @property
    def topics(self) -> frozenset[str]:
        """Without the `private` that its path may begin with."""
        return frozenset(publish_path(self.path).topics)


class Departure(NamedTuple):
    """An event that has left, or a block that has left as a whole, of which nothing is told apart."""

    private: bool
    position: int
    timestamp: float
    topics: frozenset[str]


class Origin(NamedTuple):
    """How an event was published."""

    elapsed: float  # seconds that had passed by then
    life: int
    size: int  # bytes that it takes at most


class Batch(NamedTuple):
    """What was published together."""

    numbers: Sequence[int]
    path: str
    answer: asyncio.Future[Any]


class Reader:
    """A subscriber, what it asked for and was told, and what it has got."""

    def __init__(self, asked: ReplayRequest | None, path: str, rights: Rights) -> None:
        self.asked = asked
        self.path = path
        self.subscription = parse_subscription(path)
        self.rights = [rights]  # all that it had, in their order
        self.head = 0  # position
        self.verdict: str | None = None
        self.must_be_complete = False
        self.subscriber: Subscriber | None = None
        self.opening: asyncio.Task[None] | None = None
        self.socket, self.served = socket.socketpair()
        for end in (self.socket, self.served):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is, some KiB
        self.received = b""
        self.ended = False

    def read(self, size: int) -> int:
        """Take up to so many bytes; how many there were."""
        with contextlib.suppress(BlockingIOError):
            try:
                data = self.socket.recv(size)
            except ConnectionResetError:
                data = b""
            self.ended = self.ended or not data
            self.received += data
            return len(data)
        return 0

    def resumes(self) -> ReplayRequest | None:
        """What it asks for when it comes back: what followed the last event that it has had."""
        for line in self.lines[::-1]:
            if line != PING.strip():
                return ReplayRequest(cursor=json.loads(line)["pubsub_cursor"])
        return self.asked

    @property
    def lines(self) -> list[bytes]:
        """The whole lines so far, pings too."""
        return self.received.split(b"\n")[:-1]

    def wants(self, event: Known, rights: Rights) -> bool:
        """Whether an event is for it, as far as topics and rights go."""
        return is_for(publish_path(event.path), self.subscription, rights)

    def after(self, event: Known) -> bool:
        """Whether an event comes after the place that it asked for, or after its stream began."""
        if event.position > self.head:
            return True
        if self.asked is None:
            return False
        if self.asked.cursor is None:
            return event.timestamp >= (self.asked.since or 0.0)
        position = position_of(self.asked.cursor)
        return position is not None and position <= self.head and event.position > position


def positions_of(kind: Kind) -> set[int]:
    """Those of the events of a kind that are in memory."""
    return {position for recent in kind.recents for position in recent._positions[recent._first :]}


def counted(call: Callable[..., R], reached: str) -> Callable[..., R]:
    """A function whose calls are counted."""

    def called(*arguments: Any) -> R:
        steps[reached] += 1
        return call(*arguments)

    return called


class Machine(RuleBasedStateMachine):
    """Any life of a store, with its readers."""

    in_file = False

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        for module, name in itertools.product(MODULES, SMALL):
            if hasattr(module, name):
                self.patch.setattr(module, name, SMALL[name])
        # nothing here is to depend on how long anything takes
        self.patch.setattr(backlog_storage, "time", SimpleNamespace(monotonic=lambda: 0.0))
        self.patch.setattr(memory, "_PRUNING_PAUSES", (3600.0, 3600.0))
        self.patch.setattr(turns.Slice, "over", True)
        self.bounds: dict[str, int] = {}
        self.loop = asyncio.new_event_loop()
        self.directory = Path(mkdtemp(prefix="pypubsub-model-", dir=IN_MEMORY))
        self.now_ns = START_NS
        self.elapsed = 0.0  # seconds
        self.set_back = 0.0  # seconds, in all
        self.waited = 0.0  # seconds, an event to be stored
        self.numbers = itertools.count()
        self.origins: dict[int, Origin] = {}  # by event
        self.delivered_at: dict[int, float] = {}  # the same: seconds elapsed
        self.dropped_blocks: list[Departure] = []  # and some that have stayed, since a write failed
        self.meanwhile: str | None = None  # when in a read something is written: "before", "after"
        self.settings: list[BacklogConfig] = []  # of all lives
        self.history: list[Known] = []
        self.delivered_now: list[Known] = []  # in this life
        self.batches: list[Batch] = []
        self.readers: list[Reader] = []
        self.cursors: list[str] = []  # that somebody may come back with
        self.public_cursors: list[str] = []  # of public events
        self.last_asked: ReplayRequest | None = None
        self.lives = 0
        self.began = Mark(0, 0.0)

    # The world

    @initialize(
        chosen=SETTINGS,
        bounds=st.fixed_dictionaries({name: st.sampled_from(of) for name, (_, of) in BOUNDS.items()}),
    )
    def begin(self, chosen: dict[str, Any], bounds: dict[str, int]) -> None:
        """Choose the settings, and start."""
        self.bounds = bounds
        for name, value in bounds.items():
            for module in BOUNDS[name][0]:
                self.patch.setattr(module, name, value)
        self.watch_the_file()
        self.choose(chosen)
        self.start()

    def interrupt(self, when: str) -> None:
        """Write something in the middle of a read, if so was chosen."""
        if self.meanwhile == when and self.threads[0].step():
            self.meanwhile = None
            steps["write in a read"] += 1

    def choose(self, chosen: dict[str, Any]) -> None:
        """Write the settings."""
        storage = str(self.directory / "backlog.db") if self.in_file else None
        self.config = BacklogConfig(storage=storage, **chosen)

    def watch_the_file(self) -> None:
        """Learn what leaves as a whole, count what is to be reached, and write in the middle of reads."""
        Writer.fails = False

        def connect(file: SqliteFile) -> sqlite3.Connection:
            return sqlite3.connect(str(file._path), isolation_level=None, factory=Writer)

        self.patch.setattr(SqliteFile, "_connect", connect)
        drop_block = Leaving._drop_block

        def dropped(leaving: Leaving, connection: sqlite3.Connection, summary: Summary) -> None:
            paths = blocks.read(connection, leaving.kind, summary).paths
            topics = frozenset(topic for path in paths for topic in publish_path(path).topics)
            steps["block dropped"] += 1
            self.dropped_blocks.append(
                Departure(leaving.kind == "private", summary.last, summary.last_timestamp, topics)
            )
            drop_block(leaving, connection, summary)

        self.patch.setattr(Leaving, "_drop_block", dropped)
        for owner, name, reached in (
            (Departed, "_forget_some", "floor"),
            (database, "seal", "sealed"),
            (leaving, "pack", "thinned"),
            (blocks.Unpacked, "block", "read from a block"),
        ):
            self.patch.setattr(owner, name, counted(getattr(owner, name), reached))
        for name in ("find", "first_since"):
            self.patch.setattr(database, name, self.interrupted(getattr(database, name)))

    def interrupted(self, call: Callable[..., R]) -> Callable[..., R]:
        """A part of a read, before or after which something else is written, if so was chosen."""

        def called(*arguments: Any) -> R:
            self.interrupt("before")
            result = call(*arguments)
            self.interrupt("after")
            return result

        return called

    def clock(self) -> int:
        """The time of day, in nanoseconds."""
        return self.now_ns

    def since_boot(self) -> float:
        """Seconds, by a clock that nobody sets."""
        return self.elapsed

    def start(self) -> None:
        """Begin a life."""
        self.lives += 1
        self.settings.append(self.config)
        self.failures = steps["failed write"]
        self.threads = [Thread(), Thread()]
        self.fanout = Fanout(backlog=True)
        deliver = self.fanout.deliver

        def noted(event: Event) -> None:
            self.note(event)
            deliver(event)

        self.fanout.deliver = noted  # type: ignore[method-assign]
        self.store: Backlog
        if self.config.storage:
            self.store = StoredBacklog(
                self.config,
                ServerConfig(),
                Path(self.config.storage),
                self.fanout,
                self.since_boot,
            )
            self.store._writing, self.store._reading = self.threads  # type: ignore[assignment]
        else:
            self.store = Backlog(self.config, self.fanout, self.since_boot)
        self.intake = Intake(self.store, self.fanout, 600)
        self.store._stamps = Stamps(self.clock, lambda: round(self.elapsed * 1e9))
        if self.lives == 1 or not self.in_file:
            self.began = self.first_moment()
        self.delivered_now = []
        self.run(self.intake.open())
        self.learn_what_was_stored()
        self.running = self.loop.create_task(self.store.run())
        self.catch_up = CatchUpContext(
            self.fanout,
            self.store,
            3600.0,
            lambda: 0.0,
            pages=Expiring(1.0, 16, lambda: self.now_ns / 1e9),
        )
        self.turns(3)
        if self.in_file:
            self.check_ages()

    def on_loop(self, make: Callable[[], Any]) -> Any:
        """Make something that wants a running loop."""

        async def made() -> Any:
            return make()

        return self.loop.run_until_complete(made())

    def first_moment(self) -> Mark:
        """A moment that is no later than the beginning of the store's memory."""
        return Mark(self.now_ns * TICKS_PER_SECOND // 10**9, self.now_ns / 1e9)

    def note(self, event: Event) -> None:
        """An event is delivered."""
        known = Known(
            json.loads(event.line)["n"], event.stamp.position, event.stamp.timestamp, event.path.text
        )
        self.history.append(known)
        self.delivered_at[known.n] = self.elapsed
        self.waited = max(self.waited, self.elapsed - self.origins[known.n].elapsed)
        self.delivered_now.append(known)
        self.cursors.append(event.stamp.cursor)
        if not known.private:
            self.public_cursors.append(event.stamp.cursor)

    def learn_what_was_stored(self) -> None:
        """Events that nobody was told of, when the store was killed, may be there: a whole batch or none."""
        if not self.in_file:
            return
        have = {event.n for event in self.history}
        found = [known for known in self.stored() if known.n not in have]
        for batch in self.batches:
            new = [n for n in batch.numbers if n not in have]
            there = {known.n for known in found}
            if len(new) == len(batch.numbers) and len(new) <= self.config.size:
                assert there.issuperset(new) or there.isdisjoint(new), "half of a batch was stored"
        self.history += sorted(found, key=lambda known: known.position)
        self.history.sort(key=lambda known: known.position)
        for known in found:
            self.delivered_at[known.n] = self.elapsed
            self.waited = max(self.waited, self.elapsed - self.origins[known.n].elapsed)
        moments = [known.timestamp for known in self.history]
        assert moments == sorted(moments), "time has gone back over a restart"

    def stored(self) -> list[Known]:
        """What the file holds."""
        with contextlib.closing(sqlite3.connect(str(self.config.storage))) as connection:
            events = [event for kind in KINDS for event in all_events(connection, kind)]
        return [
            Known(json.loads(line)["n"], position_in(line), timestamp_in(line), path) for path, line in events
        ]

    def held(self) -> set[int]:
        """The positions of all events that the backlog holds."""
        if self.in_file:
            return {known.position for known in self.stored()}
        return set().union(*map(positions_of, self.store._kinds.values()))

    def turns(self, count: int) -> None:
        """Let the event loop go round."""

        async def go_round() -> None:
            for _ in range(count):
                await asyncio.sleep(0)

        self.loop.run_until_complete(go_round())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something to its end, with all threads at work."""
        task = self.loop.create_task(coroutine)
        while not task.done():
            self.turns(1)
            for thread in self.threads[:: -1 if self.meanwhile else 1]:
                thread.step()
        return task.result()

    def quiet(self) -> None:
        """Let everything come to its end, except for readers who do not read."""
        idle = 0
        while idle < 12:
            self.turns(2)
            worked = [thread.step() for thread in self.threads[:: -1 if self.meanwhile else 1]]
            taken = [reader.read(1 << 20) for reader in self.readers]
            idle = 0 if any(worked) or any(taken) else idle + 1

    def end(self, *, clean: bool) -> None:
        """End a life: by a stop, or as by kill -9, which leaves what the disk has."""
        Writer.fails = False
        if clean:
            self.run(self.intake.drain(1))
            self.run(self.store.flush())
            self.quiet()
            self.check_all()
        self.hang_up()
        copy = self.directory / "copy"
        if self.in_file and not clean:
            copy.mkdir()
            for path in self.directory.glob("backlog.db*"):
                shutil.copy(path, copy / path.name)
        self.running.cancel()
        self.run(asyncio.wait([self.running]))
        self.run(self.store.stop())
        if copy.exists():
            for path in self.directory.glob("backlog.db*"):
                path.unlink()
            for path in copy.glob("*"):
                path.rename(self.directory / path.name)
            copy.rmdir()

    def hang_up(self) -> None:
        """All readers leave."""
        for reader in self.readers:
            self.leave(reader)
        self.readers.clear()
        self.turns(5)

    def leave(self, reader: Reader) -> None:
        """A reader is gone."""
        if reader.opening:
            reader.opening.cancel()
        reader.socket.close()
        if reader.subscriber:
            reader.subscriber.drop("client", "it has left")
        else:
            reader.served.close()

    def teardown(self) -> None:
        """See what everybody has got in the end."""
        try:
            if self.lives:
                self.end(clean=True)
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.turns(3)
            self.loop.close()
            shutil.rmtree(self.directory)
            self.patch.undo()

    # What may happen

    @rule(path=st.sampled_from(PATHS), count=st.sampled_from([1, 1, 2, 5]), filling=st.sampled_from(FILLINGS))
    def publish(self, path: str, count: int, filling: int) -> None:
        """Somebody publishes, and nobody waits for it."""
        steps["publish"] += 1
        numbers = [next(self.numbers) for _ in range(count)]
        self.origins |= dict.fromkeys(numbers, Origin(self.elapsed, self.lives, filling + 600))
        openings = [f'{{"n": {n}, "x": "{"x" * filling}"' for n in numbers]

        async def take() -> Awaitable[Any]:
            return self.intake.take(publish_path(path), openings, None).answer

        answer: asyncio.Future[Any] = self.loop.run_until_complete(take())  # type: ignore[arg-type]
        answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be refused
        self.batches.append(Batch(numbers, path, answer))

    @rule(count=st.integers(1, 4))
    def go_round(self, count: int) -> None:
        """Some turns of the event loop."""
        steps["turns"] += 1
        self.turns(count)

    @rule(number=st.integers(0, 1))
    def work(self, number: int) -> None:
        """A thread does what comes next."""
        steps["thread"] += 1
        self.threads[number].step()
        self.turns(1)

    @precondition(lambda self: self.in_file and not self.meanwhile)
    @rule(meanwhile=st.sampled_from(["before", "after"]))
    def write_in_a_read(self, meanwhile: str) -> None:
        """What comes to be written next is written in the middle of a read."""
        self.meanwhile = meanwhile

    @precondition(lambda self: self.in_file and not Writer.fails)
    @rule()
    def fail(self) -> None:
        """The disk does not take the next write."""
        Writer.fails = True

    @rule(milliseconds=st.sampled_from([0, 1, 700, 12_000]))
    def let_time_pass(self, milliseconds: int) -> None:
        """The clock goes on."""
        steps["time"] += 1
        self.pass_time(milliseconds)

    def pass_time(self, milliseconds: int) -> None:
        """Have the clock go on, or back."""
        self.now_ns += milliseconds * 1_000_000 + 1
        self.elapsed += max(0, milliseconds) / 1000 + 1e-9
        self.set_back += max(0, -milliseconds) / 1000

    @precondition(lambda self: any(self.max_ages(self.config)))
    @rule(
        paths=st.lists(st.sampled_from(PATHS), min_size=4, max_size=8),
        asked_path=st.sampled_from(ASKED_PATHS),
        rights=st.sampled_from(RIGHTS),
    )
    def grow_old(self, paths: list[str], asked_path: str, rights: Rights) -> None:
        """Several events, one by one, are too old after a while, or some of them; then somebody comes."""
        steps["grow old"] += 1
        cursor = self.run(self.store.now(private=bool(rights.readable))).cursor
        for path in paths:
            self.publish(path, 1, 0)
            self.quiet()
        self.pass_time(12_000)
        self.prune()
        self.come(ReplayRequest(cursor=cursor), asked_path, rights)

    @precondition(lambda self: any(self.max_ages(self.config)))
    @rule()
    def prune(self) -> None:
        """What is too old leaves."""
        steps["prune"] += 1
        failures = steps["failed write"]
        self.run(self.store.prune())
        if steps["failed write"] == failures:
            self.check_ages()

    @rule(
        path=st.sampled_from(ASKED_PATHS),
        rights=st.sampled_from(RIGHTS),
        missed=st.lists(st.sampled_from(PATHS), min_size=1, max_size=6),
        count=st.sampled_from([1, 2, 3]),
        slowly=st.booleans(),
    )
    def be_away(self, path: str, rights: Rights, missed: list[str], count: int, slowly: bool) -> None:
        """Somebody is away while others publish."""
        steps["away"] += 1
        cursor = self.run(self.store.now(private=bool(rights.readable))).cursor
        for each in missed:
            self.publish(each, count, 0)
            if slowly:
                self.quiet()  # what can be sealed is sealed before it is pushed out
        self.quiet()
        self.come(ReplayRequest(cursor=cursor), path, rights)
        self.turns(3)

    @precondition(lambda self: self.in_file)
    @rule(
        path=st.sampled_from(ASKED_PATHS),
        rights=st.sampled_from(RIGHTS),
        missed=st.lists(st.sampled_from(PATHS), min_size=1, max_size=6),
        pushing=st.lists(st.sampled_from(PATHS), min_size=1, max_size=3),
        meanwhile=st.sampled_from(["before", "after"]),
    )
    def be_overtaken(
        self, path: str, rights: Rights, missed: list[str], pushing: list[str], meanwhile: str
    ) -> None:
        """What somebody who comes back reads is pushed out in the middle of the read."""
        steps["overtaken"] += 1
        cursor = self.run(self.store.now(private=bool(rights.readable))).cursor
        for each in missed:
            self.publish(each, 1, 0)
        self.quiet()
        self.come(ReplayRequest(cursor=cursor), path, rights)
        for _ in range(10):
            self.turns(1)
            if self.threads[1]._calls:
                break
            self.threads[0].step()
        for each in pushing:
            self.publish(each, self.config.size, 0)
        self.turns(3)
        self.meanwhile = meanwhile
        self.threads[1].step()
        self.turns(1)

    @precondition(lambda self: len(self.delivered_now) >= (2 if self.in_file else 12))
    @rule(
        clean=st.booleans(),
        milliseconds=st.sampled_from([50, 5000, -5000]),
        publishes=st.lists(st.sampled_from(PATHS), max_size=3),
        chosen=st.none() | SETTINGS,
    )
    def restart(
        self, clean: bool, milliseconds: int, publishes: list[str], chosen: dict[str, Any] | None
    ) -> None:
        """The server is stopped or killed, and started again. A file does not mind a clock set back.

        Who was there comes back with the cursor that it had, and meanwhile others publish.
        """
        steps["restart"] += 1
        coming = [(reader.resumes(), reader.path, reader.rights[-1]) for reader in self.readers]
        self.end(clean=clean)
        self.pass_time(milliseconds if self.in_file else abs(milliseconds))
        if chosen:
            self.choose(chosen)
        self.start()
        self.pass_time(1)
        for comes, path in itertools.zip_longest(coming[:6], publishes):
            if comes:
                self.come(*comes)
                self.quiet()
            if path:
                self.publish(path, 1, 0)

    @rule(
        path=st.sampled_from(ASKED_PATHS),
        rights=st.sampled_from(RIGHTS),
        how=st.sampled_from(HOW),
        which=st.integers(0, 30),
        others=st.lists(st.sampled_from(ASKED_PATHS), max_size=2),
    )
    def subscribe(self, path: str, rights: Rights, how: str, which: int, others: list[str]) -> None:
        """Somebody comes, perhaps not alone, with a cursor that any of them had, or a time, or neither."""
        asked = self.last_asked if how == "the same" else self.asked(how, which)
        self.last_asked = asked
        for each in (path, *others):
            self.come(asked, each, rights)
            self.turns(which % 3)

    def come(self, asked: ReplayRequest | None, path: str, rights: Rights) -> None:
        """A reader comes."""
        steps["subscribe"] += 1
        reader = Reader(asked, path, rights)
        self.readers.append(reader)
        reader.opening = self.loop.create_task(self.open(reader))

    def asked(self, how: str, which: int) -> ReplayRequest | None:
        """What it asks for."""
        if how == "live":
            return None
        if how == "all":
            return ReplayRequest(since=0.0)
        if how == "never heard of":
            future = stamp_at((self.now_ns // 10**9 + 10**6) * TICKS_PER_SECOND, 0.0).cursor
            return ReplayRequest(cursor=future if which % 2 else "0171c41a-3000-4d5f-8a5f-0f4c8a1e6f9b")
        if how == "since":
            seconds = self.now_ns / 1e9 - which
            return ReplayRequest(
                since=self.history[-which].timestamp if 0 < which < len(self.history) else seconds
            )
        cursors = self.public_cursors if how == "public" else self.cursors
        if not cursors:
            return ReplayRequest(cursor=stamp_at(self.began.position - which, 0.0).cursor)
        return ReplayRequest(cursor=cursors[-1 - which % len(cursors) if how == "any" else -1])

    async def open(self, reader: Reader) -> None:
        """As the server does: see pypubsub.Server._subscribe()."""
        (rights,) = reader.rights
        private = bool(rights.readable)
        now = await self.store.now(private=private)
        await self.store.settle(now.position, private=private)
        selection = selection_of(reader.subscription, rights, BARE)
        placement = await self.store.place(reader.asked, Mark(now.position, now.timestamp), selection)
        reader.head, reader.verdict = now.position, placement.verdict
        self.cursors.append(now.cursor)
        reader.must_be_complete = self.must_be_complete(reader)
        stream = Stream(NO_LIMITS, None, "closed", writing_paused=False)
        transport, _ = await self.loop.connect_accepted_socket(lambda: stream, reader.served)
        subscriber = Subscriber("", reader.subscription, BARE, transport, stream, stream.drain, BUFFER)
        subscriber.rights = rights
        self.fanout.add(subscriber)
        reader.subscriber = subscriber
        serving = stream.serve(Follower(subscriber, now.position, self.catch_up).begin(placement))
        serving.add_done_callback(lambda done: self.left(subscriber, done))
        assert reader.verdict == "complete" or not reader.must_be_complete

    def left(self, subscriber: Subscriber, serving: asyncio.Task[None]) -> None:
        """As pypubsub.Server._on_left()."""
        if not serving.cancelled() and serving.exception():
            self.loop.call_exception_handler({"message": "a reader's task", "exception": serving.exception()})
        self.fanout.remove(subscriber)

    def must_be_complete(self, reader: Reader) -> bool:
        """Whether nothing is missing that it could have meant, and the server must know it."""
        if reader.asked is None or (self.in_file and self.busy()):
            return False
        if reader.asked.cursor is not None:
            position = position_of(reader.asked.cursor)
            return (
                position is not None
                and self.began_at_the_latest() <= position <= reader.head
                and not self.lost(reader, lambda left: left.position > position)
            )
        since = reader.asked.since or 0.0
        if since < 1e9:
            return self.in_file and not self.lost(reader, lambda _: True)
        return since > self.began.timestamp + 1 and not self.lost(
            reader, lambda left: left.timestamp >= since
        )

    def lost(self, reader: Reader, counts: Callable[[Departure], bool]) -> bool:
        """Whether anything has left that may have been for a reader, by its topics, of what counts."""
        held = self.held()
        departures = [
            Departure(event.private, event.position, event.timestamp, event.topics)
            for event in self.history
            if event.position not in held and (self.in_file or self.is_of_this_life(event))
        ]
        departures = list(filter(counts, departures + self.dropped_blocks))
        selection = selection_of(reader.subscription, reader.rights[0], BARE)
        for private, alternatives in ((False, selection.public), (True, selection.private)):
            topics = [left.topics for left in departures if left.private == private]
            if topics and alternatives and self.bounds["MOST_TOPICS"] < len(PATHS):
                return True  # it need not be known which these were
            if topics and any(alternative <= frozenset().union(*topics) for alternative in alternatives):
                return True
        steps["quiet reader"] += bool(departures)
        return False

    def is_of_this_life(self, event: Known) -> bool:
        """Whether it was published since the last start."""
        return self.origins[event.n].life == self.lives

    def began_at_the_latest(self) -> int:
        """A position by which the store's memory had begun."""
        return self.store._began.position

    def busy(self) -> bool:
        """Whether any event is being written."""
        return any(not batch.answer.done() for batch in self.batches[-30:])

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, 30), size=st.sampled_from([1, 300, 5000, 1 << 20]))
    def read(self, which: int, size: int) -> None:
        """A reader takes something."""
        steps["read"] += 1
        self.readers[which % len(self.readers)].read(size)
        self.turns(1)

    @precondition(lambda self: self.readers)
    @rule(which=st.integers(0, 30))
    def hang_up_one(self, which: int) -> None:
        """A reader leaves, and may come back with the last cursor that it has got."""
        steps["leave"] += 1
        reader = self.readers.pop(which % len(self.readers))
        self.check(reader, final=False)
        if (again := reader.resumes()) and again.cursor is not None:
            self.cursors.append(again.cursor)
        self.leave(reader)
        self.turns(2)

    @precondition(lambda self: any(reader.subscriber for reader in self.readers))
    @rule(which=st.integers(0, 30), rights=st.sampled_from(RIGHTS))
    def change_rights(self, which: int, rights: Rights) -> None:
        """A reader's rights are others from now on."""
        steps["rights"] += 1
        readers = [reader for reader in self.readers if reader.subscriber]
        reader = readers[which % len(readers)]
        assert reader.subscriber is not None
        if reader.subscriber.end_reason is None and not reader.subscriber.lost:
            reader.rights.append(rights)
            self.on_loop(lambda: self.fanout.change_rights(reader.subscriber, rights))  # type: ignore[arg-type]

    @rule()
    def settle(self) -> None:
        """All that is under way comes to its end: everybody has what it must have."""
        steps["settle"] += 1
        self.quiet()
        self.check_all()

    # What must be so

    @invariant()
    def nothing_is_published_twice_or_out_of_order(self) -> None:
        """The order of delivery is that of positions and of time."""
        assert all(one.position < two.position for one, two in itertools.pairwise(self.delivered_now))
        assert all(one.timestamp <= two.timestamp for one, two in itertools.pairwise(self.delivered_now))

    def max_ages(self, config: BacklogConfig) -> list[float]:
        """For how long events are kept, by rule."""
        return [*(kept.max_age for kept in config.keep.values()), config.max_age]

    def max_age(self, event: Known, config: BacklogConfig) -> float:
        """For how long an event is kept; infinite if until it is pushed out."""
        topics = publish_path(event.path).all_topics
        for of, kept in config.keep.items():
            if topics.issuperset(of.split("/")):
                return kept.max_age or math.inf
        return config.max_age or math.inf

    def settings_since(self, event: Known) -> list[BacklogConfig]:
        """Those of all lives since it was published."""
        return self.settings[self.origins[event.n].life - 1 :]

    def may_be_too_old(self, event: Known) -> bool:
        """Whether it may have left for its age by now."""
        age = self.elapsed - self.origins[event.n].elapsed
        return age > min(self.max_age(event, each) for each in self.settings_since(event)) - 2

    def check_ages(self) -> None:
        """What is too old has left, from the file and from memory: it has just been pruned."""
        held = self.held().union(*map(positions_of, self.store._kinds.values()))
        for event in self.history:
            if event.position in held:
                delivered = self.delivered_at[event.n]
                age = self.elapsed - delivered
                # of what was stamped behind or ahead, or waited to be stored, it is not known for how long
                unsure = 2 + self.set_back + self.waited
                assert age <= self.max_age(event, self.config) + unsure, "too old, and still there"

    def check_what_is_held(self) -> None:
        """What is neither too old nor pushed out is held, and no more than there may be."""
        if self.busy():
            return
        held = self.held()
        for private in (False, True):
            events = [event for event in self.history if event.private == private]
            if not self.in_file:
                events = [event for event in events if self.is_of_this_life(event)]
            for newer, event in enumerate(reversed(events)):
                settings = self.settings_since(event)
                # a block leaves as a whole
                from_block = events[max(0, len(events) - newer - self.bounds["BLOCK_EVENTS"]) :]
                size = sum(self.origins[each.n].size for each in from_block)
                may_leave = (
                    newer >= min(each.size for each in settings)
                    or size > min(each.max_bytes or math.inf for each in settings)
                    or self.may_be_too_old(event)
                )
                assert event.position in held or may_leave, "it should be kept, and is gone"
            count = sum(event.position in held for event in events)
            sealed = self.bounds["BLOCK_EVENTS"] - 1 if self.in_file else 0
            assert count <= self.config.size + sealed, "too many"
        if self.in_file:
            self.check_memory(held)

    def check_memory(self, held: set[int]) -> None:
        """What is read from memory is what is in the file."""
        privacy = {event.position: event.private for event in self.history}
        for name, kind in self.store._kinds.items():
            of_kind = {position for position in held if privacy[position] == (name == "private")}
            in_memory = positions_of(kind)
            assert {position for position in of_kind if position > kind.in_memory_after} <= in_memory
            if steps["failed write"] == self.failures:  # or a pruning has let go of it, and then failed
                assert in_memory <= of_kind, "it has left the file"

    def check_all(self) -> None:
        """Of all readers, when nothing is under way any more."""
        self.check_what_is_held()
        for reader in self.readers:
            assert reader.opening is None or reader.opening.done(), "a stream that never begins"
            if reader.opening:
                reader.opening.result()
            self.check(reader, final=True)

    def check(self, reader: Reader, *, final: bool) -> None:
        """Whether a reader has got what it must have by now, and nothing else. final: all there is."""
        by_number = {event.n: event for event in self.history}
        lines = reader.lines
        got = [by_number[json.loads(line)["n"]] for line in lines if line != PING.strip()]
        positions = [event.position for event in got]
        assert positions == sorted(set(positions)), "twice, or out of order"
        if PING.strip() in lines:
            before = lines.index(PING.strip())
            assert all(position <= reader.head for position in positions[:before])
            # what was under way then may come live to one who has the right to it by now
            live = [event for event in got[before:] if reader.wants(event, reader.rights[0])]
            assert all(event.position > reader.head for event in live)
        else:
            assert not final or self.dropped(reader), "no ping"
            assert all(position <= reader.head for position in positions)
        may = [
            event for event in self.history if any(reader.wants(event, rights) for rights in reader.rights)
        ]
        must = [event for event in may if all(reader.wants(event, rights) for rights in reader.rights)]
        assert set(got) <= set(may), "not asked for, or no right to it"
        assert all(map(reader.after, got)), "from before its place"
        if not final or self.dropped(reader):  # what it would have got next is not known
            must = [event for event in must if positions and event.position <= positions[-1]]
        must = [event for event in must if reader.after(event)]
        missing = sorted(set(must) - set(got))
        if reader.verdict in ("complete", None):
            assert not missing, f"not sent, though {reader.verdict}"
            return
        if positions:  # it knows of a hole before its first event
            live_after = max(reader.head, positions[0])
            assert not any(event.position > live_after for event in missing), "live events are missing"
        if reader.asked and reader.asked.cursor is not None:
            position = position_of(reader.asked.cursor)
            if position is None or position > reader.head:
                assert all(position > reader.head for position in positions), "nothing is replayed"
                return
        held = self.held()
        for private in (False, True):
            firsts = [event.position for event in got if event.private == private]
            for event in missing:
                if event.private == private:
                    assert event.position not in held or not final, "held, and not sent"
                    before = not firsts or event.position < firsts[0]
                    assert before or self.may_be_too_old(event), "a hole in the middle"

    def dropped(self, reader: Reader) -> bool:
        """Whether its stream was ended from this side."""
        return reader.subscriber is not None and reader.subscriber.end_reason is not None


class FileMachine(Machine):
    """The same with a file."""

    in_file = True


@pytest.mark.parametrize("machine", [Machine, FileMachine], ids=["memory", "file"])
@pytest.mark.timeout(4 * 3600)
def test_every_reader_gets_what_it_was_promised(machine: type[Machine]) -> None:
    """Whoever is told complete gets everything after its place, once and in order, then the live events."""
    search(machine, 100, 60, steps)
    if machine.in_file:  # or it has searched in the wrong places
        assert all(steps[reached] for reached in REACHED), steps
