"""What a subscriber asks to have sent again before the live events, and what it can be promised.

It asks for what came since a time, or after a cursor. Cursors sort in the order of publishing, so a cursor is
a place in the backlog whether or not its event is held, and whether or not the subscriber may see that event.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from core.config import parse_duration
from core.errors import Refused
from core.events.cursor import Mark

REPLAY_KEYS = ("since", "cursor")
REPLAY_HEADERS = ("X-Fetch-Since", "X-Fetch-Since-Cursor", "Last-Event-ID")
_AHEAD = 86_400.0  # seconds that a time may lie in the future: clocks differ, and so do time zones
_BEFORE_ALL = 1e9  # Unix seconds: with 1, as with -1 and 0, clients ask for all that is held
_CURSOR = re.compile(r"[0-9A-Za-z-]{36}", re.ASCII)
_SINCE_FORMS = (
    "Unix seconds (1588132959.6), an ISO 8601 time (2026-11-24T08:00:00Z), a duration back from now (10m), "
    "or -1 for all that is held"
)


class ReplayRequest(NamedTuple):
    """Exactly one of the two is not None."""

    since: float | None = None  # Unix seconds; events at or after it; -1 to 0: all that is held
    cursor: str | None = None  # events after it


class Gone(NamedTuple):
    """How far a backlog has been left by each kind of events: a position, 0 if nothing of it has left."""

    public: int = 0
    private: int = 0


class Reach(NamedTuple):
    """How far back a backlog goes, for a subscriber who may see certain kinds of events."""

    began: Mark  # when the backlog's memory began
    public: Mark  # the latest public event that has left the backlog; NOTHING if none has
    private: Mark  # the same of private events, NOTHING as well for who may see none
    from_the_start: bool  # the backlog has never lost anything by a restart, or by being taken away

    @property
    def lost(self) -> Mark:
        """The latest event that has left."""
        return max(self.public, self.private)


NOTHING = Mark(0, -math.inf)


class Placement(NamedTuple):
    """Where a subscriber begins to read, and what it is told about that.

    missing: up to where, of each kind of events, it knows that some may be missing.
    """

    after: int  # position
    verdict: str | None  # X-Replay; None if no replay was asked for
    missing: Gone = Gone()


def place(after: int, verdict: str, reach: Reach) -> Placement:
    """A subscriber's place in a backlog, by the verdict that it is told.

    Unless that is complete, more may leave before it has begun to read a kind of events, and is not missed.
    """
    if verdict == "complete":
        return Placement(after, verdict)
    begun = after + 1
    return Placement(
        after, verdict, Gone(max(reach.public.position, begun), max(reach.private.position, begun))
    )


def place_cursor(position: int | None, reach: Reach, now: int) -> Placement:
    """Where to go on after a cursor. position: what it stands for; now: a position that no event has yet.

    unknown: it is no cursor of this kind, or lies in the future, and nothing is replayed; or it is older than
    the backlog's memory. partial: some of what came after it is gone. What is held after it is replayed.
    """
    if position is None or position > now:
        return place(now, "unknown", reach)
    if position < reach.began.position:
        return place(position, "unknown", reach)
    return place(position, "partial" if position < reach.lost.position else "complete", reach)


def judge_since(since: float, reach: Reach) -> str:
    """The verdict on a replay since a time (Unix seconds)."""
    if since <= reach.lost.timestamp:
        return "partial"
    if since < _BEFORE_ALL and reach.from_the_start:
        return "complete"
    return "complete" if since >= reach.began.timestamp else "partial"


def replay_request(headers: Mapping[str, str], query: Mapping[str, str], now: float) -> ReplayRequest | None:
    """What the headers and the query ask for; None for live events only. now: Unix seconds.

    A cursor wins over a time, and both win over Last-Event-ID. Raises Refused(400) if any is malformed.
    """
    cursors = [_cursor("X-Fetch-Since-Cursor", headers), _cursor("cursor", query)]
    times = [_since("X-Fetch-Since", headers, now), _since("since", query, now)]
    last_event_id = _cursor("Last-Event-ID", headers)
    for cursor in cursors:
        if cursor is not None:
            return ReplayRequest(cursor=cursor)
    for since in times:
        if since is not None:
            return ReplayRequest(since=since)
    return ReplayRequest(cursor=last_event_id) if last_event_id is not None else None


def is_cursor(text: str) -> bool:
    """Whether it looks like a cursor, of ours or of 0.7's."""
    return _CURSOR.fullmatch(text) is not None


def _cursor(name: str, source: Mapping[str, str]) -> str | None:
    value = source.get(name)
    if value is not None and not is_cursor(value):
        raise Refused(400, f"{name}: a cursor has 36 characters of 0-9, A-Z, a-z and -")
    return value


def _since(name: str, source: Mapping[str, str], now: float) -> float | None:
    value = source.get(name)
    if value is None:
        return None
    since = _seconds(value.strip(), now)
    if since is None or math.isnan(since) or since == math.inf:
        raise Refused(400, f"{name}: expected {_SINCE_FORMS}")
    if since > now + _AHEAD:
        raise Refused(
            400, f"{name}: lies more than a day in the future: Unix seconds are meant, not milliseconds"
        )
    return max(since, -1.0)


def _seconds(text: str, now: float) -> float | None:
    """Unix seconds from any of the accepted forms, None for anything else."""
    if text == "None":  # what asfpy's Listener sends if it is given no time
        return -1.0
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?", text, re.ASCII):
        return float(text)
    try:
        back = now - parse_duration(text)
        return max(0.0, back) if math.isfinite(back) else None
    except ValueError:
        pass  # no duration: a time, then
    # in a query string the + of a time zone arrives as a space
    for time in (text, re.sub(r" (\d\d:?\d\d)$", r"+\1", text)):
        try:
            moment = datetime.fromisoformat(time)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            continue
    return None
