"""Times and places in the order of events, as operators write and read them."""

import argparse
import math
import time
from datetime import UTC, datetime
from typing import NamedTuple

from core.errors import Refused
from core.events.cursor import TICKS_PER_SECOND, Mark, position_of
from core.events.replay import is_cursor, replay_request


class Moment(NamedTuple):
    """Exactly one of the two is not None."""

    position: int | None = None  # of a cursor
    timestamp: float | None = None  # Unix seconds

    @property
    def mark(self) -> Mark:
        """The same as a place and a time, about."""
        if self.position is None:
            timestamp = max(self.timestamp or 0.0, 0.0)
            return Mark(int(timestamp * TICKS_PER_SECOND), timestamp)
        return Mark(self.position, time_at(self.position))


def moment(text: str) -> Moment:
    """A time as a replay's `since` has it, or a cursor. Raises what argparse shows."""
    if is_cursor(text):
        position = position_of(text)
        if position is None:
            raise argparse.ArgumentTypeError(f"no cursor of this server's: {text}")
        return Moment(position=position)
    try:
        asked = replay_request({}, {"since": text}, time.time())
    except Refused as refused:
        raise argparse.ArgumentTypeError(f"{refused.message.removeprefix('since: ')}; or a cursor") from None
    return Moment(timestamp=asked.since if asked else None)


def now_mark() -> Mark:
    """This moment, by the clock."""
    now = time.time()
    return Mark(int(now * TICKS_PER_SECOND), now)


def time_at(position: int) -> float:
    """The time that a position stands for, in Unix seconds."""
    return position / TICKS_PER_SECOND


def iso(timestamp: float) -> str:
    """A time, in UTC."""
    try:
        text = datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):  # of a damaged file
        return repr(timestamp)
    return text.replace("+00:00", "Z")


def place(position: int) -> str:
    """A position, for whoever looks for what is there."""
    return f"position {position} ({iso(time_at(position) if position >= 0 else math.nan)})"
