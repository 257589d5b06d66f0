"""`pypubsub.py backlog`, run on files that a daemon has made."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.events.cursor import Mark
from daemon import ROOT, Daemon
from plugins.backlog.database import BacklogFile
from storage import config
from wire import EVERYTHING

ACL = {"alice": {"password": "secret", "acl": {"all": "all"}}}
PROGRAM = [sys.executable, str(ROOT / "pypubsub.py"), "backlog"]
Ended = subprocess.CompletedProcess[str]


def command(*arguments: object, typed: bytes = b"") -> Ended:
    """Run a command to its end."""
    ended = subprocess.run(
        [*PROGRAM, *map(str, arguments)], input=typed, capture_output=True, timeout=50, check=False
    )
    return subprocess.CompletedProcess(
        ended.args, ended.returncode, ended.stdout.decode(), ended.stderr.decode()
    )


def done(*arguments: object, typed: bytes = b"") -> str:
    """Run a command, which must succeed and not complain; what it prints."""
    ended = command(*arguments, typed=typed)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


def refused(*arguments: object, typed: bytes = b"") -> str:
    """Run a command, which must fail with one line; that line."""
    ended = command(*arguments, typed=typed)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1), ended
    return ended.stderr


def exported(path: Path, *options: object) -> list[str]:
    """The lines that `export` prints."""
    return done("export", path, *options).splitlines(keepends=True)


def stat(path: Path) -> dict[str, Any]:
    """What `stat --json` prints."""
    found = json.loads(done("stat", path, "--json"))
    assert isinstance(found, dict)
    return found


def killed(happened: Callable[[], bool], *arguments: object) -> bool:
    """Run a command, and kill it as soon as something has happened. Whether it had not ended by then."""
    with subprocess.Popen([*PROGRAM, *map(str, arguments)], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if happened():
                process.kill()
                return process.wait() < 0
    return False


def size_of(path: Path) -> int:
    """The bytes of a file that may come and go."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def large(path: Path, **backlog: object) -> dict[str, Any]:
    """Settings with a backlog that is sealed."""
    settings = config(path, size=1_000_000)
    settings["server"]["max_payload_size"] = "16 MiB"
    settings["server"]["backlog"] |= backlog
    return settings


async def fill(daemon: Daemon) -> None:
    """Publish some 28,000 events: on /git/a, few on /rare/x, and private ones."""
    for part in range(3):
        await daemon.put_all("/git/a", [{"n": part * 8000 + n} for n in range(8000)])
        await daemon.put("/rare/x", {"n": part, "filling": "ü\\" * 1000})
        await daemon.put_all("/private/p", [{"n": n} for n in range(1500)])


def filled(directory: Path) -> Path:
    """A file with these, in blocks and rows, whose daemon has been stopped."""
    path = directory / "backlog.db"
    daemon = Daemon(directory, large(path))
    daemon.start()
    asyncio.run(fill(daemon))
    daemon.stop()
    file = BacklogFile(path, 1_000_000, 0)
    file.open(Mark(1, 0.0), from_the_start=False)
    while file.seal():  # the rest of what is to be sealed
        pass
    file.close_writer()
    return path


async def streamed(daemon: Daemon, path: str = "/", **headers: str) -> tuple[str, list[str]]:
    """What X-Replay says to somebody, and the lines of the replay as they came."""
    named = {name.replace("_", "-"): value for name, value in (headers or EVERYTHING).items()}
    lines: list[str] = []
    async with daemon.subscriber(path, named) as stream:
        assert stream.status == 200, stream.raw_head
        while not (line := (await stream.chunk()).decode()).startswith('{"stillalive"'):
            lines += line.splitlines(keepends=True)
        return stream.headers["X-Replay"], lines
