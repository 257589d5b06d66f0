"""The events of an organization over a year, made up: the same ones in each run, but for their stamps."""

import random
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from core.events.cursor import TICKS_PER_SECOND, Mark, stamp_at
from core.events.event import Event, opening_of
from core.events.store import Accepted
from core.events.topics import PublishPath, publish_path
from plugins.backlog.database import BacklogFile, Write

YEAR = 365 * 86_400.0  # seconds
RARE = 20  # topics, rare/0 and so on
RARE_EVENTS = 10  # of each, spread evenly over the year
FEWEST = RARE * RARE_EVENTS
_BATCH = 10_000  # events, as many as one request may bring
_PROJECTS = 200
_SOURCES = {"git": 500, "mail": 300, "jira": 300, "ci": 200, "private/git": 4}  # and how many of all are its
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


class Organization:
    """Its events: so many in the year that begins then (Unix seconds)."""

    def __init__(self, events: int, begin: float) -> None:
        self._events = events
        self._begin = begin
        rng = random.Random(0)
        words = ["".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(3000)]
        often = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
        two = (rng.choices(words, cum_weights=often, k=2) for _ in range(30_000))
        self._phrases = [" ".join(pair) for pair in two]
        self._authors = [f"{rng.choice(words)}{n}" for n in range(1000)]
        folders = (rng.choices(words, cum_weights=often, k=2) for _ in range(5000))
        self._files = [f"src/{folder}/{name}.java" for folder, name in folders]
        shares = {
            f"/{source}/{words[-rank]}{rank}": share / (rank + 5)
            for source, share in _SOURCES.items()
            for rank in range(1, _PROJECTS + 1)
        }
        self._paths = [_with_keys(path) for path in shares]
        self._shares = list(accumulate(shares.values()))
        self._rare = {
            events * (2 * n + 1) // (2 * FEWEST): _with_keys(f"/rare/{n % RARE}") for n in range(FEWEST)
        }

    def since(self, number: int) -> float:
        """A moment right before that event."""
        return self._begin + YEAR * number / self._events

    def batches(self, first: int = 0) -> Iterator[list[Event]]:
        """All events from that one on, some thousands at a time."""
        for start in range(first, self._events, _BATCH):
            yield self._batch(start, min(_BATCH, self._events - start))

    def _batch(self, first: int, count: int) -> list[Event]:
        rng = random.Random(first)
        phrases = rng.choices(self._phrases, k=2 * count)
        made = zip(
            range(first, first + count),
            rng.choices(self._paths, cum_weights=self._shares, k=count),
            rng.choices(self._authors, k=count),
            zip(phrases[:count], phrases[count:], strict=True),
            rng.choices(self._files, k=count),
            strict=True,
        )
        events = []
        for number, usual, author, (one, two), file in made:
            path, keys = self._rare.get(number, usual)
            opening = (
                f'{{"hash": "{rng.getrandbits(48):012x}", "author": "{author}", '
                f'"message": "{one} {two}", "files": ["{file}"], {keys}'
            )
            at = self._begin + YEAR * (number + rng.random()) / self._events
            events.append(Event(path, opening, stamp_at(int(at * TICKS_PER_SECOND), at)))
        return events


def _with_keys(path: str) -> tuple[PublishPath, str]:
    """A path, and what an event's line says of it."""
    read = publish_path(path)
    return read, opening_of({}, read, 1000)[1:]


def backlog_file(path: Path, events: int, size: int) -> tuple[Organization, float | None]:
    """What is in a backlog file, which is made if there is none; events a second that it was filled with."""
    filled = path.exists()
    begin = time.time() - YEAR
    file: Any = BacklogFile(path, size, 0.0)
    life = file.open(Mark(int(begin * TICKS_PER_SECOND), begin), from_the_start=True)
    organization = Organization(events, life.began.timestamp)
    began = time.monotonic()
    if not filled:
        for batch in organization.batches():
            _store(file, batch)
    file.close_writer()
    return organization, None if filled else events / (time.monotonic() - began)


def _store(file: Any, events: Sequence[Event]) -> None:
    last = events[-1].stamp
    file.store([Write(events, None, Accepted(last, len(events)))], last.position, time.time())
    while hasattr(file, "seal") and file.seal():  # as the daemon does when it has nothing else to do
        pass
