"""What a subscriber asks to have sent again: every form, which of several wins, and what it is promised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Refused
from core.events.cursor import Mark, position_of, stamp_at
from core.events.replay import (
    NOTHING,
    Gone,
    Placement,
    Reach,
    ReplayRequest,
    judge_since,
    place_cursor,
    replay_request,
)
from wire import CURSOR

NOW = 1_795_489_256.25  # 2026-11-24T03:00:56.25Z
OTHER = "1c4a1ac8-1b22-4d5f-8a5f-0f4c8a1e6f9b"

TIMES = {
    "1795478148": 1795478148.0,
    "1795478148.2066568": 1795478148.2066568,
    "1.795478148e9": 1795478148.0,
    "0": 0.0,
    "-1": -1.0,
    "-2": -1.0,
    "-1e999": -1.0,
    "None": -1.0,
    " 5 ": 5.0,
    "45s": NOW - 45,
    "10m": NOW - 600,
    "12h": NOW - 12 * 3600,
    "7d": NOW - 7 * 86400,
    "1.5h": NOW - 5400,
    "99999d": 0.0,
    "2026-11-24T03:00:56Z": 1_795_489_256.0,
    "2026-11-24T04:00:56+01:00": 1_795_489_256.0,
    "2026-11-24T04:00:56 01:00": 1_795_489_256.0,  # a + in a query string
    "2026-11-24 03:00:56": 1_795_489_256.0,
    "2026-11-24": 1_795_478_400.0,
}


@pytest.mark.parametrize("text", TIMES)
def test_every_form_of_a_time(text: str) -> None:
    """As a header and in the query; times without a zone are UTC."""
    for headers, query in (({"X-Fetch-Since": text}, {}), ({}, {"since": text})):
        assert replay_request(headers, query, NOW) == ReplayRequest(since=TIMES[text])


def test_which_of_several_wins() -> None:
    """A cursor over a time, both over Last-Event-ID, a header over the query."""
    everything = {"X-Fetch-Since": "5", "X-Fetch-Since-Cursor": CURSOR, "Last-Event-ID": OTHER}
    assert replay_request(everything, {"cursor": OTHER, "since": "6"}, NOW) == ReplayRequest(cursor=CURSOR)
    assert replay_request({"X-Fetch-Since": "5"}, {"cursor": OTHER}, NOW) == ReplayRequest(cursor=OTHER)
    assert replay_request({"Last-Event-ID": OTHER}, {"since": "6"}, NOW) == ReplayRequest(since=6.0)
    assert replay_request({"Last-Event-ID": OTHER}, {}, NOW) == ReplayRequest(cursor=OTHER)
    assert replay_request({}, {"other": "x"}, NOW) is None


def test_a_malformed_one_is_refused_even_if_another_wins() -> None:
    """Nobody should go on sending it unnoticed."""
    with pytest.raises(Refused):
        replay_request({"X-Fetch-Since-Cursor": CURSOR, "X-Fetch-Since": "soon"}, {}, NOW)


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "d", "1e999", "none", "NaN", "1d2h", "tomorrow", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    """However long it is."""
    with pytest.raises(Refused):
        replay_request({"X-Fetch-Since": text}, {}, NOW)


@pytest.mark.parametrize("text", TIMES)
def test_an_end_has_every_form_of_a_time(text: str) -> None:
    """Or it is a cursor."""
    begin = {"since": "-1"}
    assert replay_request({}, begin | {"until": text}, NOW) == ReplayRequest(since=-1, until=TIMES[text])
    assert replay_request({}, begin | {"until": CURSOR}, NOW) == ReplayRequest(since=-1, until=CURSOR)


def test_an_end_goes_with_every_beginning() -> None:
    """In the query or in a header; a number of events goes with all but the newest ones."""
    end = {"until": "5", "limit": "7"}
    for headers, query, begin in [
        ({"X-Fetch-Since": "3"}, {}, ReplayRequest(since=3.0)),
        ({}, {"since": "3"}, ReplayRequest(since=3.0)),
        ({"X-Fetch-Since-Cursor": CURSOR}, {"cursor": OTHER}, ReplayRequest(cursor=CURSOR)),
        ({"Last-Event-ID": CURSOR}, {}, ReplayRequest(cursor=CURSOR)),
    ]:
        asked = replay_request(headers, query | end, NOW)
        assert asked == begin._replace(until=5.0, limit=7)
        assert asked.is_history
        assert not begin.is_history
        for key, part in (("until", begin._replace(until=5.0)), ("limit", begin._replace(limit=7))):
            assert replay_request(headers, query | {key: end[key]}, NOW) == part
            assert part.is_history
    newest = replay_request({}, {"last": "7"}, NOW)
    assert newest == ReplayRequest(last=7)
    assert not newest.is_history
    assert replay_request({}, {"last": "7", "until": "5"}, NOW) == ReplayRequest(last=7, until=5.0)


@pytest.mark.parametrize("query", [{"until": "5"}, {"limit": "7"}, {"until": CURSOR, "limit": "7"}])
def test_an_end_without_a_beginning_is_refused(query: dict[str, str]) -> None:
    """And it is said what to add."""
    with pytest.raises(Refused, match="add where to begin, by since"):
        replay_request({}, query, NOW)


def test_the_newest_events_need_no_beginning() -> None:
    """Whichever it is, it is refused; so is a number of the oldest."""
    for query in ({"since": "5"}, {"cursor": CURSOR}, {"limit": "5"}):
        with pytest.raises(Refused, match="last: says itself where to begin: leave out since"):
            replay_request({}, {"last": "5"} | query, NOW)


def test_who_comes_again_goes_on_where_it_was() -> None:
    """Though a browser, say, comes with the URL of its first request, which asked for the newest events."""
    for name in ("X-Fetch-Since-Cursor", "Last-Event-ID"):
        assert replay_request({name: CURSOR}, {"last": "5"}, NOW) == ReplayRequest(cursor=CURSOR)
    again = replay_request({"Last-Event-ID": CURSOR}, {"last": "5", "until": "6"}, NOW)
    assert again == ReplayRequest(cursor=CURSOR, until=6.0)


@pytest.mark.parametrize(("key", "most"), [("last", 10_000), ("limit", 1_000_000)])
def test_a_number_of_events_is_bounded(key: str, most: int) -> None:
    """From 1 on, in plain digits."""
    begin = {"since": "5"} if key == "limit" else {}
    for number in (1, most):
        asked = replay_request({}, begin | {key: str(number)}, NOW)
        assert asked is not None
        assert getattr(asked, key) == number
    for text in ("0", str(most + 1), "-1", "+1", " 1", "1.0", "1e3", "", "٣", "9" * 5000):
        with pytest.raises(Refused, match=f"{key}: expected a number of events, from 1 to {most}"):
            replay_request({}, begin | {key: text}, NOW)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but Refused comes out of it."""
    questions: list[tuple[dict[str, str], dict[str, str]]] = [
        ({name: text}, {}) for name in ("X-Fetch-Since", "X-Fetch-Since-Cursor", "Last-Event-ID")
    ]
    questions += [
        ({}, {"last": text}),
        ({}, {"since": "5", "until": text}),
        ({}, {"since": "5", "limit": text}),
    ]
    for headers, query in questions:
        try:
            asked = replay_request(headers, query, NOW)
        except Refused as refused:
            assert refused.status == 400  # noqa: PT017
        else:
            assert asked is not None
            assert asked.since is None or asked.since >= -1


BEGAN = Mark(1000, 1.6e9)
LOST = Mark(2000, 1.7e9)
END = 9000  # now
IN_MEMORY, NEW_FILE = False, True  # whether nothing was ever lost by a restart


@pytest.mark.parametrize(
    ("asked", "lost", "expected"),
    [
        (3000, NOTHING, Placement(3000, "complete")),
        (1000, NOTHING, Placement(1000, "complete")),
        # from before the memory began: what is held after it is sent
        (999, NOTHING, Placement(999, "unknown", Gone(1000, 1000))),
        (999, LOST, Placement(999, "unknown", Gone(2000, 1000))),
        (1999, LOST, Placement(1999, "partial", Gone(2000, 2000))),
        (2000, LOST, Placement(2000, "complete")),  # the event that has left is the one it has seen
        (9000, LOST, Placement(9000, "complete")),
        (9001, LOST, Placement(9000, "unknown", Gone(9001, 9001))),  # from the future: nothing
        (OTHER, NOTHING, Placement(9000, "unknown", Gone(9001, 9001))),  # of another kind: nothing
    ],
)
def test_the_place_of_a_cursor(asked: int | str, lost: Mark, expected: Placement) -> None:
    """It is found by order alone, whether or not the event is held or may be seen. asked: its position."""
    cursor = asked if isinstance(asked, str) else stamp_at(asked, 0.0).cursor
    reach = Reach(BEGAN, lost, NOTHING, from_the_start=IN_MEMORY)
    assert place_cursor(position_of(cursor), reach, END) == expected


def test_each_kind_of_events_is_missing_up_to_where_it_has_left() -> None:
    """So what is held of the other is sent."""
    for public, private, missing in ((LOST, NOTHING, Gone(2000, 1501)), (NOTHING, LOST, Gone(1501, 2000))):
        placement = place_cursor(1500, Reach(BEGAN, public, private, from_the_start=IN_MEMORY), END)
        assert placement == Placement(1500, "partial", missing)


def test_a_cursor_in_capitals_is_the_same_place() -> None:
    """As RFC 9562 section 4 has it for UUIDs."""
    cursor = stamp_at(3000, 0.0).cursor.upper()
    reach = Reach(BEGAN, NOTHING, NOTHING, from_the_start=IN_MEMORY)
    assert place_cursor(position_of(cursor), reach, END).after == 3000


@pytest.mark.parametrize(
    ("since", "lost", "start", "verdict"),
    [
        (BEGAN.timestamp + 50, NOTHING, IN_MEMORY, "complete"),
        (BEGAN.timestamp, NOTHING, IN_MEMORY, "complete"),
        (BEGAN.timestamp - 0.1, NOTHING, IN_MEMORY, "partial"),
        (99.9, NOTHING, IN_MEMORY, "partial"),
        (1.5e9, NOTHING, NEW_FILE, "partial"),  # something may have been published there, and not stored
        (99.9, NOTHING, NEW_FILE, "complete"),  # everything that is held
        (0.0, NOTHING, IN_MEMORY, "partial"),
        (-1.0, NOTHING, NEW_FILE, "complete"),
        (-1.0, LOST, NEW_FILE, "partial"),
        (LOST.timestamp, LOST, NEW_FILE, "partial"),  # the event that has left was of that very moment
        (LOST.timestamp + 0.1, LOST, IN_MEMORY, "complete"),
        (1e12, LOST, IN_MEMORY, "complete"),
    ],
)
def test_the_verdict_on_a_time(since: float, lost: Mark, start: bool, verdict: str) -> None:
    """Complete only if nothing of that time or later can be missing, public or private."""
    for public, private in ((lost, NOTHING), (NOTHING, lost)):
        assert judge_since(since, Reach(BEGAN, public, private, from_the_start=start)) == verdict
