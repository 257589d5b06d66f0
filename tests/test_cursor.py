"""Cursors and timestamps grow, whatever the clocks do, and count nothing."""

import re
import uuid

from hypothesis import given
from hypothesis import strategies as st

from core.events.cursor import Stamps
from wire import START_NS

STEPS = st.lists(
    st.tuples(
        st.integers(min_value=-(10**12), max_value=10**12),  # how the wall clock moves, ns
        st.integers(min_value=0, max_value=10**10),  # how the monotonic clock moves, ns
    ),
    max_size=50,
)


class Clocks:
    """A wall clock and a monotonic clock that are set by hand."""

    def __init__(self) -> None:
        self.wall_ns = START_NS
        self.monotonic_ns = 5

    def stamps(self) -> Stamps:
        """Stamps that go by these clocks."""
        return Stamps(lambda: self.wall_ns, lambda: self.monotonic_ns)


@given(STEPS)
def test_cursors_grow_whatever_the_clocks_do(steps: list[tuple[int, int]]) -> None:
    """Also when the wall clock is set back, and when many are made in no time at all."""
    clocks = Clocks()
    stamps = clocks.stamps()
    made = [stamps.next()]
    for wall, monotonic in steps:
        clocks.wall_ns += wall
        clocks.monotonic_ns += monotonic
        made += [stamps.next(), stamps.next()]
    cursors = [stamp.cursor for stamp in made]
    assert cursors == sorted(set(cursors))
    timestamps = [stamp.timestamp for stamp in made]
    assert timestamps == sorted(timestamps)


def test_a_cursor_is_a_uuid_version_7_of_its_time() -> None:
    """RFC 9562 section 5.7: 48 bits of milliseconds, version 7, variant 2."""
    clocks = Clocks()
    stamps = clocks.stamps()
    clocks.monotonic_ns += 7
    clocks.wall_ns = START_NS + 5_000_000_000
    _, cursor, timestamp = stamps.next()
    parsed = uuid.UUID(cursor)
    assert re.fullmatch(r"[0-9a-f-]{36}", cursor)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == clocks.wall_ns // 1_000_000
    assert timestamp == clocks.wall_ns / 1e9


def test_time_goes_on_at_its_own_pace_after_the_wall_clock_is_set_back() -> None:
    """So that cursors made meanwhile do not count events instead of time."""
    clocks = Clocks()
    stamps = clocks.stamps()
    before = stamps.next().timestamp
    clocks.wall_ns -= 3600 * 10**9
    clocks.monotonic_ns += 2 * 10**9
    assert stamps.next().timestamp - before == 2.0


def test_what_lies_between_two_cursors_does_not_show() -> None:
    """With the same clock readings, the time in a cursor is the same however many were made before it."""

    def time_part(others: int) -> str:
        clocks = Clocks()
        stamps = clocks.stamps()
        stamps.next()
        for _ in range(others):
            clocks.wall_ns += 2_000  # it takes longer than this to accept an event
            clocks.monotonic_ns += 2_000
            stamps.next()
        clocks.wall_ns = START_NS + 10**9
        clocks.monotonic_ns = 5 + 10**9
        return stamps.next().cursor[:18]

    assert time_part(0) == time_part(1) == time_part(1000)


def test_the_random_part_is_fresh_each_time() -> None:
    """62 bits that no two cursors share."""
    stamps = Stamps()
    assert len({stamps.next().cursor[20:] for _ in range(1000)}) == 1000
