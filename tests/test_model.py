"""Stores, fan-out and readers, searched for a way to break what `X-Replay` promises, by a model of it.

A machine of hypothesis publishes, lets time pass, stops the store and kills it, and opens readers of all
kinds: with rights and without, resuming by each other's cursors or by time, reading slowly or not at all.
Threads and turns of the event loop are steps that it takes when it likes, so that what it finds it finds
again. An oracle holds all that was ever delivered, and says what each reader must have got.

For longer searches see searching.py.
"""

import asyncio
import concurrent.futures
import contextlib
import itertools
import json
import shutil
import socket
import sqlite3
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

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
from core.events import local_store
from core.events.cursor import TICKS_PER_SECOND, Mark, Stamps, position_of, stamp_at
from core.events.event import Event, position_in, timestamp_in
from core.events.intake import Intake
from core.events.replay import ReplayRequest
from core.events.subscription import EVERYTHING, parse_subscription
from core.events.topics import publish_path
from core.expiring import Expiring
from core.http.limits import Connections
from core.http.stream import Stream
from core.settings import ServerConfig
from plugins.backlog import file as backlog_storage
from plugins.backlog import finding
from plugins.backlog import recent as recent_module
from plugins.backlog.file import StoredBacklog
from plugins.backlog.finding import all_events
from plugins.backlog.memory import Backlog
from plugins.backlog.schema import KINDS
from plugins.backlog.settings import BacklogConfig
from searching import search
from wire import START_NS

MODULES = (local_store, intake_module, recent_module, finding, backlog_storage)
SMALL = {"PAGE_EVENTS": 3, "PAGE_BYTES": 4000, "PORTION": 2}  # so that a few events are many
PATHS = ["/a", "/b", "/a/b", "/private/a", "/private/b"]
ASKED_PATHS = ["/", "/a", "/b", "/a/b", "/private", "/b,private/a"]
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


class Machine(RuleBasedStateMachine):
    """Any life of a store, with its readers."""

    in_file = False

    def __init__(self) -> None:
        super().__init__()
        self._saved = {
            (module, name): getattr(module, name)
            for module in MODULES
            for name in SMALL
            if hasattr(module, name)
        }
        for module, name in self._saved:
            setattr(module, name, SMALL[name])
        self.loop = asyncio.new_event_loop()
        self.directory = Path(mkdtemp(prefix="pypubsub-model-"))
        self.now_ns = START_NS
        self.numbers = itertools.count()
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
        size=st.integers(1, 6),
        max_age=st.sampled_from([0, 0, 30]),
        memory=st.sampled_from([1, 3000, 1_000_000]),
    )
    def begin(self, size: int, max_age: int, memory: int) -> None:
        """Choose the settings, and start."""
        storage = str(self.directory / "backlog.db") if self.in_file else None
        self.config = BacklogConfig(size=size, max_age=max_age, storage=storage, memory=memory)
        self.start()

    def clock(self) -> int:
        """Nanoseconds."""
        return self.now_ns

    def start(self) -> None:
        """Begin a life."""
        self.lives += 1
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
                lambda: self.now_ns / 1e9,
            )
            self.store._writing, self.store._reading = self.threads  # type: ignore[assignment]
        else:
            self.store = Backlog(self.config, self.fanout, lambda: self.now_ns / 1e9)
        self.intake = Intake(self.store, self.fanout, 600)
        self.store._stamps = Stamps(self.clock, self.clock)
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
        return {
            position
            for kind in self.store._kinds.values()
            for recent in kind.recents
            for position in recent._positions[recent._first :]
        }

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
            for thread in self.threads:
                thread.step()
        return task.result()

    def quiet(self) -> None:
        """Let everything come to its end, except for readers who do not read."""
        idle = 0
        while idle < 12:
            self.turns(2)
            worked = [thread.step() for thread in self.threads]
            taken = [reader.read(1 << 20) for reader in self.readers]
            idle = 0 if any(worked) or any(taken) else idle + 1

    def end(self, *, clean: bool) -> None:
        """End a life: by a stop, or as by kill -9, which leaves what the disk has."""
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
            for (module, name), value in self._saved.items():
                setattr(module, name, value)

    # What may happen

    @rule(path=st.sampled_from(PATHS), count=st.sampled_from([1, 1, 2, 5]), filling=st.sampled_from(FILLINGS))
    def publish(self, path: str, count: int, filling: int) -> None:
        """Somebody publishes, and nobody waits for it."""
        steps["publish"] += 1
        numbers = [next(self.numbers) for _ in range(count)]
        openings = [f'{{"n": {n}, "x": "{"x" * filling}"' for n in numbers]

        async def take() -> Awaitable[Any]:
            return self.intake.take(publish_path(path), openings, None).answer

        self.batches.append(Batch(numbers, path, self.loop.run_until_complete(take())))  # type: ignore[arg-type]

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

    @rule(milliseconds=st.sampled_from([0, 1, 700, 12_000]))
    def let_time_pass(self, milliseconds: int) -> None:
        """The clock goes on."""
        steps["time"] += 1
        self.now_ns += milliseconds * 1_000_000 + 1

    @precondition(lambda self: self.config.max_age)
    @rule()
    def prune(self) -> None:
        """What is too old leaves."""
        steps["prune"] += 1
        self.run(self.store.prune())

    @rule(
        clean=st.booleans(),
        milliseconds=st.sampled_from([50, 5000, -5000]),
        publishes=st.lists(st.sampled_from(PATHS), max_size=3),
    )
    def restart(self, clean: bool, milliseconds: int, publishes: list[str]) -> None:
        """The server is stopped or killed, and started again. A file does not mind a clock set back.

        Who was there comes back with the cursor that it had, and meanwhile others publish.
        """
        steps["restart"] += 1
        coming = [(reader.resumes(), reader.path, reader.rights[-1]) for reader in self.readers]
        self.end(clean=clean)
        self.now_ns += (milliseconds if self.in_file else abs(milliseconds)) * 1_000_000
        self.start()
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
        selection = selection_of(EVERYTHING, Rights(frozenset({EVERY_EVENT})), BARE)
        if self.store._reach(selection).lost.position > reader.head:
            return False  # what was published since has left already
        held = self.held()
        gone = [
            event
            for event in self.history
            if event.position not in held
            and event.position <= reader.head
            and (reader.rights[0].readable or not event.private)
        ]
        if reader.asked.cursor is not None:
            position = position_of(reader.asked.cursor)
            return (
                position is not None
                and self.began_at_the_latest() <= position <= reader.head
                and not any(event.position > position for event in gone)
            )
        since = reader.asked.since or 0.0
        if since < 1e9:
            return self.in_file and not gone
        return since > self.began.timestamp + 1 and not any(event.timestamp >= since for event in gone)

    def began_at_the_latest(self) -> int:
        """A position by which the store's memory had begun."""
        return self.store._began.position

    def busy(self) -> bool:
        """Whether anything is being written."""
        return any(thread._calls for thread in self.threads) or any(
            not batch.answer.done() for batch in self.batches[-30:]
        )

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

    def check_all(self) -> None:
        """Of all readers, when nothing is under way any more."""
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
                    assert not firsts or event.position < firsts[0], "a hole in the middle"

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
