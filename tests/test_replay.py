"""What a subscriber asks to have sent again: every form, which of several wins, and what it is promised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.cursor import Mark, stamp_at
from core.errors import Refused
from core.replay import Placement, Reach, ReplayRequest, judge_since, place_cursor, replay_request

NOW = 1_795_489_256.25  # 2026-11-24T03:00:56.25Z
CURSOR = "01a20b7f-d3af-74d1-a23e-780b7e8b7f37"
OTHER = "1c4a1ac8-1b22-4d5f-8a5f-0f4c8a1e6f9b"

TIMES = {
    "1795478148": 1795478148.0,
    "1795478148.2066568": 1795478148.2066568,
    "1.795478148e9": 1795478148.0,
    "0": 0.0,
    "-1": -1.0,
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


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "d", "1e999", "-1.5", "NaN", "1d2h", "tomorrow", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    """However long it is."""
    with pytest.raises(Refused):
        replay_request({"X-Fetch-Since": text}, {}, NOW)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Nothing but Refused comes out of it."""
    for name in ("X-Fetch-Since", "X-Fetch-Since-Cursor", "Last-Event-ID"):
        try:
            asked = replay_request({name: text}, {}, NOW)
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
        (3000, None, Placement(3000, "complete")),
        (1000, None, Placement(1000, "complete")),
        (999, None, Placement(0, "unknown")),  # from before the memory began: what is held is sent
        (999, LOST, Placement(2000, "unknown")),
        (1999, LOST, Placement(2000, "partial")),
        (2000, LOST, Placement(2000, "complete")),  # the event that has left is the one it has seen
        (9000, LOST, Placement(9000, "complete")),
        (9001, LOST, Placement(9000, "unknown")),  # from the future: nothing
        (OTHER, None, Placement(9000, "unknown")),  # of another kind: nothing
    ],
)
def test_the_place_of_a_cursor(asked: int | str, lost: Mark | None, expected: Placement) -> None:
    """It is found by order alone, whether or not the event is held or may be seen. asked: its position."""
    cursor = asked if isinstance(asked, str) else stamp_at(asked, 0.0).cursor
    assert place_cursor(cursor, Reach(BEGAN, lost, from_the_start=IN_MEMORY), END) == expected


def test_a_cursor_in_capitals_is_the_same_place() -> None:
    """As RFC 9562 section 4 has it for UUIDs."""
    cursor = stamp_at(3000, 0.0).cursor.upper()
    assert place_cursor(cursor, Reach(BEGAN, None, from_the_start=IN_MEMORY), END).after == 3000


@pytest.mark.parametrize(
    ("since", "lost", "start", "verdict"),
    [
        (BEGAN.timestamp + 50, None, IN_MEMORY, "complete"),
        (BEGAN.timestamp, None, IN_MEMORY, "complete"),
        (BEGAN.timestamp - 0.1, None, IN_MEMORY, "partial"),
        (99.9, None, IN_MEMORY, "partial"),
        (1.5e9, None, NEW_FILE, "partial"),  # something may have been published there, and not stored
        (99.9, None, NEW_FILE, "complete"),  # everything that is held
        (0.0, None, IN_MEMORY, "partial"),
        (-1.0, None, NEW_FILE, "complete"),
        (-1.0, LOST, NEW_FILE, "partial"),
        (LOST.timestamp, LOST, NEW_FILE, "partial"),  # the event that has left was of that very moment
        (LOST.timestamp + 0.1, LOST, IN_MEMORY, "complete"),
        (1e12, LOST, IN_MEMORY, "complete"),
    ],
)
def test_the_verdict_on_a_time(since: float, lost: Mark | None, start: bool, verdict: str) -> None:
    """Complete only if nothing of that time or later can be missing."""
    assert judge_since(since, Reach(BEGAN, lost, from_the_start=start)) == verdict
