"""Which items are events and which are not; what becomes of bad ones; notifications of SNS."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws import Moto
from core.errors import Refused
from core.events.cursor import Stamps
from core.events.event import RESERVED_KEYS, Draft, Event
from core.http.heads import MAX_TARGET
from daemon import Daemon, StartDaemon
from plugins.sqs.items import Item, Terms, draft_of
from queues import backlog, new_queue, nothing_else_on, numbers, reading

SECRET = "hunter2"
MOST, LONGEST = 20_000, 30_000  # bytes: of a payload, of an event's line
TERMS = Terms(MOST, LONGEST, unwrap_sns=False, forbidden=frozenset({"deploy"}))
UNWRAPPED = TERMS._replace(unwrap_sns=True)

# name -> the body of an item, and what is said of it
BAD = {
    "not JSON": (f"{SECRET} {{", "not JSON: "),
    "nothing": (" ", "not JSON: "),
    "an array": (f'["{SECRET}"]', "must be a JSON object, got a list"),
    "a number": ("17", "must be a JSON object, got a number"),
    "a string": (f'"{SECRET}"', "must be a JSON object, got a string"),
    "null": ("null", "must be a JSON object, got null"),
    "a boolean": ("true", "must be a JSON object, got a boolean"),
    "too large": (f'{{"{SECRET}": "{"a" * MOST}"}}', f"bytes, and server.max_payload_size is {MOST}"),
    "too large in bytes, not in characters": (
        f'{{"a": "{"é" * (MOST // 2)}"}}',
        f"it has {MOST + 9} bytes, and server.max_payload_size is {MOST}",
    ),
    "too long a line": (f'{{"a": "{"é" * (MOST // 2 - 10)}"}}', f"the most that is sent on is {LONGEST}"),
    "too deep": (f'{{"a": {"[" * 500}{"]" * 500}}}', "nested more than 500 deep"),
    "much too deep": ("[" * 9000, "nested more than 500 deep"),
    "NaN": (f'{{"a": NaN, "b": "{SECRET}"}}', "NaN, Infinity and numbers beyond"),
    "infinity": ('{"a": -Infinity}', "NaN, Infinity and numbers beyond"),
    "a number too large": ('{"a": 1e999}', "NaN, Infinity and numbers beyond"),
    "an integer too long": (f'{{"a": {"1" * 5000}}}', "an integer of more than 4300 digits"),
    "half a pair in the body": (f'{{"a": "{SECRET}\\ud800"}}', "a lone surrogate"),
    "half a pair in a key": (f'{{"{SECRET}\\udfff": 1}}', "a lone surrogate"),
    "half a pair in the path": ('{"pubsub_path": "/a\\ud800"}', "half of a \\u pair"),
    "a path of null": ('{"pubsub_path": null}', "pubsub_path is no text"),
    "a path of a number": ('{"pubsub_path": 1}', "pubsub_path is no text"),
    "a path of a list": (f'{{"pubsub_path": ["{SECRET}"]}}', "pubsub_path is no text"),
    "a path with a comma": (f'{{"pubsub_path": "/a,{SECRET}"}}', "has no comma"),
    "a path too long": (
        f'{{"pubsub_path": "/{"é" * (MAX_TARGET // 2)}"}}',
        f"pubsub_path has {MAX_TARGET + 1} bytes, more than the {MAX_TARGET}",
    ),
    "a ping": (f'{{"stillalive": "{SECRET}"}}', 'a top-level key "stillalive" is refused'),
    "a secure topic": (f'{{"pubsub_path": "/{SECRET}/deploy"}}', "may not publish on deploy"),
    "a private secure topic": ('{"pubsub_path": "private/deploy"}', "may not publish on deploy"),
}


@pytest.fixture(scope="module")
def queues(shared_moto: Moto) -> dict[str, str]:
    """By what becomes of bad items; the last is where the dead letters go."""
    letters = new_queue(shared_moto)
    return {
        "leave": new_queue(shared_moto, VisibilityTimeout=600),
        "delete": new_queue(shared_moto, VisibilityTimeout=600),
        "redrive": new_queue(shared_moto, VisibilityTimeout=1, dead_letters=letters, max_receives=2),
        "notified": new_queue(shared_moto, VisibilityTimeout=600),
        "trusted": new_queue(shared_moto, VisibilityTimeout=600),
        "letters": letters,
    }


@pytest.fixture(scope="module")
def reader(
    shared_moto: Moto, queues: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon that reads them."""
    settings: dict[str, dict[str, Any]] = {
        "leave": {},
        "delete": {"bad_items": "delete"},
        "redrive": {"bad_items": "leave"},
        "notified": {"bad_items": "delete", "unwrap_sns": True},
        "trusted": {"bad_items": "delete", "secure_topics": ["deploy"]},
    }
    config: dict[str, Any] = {
        "server": {"max_payload_size": MOST, "max_line_size": LONGEST},
        "clients": {"secure_topics": ["deploy", "release"]},
        "sqs": {name: shared_moto.settings(queues[name], **changes) for name, changes in settings.items()},
    }
    daemon = Daemon(tmp_path_factory.mktemp("reader"), config)
    daemon.start()
    yield daemon
    daemon.stop()


# Bad items


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_item_is_reported_and_those_behind_it_are_published(
    moto: Moto, reader: Daemon, queues: dict[str, str], kind: str
) -> None:
    """The log names its MessageId and the reason, and shows nothing of it. Whether it is deleted is set."""
    body, reason = BAD[kind]
    stay = moto.counts(queues["leave"]).in_flight
    async with reader.subscriber("/") as stream:
        for name, level, fate in (("leave", "WARNING", "stays"), ("delete", "ERROR", "is deleted")):
            before, bad, after = moto.send_many(queues[name], [{"n": 1}, body, {"n": 2}])
            assert await numbers(stream, 2) == [1, 2]
            line = await reader.until_logged(
                rf" {level} pypubsub\.sqs: sqs {name}: item {bad} is bad and {fate}: "
            )
            assert reason in line
            assert SECRET not in line
            assert not any(good in logged for logged in reader.log for good in (before, after))
        await nothing_else_on(stream, reader)
    await moto.until_empty(queues["delete"])
    await moto.until_counts(queues["leave"], visible=0, in_flight=stay + 1)


async def test_a_bad_item_that_stays_ends_in_the_dead_letter_queue(
    moto: Moto, reader: Daemon, queues: dict[str, str]
) -> None:
    """A redrive policy moves it after some readings; it is reported once."""
    bad = moto.send(queues["redrive"], f'{{"{SECRET}": ')
    (letter,) = await moto.until_received(queues["letters"])
    assert letter["Body"] == f'{{"{SECRET}": '
    assert int(letter["Attributes"]["ApproximateReceiveCount"]) >= 2
    async with reader.subscriber("/") as stream:
        moto.send(queues["redrive"], {"n": 1})
        assert await numbers(stream, 1) == [1]
    assert len([line for line in reader.log if bad in line]) == 1
    assert SECRET not in "".join(reader.log)


async def test_items_are_hidden_for_as_long_as_is_set(moto: Moto, start_daemon: StartDaemon) -> None:
    """Whatever the queue has: one that stays comes up again so soon that its redrive policy moves it."""
    letters = new_queue(moto)
    queue = new_queue(moto, VisibilityTimeout=600, dead_letters=letters, max_receives=2)
    start_daemon(reading(moto, queue, visibility="1s"))
    bad = moto.send(queue, "[]")
    assert [letter["MessageId"] for letter in await moto.until_received(letters)] == [bad]


async def test_bad_items_are_deleted_also_where_good_ones_stay(moto: Moto, start_daemon: StartDaemon) -> None:
    """With `delete: false` and `bad_items: delete`."""
    queue = new_queue(moto, VisibilityTimeout=600)
    daemon = start_daemon(reading(moto, queue, delete=False, bad_items="delete"))
    async with daemon.subscriber("/") as stream:
        _, bad, _ = moto.send_many(queue, [{"n": 1}, "[]", {"n": 2}])
        assert await numbers(stream, 2) == [1, 2]
        assert bad in await daemon.until_logged(" ERROR .* is bad and is deleted")
    await moto.until_counts(queue, visible=0, in_flight=2)


async def test_the_log_never_shows_what_is_in_items(moto: Moto, tmp_path: Path) -> None:
    """Neither good nor bad ones, nor how requests are signed, also where everything is logged."""
    queue = new_queue(moto)
    daemon = Daemon(tmp_path, reading(moto, queue))
    daemon.options = ["--log-level", "debug"]
    daemon.start()
    async with daemon.subscriber("/") as stream:
        bad, _ = moto.send_many(queue, [f"[{SECRET!r}]", {SECRET: SECRET, "n": 1}])
        assert await numbers(stream, 1) == [1]
        await daemon.until_logged(f"item {bad} is bad")
    await asyncio.to_thread(daemon.stop)
    assert any(" DEBUG " in line for line in daemon.log)
    for word in (SECRET, "Signature=", moto.credentials.secret):
        assert word not in "".join(daemon.log)


async def test_a_bad_item_in_a_fifo_queue_does_not_hold_up_the_others(
    moto: Moto, start_daemon: StartDaemon
) -> None:
    """Neither other groups, nor for good those behind it in its own, which keep their order."""
    letters = new_queue(moto, fifo=True)
    queue = new_queue(moto, fifo=True, VisibilityTimeout=1, dead_letters=letters, max_receives=3)
    for group in "ab":
        bodies: list[Any] = [{"group": group, "n": n} for n in range(30)]
        moto.send_many(queue, [*bodies[:3], f"[{SECRET!r}]", *bodies[3:]] if group == "a" else bodies, group)
    daemon = start_daemon(reading(moto, queue, sections=backlog()))
    came: dict[str, list[int]] = {"a": [], "b": []}
    async with daemon.subscriber("/", {"X-Fetch-Since": "-1"}) as stream:
        while sum(map(len, came.values())) < 60:
            event = await stream.event()
            came[event["group"]].append(event["n"])
        await moto.until_received(letters)
        await moto.until_empty(queue)
        await nothing_else_on(stream, daemon)
    assert came == {"a": list(range(30)), "b": list(range(30))}


# Secure topics


async def test_secure_topics_are_for_queues_that_list_them(
    moto: Moto, reader: Daemon, queues: dict[str, str]
) -> None:
    """Those that the queue lists, and no others."""
    async with reader.subscriber("/") as stream:
        paths = ["/deploy/a", "/a/release", "/deploy/release", "/b"]
        bodies = [{"pubsub_path": path, "n": path} for path in paths]
        moto.send_many(queues["trusted"], bodies)
        assert await numbers(stream, 2) == ["/deploy/a", "/b"]
        for _ in range(2):
            line = await reader.until_logged("sqs trusted: item .* is bad")
            assert "may not publish on release (its key secure_topics says on which)" in line
        await nothing_else_on(stream, reader)


# Notifications of SNS


async def test_what_a_notification_holds_is_published(
    moto: Moto, reader: Daemon, queues: dict[str, str]
) -> None:
    """With unwrap_sns: of a topic with its envelope or without; other items as they are."""
    queue = queues["notified"]
    moto.subscribe("wrapped", queue)
    moto.subscribe("raw", queue, raw=True)
    others: list[dict[str, Any]] = [
        {"Type": "Notification", "n": 3},
        {"Type": "Notification", "Message": {"n": "inside"}, "n": 4},
        {"Type": "SubscriptionConfirmation", "Message": '{"n": "inside"}', "n": 5},
        {"Message": '{"n": "inside"}', "n": 6},
        {"Type": "Notification", "Message": '{"Type": "Notification", "Message": "{}", "n": 7}', "n": 0},
    ]
    async with reader.subscriber("/") as stream:
        moto.publish("wrapped", {"pubsub_path": "/in/side", "n": 1})
        event = await stream.event()
        assert list(event) == ["n", *RESERVED_KEYS]
        assert (event["n"], event["pubsub_path"]) == (1, "/in/side")
        moto.publish("raw", {"pubsub_path": "/in/side", "n": 2})
        event = await stream.event()
        assert list(event) == ["n", *RESERVED_KEYS]
        assert (event["n"], event["pubsub_path"]) == (2, "/in/side")
        moto.send_many(queue, others)
        assert await numbers(stream, 5) == [3, 4, 5, 6, 7]
        await nothing_else_on(stream, reader)
    await moto.until_empty(queue)


async def test_a_notification_of_something_else_is_bad(
    moto: Moto, reader: Daemon, queues: dict[str, str]
) -> None:
    """With unwrap_sns: a Message that is no JSON object, or has a path that cannot be published on."""
    for message, reason in [
        (f"{SECRET} {{", "not JSON: "),
        (f'["{SECRET}"]', "must be a JSON object, got a list"),
        ('{"pubsub_path": "/deploy"}', "may not publish on deploy"),
    ]:
        moto.send(queues["notified"], {"Type": "Notification", "Message": message, "pubsub_path": "/a"})
        line = await reader.until_logged("ERROR .* sqs notified: item .* is bad")
        assert reason in line
        assert SECRET not in line


async def test_without_unwrap_sns_a_notification_is_an_item_like_any_other(
    moto: Moto, reader: Daemon, queues: dict[str, str]
) -> None:
    """Its envelope is published."""
    moto.subscribe("not-unwrapped", queues["delete"])
    async with reader.subscriber("/") as stream:
        moto.publish("not-unwrapped", {"pubsub_path": "/in/side", "n": 1})
        event = await stream.event()
    assert (event["Type"], event["pubsub_path"]) == ("Notification", "/")
    assert json.loads(event["Message"]) == {"pubsub_path": "/in/side", "n": 1}


def test_the_message_in_a_notification_has_the_size_of_a_payload() -> None:
    """With unwrap_sns max_payload_size is about what is published, whatever its envelope adds."""
    payload = f'{{"a": "{"x" * (MOST - 9)}"}}'
    assert len(payload) == MOST
    draft_of(item(payload), TERMS)
    envelope = json.dumps({"Type": "Notification", "Message": payload, "Signature": "x" * 1000})
    assert draft_of(item(envelope), UNWRAPPED).opening.startswith('{"a": "xxx')
    with pytest.raises(Refused, match="max_payload_size"):
        draft_of(item(envelope.replace("xxx", "xxxx", 1)), UNWRAPPED)


# Whatever an item holds

TEXT = st.text(st.characters(codec=None), max_size=20)  # lone surrogates too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*RESERVED_KEYS, "Type", "Message", "stillalive", "a"]) | TEXT
PATHS = TEXT | st.lists(st.sampled_from(["a", "private", "deploy", "%", "é", "", ","])).map("/".join)
OBJECTS = st.dictionaries(KEYS, JSON | PATHS | st.just("Notification"), max_size=6)
WITH_PATHS = st.builds(lambda payload, path: payload | {"pubsub_path": path}, OBJECTS, PATHS)
NOTIFICATIONS = WITH_PATHS.map(lambda payload: {"Type": "Notification", "Message": json.dumps(payload)})
BODIES = TEXT | JSON.map(json.dumps) | (OBJECTS | WITH_PATHS | NOTIFICATIONS).map(json.dumps)


def item(body: str) -> Item:
    """An item of a queue."""
    return Item("id", "receipt", body)


def lines_of(body: str, terms: Terms) -> list[bytes]:
    """The event of an item, none if it is bad."""
    try:
        draft = draft_of(item(body), terms)
    except Refused as refused:
        return [] if 400 <= refused.status < 500 and refused.message.isprintable() else [b"another failure"]
    assert isinstance(draft, Draft)
    return [Event(*draft, Stamps().next()).line]


@given(BODIES, st.sampled_from([TERMS, UNWRAPPED]))
def test_an_item_is_an_event_or_bad(body: str, terms: Terms) -> None:
    """Nothing else, whatever it holds. An event has the item's path and keys, and is on no secure topic."""
    for line in lines_of(body, terms):
        event = json.loads(line)
        assert list(event)[-4:] == list(RESERVED_KEYS)
        assert "stillalive" not in event
        assert "deploy" not in event["pubsub_topics"]
        payload = json.loads(body)
        if (
            terms.unwrap_sns
            and payload.get("Type") == "Notification"
            and isinstance(payload.get("Message"), str)
        ):
            payload = json.loads(payload["Message"])
        parts = [part for part in payload.get("pubsub_path", "/").split("/") if part]
        assert event["pubsub_path"] == "/" + "/".join(parts)
        assert event["pubsub_topics"] == (parts[1:] if parts[:1] == ["private"] else parts)
        assert {key: event[key] for key in event if key not in RESERVED_KEYS} == {
            key: value for key, value in payload.items() if key not in RESERVED_KEYS
        }


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), st.integers() | st.booleans()), PATHS)
def test_a_decent_object_is_an_event(payload: dict[str, Any], path: str) -> None:
    """Bad is only what cannot be sent on."""
    path = path.replace(",", "").replace("deploy", "").encode("utf-8", "ignore").decode()
    payload.pop("stillalive", None)
    assert lines_of(json.dumps(payload | {"pubsub_path": path}), TERMS)
