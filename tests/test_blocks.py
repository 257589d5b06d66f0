"""A block gives back what was put into it, to whoever asks for any of it, or says that it is damaged."""

import sqlite3
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import accumulate
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.delivery.wire import chunks
from core.events.cursor import stamp_at
from core.events.event import Event, opening_of
from core.events.subscription import Alternative
from core.events.topics import publish_path
from plugins.backlog import blocks, finding, schema
from plugins.backlog.block import Block, Damaged, Summary, pack
from plugins.backlog.blocks import Unpacked
from plugins.backlog.departed import topic_key

FIRST = 7_354_323_994_117_200  # position
NUMBERS = ("last", "first_timestamp", "last_timestamp", "events", "size", "crc", "summary_crc")
TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from('\n\r\0"\\\u2028\x85é😀'), max_size=5
)
TOPICS = TEXT.map(lambda text: text.replace("/", "").replace(",", "")).filter(bool)
PATHS = st.lists(TOPICS, max_size=4).map(lambda topics: "/" + "/".join(topics))
FEW_PATHS = st.sampled_from(["/", "/a", "/b", "/a/b", "/b/c", "/c/a/b", "/long topic", "/d", "/e/f"])
ALTERNATIVES = st.frozensets(
    st.frozensets(st.sampled_from(["a", "b", "c", "d", "e", "f", "long topic", "never"]), max_size=2),
    min_size=1,
    max_size=2,
)


class Published(NamedTuple):
    """An event."""

    path: str
    position: int
    line: bytes


@st.composite
def histories(
    draw: st.DrawFn, paths: st.SearchStrategy[str], least: int = 1, most: int = 12
) -> list[Published]:
    """Some events, in order."""
    chosen = draw(st.lists(st.tuples(paths, st.integers(1, 3), TEXT), min_size=least, max_size=most))
    positions = accumulate((gap for _, gap, _ in chosen), initial=FIRST)
    events = []
    for (path, gap, text), position in zip(chosen, positions, strict=False):
        opening = opening_of({"x": text}, publish_path(path), 1 << 20)
        stamp = stamp_at(position + gap, 1.8e9 + (position + gap - FIRST) // 4)  # some at the same time
        events.append(Published(path, stamp.position, Event(publish_path(path), opening, stamp).line))
    return events


def packed(events: Sequence[Published]) -> tuple[Summary, bytes]:
    """A block of them."""
    return pack([(event.path, event.line) for event in events])


@given(histories(PATHS, most=30))
@settings(max_examples=100, deadline=None)
def test_a_block_gives_back_all_paths_and_lines(events: list[Published]) -> None:
    """Whatever characters are in them; its summary tells of what is in it."""
    summary, data = packed(events)
    block = Block(summary, data)
    assert list(block) == [(event.path, event.line) for event in events]
    assert bytes(block.chunks) == chunks([event.line for event in events])
    assert (block.first, block.last, block.events) == (events[0].position, events[-1].position, len(events))
    assert (summary.last, summary.events, summary.size) == (events[-1].position, len(events), len(data))
    topics = {topic for event in events for topic in publish_path(event.path).topics}
    assert list(summary.topic_keys) == sorted({*map(topic_key, topics)})
    assert f'"pubsub_timestamp": {summary.first_timestamp!r},'.encode() in events[0].line
    assert f'"pubsub_timestamp": {summary.last_timestamp!r},'.encode() in events[-1].line


@given(histories(FEW_PATHS), st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_selected_of_a_block_is_what_is_asked_for(
    events: list[Published], data: st.DataObject
) -> None:
    """After any position, up to any, of any paths; also if it goes further than its last event."""
    beyond = data.draw(st.integers(0, 2))
    block = Block(*pack([(event.path, event.line) for event in events], events[-1].position + beyond))
    near = st.sampled_from(events).map(lambda event: event.position) | st.just(block.last)
    after, upto = (data.draw(near) + data.draw(st.integers(-1, 1)) for _ in range(2))
    wanted = {path: data.draw(st.booleans()) for path in block.paths}
    asked_for = [event.line for event in events if after < event.position <= upto and wanted[event.path]]
    assert block.select(after, upto, wanted) == asked_for
    if block.is_whole(after, upto, wanted):
        assert asked_for == [event.line for event in events]


@given(histories(PATHS, most=5), st.data())
@settings(max_examples=300, deadline=None)
def test_a_flipped_bit_in_a_block_is_noticed(events: list[Published], data: st.DataObject) -> None:
    """In its data or in any part of its summary, before anything of it is given to anybody."""
    summary, content = packed(events)
    which = data.draw(st.sampled_from(["data", "topics", *NUMBERS]))
    if which == "data":
        content = flipped(content, data)
    elif which == "topics" and summary.topics:
        summary = summary._replace(topics=flipped(summary.topics, data))
    elif which in NUMBERS:
        form = struct.Struct(">d" if "timestamp" in which else ">q")
        (value,) = form.unpack(flipped(form.pack(getattr(summary, which)), data))
        summary = summary._replace(**{which: value})
    else:
        return
    with pytest.raises(Damaged):
        Block(summary, content)


def flipped(content: bytes, data: st.DataObject) -> bytes:
    """The same with one bit changed."""
    bit = data.draw(st.integers(0, 1 << 20)) % (8 * len(content))  # cursors and so lengths differ each time
    return (int.from_bytes(content, "little") ^ 1 << bit).to_bytes(len(content), "little")


def test_a_block_without_data_is_damaged() -> None:
    """As if the row were not there."""
    with a_file() as connection:
        event = Published("/a", FIRST, Event(publish_path("/a"), "{", stamp_at(FIRST, 1.8e9)).line)
        summary, data = packed([event])
        blocks.add(connection, "public", summary, data)
        connection.execute("DELETE FROM public_data")
        with pytest.raises(Damaged):
            Unpacked().block(connection, "public", summary.last)


@contextmanager
def a_file() -> Iterator[sqlite3.Connection]:
    """A database with the tables of a backlog, in memory."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.executescript(schema._SCHEMA + "COMMIT;")
        connection.executescript("".join(schema._BLOCKS.format(kind=kind) for kind in schema.KINDS))
        yield connection


def fill(connection: sqlite3.Connection, events: Sequence[Published], size: int, rows: int) -> list[Summary]:
    """Put events into blocks of so many, and so many into rows."""
    sealed = events[: len(events) - rows]
    summaries = []
    for start in range(0, len(sealed), size):
        summary, data = packed(sealed[start : start + size])
        blocks.add(connection, "public", summary, data)
        summaries.append(summary)
    for event in events[len(sealed) :]:
        connection.execute(
            "INSERT INTO public VALUES (?, 0, ?, ?, ?)",
            (event.position, event.path, event.line, zlib.crc32(event.line)),
        )
    return summaries


def meets(path: str, alternatives: frozenset[Alternative]) -> bool:
    """Whether an event of that path has all topics of one of these sets."""
    return any(alternative <= publish_path(path).all_topics for alternative in alternatives)


SMALL = st.fixed_dictionaries(
    {
        "_TESTS_AT_ONCE": st.sampled_from([4, 8, 20_000]),
        "_MOST_TESTS": st.sampled_from([2, 500]),
        "_MOST_TESTS_OF_A_SET": st.sampled_from([1, 8]),
    }
)


@given(histories(FEW_PATHS, 4, 30), ALTERNATIVES, st.integers(1, 3), st.integers(1, 4), SMALL, st.data())
@settings(max_examples=200, deadline=None)
def test_no_block_is_missed_that_may_hold_what_is_looked_for(
    events: list[Published],
    alternatives: frozenset[Alternative],
    size: int,
    most: int,
    bounds: dict[str, int],
    data: st.DataObject,
) -> None:
    """From any position on, however many are looked through at a time; one whose summary is damaged, too."""
    with a_file() as connection, pytest.MonkeyPatch.context() as patch:
        for name, value in bounds.items():
            patch.setattr(blocks, name, value)
        blocks.test_of.cache_clear()
        summaries = fill(connection, events, size, 0)
        damaged = data.draw(st.sampled_from([None, *(summary.last for summary in summaries)]))
        if damaged:
            connection.execute("UPDATE public_blocks SET events = events + 1 WHERE last = ?", (damaged,))
            assert blocks.mark_damaged(connection, "public") <= 1
        after = data.draw(st.sampled_from([0, *(event.position for event in events)]))
        must = [
            summary.last
            for n, summary in enumerate(summaries)
            if summary.last > after
            and (
                summary.last == damaged
                or any(meets(event.path, alternatives) for event in events[n * size :][:size])
            )
        ]
        found: list[int] = []
        end = after
        while end < blocks.end(connection, "public"):
            begun = end
            some, end = blocks.next_of(connection, "public", begun, alternatives, most)
            assert begun < end
            assert len(some) <= most
            assert all(begun < last <= end for last in some)
            found += some
        assert found == sorted(set(found))
        assert set(must) <= set(found)
    blocks.test_of.cache_clear()


@given(histories(FEW_PATHS, most=30), ALTERNATIVES, st.integers(1, 4), st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_pages_of_blocks_and_rows_have_all_that_is_wanted(
    events: list[Published], alternatives: frozenset[Alternative], size: int, data: st.DataObject
) -> None:
    """Page after page, between any two positions: each event once, in order, and no page too long."""
    with a_file() as connection, pytest.MonkeyPatch.context() as patch:
        page_events = data.draw(st.sampled_from([2, 1000]))
        for name, values in {
            "PAGE_EVENTS": [page_events],
            "PAGE_BYTES": [300, 100_000],
            "_MOST_BLOCKS": [1, 2, 8],
            "_MOST_ROWS": [1, 2, 2000],
        }.items():
            patch.setattr(finding, name, data.draw(st.sampled_from(values)))
        fill(connection, events, size, data.draw(st.integers(0, len(events))))
        near = st.sampled_from([0, *(event.position + more for event in events for more in (-1, 0, 1))])
        after, upto = data.draw(near), data.draw(near)
        wanted = {event.path: meets(event.path, alternatives) for event in events}
        found: list[bytes] = []
        unpacked = Unpacked()
        end = after
        while end < upto:
            begun = end
            page = finding.find(connection, unpacked, "public", begun, upto, alternatives, wanted)
            end = page.end
            lines = page.block.lines if page.block else page.lines
            assert begun < end <= upto
            assert page.block or len(lines) <= max(page_events, size)
            found += lines
        assert found == [
            event.line for event in events if after < event.position <= upto and wanted[event.path]
        ]


@given(histories(FEW_PATHS, most=30), st.integers(1, 4), st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_first_event_since_a_time_is_found(
    events: list[Published], size: int, data: st.DataObject
) -> None:
    """In blocks as in rows; None if all are older."""
    times = {event.position: 1.8e9 + (event.position - FIRST) // 4 for event in events}
    with a_file() as connection:
        fill(connection, events, size, data.draw(st.integers(0, len(events))))
        for position, timestamp in times.items():
            connection.execute("UPDATE public SET timestamp = ? WHERE position = ?", (timestamp, position))
        since = data.draw(st.sampled_from([0.0, *times.values()])) + data.draw(
            st.sampled_from([-0.5, 0, 0.5])
        )
        first = next((position for position, timestamp in times.items() if timestamp >= since), None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(finding, "position_at", lambda _: 0)  # these positions are not those of their times
            assert finding.first_since(connection, Unpacked(), "public", since) == first
