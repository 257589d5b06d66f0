"""The backlog file of a PyPubSub 0.7, found at server.backlog.storage at the first start."""

import json
import os
import re
import shutil
import stat
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon, StartDaemon, merged
from storage import (
    config,
    content,
    disk,
    failed_start,
    files_of,
    killed_when,
    replay,
    stored,
    with_level,
)
from wire import CURSOR_PATTERN, EVERYTHING

BEGAN = 1_588_132_959.6066568  # time of the first event
CURSOR_OF_0_7 = "1c4a1ac8-1b22-4d5f-8a5f-0f4c8a1e6f9b"  # a random UUID
MAX_LINE = 5000
IMPORTED = " imported from "


def entry(seconds: float, payload: Any, topics: Any = ("fruits", "apples"), **others: Any) -> bytes:
    """A line of an old file. seconds: after the first event."""
    written = {"timestamp": BEGAN + seconds, "topics": topics, "json": payload, "private": False} | others
    return json.dumps(written).encode() + b"\n"


def without(key: str) -> bytes:
    """A line that lacks a key."""
    return json.dumps(
        {name: value for name, value in json.loads(entry(1, {})).items() if name != key}
    ).encode()


ORDERED = {"z": 1, "a": {"ü": [1, 2.5, None, True]}, "": "", "m": 10**30}
RESERVED = {
    "pubsub_path": "fruits/apples",
    "n": 1,
    "pubsub_cursor": CURSOR_OF_0_7,
    "pubsub_topics": ["pears"],
    "pubsub_timestamp": 5.5,
}
GOOD = [
    entry(0, ORDERED),
    entry(2, {"secret": 1}, private=True),
    entry(3, RESERVED),
    entry(3, {"n": 2}, ["fruits", "birnen & äpfel"]),
    entry(-50, {"n": 3}),
    entry(10.25, {"n": 4}, []),
    entry(11, {"secret": 2}, private=True),
    entry(0, {"n": 5}, timestamp=int(BEGAN) + 20),
    entry(0, {"n": 6}, timestamp=time.time() + 1_000_000),
    entry(0, {"n": 7}, timestamp=time.time() + 500_000),
]
PUBLIC_TIMES = [BEGAN, BEGAN + 3, BEGAN + 3, BEGAN + 3, BEGAN + 10.25, float(int(BEGAN) + 20)]  # of the past

BAD = {
    "half a line": b'{"timestamp": 1588132959.6, "topics": ["a"], "js\n',
    "no JSON": b"hello\n",
    "no UTF-8": b'{"\xff": 1}\n',
    "a list": b"[1, 2]\n",
    "a number": b"5\n",
    "a payload that is a list": entry(1, [1]),
    "a payload that is null": entry(1, None),
    "a time that is text": entry(1, {}, timestamp="now"),
    "a time that is true": entry(1, {}, timestamp=True),
    "a time that is NaN": entry(1, {}, timestamp=float("nan")),
    "a time without end": entry(1, {}, timestamp=float("inf")),
    "a time before all times": entry(1, {}, timestamp=-5),
    "topics that are text": entry(1, {}, "fruits"),
    "a topic that is a number": entry(1, {}, ["fruits", 5]),
    "a topic with a comma": entry(1, {}, ["fruits,apples"]),
    "a topic with a slash": entry(1, {}, ["fruits/apples"]),
    "NaN": entry(1, {"n": float("nan")}),
    "a lone surrogate": entry(1, {"text": "\ud800"}),
    "a lone surrogate in a topic": entry(1, {}, ["\udc80"]),
    "what a ping looks like": entry(1, {"stillalive": 5}),
    "a line longer than may be sent": entry(1, {"text": "x" * MAX_LINE}),
    "what nobody can read, it is so deep": entry(1, {}).replace(
        b"{}", b'{"a":' + b"[" * 600 + b"]" * 600 + b"}"
    ),
    "deeper than Python can read": entry(1, {}).replace(b"{}", b'{"a":' + b"[" * 9999 + b"]" * 9999 + b"}"),
    "an integer of 5000 digits": entry(1, {}).replace(b"{}", b'{"a":' + b"5" * 5000 + b"}"),
    "no timestamp": without("timestamp") + b"\n",
    "no topics": without("topics") + b"\n",
    "no payload": without("json") + b"\n",
    "nothing about privacy": without("private") + b"\n",
    "a line of NULs": b"\0" * 4096 + b"\n",
    "a line that begins with NULs": b"\0" * 30 + entry(1, {}),
}
REASONS = {  # in the words of people, not of Python
    "half a line": "not JSON from column 49 on: perhaps cut short",
    "no UTF-8": "not UTF-8",
    "a list": "no JSON object",
    "deeper than Python can read": "nested more than 500 deep",
    "an integer of 5000 digits": "an integer of more than 4300 digits",
    "no topics": '"topics" is missing',
    "a line of NULs": "a line of NULs, as a crash of the machine leaves them",
    "a line that begins with NULs": "not UTF-8",
}
LINES = [*GOOD[:3], *BAD.values(), b"\n", b"  \n", *GOOD[3:], entry(12, {"n": 8})[:-20]]
FIRST_BAD = 4  # its line's number


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has imported a file with all of this in it, in a directory of its own."""
    directory = tmp_path_factory.mktemp("imported")
    (directory / "backlog.json").write_bytes(b"".join(LINES))
    settings = merged(
        config(directory / "backlog.json"),
        {"server": {"max_line_size": MAX_LINE, "max_payload_size": MAX_LINE}},
    )
    daemon = Daemon(directory, settings)
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Where an old file is to be: in a directory of its own."""
    (tmp_path / "backlog").mkdir()
    return tmp_path / "backlog" / "backlog.json"


def numbered(count: int) -> bytes:
    """An old file of so many events."""
    return b"".join(entry(number / 100, {"n": number}) for number in range(count))


def write(path: Path, old: bytes) -> None:
    """Make an old file."""
    path.write_bytes(old)


def numbers(events: list[dict[str, Any]]) -> list[int]:
    """What numbered() counts them by."""
    return [event["n"] for event in events]


# What becomes of the events


async def test_the_events_are_what_they_were(imported: Daemon) -> None:
    """The publisher's keys, in order; then topics and path as they are today, and the time they had."""
    _, events = await replay(imported)
    assert [list(event) for event in events[:2]] == [
        [*ORDERED, "pubsub_topics", "pubsub_path", "pubsub_timestamp", "pubsub_cursor"],
        ["n", "pubsub_topics", "pubsub_path", "pubsub_timestamp", "pubsub_cursor"],
    ]
    assert {key: events[0][key] for key in ORDERED} == ORDERED
    assert [event["n"] for event in events[1:8]] == [1, 2, 3, 4, 5, 6, 7]
    assert [event["pubsub_path"] for event in events[:5]] == [
        "/fruits/apples",
        "/fruits/apples",
        "/fruits/birnen & äpfel",
        "/fruits/apples",
        "/",
    ]
    assert [event["pubsub_topics"] for event in events[1:3]] == [
        ["fruits", "apples"],
        ["fruits", "birnen & äpfel"],
    ]


async def test_times_never_go_back_and_never_lie_in_the_future(imported: Daemon) -> None:
    """What does takes the time of the event before, or of the import."""
    _, events = await replay(imported)
    times = [event["pubsub_timestamp"] for event in events]
    assert times[:6] == PUBLIC_TIMES
    assert all(isinstance(moment, float) for moment in times)
    assert times == sorted(times)
    assert times[7] <= time.time()


async def test_cursors_grow_over_the_import_and_beyond(imported: Daemon) -> None:
    """They are those of today, what is published later sorts behind them, and one can resume after them."""
    answer = await imported.put("/fruits/apples", {"n": "new"})
    _, events = await replay(imported)
    cursors = [event["pubsub_cursor"] for event in events]
    assert cursors[-1] == answer.headers["X-Cursor"]
    assert all(re.fullmatch(CURSOR_PATTERN, cursor) for cursor in cursors)
    assert cursors == sorted(set(cursors))
    for index in (0, 1, 2, len(events) - 2):
        assert await replay(imported, {"X-Fetch-Since-Cursor": cursors[index]}) == (
            "complete",
            events[index + 1 :],
        )


async def test_what_x_replay_says(imported: Daemon) -> None:
    """partial for a time before the last line that was skipped; the last one here was cut short."""
    verdict, everything = await replay(imported)
    assert verdict == "partial"
    for since, first in ((BEGAN - 1, 0), (BEGAN, 0), (BEGAN + 1, 1), (BEGAN + 15, 5)):
        assert await replay(imported, {"X-Fetch-Since": repr(since)}) == ("partial", everything[first:])


async def test_a_time_from_the_first_event_on_is_complete(storage: Path, start_daemon: StartDaemon) -> None:
    """Where every line could be read. Before it 0.7 may have published what it did not keep."""
    write(storage, b"".join(entry(n, {"n": n}) for n in range(5)))
    daemon = start_daemon(config(storage))
    for since, verdict, first in ((-1, "partial", 0), (0, "complete", 0), (0.5, "complete", 1)):
        got, events = await replay(daemon, {"X-Fetch-Since": repr(BEGAN + since)})
        assert (got, [event["n"] for event in events]) == (verdict, list(range(first, 5)))


async def test_an_old_cursor_that_is_not_in_the_file_is_unknown(imported: Daemon) -> None:
    """It says nothing about a place: nothing is replayed."""
    for cursor in ("0171c41a-3000-4d5f-8a5f-0f4c8a1e6f9b", str(uuid.uuid4())):
        assert await replay(imported, {"X-Fetch-Since-Cursor": cursor}) == ("unknown", [])


async def test_an_old_cursor_from_before_a_line_that_was_skipped_is_partial(imported: Daemon) -> None:
    """What could be read of all that came after its event is replayed."""
    _, everything = await replay(imported)
    expected = ("partial", everything[2:])
    assert await replay(imported, {"X-Fetch-Since-Cursor": CURSOR_OF_0_7}) == expected


async def test_an_old_cursor_in_the_file_is_a_place(storage: Path, start_daemon: StartDaemon) -> None:
    """Who has followed 0.7 goes on exactly where it was, by the cursor of a public event or a private one.

    Also after what has been published since, a restart, and a loss that came before its place.
    """
    cursors = [str(uuid.uuid4()) for _ in range(8)]
    write(
        storage,
        b"".join(entry(n, {"n": n, "pubsub_cursor": cursors[n]}, private=n == 5) for n in range(8)),
    )
    daemon = start_daemon(config(storage))
    public = [0, 1, 2, 3, 4, 6, 7]

    async def check(numbers_held: list[int], lost: int = -1) -> None:
        for n, cursor in enumerate(cursors):
            verdict, events = await replay(daemon, {"X-Fetch-Since-Cursor": cursor})
            assert verdict == ("complete" if n >= lost else "partial")
            assert numbers(events) == [number for number in numbers_held if number > n]

    await check(public)
    for n, cursor in enumerate(cursors):  # as an end, too
        part = await daemon.request("GET", f"/?since=-1&until={cursor}")
        assert part.headers["X-Replay"] == "partial"
        assert numbers([json.loads(line) for line in part.text.splitlines()]) == [
            each for each in public if each <= n
        ]
    daemon.stop()
    daemon.start()
    await check(public)
    await daemon.put("/fruits/apples", {"n": 8})
    await check([*public, 8])
    daemon.stop()
    daemon.config["server"]["backlog"]["size"] = 4
    daemon.start()
    await check([4, 6, 7, 8], lost=3)


async def test_private_events_are_kept_and_not_shown(imported: Daemon) -> None:
    """They are in the database, under their own path."""
    storage = Path(imported.config["server"]["backlog"]["storage"])
    private = stored(storage, "private")
    assert [event["secret"] for event in private] == [1, 2]
    assert {event["pubsub_path"] for event in private} == {"/private/fruits/apples"}
    assert {tuple(event["pubsub_topics"]) for event in private} == {("fruits", "apples")}
    assert not any("secret" in event for event in (await replay(imported))[1])


def test_the_old_file_stays_beside_it(imported: Daemon) -> None:
    """Byte for byte, under a name that the log tells; nothing else is left; the new one is mode 0600."""
    storage = Path(imported.config["server"]["backlog"]["storage"])
    kept = Path(f"{storage}.0.7")
    assert content(kept) == b"".join(LINES)
    assert {path.name for path in storage.parent.glob("backlog*")} == {
        *(path.name for path in files_of(storage)),
        kept.name,
        f"{storage.name}-lock",
    }
    assert stat.S_IMODE(storage.stat().st_mode) == 0o600
    (line,) = [line for line in imported.log if IMPORTED in line]
    assert f" {len(GOOD)} events" in line
    assert line.endswith(str(kept))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_reported_and_skipped(imported: Daemon, kind: str) -> None:
    """With its number, in one line of the log."""
    number = FIRST_BAD + list(BAD).index(kind)
    assert len([line for line in with_level(imported, "WARNING") if f"line {number} " in line]) == 1


@pytest.mark.parametrize("kind", REASONS)
def test_the_reason_is_said_in_plain_words(imported: Daemon, kind: str) -> None:
    """Whatever the error was called where it was found."""
    number = FIRST_BAD + list(BAD).index(kind)
    assert [line for line in imported.log if line.endswith(f"line {number} skipped: {REASONS[kind]}")]


def test_only_the_bad_lines_are_reported(imported: Daemon) -> None:
    """And the last one, which is cut short; not the empty ones."""
    reported = with_level(imported, "WARNING")
    assert len(reported) == len(BAD) + 1
    assert f"line {len(LINES)} " in reported[-1]


# What becomes of the file


async def test_the_newest_are_kept_where_size_is_smaller(storage: Path, start_daemon: StartDaemon) -> None:
    """And a replay from before them is partial."""
    write(storage, numbered(2500))
    daemon = start_daemon(config(storage, size=100))
    verdict, events = await replay(daemon)
    assert (verdict, numbers(events)) == ("partial", list(range(2400, 2500)))
    since = {"X-Fetch-Since": repr(events[0]["pubsub_timestamp"])}
    assert await replay(daemon, since) == ("complete", events)
    assert (await replay(daemon, {"X-Fetch-Since": repr(BEGAN)}))[0] == "partial"


async def test_it_is_imported_once(storage: Path, start_daemon: StartDaemon) -> None:
    """A second start finds the new file: nothing is imported, the same events have the same cursors."""
    write(storage, numbered(10))
    daemon = start_daemon(config(storage))
    first = await replay(daemon)
    daemon.stop()
    daemon.start()
    assert len([line for line in daemon.log if IMPORTED in line]) == 1
    assert await replay(daemon) == first
    assert numbers(first[1]) == list(range(10))


def test_an_import_that_was_killed_starts_over(storage: Path, start_daemon: StartDaemon) -> None:
    """The old file is in its place until all of it is imported; each event is there once."""
    old = numbered(10_000)
    storage.write_bytes(old)
    importing = Path(f"{storage}.importing-wal")
    killed_when(storage, lambda: importing.exists() and importing.stat().st_size > 500_000)
    assert importing.exists()
    assert content(storage) == old
    daemon = start_daemon(config(storage, size=100_000))
    daemon.stop()
    assert numbers(stored(storage)) == list(range(10_000))
    assert not list(storage.parent.glob("*.importing*"))
    assert content(Path(f"{storage}.0.7")) == old


def test_an_import_that_was_killed_at_its_very_end_starts_over(
    storage: Path, start_daemon: StartDaemon
) -> None:
    """The old file has its second name already; it is not kept a third time."""
    storage.write_bytes(numbered(10))
    kept = Path(f"{storage}.0.7")
    os.link(storage, kept)
    Path(f"{storage}.importing").write_bytes(b"anything")
    Path(f"{storage}.importing-wal").write_bytes(b"anything")
    start_daemon(config(storage)).stop()
    assert numbers(stored(storage)) == list(range(10))
    assert content(kept) == numbered(10)
    assert {path.name for path in storage.parent.iterdir()} == {
        storage.name,
        kept.name,
        f"{storage.name}-lock",
    }


def test_the_old_file_of_an_earlier_import_is_not_overwritten(
    storage: Path, start_daemon: StartDaemon
) -> None:
    """Of somebody who went back to 0.7 meanwhile: both stay."""
    storage.write_bytes(numbered(10))
    earlier = Path(f"{storage}.0.7")
    earlier.write_bytes(numbered(5))
    daemon = start_daemon(config(storage))
    (line,) = [line for line in daemon.log if IMPORTED in line]
    assert content(earlier) == numbered(5)
    assert content(Path(line.split()[-1])) == numbered(10)


def test_a_directory_that_may_not_be_written(storage: Path, tmp_path: Path) -> None:
    """The start is refused in one line, and the old file is untouched."""
    storage.write_bytes(numbered(10))
    subprocess.run(["chattr", "+i", storage.parent], check=True)
    try:
        failed_start(tmp_path, storage)
    finally:
        subprocess.run(["chattr", "-i", storage.parent], check=True)
    assert content(storage) == numbered(10)
    assert list(storage.parent.iterdir()) == [storage]


def test_a_disk_that_is_full_before_the_end(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """At once, half-way or at the very end: the start is refused, the old file untouched."""
    old = numbered(4000)
    with disk(tmp_path / "disk", "8m") as where:
        storage, filler = where / "backlog.json", where / "filler"
        storage.write_bytes(old)
        free = shutil.disk_usage(where).free
        for room in (8, 700, 1600):  # KiB; 2100 would do
            filler.write_bytes(bytes(free - room * 1024))
            failed_start(tmp_path, storage, size=100_000)
            assert content(storage) == old
            filler.unlink()
        start_daemon(config(storage, size=100_000)).stop()
        assert numbers(stored(storage)) == list(range(4000))


async def test_a_file_without_a_good_line(storage: Path, start_daemon: StartDaemon) -> None:
    """What a crash of 0.7 may leave: it is reported, and the new backlog begins."""
    write(storage, entry(1, {"n": 1})[:-10])
    daemon = start_daemon(config(storage))
    assert [line for line in daemon.log if "line 1 skipped" in line]
    assert await replay(daemon) == ("partial", [])


async def test_what_was_skipped_is_missing(storage: Path, start_daemon: StartDaemon) -> None:
    """So complete is not claimed for a time before it; all that could be read is replayed."""
    write(storage, entry(0, {"n": 0}) + b"broken\n" + entry(2, {"n": 1}) + entry(3, {"n": 2}))
    daemon = start_daemon(config(storage))
    assert (await replay(daemon, {"X-Fetch-Since": repr(BEGAN)}))[0] == "partial"
    verdict, events = await replay(daemon, {"X-Fetch-Since": repr(BEGAN + 2)})
    assert (verdict, [event["n"] for event in events]) == ("complete", [1, 2])
    assert (await replay(daemon, EVERYTHING))[0] == "partial"


@pytest.mark.parametrize("first", [b"\n", b'amp": 1588132959.6, "topics": []}\n', b"\0" * 100 + b"\n"])
async def test_a_bad_line_at_the_beginning(storage: Path, start_daemon: StartDaemon, first: bytes) -> None:
    """What follows is imported."""
    write(storage, first + numbered(10))
    assert numbers((await replay(start_daemon(config(storage))))[1]) == list(range(10))
