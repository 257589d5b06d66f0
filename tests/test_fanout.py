"""What is published while others come and go: every subscriber gets its events, each once and in order."""

import asyncio
import json
import random
from typing import cast

import pytest

from core.auth.rights import EVERY_EVENT, NO_RIGHTS, Rights
from core.counters import counters
from core.delivery import fanout
from core.delivery.fanout import Fanout
from core.delivery.subscriber import Subscriber
from core.delivery.wire import BARE, CHUNKED
from core.events.cursor import Stamps
from core.events.event import Event, parse_payload
from core.events.subscription import parse_subscription
from core.events.topics import parse_publish_path

PATHS = ["/", "/a", "/b", "/a,b", "/a/b", "/private/b"]
EVENTS = ["/a", "/b", "/a/b", "/c", "/private/a", "/private/a/b", "/private"]
NOW = 0.0  # Unix seconds
PING = b'{"stillalive": 0.0}\n'  # of that time
SEGMENTS = [frozenset({"a"}), frozenset({"b"}), frozenset({"a", "b"}), EVERY_EVENT]


def some_rights(dice: random.Random) -> Rights:
    """Those of somebody, perhaps none."""
    return Rights(frozenset(dice.sample(SEGMENTS, dice.choice([0, 0, 1, 2]))))


class Recorder:
    """In the place of a subscriber: keeps what it is sent, and what it should have been sent."""

    def __init__(self, path: str, http_1_0: bool, rights: Rights = NO_RIGHTS) -> None:
        self.rights = rights
        self.has_unread = False
        self.subscription = parse_subscription(path)
        self.wire = BARE if http_1_0 else CHUNKED
        self.sent = b""
        self.expected = b""
        self.writes = 0
        self.queued_bytes = 0
        self.free = None  # so that all comes by send()
        self.ping_turn: int | None = None
        self.pings_due: list[int] = []  # of each, the bytes of all events that it must not overtake
        self.full = False  # whether too much waits as soon as anything is sent
        self.behind_after = -1
        self.end_word = "client"
        self.end_reason: str | None = None

    def overflow(self) -> str | None:
        """Why too much waits."""
        return "too slow" if self.full else None

    def drop(self, word: str, reason: str) -> None:
        """Note why its stream ended."""
        self.end_word, self.end_reason = word, reason

    def fall_behind(self, after: int) -> None:
        """Note from where it would go on."""
        self.behind_after = after

    def send(self, data: bytes) -> None:
        """What the fan-out calls."""
        self.sent += data
        self.writes += 1
        self.queued_bytes = self.full * len(data)

    @property
    def events(self) -> bytes:
        """What it was sent, without pings, none of which may have overtaken an event."""
        *before_pings, rest = self.sent.split(self.wire.ping(NOW))
        place = 0
        assert len(before_pings) <= len(self.pings_due)
        for due, events in zip(self.pings_due, before_pings, strict=False):
            place += len(events)
            assert place >= due
        return b"".join(before_pings) + rest

    def expect(self, event: Event) -> None:
        """Note an event, if a plain look at subscription and rights says that it is wanted."""
        wanted = any(alternative <= event.path.all_topics for alternative in self.subscription.alternatives)
        topics = frozenset(event.path.topics)
        if wanted and (not event.path.private or any(segment <= topics for segment in self.rights.readable)):
            self.expected += self.wire.event(event.line)


def enter(subject: Fanout, recorder: Recorder, position: int = 0) -> None:
    """Have it written to from now on. position: of the last event that was delivered."""
    subject.add(cast(Subscriber, recorder))
    subject.join(cast(Subscriber, recorder), position)


def expect_ping(recorders: list[Recorder]) -> None:
    """Note a ping."""
    for recorder in recorders:
        recorder.pings_due.append(len(recorder.expected))


def an_event(stamps: Stamps, path: str, filling: int = 0) -> Event:
    """An event published on a path."""
    publish_path = parse_publish_path(path)
    opening = parse_payload(json.dumps({"v": "x" * filling}).encode(), publish_path, 600_000)
    return Event(publish_path, opening, stamps.next())


@pytest.mark.parametrize("seed", range(20))
async def test_each_event_once_in_order_while_others_come_and_go(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With slices of three, rounds last several turns of the loop, and everything happens in between."""
    monkeypatch.setattr(fanout, "_SLICE", 3)
    monkeypatch.setattr(fanout, "PING_TURNS", 2)
    pings = position = 0
    dice = random.Random(seed)
    subject, stamps = Fanout(backlog=False), Stamps()
    present: list[Recorder] = []
    gone: list[Recorder] = []
    for _ in range(600):
        action = dice.random()
        if action < 0.25:
            present.append(Recorder(dice.choice(PATHS), dice.random() < 0.3, some_rights(dice)))
            enter(subject, present[-1], position)
        elif action < 0.4 and present:
            leaving = present.pop(dice.randrange(len(present)))
            subject.remove(cast(Subscriber, leaving))
            assert leaving.expected.startswith(leaving.events)
            leaving.expected = leaving.events  # and nothing after it has left
            gone.append(leaving)
        elif action < 0.8:
            event = an_event(stamps, dice.choice(EVENTS), dice.choice([0, 0, 0, 100_000]))
            for recorder in present:
                recorder.expect(event)
            subject.deliver(event)
            position = event.stamp.position
        elif action < 0.85 and present:
            subject.change_rights(cast(Subscriber, dice.choice(present)), some_rights(dice))
        elif action < 0.9:
            subject.ping(NOW)
            pings += 1
            expect_ping([recorder for recorder in present if recorder.ping_turn == pings % 2])
        else:
            await asyncio.sleep(0)  # a turn of the loop
    subject.flush()
    assert len(subject) == len(present) == len(list(subject))
    assert [recorder.events for recorder in present + gone] == [
        recorder.expected for recorder in present + gone
    ]
    assert any(PING in recorder.sent for recorder in present + gone)
    for recorder in present:
        subject.remove(cast(Subscriber, recorder))
    assert len(subject) == 0


async def test_who_falls_behind_after_its_rights_changed_goes_on_from_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not from the beginning of a backlog that is older than this life of the server."""
    monkeypatch.setattr(fanout, "PING_TURNS", 1)
    subject, stamps = Fanout(backlog=True), Stamps()
    recorder = Recorder("/a", http_1_0=False)
    subject.add(cast(Subscriber, recorder))
    subject.join(cast(Subscriber, recorder), 5)
    subject.change_rights(cast(Subscriber, recorder), Rights(frozenset({EVERY_EVENT})))
    recorder.full = True
    subject.ping(NOW)
    subject.flush()
    assert recorder.behind_after == 5
    event = an_event(stamps, "/private/a")
    subject.change_rights(cast(Subscriber, recorder), NO_RIGHTS)
    subject.deliver(event)
    subject.join(cast(Subscriber, recorder), event.stamp.position)
    subject.deliver(event)
    subject.flush()
    assert b"pubsub_cursor" not in recorder.sent


@pytest.mark.parametrize("published", ["/a", "/private/a"])
@pytest.mark.parametrize("rights", [NO_RIGHTS, Rights(frozenset({frozenset({"b"})}))])
async def test_who_would_miss_an_event_does_not_join(published: str, rights: Rights) -> None:
    """An event that it might see, that is: private ones are nothing to those who may see none."""
    subject, stamps = Fanout(backlog=True), Stamps()
    before, event = stamps.next().position, an_event(stamps, published)
    subject.deliver(event)
    recorder = Recorder("/a", http_1_0=False, rights=rights)
    subject.add(cast(Subscriber, recorder))
    if published == "/a" or rights is not NO_RIGHTS:
        with pytest.raises(
            RuntimeError, match=rf"up to position {before} .* event at {event.stamp.position},"
        ):
            subject.join(cast(Subscriber, recorder), before)
        assert len(subject) == 1  # it can go on reading
        subject.join(cast(Subscriber, recorder), event.stamp.position)
    else:
        subject.join(cast(Subscriber, recorder), before)
    subject.deliver(following := an_event(stamps, "/a"))
    subject.flush()
    assert recorder.sent == CHUNKED.event(following.line)


async def test_what_is_published_in_one_turn_is_one_write() -> None:
    """However many events, for each subscriber."""
    subject, stamps = Fanout(backlog=False), Stamps()
    recorder = Recorder("/a", http_1_0=False)
    enter(subject, recorder)
    for _ in range(50):
        subject.deliver(an_event(stamps, "/a"))
    assert recorder.writes == 0
    await asyncio.sleep(0)
    assert recorder.writes == 1
    assert recorder.sent.count(b"pubsub_cursor") == 50


async def test_a_crowd_does_not_hold_up_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of it is written to in each turn; others get their turn in between."""
    monkeypatch.setattr(fanout, "_SLICE", 10)
    subject, stamps = Fanout(backlog=False), Stamps()
    crowd = [Recorder("/a", http_1_0=False) for _ in range(95)]
    other = Recorder("/b", http_1_0=False)
    for recorder in [*crowd, other]:
        enter(subject, recorder)
    subject.deliver(an_event(stamps, "/a"))
    subject.deliver(an_event(stamps, "/b"))
    for turn in range(1, 11):
        await asyncio.sleep(0)
        assert sum(recorder.writes for recorder in crowd) == min(10 * turn - (turn > 1), 95)
    assert other.writes == 1


async def test_who_falls_behind_goes_on_from_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when nothing but pings has come since it joined, or pings after an event."""
    monkeypatch.setattr(fanout, "PING_TURNS", 1)
    subject, stamps = Fanout(backlog=True), Stamps()
    recorder = Recorder("/a", http_1_0=False)
    recorder.full = True
    subject.add(cast(Subscriber, recorder))
    subject.join(cast(Subscriber, recorder), 5)
    subject.ping(NOW)
    subject.flush()
    assert recorder.behind_after == 5
    subject.join(cast(Subscriber, recorder), 5)
    event = an_event(stamps, "/a")
    subject.deliver(event)
    subject.ping(NOW)
    subject.flush()
    assert recorder.behind_after == event.stamp.position
    assert len(subject) == 1
    subject.remove(cast(Subscriber, recorder))


async def test_who_leaves_in_the_middle_of_a_round_and_comes_back_gets_what_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of that round, and all of the next."""
    monkeypatch.setattr(fanout, "_SLICE", 1)
    subject, stamps = Fanout(backlog=True), Stamps()
    first, second = Recorder("/a", http_1_0=False), Recorder("/a", http_1_0=False)
    enter(subject, first)
    enter(subject, second)
    missed, following = an_event(stamps, "/a"), an_event(stamps, "/a")
    subject.deliver(missed)
    await asyncio.sleep(0)
    assert (first.writes, second.writes) == (1, 0)
    subject.remove(cast(Subscriber, second))
    enter(subject, second, missed.stamp.position)
    subject.flush()
    subject.deliver(following)
    subject.flush()
    assert second.sent == CHUNKED.event(following.line)


async def test_publishers_cannot_outrun_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a number of bytes gathered there is no room for more until it is written: memory does not grow."""
    monkeypatch.setattr(fanout, "_SLICE", 1)
    subject, stamps = Fanout(backlog=False), Stamps()
    crowd = [Recorder("/a", http_1_0=False) for _ in range(50)]
    for recorder in crowd:
        enter(subject, recorder)
    had_to_wait = 0
    for n in range(1, 40):
        had_to_wait += not subject.has_capacity
        await subject.wait_for_capacity()
        subject.deliver(an_event(stamps, "/a", filling=50_000))
        await asyncio.sleep(0)  # a turn, in which one of them is written to
        least = min(recorder.sent.count(b"pubsub_cursor") for recorder in crowd)
        assert n - least <= 12
    assert had_to_wait


async def test_an_event_for_many_channels_counts_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them gathers it, so there is room for few such events, though they are small."""
    monkeypatch.setattr(fanout, "_MOST_PENDING_FRAMES", 100)
    subject, stamps = Fanout(backlog=False), Stamps()
    crowd = [Recorder(f"/a,{n}", http_1_0=False) for n in range(40)]
    for recorder in crowd:
        enter(subject, recorder)
    subject.deliver(an_event(stamps, "/a"))
    subject.deliver(an_event(stamps, "/a"))
    assert subject.has_capacity
    subject.deliver(an_event(stamps, "/a"))
    assert not subject.has_capacity
    await asyncio.wait_for(subject.wait_for_capacity(), 10)
    assert {recorder.sent.count(b"pubsub_cursor") for recorder in crowd} == {3}


async def test_there_is_room_again_when_all_who_were_to_be_written_to_have_left() -> None:
    """What was gathered for them holds nobody up."""
    subject, stamps = Fanout(backlog=False), Stamps()
    recorder = Recorder("/a", http_1_0=False)
    enter(subject, recorder)
    subject.deliver(an_event(stamps, "/a", filling=400_000))
    assert not subject.has_capacity
    subject.remove(cast(Subscriber, recorder))
    await asyncio.wait_for(subject.wait_for_capacity(), 10)


async def test_who_waits_for_room_is_not_kept_waiting_by_those_who_come_later() -> None:
    """They may take the room in the very turn in which there is some."""
    subject, stamps = Fanout(backlog=False), Stamps()
    enter(subject, Recorder("/a", http_1_0=False))
    subject.deliver(an_event(stamps, "/a", filling=400_000))
    waiting = [asyncio.create_task(subject.wait_for_capacity()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # its publisher hangs up
    subject.flush()
    assert subject.has_capacity
    subject.deliver(an_event(stamps, "/a", filling=400_000))
    assert not subject.has_capacity
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, True, True]


async def test_an_error_with_one_subscriber_is_no_other_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """All others get the event, and publishers have room again, without another event or ping."""
    monkeypatch.setattr(fanout, "_SLICE", 3)
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    subject, stamps = Fanout(backlog=False), Stamps()
    crowd = [Recorder("/a", http_1_0=False) for _ in range(20)]
    other = Recorder("/b", http_1_0=False)
    for recorder in [*crowd, other]:
        enter(subject, recorder)
    monkeypatch.setattr(crowd[2], "overflow", lambda: 1 / 0)
    crowd[2].full = True
    for path in ("/a", "/b"):
        subject.deliver(an_event(stamps, path, filling=400_000))
    await asyncio.wait_for(subject.wait_for_capacity(), 10)
    for _ in range(20):  # turns
        await asyncio.sleep(0)
    assert [recorder.writes for recorder in [*crowd, other]] == [1] * 21
    assert [type(error) for error in errors] == [ZeroDivisionError]


async def test_who_changes_its_channel_keeps_its_turn_for_pings() -> None:
    """Or it would go without for as long as its rights change again and again."""
    subject = Fanout(backlog=False)
    recorder = Recorder("/a", http_1_0=False)
    enter(subject, recorder)
    for turn in range(fanout.PING_TURNS):
        changed = Rights(frozenset({EVERY_EVENT})) if turn % 2 else NO_RIGHTS
        subject.change_rights(cast(Subscriber, recorder), changed)
        subject.ping(NOW)
        subject.flush()
    assert recorder.sent == CHUNKED.ping(NOW)


async def test_a_ping_comes_behind_the_events_also_to_who_has_just_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who gets none of the events that were gathered before gets the ping alone."""
    monkeypatch.setattr(fanout, "PING_TURNS", 1)
    subject = Fanout(backlog=False)
    event = an_event(Stamps(), "/a")
    here, newcomer = Recorder("/a", http_1_0=False), Recorder("/a", http_1_0=False)
    enter(subject, here)
    subject.deliver(event)
    enter(subject, newcomer, event.stamp.position)
    subject.ping(NOW)
    subject.flush()
    assert here.sent == CHUNKED.event(event.line) + CHUNKED.ping(NOW)
    assert newcomer.sent == CHUNKED.ping(NOW)


async def test_deliveries_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event for each who is written it: newcomers too, with pings too, and nobody who has left."""
    monkeypatch.setattr(fanout, "PING_TURNS", 1)
    monkeypatch.setattr(fanout, "_SLICE", 2)
    deliveries, size, spent = counters.deliveries, counters.delivered_bytes, counters.fanout_ns
    subject, stamps = Fanout(backlog=False), Stamps()
    crowd = [Recorder("/a", http_1_0=n < 2) for n in range(5)]
    for recorder in crowd:
        enter(subject, recorder)
    event = an_event(stamps, "/a")
    subject.deliver(event)
    newcomer = Recorder("/a", http_1_0=False)
    enter(subject, newcomer, event.stamp.position)
    subject.deliver(an_event(stamps, "/a"))
    subject.ping(NOW)
    await asyncio.sleep(0)
    subject.remove(cast(Subscriber, crowd.pop()))
    subject.flush()
    subject.ping(NOW)
    subject.flush()
    assert counters.deliveries - deliveries == 2 * len(crowd) + 1
    sent = [each.sent.replace(each.wire.ping(NOW), b"") for each in [*crowd, newcomer]]
    assert counters.delivered_bytes - size == sum(map(len, sent))
    assert counters.fanout_ns > spent


async def test_streams_and_their_ends_are_counted_by_reason() -> None:
    """Wherever the subscriber is by then."""
    begun, ends = counters.subscribers, counters.ends.copy()
    subject, stamps = Fanout(backlog=False), Stamps()
    slow, reads, lives = (Recorder("/a", http_1_0=False) for _ in range(3))
    slow.full = True
    enter(subject, slow)
    enter(subject, lives)
    subject.add(cast(Subscriber, reads))
    subject.deliver(an_event(stamps, "/a"))
    subject.flush()
    assert slow.end_reason == "too slow"
    assert counters.ends == ends
    for recorder in (slow, reads, lives):
        subject.remove(cast(Subscriber, recorder))
    assert counters.subscribers - begun == 3
    assert counters.ends - ends == {"too_slow": 1, "client": 2}


async def test_pings_are_spread_over_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """In each of its turns as many subscribers are sent one as in any other, and each is sent one in all."""
    monkeypatch.setattr(fanout, "_SLICE", 7)
    subject = Fanout(backlog=False)
    crowd = [Recorder(f"/{n % 3}", http_1_0=False) for n in range(7 * fanout.PING_TURNS)]
    for recorder in crowd:
        enter(subject, recorder)
    for turn in range(1, fanout.PING_TURNS + 1):
        subject.ping(NOW)
        subject.flush()
        assert sum(recorder.writes for recorder in crowd) == 7 * turn
    assert {recorder.writes for recorder in crowd} == {1}
