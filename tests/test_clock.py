"""A daemon whose clock is wrong: what it holds stays, what it stamps grows, and the log says so."""

import asyncio
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import done
from daemon import ROOT, Daemon
from storage import config
from test_backlog import FAKETIME
from wire import EVERYTHING

AHEAD = r"WARNING pypubsub: timestamps and cursors run 3\d{8} seconds \(365\d\.\d days\) ahead of the clock"


def repair() -> list[str]:
    """The way out, as docs/backlog.md has it."""
    section = (ROOT / "docs" / "backlog.md").read_text().partition("\n## When the clock is wrong")[2]
    (command,) = re.findall(r"^    pypubsub\.py backlog (forget backlog\.db .*)$", section, re.MULTILINE)
    return str(command).split()


async def restarted(daemon: Daemon, number: signal.Signals = signal.SIGTERM) -> None:
    """Stop it, and start it again."""
    await asyncio.to_thread(daemon.stop, number)
    daemon.start()


class Clock:
    """The time of day, for one daemon."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set("+0")

    def set(self, ahead: str) -> None:
        """Set it ahead."""
        self.path.write_text(f"{ahead}\n")


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    """A clock that is right."""
    assert FAKETIME, "the package libfaketime is not installed"
    return Clock(tmp_path / "clock")


@pytest.fixture
def daemon(tmp_path: Path, clock: Clock) -> Iterator[Daemon]:
    """A daemon, not yet started, with that clock and a backlog in a file."""
    daemon = Daemon(tmp_path, config(tmp_path / "backlog.db"))
    daemon.config["server"]["backlog"]["max_age"] = "1h"
    daemon.environment = {
        "LD_PRELOAD": FAKETIME,
        "FAKETIME_TIMESTAMP_FILE": str(clock.path),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    yield daemon
    if daemon.running:
        daemon.stop()


async def test_a_clock_that_is_ahead_by_years_for_a_while(
    daemon: Daemon, clock: Clock, tmp_path: Path
) -> None:
    """Over a restart nothing leaves, no answer either; it is told, at each start too; then the way out."""
    daemon.start()
    first = await daemon.put("/a", {"n": 0}, Idempotency_Key="key")
    await daemon.put("/a", {"n": 1})
    clock.set("+10y")
    await restarted(daemon)
    assert (await daemon.replay("/a", **EVERYTHING))[1] == [0, 1]
    again = await daemon.put("/a", {"n": 0}, Idempotency_Key="key")
    assert again.headers["X-Cursor"] == first.headers["X-Cursor"]
    ahead = (await daemon.put("/a", {"n": 2})).headers["X-Cursor"]

    clock.set("+0")
    await daemon.until_logged(AHEAD)
    await restarted(daemon, signal.SIGKILL)
    assert len([line for line in daemon.log if re.search(AHEAD, line)]) == 2
    assert (await daemon.put("/a", {"n": 3})).headers["X-Cursor"] > ahead
    clock.set("+10y")
    await daemon.until_logged("INFO pypubsub: timestamps and cursors are those of the clock again")
    assert (await daemon.replay("/a", **EVERYTHING))[1] == [0, 1, 2, 3]
    assert len([line for line in daemon.log if re.search(AHEAD, line)]) == 2

    clock.set("+0")
    daemon.stop()
    name, file, *options = repair()
    assert "2 public and 0 private events" in done(name, tmp_path / file, *options)
    daemon.log.clear()
    daemon.start()
    assert await daemon.replay("/a", **EVERYTHING) == ("partial", [0, 1])
    assert await daemon.replay("/a", X_Fetch_Since_Cursor=ahead) == ("unknown", [])
    async with daemon.subscriber("/a", EVERYTHING) as stream:
        await stream.replay()
        cursor = (await daemon.put("/a", {"n": 4})).headers["X-Cursor"]
        event = await stream.event()
        assert (event["pubsub_cursor"], abs(event["pubsub_timestamp"] - time.time()) < 60) == (cursor, True)
    assert (await daemon.replay("/a", **EVERYTHING))[1] == [0, 1, 4]
    assert not [line for line in daemon.log if " WARNING " in line or " ERROR " in line]
