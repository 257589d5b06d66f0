"""What a subscriber asks to have sent again before the live events, and what it can be promised.

It asks for what came since a time, or after a cursor, or for the newest events. Cursors sort in the order of
publishing, so a cursor is a place in the backlog whether or not its event is held, and whether or not the
subscriber may see that event.

It may say as well where its replay ends, and then no live events follow: that is *history*.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from core.config import parse_duration
from core.errors import Refused
from core.events.cursor import Mark

REPLAY_KEYS = ("since", "cursor", "last", "until", "limit")
REPLAY_HEADERS = ("X-Fetch-Since", "X-Fetch-Since-Cursor", "Last-Event-ID")
MOST_LAST = 10_000  # events
MOST_LIMIT = 1_000_000
_AHEAD = 86_400.0  # seconds that a time may lie in the future: clocks differ, and so do time zones
_BEFORE_ALL = 1e9  # Unix seconds: with 1, as with -1 and 0, clients ask for all that is held
_CURSOR = re.compile(r"[0-9A-Za-z-]{36}", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,7}", re.ASCII)
_TIME_FORMS = (
    "Unix seconds (1588132959.6), an ISO 8601 time (2026-11-24T08:00:00Z), a duration back from now (10m)"
)


class ReplayRequest(NamedTuple):
    """Where a replay begins, which exactly one of the first three says, and where it ends."""

    since: float | None = None  # Unix seconds; events at or after it; -1 to 0: all that is held
    cursor: str | None = None  # events after it
    last: int | None = None  # the newest events: so many
    until: float | str | None = None  # Unix seconds: events before it; a cursor: events up to it and at it
    limit: int | None = None  # events, the oldest ones

    @property
    def is_history(self) -> bool:
        """Whether the stream ends with it."""
        return self.until is not None or self.limit is not None


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
    """Where a subscriber begins to read and where it ends, and what it is told about that.

    missing: up to where, of each kind of events, it knows that some may be missing.
    """

    after: int  # position
    verdict: str | None  # X-Replay; None if no replay was asked for
    missing: Gone = Gone()
    end: int | None = None  # position up to which it reads; None: it goes on with the live events
    limit: int | None = None  # events after which it ends in any case


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

    A cursor wins over a time, and both win over Last-Event-ID; all headers win over `last`, since a client
    that comes again sends them with the URL of its first request. Raises Refused(400) if any is malformed, or
    if they do not go together.
    """
    begin = _begin(headers, query, now)
    last = _count("last", query, MOST_LAST)
    until = _until(query, now)
    limit = _count("limit", query, MOST_LIMIT)
    if last is not None:
        if limit is not None or not query.keys().isdisjoint(("since", "cursor")):
            raise Refused(400, "last: says itself where to begin: leave out since, cursor and limit")
        return (begin or ReplayRequest(last=last))._replace(until=until)
    if begin:
        return begin._replace(until=until, limit=limit)
    if until is not None:
        raise Refused(400, "until: says where to end: add where to begin, by since, cursor or last")
    if limit is not None:
        raise Refused(400, "limit: says how many events: add where to begin, by since or cursor")
    return None


def _begin(headers: Mapping[str, str], query: Mapping[str, str], now: float) -> ReplayRequest | None:
    """Where to begin by a time or a cursor; None if neither is there."""
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
    return None if value is None else _time(name, value, now, "-1 for all that is held")


def _until(query: Mapping[str, str], now: float) -> float | str | None:
    value = query.get("until")
    return value if value is None or is_cursor(value) else _time("until", value, now, "a cursor")


def _count(name: str, query: Mapping[str, str], most: int) -> int | None:
    value = query.get(name)
    if value is None:
        return None
    if not _COUNT.fullmatch(value) or not 1 <= int(value) <= most:
        raise Refused(400, f"{name}: expected a number of events, from 1 to {most}")
    return int(value)


def _time(name: str, value: str, now: float, other_form: str) -> float:
    """Unix seconds, -1 for any time that is earlier. other_form: what could have been sent as well."""
    time = _seconds(value.strip(), now)
    if time is None or math.isnan(time) or time == math.inf:
        raise Refused(400, f"{name}: expected {_TIME_FORMS}, or {other_form}")
    if time > now + _AHEAD:
        raise Refused(
            400, f"{name}: lies more than a day in the future: Unix seconds are meant, not milliseconds"
        )
    return max(time, -1.0)


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
