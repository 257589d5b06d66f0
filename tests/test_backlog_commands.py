"""`pypubsub.py backlog`: a look into a file, a copy, its events elsewhere, and what mends it."""

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import stat as modes
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import pytest

from commands import (
    ACL,
    PROGRAM,
    command,
    done,
    exported,
    fill,
    filled,
    killed,
    large,
    refused,
    size_of,
    stat,
    streamed,
)
from core.delivery.wire import chunk
from core.events.cursor import TICKS_PER_SECOND, position_of, stamp_at
from core.events.event import timestamp_in
from daemon import ROOT, Daemon, StartDaemon, basic
from storage import config, content, files_of, overwrite, pages
from test_import_of_0_7 import CURSOR_OF_0_7, entry
from test_storage_failures import FOREIGN
from wire import EVERYTHING

ALICE = basic("alice")
COMMANDS = {
    "stat": [],
    "export": [],
    "import": ["lines"],
    "check": [],
    "backup": ["copy"],
    "restored": [],
    "compact": [],
    "forget": ["--damaged"],
}
BESIDE_A_SERVER = ("stat", "export", "check", "backup")
ALONE = [name for name in COMMANDS if name not in BESIDE_A_SERVER]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with some 28,000 events in blocks and rows."""
    return filled(tmp_path_factory.mktemp("filled"))


@pytest.fixture(scope="module")
def everything(made: Path) -> list[str]:
    """Its lines."""
    return exported(made)


@pytest.fixture
def held(made: Path, tmp_path: Path) -> Path:
    """A copy of it, for a test of its own."""
    directory = tmp_path / "held"
    directory.mkdir()
    shutil.copy2(made, directory)
    return directory / made.name


def cursor_in(line: str) -> str:
    """The cursor of the event that has this line."""
    cursor = json.loads(line)["pubsub_cursor"]
    assert isinstance(cursor, str)
    return cursor


def public(lines: Sequence[str]) -> list[str]:
    """Those of public events."""
    return [line for line in lines if '"pubsub_path": "/private/' not in line]


def changed(path: Path, statement: str, *values: object) -> None:
    """Change a file by hand."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(statement, values)
        connection.commit()


def asked(path: Path, query: str) -> Any:
    """The first value of what is asked of a file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchone()[0]


# The command line


def test_help_says_what_there_is() -> None:
    """The server's names the commands, theirs names each, and each has its own."""
    server = subprocess.run([*PROGRAM[:2], "--help"], capture_output=True, text=True, check=True)
    assert "pypubsub.py backlog --help" in server.stdout
    about = done("--help")
    for name in COMMANDS:
        assert f"\n    {name} " in about
        assert "FILE" in done(name, "--help")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("unknown", "FILE"),
        ("stat",),
        ("forget", "FILE"),
        ("forget", "FILE", "--damaged", "--after", "10m"),
        ("export", "FILE", "--since", "yesterday"),
        ("export", "FILE", "--since", CURSOR_OF_0_7),
        ("export", "FILE", "/a%ff"),
        ("restored", "FILE", "--after", "1795813604268"),
    ],
)
def test_what_is_not_understood_is_status_2(arguments: tuple[str, ...]) -> None:
    """With the usage, and what was expected."""
    ended = command(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("usage: pypubsub.py backlog")


def of_version_1(path: Path) -> None:
    """As a server makes it that knows no blocks."""
    daemon = Daemon(path.parent, config(path))
    daemon.start()
    daemon.stop()
    changed(path, "PRAGMA user_version = 1")


def of_version_99(path: Path) -> None:
    """As a later one makes it."""
    of_version_1(path)
    changed(path, "PRAGMA user_version = 99")


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a directory": (Path.mkdir, "is no file"),
    "text": (FOREIGN["text"], "is no database"),
    "another program's database": (FOREIGN["another program's database"], "but no backlog"),
    "an empty file": (Path.touch, "is empty"),
    "a file of 0.7": (lambda path: path.write_bytes(entry(1, {})), "is a backlog of PyPubSub 0.7"),
    "a newer format": (of_version_99, "newer PyPubSub (format 99"),
}


def arguments_of(name: str, directory: Path) -> list[str]:
    """What a command takes beside FILE."""
    return [each if each.startswith("-") else str(directory / each) for each in COMMANDS[name]]


@pytest.mark.parametrize("name", ["stat", "compact"])
@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_file_that_cannot_be_used(tmp_path: Path, kind: str, name: str) -> None:
    """One line says why, the status is 1, and nothing is changed."""
    path = tmp_path / "backlog.db"
    make, reason = UNUSABLE[kind]
    make(path)
    before = path.read_bytes() if path.is_file() else None
    line = refused(name, path)
    assert line.startswith(str(path))
    assert reason in line
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "import"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    """One line says so, and nothing is made: no copy, no lock."""
    path = tmp_path / "backlog.db"
    assert refused(name, path, *arguments_of(name, tmp_path)) == f"{path}: there is no such file\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", BESIDE_A_SERVER)
def test_a_file_of_an_earlier_version_is_upgraded_first(tmp_path: Path, name: str) -> None:
    """By a server, or by compact: that is said."""
    path = tmp_path / "backlog.db"
    of_version_1(path)
    arguments = [name, path, *arguments_of(name, tmp_path)]
    assert "`backlog compact`" in refused(*arguments)
    done("compact", path)
    done(*arguments)


@pytest.mark.parametrize("name", ALONE)
def test_what_changes_a_file_is_refused_beside_a_server(
    tmp_path: Path, start_daemon: StartDaemon, name: str
) -> None:
    """By whatever name the file is called: one line says so, and nothing is changed."""
    path, link = tmp_path / "backlog.db", tmp_path / "link"
    start_daemon(config(path))
    link.symlink_to(path)
    before = content(path)
    (tmp_path / "lines").touch()
    for called in (path, link):
        line = refused(name, called, *arguments_of(name, tmp_path))
        assert line == f"{path}: is in use: stop the server first\n"
    assert content(path) == before


def test_a_file_that_may_not_be_read(held: Path) -> None:
    """One line says so."""
    nobody = ["setpriv", "--reuid=65534", "--clear-groups", *PROGRAM]
    held.parent.chmod(0o755)
    held.chmod(0o600)
    for parent in held.parents[:4]:
        parent.chmod(0o755)
    ended = subprocess.run([*nobody, "stat", held], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, f"{held}: Permission denied\n")


# stat


def test_stat_says_how_much_there_is(held: Path, everything: list[str]) -> None:
    """As JSON, and in words: events, bytes, times, topics, when its memory began, what has left."""
    found = stat(held)
    assert found["bytes"] == sum(path.stat().st_size for path in files_of(held) if path.suffix != ".db-shm")
    assert found["bytes_per_event"] == round(found["bytes"] / len(everything), 1)
    assert found["from_the_start"]
    for kind, topics in (("public", {"git": 24_000, "rare": 3}), ("private", {"p": 4500})):
        own = [line for line in everything if (line in public([line])) == (kind == "public")]
        facts = found[kind]
        assert (facts["events"], facts["topics"]) == (len(own), topics)
        assert facts["bytes_as_sent"] == sum(len(chunk(line.encode())) for line in own)
        for key, line in (("oldest", own[0]), ("newest", own[-1])):
            assert facts[key].endswith("Z")
            told = datetime.fromisoformat(facts[key]).timestamp()
            assert told == pytest.approx(timestamp_in(line.encode()), abs=0.001)
        assert facts["blocks"] == asked(held, f"SELECT count(*) FROM {kind}_blocks") > 0  # noqa: S608
        assert facts["rows"] == asked(held, f"SELECT count(*) FROM {kind}")  # noqa: S608
        assert facts["last_that_left"] is None
    text = done("stat", held)
    assert "24003" in text
    assert f"{24_000:12}  git\n" in text
    assert "and nothing was published before" in text


async def test_stat_shows_topics_that_a_terminal_would_obey(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """Escaped: anybody who may publish chooses them."""
    daemon = start_daemon(config(tmp_path / "backlog.db"))
    await daemon.put("/%1b%5b2J%0a%c3%bc", {})
    assert "           1  \\u001b[2J\\n\\u00fc\n" in done("stat", tmp_path / "backlog.db")


async def test_stat_says_what_has_left(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """The time of the latest event that has, of each kind."""
    daemon = start_daemon(config(tmp_path / "backlog.db", size=3))
    for n in range(5):
        await daemon.put("/a", {"n": n})
    found = stat(tmp_path / "backlog.db")
    assert found["public"]["last_that_left"] <= found["public"]["oldest"]
    assert found["private"]["last_that_left"] is None


# export


async def test_export_prints_what_is_streamed(
    held: Path, everything: list[str], start_daemon: StartDaemon
) -> None:
    """Byte for byte, in order, for every path; beside the server, and when it is stopped."""
    daemon = start_daemon(large(held), acl=ACL)
    assert everything == (await streamed(daemon, **EVERYTHING | ALICE))[1]
    for path in ("/rare", "/git,rare/x", "/private/p,rare", "/nothing"):
        assert exported(held, path) == (await streamed(daemon, path, **EVERYTHING | ALICE))[1]
        assert exported(held, path, "--public") == (await streamed(daemon, path))[1]
    daemon.stop()
    assert exported(held) == everything


def test_export_of_a_time(held: Path, everything: list[str]) -> None:
    """From then on, and before then; after a cursor, and up to one: pieces that follow one another."""
    times = [timestamp_in(line.encode()) for line in everything]
    for index in (0, 12_345, len(everything) - 1):
        first = next(n for n, timestamp in enumerate(times) if timestamp >= times[index])
        assert exported(held, "--since", repr(times[index])) == everything[first:]
        assert exported(held, "--until", repr(times[index])) == everything[:first]
        cursor = cursor_in(everything[index])
        assert exported(held, "--since", cursor) == everything[index + 1 :]
        assert exported(held, "--until", cursor) == everything[: index + 1]
    assert exported(held, "--since", "-1", "--until", "2020-01-01") == []
    assert exported(held, "--since", "1h") == everything
    both = exported(held, "/rare", "--since", cursor_in(everything[0]), "--until", repr(times[-1]))
    assert both == [line for line in everything if '"/rare/x"' in line]


async def test_export_lets_the_log_be_cut_back(held: Path, start_daemon: StartDaemon) -> None:
    """Beside a server, while nobody reads what it prints: it holds no read open."""
    daemon = start_daemon(large(held))
    with subprocess.Popen([*PROGRAM, "export", held], stdout=subprocess.PIPE) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        first = process.stdout.readline()
        for _ in range(3):
            assert (await daemon.put("/git/a", {"n": -2})).status == 202
        with contextlib.closing(sqlite3.connect(held)) as connection:
            assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        lines = [first, *process.stdout]
    assert process.returncode == 0
    assert len(lines) == 28_503  # what was there when it began


def test_export_to_somebody_who_reads_no_further(held: Path) -> None:
    """| head: it ends without a word."""
    shell = f"{' '.join(PROGRAM)} export {held} | head -1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[1] == "0"


# import


@pytest.mark.parametrize("through", ["a file", "stdin"])
async def test_what_was_exported_is_replayed_byte_for_byte(
    held: Path, everything: list[str], start_daemon: StartDaemon, tmp_path: Path, through: str
) -> None:
    """From a new file, with --whole to clients who resume as well; a server goes on from there."""
    new, lines = tmp_path / "new.db", tmp_path / "lines"
    lines.write_text("".join(everything))
    source = [lines] if through == "a file" else ["-"]
    typed = b"" if through == "a file" else lines.read_bytes()
    assert "28503 events imported (24003 public, 4500 private)" in done(
        "import", new, *source, "--whole", typed=typed
    )
    assert modes.S_IMODE(new.stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*importing*"))  # noqa: ASYNC240 (a small directory)
    done("check", new)
    daemon = start_daemon(large(new), acl=ACL)
    assert await streamed(daemon, **EVERYTHING | ALICE) == ("partial", everything)
    times = [timestamp_in(line.encode()) for line in everything]
    assert await streamed(daemon, **ALICE | {"X_Fetch_Since": repr(times[0])}) == ("complete", everything)
    for index in (0, 7_000, 20_000, len(everything) - 1):
        place = ALICE | {"X_Fetch_Since_Cursor": cursor_in(everything[index])}
        assert await streamed(daemon, **place) == ("complete", everything[index + 1 :])
    answer = await daemon.put("/git/a", {"n": -2})
    assert answer.headers["X-Cursor"] > cursor_in(everything[-1])
    last = {"X_Fetch_Since_Cursor": cursor_in(everything[-1])}
    assert [cursor_in(line) for line in (await streamed(daemon, **last))[1]] == [answer.headers["X-Cursor"]]


async def test_without_whole_nobody_is_told_that_all_is_there(
    everything: list[str], start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """The memory begins with the import: who resumes gets what is held, as `unknown`, or `partial`."""
    new = tmp_path / "new.db"
    done("import", new, "-", typed="".join(everything).encode())
    daemon = start_daemon(large(new), acl=ACL)
    place = ALICE | {"X_Fetch_Since_Cursor": cursor_in(everything[20_000])}
    assert await streamed(daemon, **place) == ("unknown", everything[20_001:])
    assert await streamed(daemon, **ALICE | EVERYTHING) == ("partial", everything)


async def test_pieces_in_any_order_make_the_whole(
    everything: list[str], tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """Among rows and in blocks, before and between and after: what is held already is counted and skipped."""
    dice = random.Random(6)
    pieces: list[list[str]] = [[] for _ in range(4)]
    for start in range(0, len(everything), 50):
        dice.choice(pieces).extend(everything[start : start + 50])
    path = tmp_path / "merged.db"
    for number, piece in enumerate([*pieces, everything[12_000:13_000]]):
        said = done("import", path, "-", typed="".join(piece).encode())
        known = len(piece) if number == len(pieces) else 0
        assert f"{len(piece) - known} events imported" in said
        assert f"{known} were held already" in said
        done("check", path)
    overlapping = everything[5:-5]
    assert f"{len(overlapping)} were held already" in done(
        "import", path, "-", typed="".join(overlapping).encode()
    )
    assert exported(path) == everything
    assert asked(path, "SELECT count(*) FROM public_blocks") > 20
    daemon = start_daemon(large(path), acl=ACL)
    assert await streamed(daemon, **EVERYTHING | ALICE) == ("partial", everything)


def line_of(**changes: object) -> str:
    """A line as a server writes it, with some keys changed."""
    stamp = stamp_at(int(1_700_000_000.25 * TICKS_PER_SECOND), 1_700_000_000.25)
    keys = {"n": 1, "pubsub_topics": ["a", "b"], "pubsub_path": "/a/b"}
    keys |= {"pubsub_timestamp": stamp.timestamp, "pubsub_cursor": stamp.cursor}
    return json.dumps({key: value for key, value in (keys | changes).items() if value is not None}) + "\n"


FUTURE = stamp_at(int((time.time() + 90_000) * TICKS_PER_SECOND), time.time() + 90_000)
BAD = {
    "half a line": (line_of()[:-40] + "\n", "not JSON: "),
    "a list": ("[1]\n", "the payload must be a JSON object, got a list"),
    "no cursor": (line_of(pubsub_cursor=None), "pubsub_cursor is missing"),
    "no path": (line_of(pubsub_path=None), "pubsub_path is missing"),
    "no time": (line_of(pubsub_timestamp=None), "pubsub_timestamp is missing"),
    "a cursor of 0.7": (line_of(pubsub_cursor=CURSOR_OF_0_7), "pubsub_cursor is none of this server's"),
    "a time that is text": (line_of(pubsub_timestamp="now"), "pubsub_timestamp is no time"),
    "a time after its cursor": (line_of(pubsub_timestamp=1_700_000_009.5), "pubsub_cursor is from before"),
    "the future": (
        line_of(pubsub_timestamp=FUTURE.timestamp, pubsub_cursor=FUTURE.cursor),
        "more than a day in the future",
    ),
    "a path with a comma": (line_of(pubsub_path="/a,b", pubsub_topics=["a,b"]), "no comma"),
    "a path without a slash": (line_of(pubsub_path="a/b"), "pubsub_path is not as a server writes it"),
    "topics of another path": (line_of(pubsub_topics=["a"]), "pubsub_topics are not those of pubsub_path"),
    "a ping's key": (line_of(stillalive=1), "stillalive"),
    "other spaces": (line_of().replace(", ", ","), "a line that does not end as that of an event"),
    "another spelling": (line_of().replace('"n": 1', '"n": 1e0'), "is not, byte for byte, as a server"),
    "other characters": (line_of().replace('"n"', '"ü"'), "has characters beyond ASCII"),
    "too deep": (line_of(n=json.loads("[" * 501 + "]" * 501)), "nested more than 500 deep"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_told_and_nothing_is_imported(tmp_path: Path, everything: list[str], kind: str) -> None:
    """With its number and the reason; no file is made. With --skip-bad the others are imported."""
    bad, reason = BAD[kind]
    path, good = tmp_path / "new.db", everything[:5]
    typed = "".join([*good[:2], "\n", bad, *good[2:]]).encode()
    ended = command("import", path, "-", typed=typed)
    told, summary = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert told.startswith("stdin: line 4: ")
    assert reason in told
    assert summary.startswith("stdin: 1 bad lines: nothing is imported")
    assert list(tmp_path.iterdir()) == []
    ended = command("import", path, "-", "--skip-bad", typed=typed)
    assert (ended.returncode, ended.stderr) == (0, told + "\n")
    assert "1 bad lines left out" in ended.stdout
    assert exported(path) == good


def test_bad_lines_change_nothing_in_a_file(held: Path, everything: list[str]) -> None:
    """Also what stands before them is not imported."""
    newer = line_of(**dict(zip(("pubsub_timestamp", "pubsub_cursor"), stamp_now(), strict=True)))
    for typed in (newer + "{}\n", newer + everything[3], everything[7] + everything[6]):
        assert command("import", held, "-", typed=typed.encode()).returncode == 1
        assert exported(held) == everything
    assert stat(held)["from_the_start"]
    other = everything[4].replace('"n": 4', '"n": 5')[:-9] + 'aaaaaa"}\n'
    assert "another event is held in its place" in command("import", held, "-", typed=other.encode()).stderr


def stamp_now() -> tuple[float, str]:
    """A timestamp and a cursor."""
    now = time.time()
    return now, stamp_at(int(now * TICKS_PER_SECOND), now).cursor


def test_times_that_do_not_go_together_are_refused(held: Path, everything: list[str]) -> None:
    """Of another server, whose cursors run ahead of its timestamps: a replay by time would miss events."""
    position = (position_of(cursor_in(everything[100])) or 0) + 1
    stamp = stamp_at(position, timestamp_in(everything[0].encode()) - 5)
    typed = line_of(pubsub_timestamp=stamp.timestamp, pubsub_cursor=stamp.cursor)
    assert "times go back" in refused("import", held, "-", typed=typed.encode())
    assert exported(held) == everything


def test_empty_lines_and_pings_are_passed_over(tmp_path: Path, everything: list[str]) -> None:
    """So what curl has recorded of a stream can be imported; the last line may lack its end."""
    typed = "".join(['\n{"stillalive": 1588132959.6066568}\n', everything[0], "\r\n", everything[1].strip()])
    done("import", tmp_path / "new.db", "-", typed=typed.encode())
    assert exported(tmp_path / "new.db") == everything[:2]


def test_nothing_to_import_makes_no_file(tmp_path: Path, held: Path) -> None:
    """An export that failed, say; a database is no source of lines."""
    path = tmp_path / "new.db"
    assert "there is not one event in it" in refused("import", path, "-")
    assert "is a database" in refused("import", path, held)
    assert "No such file" in refused("import", path, tmp_path / "missing")
    assert "there is no directory" in refused("import", tmp_path / "nowhere" / "new.db", held)
    assert not list(tmp_path.glob("new.db*"))


def test_a_log_that_is_left_of_another_file_stops_an_import(tmp_path: Path, everything: list[str]) -> None:
    """SQLite would put it into the new one."""
    path, wal = tmp_path / "new.db", tmp_path / "new.db-wal"
    wal.write_bytes(b"anything")
    assert f"{wal}: is left of another file" in refused("import", path, "-", typed=everything[0].encode())
    assert [file.name for file in tmp_path.iterdir()] == ["new.db-wal"]


def test_whole_is_for_a_new_file(held: Path) -> None:
    """Nobody can know it of one that has events."""
    assert "--whole is for a new file" in refused("import", held, "-", "--whole")


@pytest.mark.parametrize("whole", [False, True])
async def test_a_file_of_0_7_is_imported(tmp_path: Path, start_daemon: StartDaemon, whole: bool) -> None:
    """It stays; its clients go on where they were, `complete` if the operator says so. Twice is once."""
    path, old = tmp_path / "new.db", tmp_path / "old.json"
    cursors = [CURSOR_OF_0_7.replace("1c4a", f"{n:04}") for n in range(10)]
    lines = [entry(n, {"n": n, "pubsub_cursor": cursors[n]}, private=n == 5) for n in range(10)]
    old.write_bytes(b"".join(lines))
    options = ["--whole"] if whole else []
    assert "10 events imported (9 public, 1 private)" in done("import", path, old, *options)
    if not whole:
        assert "10 were held already" in done("import", path, old)
    assert old.read_bytes() == b"".join(lines)
    done("check", path)
    daemon = start_daemon(config(path))
    verdict = "complete" if whole else "partial"
    assert await daemon.replay("/", X_Fetch_Since_Cursor=cursors[6]) == (verdict, [7, 8, 9])
    assert (await daemon.replay("/", **EVERYTHING))[1] == [0, 1, 2, 3, 4, 6, 7, 8, 9]


def test_a_bad_line_of_0_7_is_told(tmp_path: Path) -> None:
    """As at a first start; but without --skip-bad nothing is imported."""
    typed = entry(1, {"n": 1}) + b'{"timestamp": 1\n' + entry(2, {"n": 2})
    ended = command("import", tmp_path / "new.db", "-", typed=typed)
    assert ended.returncode == 1
    assert ended.stderr.startswith("stdin: line 2: not JSON from column ")
    command("import", tmp_path / "new.db", "-", "--skip-bad", typed=typed)
    assert len(exported(tmp_path / "new.db")) == 2


async def test_imported_events_are_as_old_as_they_say(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """What is older than max_age leaves at the next start, from a file that had a life before, too."""
    path = tmp_path / "new.db"
    done("import", path, "-", typed=line_of().encode())
    settings = config(path)
    settings["server"]["backlog"]["max_age"] = "1h"
    daemon = start_daemon(settings)
    assert await daemon.replay("/", **EVERYTHING) == ("partial", [])
    await daemon.put("/a", {"n": 7})
    daemon.stop()
    older = line_of(
        pubsub_timestamp=1_699_000_000.5,
        pubsub_cursor=stamp_at(int(1_699_000_000.5 * TICKS_PER_SECOND), 0).cursor,
    )
    assert "1 events imported" in done("import", path, "-", typed=older.encode())
    daemon.start()
    assert await daemon.replay("/", **EVERYTHING) == ("partial", [7])


@pytest.mark.parametrize("new", [False, True])
def test_an_import_that_is_killed_changes_nothing(tmp_path: Path, everything: list[str], new: bool) -> None:
    """While it reads, and while it writes: the file is as it was, or whole; the same again makes it whole."""
    path, lines = tmp_path / "backlog.db", tmp_path / "lines"
    lines.write_text("".join(everything))
    before = [] if new else everything[::3]
    if before:
        done("import", path, "-", typed="".join(before).encode())
    for share in (0.2, 0.9):
        with subprocess.Popen([*PROGRAM, "import", path, "-"], stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write("".join(everything[: int(len(everything) * share)]).encode())
            process.kill()
        assert path.exists() != new
        assert (exported(path) if before else []) == before
    wal = Path(f"{path}.importing-wal" if new else f"{path}-wal")
    killed(lambda: size_of(wal) > 500_000, "import", path, lines)
    if path.exists():
        assert exported(path) in (before, everything)
        done("check", path)
    done("import", path, lines)
    assert exported(path) == everything
    assert not list(tmp_path.glob("*importing*"))


# check


def block_at(path: Path, index: int) -> int:
    """The key of a public block."""
    return int(asked(path, f"SELECT last FROM public_blocks ORDER BY last LIMIT 1 OFFSET {index}"))  # noqa: S608


def flip(path: Path, table: str, column: str, where: str, at: int = 20) -> None:
    """Turn a bit in a value of a row."""
    value = asked(path, f"SELECT {column} FROM {table} WHERE {where}")  # noqa: S608
    if isinstance(value, bytes):
        value = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
    elif isinstance(value, str):
        value = value[:-1] + chr(ord(value[-1]) ^ 1)
    else:
        value += 1
    changed(path, f"UPDATE {table} SET {column} = ? WHERE {where}", value)  # noqa: S608


LAST_BLOCK = "last = (SELECT max(last) FROM public_blocks)"
LAST_ROW = "position = (SELECT max(position) FROM public)"
DAMAGES: dict[str, tuple[str, str, str, str]] = {
    "a block's data": ("public_data", "data", LAST_BLOCK, "the checksum of its data is wrong"),
    "a block's topics": ("public_blocks", "topics", LAST_BLOCK, "the checksum of its summary is wrong"),
    "a block's time": ("public_blocks", "last_timestamp", LAST_BLOCK, "the checksum of its summary is wrong"),
    "a block's events": ("public_blocks", "events", LAST_BLOCK, "the checksum of its summary is wrong"),
    "a row's line": ("public", "line", LAST_ROW, "its checksum is wrong"),
    "a row's path": ("public", "path", LAST_ROW, "a line of another path"),
    "a row's time": ("public", "timestamp", LAST_ROW, "it is another one than its line says"),
    "a row's place": ("public", "position", LAST_ROW, "it is another one than its line says"),
    "a row's checksum": ("public", "crc", LAST_ROW, "its checksum is wrong"),
    "the count": ("kinds", "held", "kind = 'public'", "has 24003 events, and should have 24004"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_check_finds_what_is_not_as_it_was_written(held: Path, kind: str) -> None:
    """A line says what, and where; the status is 1."""
    assert done("check", held) == f"{held}: is as it was written\n"
    table, column, where, reason = DAMAGES[kind]
    flip(held, table, column, where, at=0 if column == "topics" else 20)
    ended = command("check", held)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert [
        line for line in ended.stdout.splitlines() if line.startswith(f"{held}: public: ") and reason in line
    ]


def test_check_finds_what_sqlite_cannot_read(held: Path) -> None:
    """A page of its structure, or of a block's data, by a byte of the file."""
    for table in ("public_data", "public_blocks"):
        path = held.with_name(f"{table}.db")
        shutil.copy(held, path)
        overwrite(path, pages(path, table)[0], b"\xff\xff\xff\xff", offset=1)
        ended = command("check", path)
        assert ended.returncode == 1
        assert ended.stdout.startswith(f"{path}: ")
    overwrite(held, pages(held, "public_data", "overflow")[3], b"\0\1\2", offset=2000)
    assert "public: the block up to position" in command("check", held).stdout


def test_check_finds_what_is_missing(held: Path) -> None:
    """A block without its data, data without a block, rows that are gone."""
    changed(held, "DELETE FROM public_data WHERE last = ?", block_at(held, 3))
    changed(held, "DELETE FROM private_blocks WHERE last = (SELECT min(last) FROM private_blocks)")
    said = command("check", held).stdout
    assert "its data are missing" in said
    assert "has data, and nothing else is known of it" in said
    assert "private: has " in said


def test_check_looks_at_the_order(held: Path) -> None:
    """Of blocks and rows, which a checksum alone does not tell."""
    with contextlib.closing(sqlite3.connect(held)) as connection:
        row = connection.execute(
            "SELECT * FROM public WHERE position = (SELECT max(position) FROM public)"
        ).fetchone()
        first = block_at(held, 0)
        connection.execute("INSERT INTO public VALUES (?, ?, ?, ?, ?)", (first + 1, *row[1:]))
        connection.execute("UPDATE life SET reserved = 5")
        connection.commit()
    said = command("check", held).stdout
    assert "later than any that was given a place" in said


async def test_check_finds_nothing_beside_a_busy_server(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """While events come, are sealed and leave."""
    path = tmp_path / "backlog.db"
    daemon = start_daemon(large(path, size=12_000))
    async with Busy(daemon, batch=500):
        for _ in range(3):
            assert await asyncio.to_thread(done, "check", path) == f"{path}: is as it was written\n"
            await asyncio.to_thread(stat, path)
            cursors = [cursor_in(line) for line in await asyncio.to_thread(exported, path)]
            assert cursors == sorted(set(cursors))
    assert not [line for line in daemon.log if " ERROR " in line]


class Busy:
    """Publishes events that are numbered, until the block ends."""

    def __init__(self, daemon: Daemon, batch: int) -> None:
        self._daemon = daemon
        self._batch = batch
        self.acknowledged = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._publish())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert not self._task.done()
        self._task.cancel()

    async def _publish(self) -> None:
        while True:
            numbers = range(self.acknowledged, self.acknowledged + self._batch)
            await self._daemon.put_all("/git/busy", [{"n": n} for n in numbers])
            await self._daemon.put("/private/p", {"n": -3})
            self.acknowledged += self._batch


# backup


async def test_a_backup_of_a_busy_server_is_of_one_moment(
    held: Path, everything: list[str], start_daemon: StartDaemon
) -> None:
    """All up to some event and nothing after it, readable for its user only; no publisher is refused."""
    daemon = start_daemon(large(held))
    async with Busy(daemon, batch=3) as busy:
        for number in range(3):
            acknowledged = busy.acknowledged
            copy = held.with_name(f"copy{number}.db")
            await asyncio.to_thread(done, "backup", held, copy)
            assert busy.acknowledged > acknowledged
            done("check", copy)
            lines = await asyncio.to_thread(exported, copy)
            assert lines[: len(everything)] == everything
            numbers = [json.loads(line)["n"] for line in public(lines[len(everything) :])]
            assert numbers == list(range(len(numbers)))
            assert len(numbers) >= acknowledged
            assert len(numbers) % 3 == 0
            assert modes.S_IMODE(copy.stat().st_mode) == 0o600
    assert not list(held.parent.glob("*partial*"))
    assert not [line for line in daemon.log if " ERROR " in line]


def test_a_backup_overwrites_nothing(held: Path, tmp_path: Path) -> None:
    """And leaves nothing behind where it fails."""
    target = tmp_path / "copy.db"
    target.write_text("precious")
    assert "is there already" in refused("backup", held, target)
    assert target.read_text() == "precious"
    assert "there is no directory" in refused("backup", held, tmp_path / "nowhere" / "copy.db")
    overwrite(held, pages(held, "public_data")[0], bytes(4096))
    assert str(held) in refused("backup", held, tmp_path / "other.db")
    assert not list(tmp_path.glob("other.db*"))


# restored


async def test_a_restored_backup_that_is_older_than_what_clients_know(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """As docs/backlog.md has it: nobody is told `complete` who may have missed something, ever."""
    path, copy = tmp_path / "backlog.db", tmp_path / "copy.db"
    daemon = start_daemon(config(path))
    cursors = [(await daemon.put("/a", {"n": n})).headers["X-Cursor"] for n in range(3)]
    done("backup", path, copy)
    lost = [(await daemon.put("/a", {"n": n})).headers["X-Cursor"] for n in range(3, 6)]
    lost_time = time.time()
    daemon.stop()
    for file in files_of(path):
        file.unlink()
    copy.rename(path)
    assert "its memory begins 20" in done("restored", path)
    daemon.start()
    new = (await daemon.put("/a", {"n": 6})).headers["X-Cursor"]
    assert new > lost[-1]
    for n, cursor in enumerate(cursors):
        assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursor) == ("unknown", [*range(n + 1, 3), 6])
    for cursor in lost:
        assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursor) == ("unknown", [6])
    assert await daemon.replay("/a", X_Fetch_Since=repr(lost_time)) == ("partial", [6])
    assert await daemon.replay("/a", **EVERYTHING) == ("partial", [0, 1, 2, 6])
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=new) == ("complete", [])
    await asyncio.to_thread(daemon.stop)
    daemon.start()
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=lost[0]) == ("unknown", [6])


async def test_a_copy_that_is_newer_than_what_clients_know(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """Made after the last event, it is put in place as it is: who was away gets the rest, `complete`."""
    path, copy = tmp_path / "backlog.db", tmp_path / "copy.db"
    daemon = start_daemon(config(path))
    cursors = [(await daemon.put("/a", {"n": n})).headers["X-Cursor"] for n in range(5)]
    daemon.stop()
    done("backup", path, copy)
    for file in files_of(path):
        file.unlink()
    copy.rename(path)
    daemon.start()
    await daemon.put("/a", {"n": 5})
    for n, cursor in enumerate(cursors):
        assert await daemon.replay("/a", X_Fetch_Since_Cursor=cursor) == ("complete", list(range(n + 1, 6)))


async def test_a_backup_whose_stamps_were_ahead_of_the_clock(
    tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """What came after the copy was ahead, too: with the last cursor that a client has, nobody is misled."""
    path, copy = tmp_path / "backlog.db", tmp_path / "copy.db"
    daemon = start_daemon(config(path))
    await daemon.put("/a", {"n": 0})
    daemon.stop()
    ahead = int((time.time() + 1000) * TICKS_PER_SECOND)
    changed(path, "UPDATE life SET reserved = ?", ahead)
    done("backup", path, copy)
    seen = stamp_at(ahead + 50 * TICKS_PER_SECOND, 0).cursor
    done("restored", path)
    assert asked(path, "SELECT began_position FROM life") >= ahead
    assert asked(path, "SELECT began_timestamp FROM life") >= ahead / TICKS_PER_SECOND
    done("restored", path, "--after", seen)
    daemon.start()
    new = (await daemon.put("/a", {"n": 1})).headers["X-Cursor"]
    assert new > seen
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=seen) == ("complete", [1])


# compact


def test_compact_gives_back_what_is_not_used(held: Path, everything: list[str]) -> None:
    """And says how many bytes; the events are the same."""
    before = held.stat().st_size
    said = done("compact", held)
    assert said == f"{held}: {before} bytes before, {held.stat().st_size} now\n"
    assert held.stat().st_size < before * 0.7
    assert exported(held) == everything
    done("check", held)


def test_compact_seals_rows(tmp_path: Path, everything: list[str]) -> None:
    """Of a server whose backlog was too small for blocks."""
    path = tmp_path / "backlog.db"
    daemon = Daemon(tmp_path, large(path, size=9000))
    daemon.start()
    asyncio.run(fill(daemon))
    daemon.stop()
    before, lines = stat(path), exported(path)
    done("compact", path)
    after = stat(path)
    assert (before["public"]["blocks"], after["public"]["blocks"]) == (0, 8)
    assert after["bytes"] < before["bytes"] / 3
    assert exported(path) == lines


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_compact_that_is_killed_loses_nothing(held: Path, everything: list[str], share: float) -> None:
    """At any moment."""
    wal = Path(f"{held}-wal")
    killed(lambda: size_of(wal) > share * 1_200_000, "compact", held)
    assert exported(held) == everything
    done("check", held)
    done("compact", held)
    assert exported(held) == everything


# forget


@pytest.mark.parametrize("index", [500, 12_345, 23_000, 28_400])
async def test_forget_takes_out_what_was_stamped_later(
    held: Path, everything: list[str], start_daemon: StartDaemon, index: int
) -> None:
    """Out of rows and blocks, by time or by cursor; what is left is replayed, and nobody told `complete`."""
    moment = timestamp_in(everything[index].encode())
    end = next(
        (n for n, line in enumerate(everything) if timestamp_in(line.encode()) > moment), len(everything)
    )
    other = held.with_name("other.db")
    shutil.copy(held, other)
    said = done("forget", held, "--after", repr(moment))
    gone = everything[end:]
    assert f"{len(public(gone))} public and {len(gone) - len(public(gone))} private events" in said
    done("forget", other, "--after", cursor_in(everything[index]))
    assert exported(other) == everything[: index + 1]
    for path in (held, other):
        done("check", path)
    daemon = start_daemon(large(held), acl=ACL)
    assert await streamed(daemon, **EVERYTHING | ALICE) == ("partial", everything[:end])
    place = ALICE | {"X_Fetch_Since_Cursor": cursor_in(everything[10])}
    assert await streamed(daemon, **place) == ("unknown", everything[11:end])
    new = (await daemon.put("/git/a", {"n": -2})).headers["X-Cursor"]
    assert await streamed(daemon, X_Fetch_Since_Cursor=new) == ("complete", [])


def test_forget_with_nothing_to_forget_changes_nothing(held: Path, everything: list[str]) -> None:
    """Its memory stays as it was."""
    assert "nothing is changed" in done("forget", held, "--after", "1s")
    assert stat(held)["from_the_start"]


async def test_answers_and_items_of_what_is_forgotten(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """An answer goes with its event, another stays; an item of a queue stays known."""
    path = tmp_path / "backlog.db"
    daemon = start_daemon(config(path))
    first = await daemon.put("/a", {"n": 0}, Idempotency_Key="first")
    second = await daemon.put("/a", {"n": 1}, Idempotency_Key="second")
    daemon.stop()
    position = position_of(second.headers["X-Cursor"])
    changed(path, "INSERT INTO items VALUES ('queue', x'00', ?, 1e10)", position)
    done("forget", path, "--after", first.headers["X-Cursor"])
    assert asked(path, "SELECT count(*) FROM items WHERE position = 0") == 1
    daemon.start()
    again = await daemon.put("/a", {"n": 0}, Idempotency_Key="first")
    assert again.headers["X-Cursor"] == first.headers["X-Cursor"]
    once_more = await daemon.put("/a", {"n": 1}, Idempotency_Key="second")
    assert once_more.headers["X-Cursor"] > second.headers["X-Cursor"]
    assert (await daemon.replay("/a", **EVERYTHING))[1] == [0, 1]


async def test_the_bounds_of_what_had_left_come_back_too(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """Where events that were stamped years ahead had left, new readers are `complete` all the same."""
    path = tmp_path / "backlog.db"
    daemon = start_daemon(config(path, size=2))
    for n in range(5):
        await daemon.put("/a", {"n": n})
    daemon.stop()
    ahead = (time.time() + 1e8, int((time.time() + 1e8) * TICKS_PER_SECOND))
    changed(path, "UPDATE kinds SET lost_timestamp = ?, lost_position = ? WHERE kind = 'public'", *ahead)
    changed(path, "UPDATE departed SET timestamp = ?, position = ?", *ahead)
    changed(path, "UPDATE floors SET timestamp = ?, position = ? WHERE kind = 'public'", *ahead)
    changed(path, "UPDATE life SET reserved = ?", ahead[1])
    done("forget", path, "--after", "0s")
    daemon.start()
    new = (await daemon.put("/a", {"n": 5})).headers["X-Cursor"]
    await daemon.put("/a", {"n": 6})
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=new) == ("complete", [6])


DAMAGED_PARTS = {
    "a block's data": ("public_data", "data", "last = {block}"),
    "a block's summary": ("public_blocks", "topics", "last = {block}"),
    "a block's end": ("public_blocks", "last", "last = {block}"),
    "a block's size": ("public_blocks", "events", "last = {block}"),
    "a row": ("public", "line", LAST_ROW),
}


@pytest.mark.parametrize("kind", DAMAGED_PARTS)
async def test_forget_takes_out_what_is_damaged(
    held: Path, everything: list[str], start_daemon: StartDaemon, kind: str
) -> None:
    """Replays no longer break off there: from before it they are `partial`, from behind it `complete`."""
    table, column, where = DAMAGED_PARTS[kind]
    key = block_at(held, 5)
    behind = [line for line in everything if (position_of(cursor_in(line)) or 0) > key]
    flip(held, table, column, where.format(block=key), at=0)
    assert command("check", held).returncode == 1
    assert "is taken out" in done("forget", held, "--damaged")
    done("check", held)
    assert done("forget", held, "--damaged") == f"{held}: nothing is damaged that could be taken out\n"
    daemon = start_daemon(large(held), acl=ACL)
    verdict, lines = await streamed(daemon, **EVERYTHING | ALICE)
    assert verdict == "partial"
    assert set(lines) < set(everything)
    assert len(everything) - len(lines) == (1 if kind == "a row" else 1000)
    place = {"X_Fetch_Since_Cursor": cursor_in(everything[10])}
    assert (await streamed(daemon, **place))[0] == "partial"
    if kind != "a row":
        place = {"X_Fetch_Since_Cursor": cursor_in(public(behind)[0])}
        assert await streamed(daemon, **place) == ("complete", public(behind)[1:])
    new = (await daemon.put("/git/a", {"n": -2})).headers["X-Cursor"]
    assert await streamed(daemon, X_Fetch_Since_Cursor=new) == ("complete", [])
    assert not [line for line in daemon.log if " ERROR " in line]


async def test_after_a_command_the_server_counts_right(tmp_path: Path, start_daemon: StartDaemon) -> None:
    """What is left stays, and what is published too, up to `size`."""
    path = tmp_path / "backlog.db"
    daemon = start_daemon(config(path, size=10))
    cursors = [(await daemon.put("/a", {"n": n})).headers["X-Cursor"] for n in range(10)]
    daemon.stop()
    done("forget", path, "--after", cursors[0])
    daemon.start()
    for n in range(10, 13):
        assert (await daemon.put("/a", {"n": n})).status == 202
    assert (await daemon.replay("/a", **EVERYTHING))[1] == [0, 10, 11, 12]


def test_the_commands_in_the_document(held: Path) -> None:
    """Each of them does what it is for, one after the other."""
    document = (ROOT / "docs" / "backlog.md").read_text()
    lines = re.findall(r"^    (pypubsub\.py backlog (?!COMMAND).*)$", document, re.MULTILINE)
    assert len(lines) >= 9
    directory = held.parent
    (directory / "elsewhere").mkdir()
    for name in ("old.db", "elsewhere/backlog.db"):
        shutil.copy(held, directory / name)
    for line in lines:
        run = line.replace("pypubsub.py", " ".join(PROGRAM[:2])).replace("/var/lib/pypubsub/", "")
        ended = subprocess.run(run, shell=True, cwd=directory, capture_output=True, text=True, check=False)  # noqa: S602
        assert (ended.returncode, ended.stderr) == (0, ""), line


def test_an_interrupt_ends_a_command(held: Path) -> None:
    """Without a traceback; a hang-up does, too."""
    for number in (signal.SIGINT, signal.SIGHUP):
        with subprocess.Popen(
            [*PROGRAM, "export", held], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            os.kill(process.pid, number)
            assert process.wait(20) in (130, -signal.SIGHUP)
            assert process.stderr.read() == b""
