"""The log, where nobody reads it, or where it cannot be written."""

import asyncio
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import logs
from daemon import ROOT, Daemon
from test_command_line import end_of
from wire import TIMEOUT

ACCESS_LOG = {"server": {"access_log": True, "drain_timeout": "1h"}}
HEAD = b"HEAD /" + b"a" * 190 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
FILLING = 4500  # requests whose lines are more than a pipe and what may wait beside it can hold
HALF = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"


class Pipe:
    """A pipe that nobody reads until a test does."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self._open = [self.read_end, self.write_end]
        self._reading = os.fdopen(self.read_end, closefd=False)

    def lines(self, last: str = "\n") -> list[str]:
        """What is in it up to a line that holds this, or until nobody can write any more."""
        if self.write_end in self._open:
            self.close_end(self.write_end)
        lines: list[str] = []
        while not (lines and last in lines[-1]) and (line := self._reading.readline()):
            lines.append(line.rstrip())
        return lines

    def close_end(self, end: int) -> None:
        """Close one end, here."""
        self._open.remove(end)
        os.close(end)

    def close(self) -> None:
        """Close what is open, here."""
        for end in list(self._open):
            self.close_end(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe."""
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def unheard(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with a line in the log for each request, not yet started."""
    daemon = Daemon(tmp_path, ACCESS_LOG)
    yield daemon
    if daemon.running:
        daemon.stop(signal.SIGKILL)


async def fill_the_log(daemon: Daemon, requests: int = FILLING) -> None:
    """Have so many lines logged."""
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
    async with asyncio.timeout(TIMEOUT):
        for _ in range(requests // 100):
            writer.write(HEAD * 100)
            for _ in range(100):
                assert b" 204 " in await reader.readuntil(b"\r\n\r\n")
    writer.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_pipe_that_nobody_reads_stops_nobody(unheard: Daemon, pipe: Pipe, loop: str) -> None:
    """Publishing and streams go on, with pings; each line is read later, or counted among those left out."""
    unheard.config["server"]["ping_interval"] = 0.1
    unheard.options = ["--loop", loop]
    unheard.start_unheard(pipe.write_end)
    async with unheard.subscriber("/a") as stream:
        await fill_the_log(unheard)
        assert (await unheard.put("/a", {"n": 1})).status == 202
        assert (await stream.event())["n"] == 1
        assert "stillalive" in await stream.object()
    lines = await asyncio.to_thread(pipe.lines, last="left out here")
    assert await asyncio.to_thread(unheard.stop) == 0
    lines += await asyncio.to_thread(pipe.lines)
    heads = sum(" HEAD /aaa" in line for line in lines)
    left_out = [
        int(found[1]) for line in lines if (found := re.search(r" (\d+) lines were left out here", line))
    ]
    assert len(left_out) == 1
    assert 0 <= heads + left_out[0] - FILLING <= 9  # those of the publish and the stream may be among them
    assert lines[-1].endswith("stopped")


async def test_a_stop_waits_for_no_pipe(unheard: Daemon, pipe: Pipe) -> None:
    """Exit 0, though nobody has read a line."""
    unheard.start_unheard(pipe.write_end)
    await fill_the_log(unheard)
    assert await asyncio.to_thread(unheard.stop) == 0


async def test_a_second_stop_waits_for_no_pipe(unheard: Daemon, pipe: Pipe) -> None:
    """It ends the process, whatever is under way."""
    unheard.start_unheard(pipe.write_end)
    await fill_the_log(unheard)
    reader, writer = await asyncio.open_connection("127.0.0.1", unheard.port)
    writer.write(HALF)
    async with asyncio.timeout(TIMEOUT):
        await reader.readuntil(b"\r\n\r\n")
    assert await asyncio.to_thread(end_of, unheard, signal.SIGTERM) == 1
    writer.close()


async def test_a_second_stop_ends_a_loop_that_stands_still(
    unheard: Daemon, pipe: Pipe, tmp_path: Path
) -> None:
    """The event loop is not needed for that."""
    (tmp_path / "sitecustomize.py").write_text(
        "import json.scanner, sys, time\n"
        "def stand_still(*arguments):\n"
        "    print('stands still', file=sys.stderr)\n"
        "    time.sleep(3600)\n"
        "json.scanner.make_scanner = json.scanner.c_make_scanner = lambda decoder: stand_still\n"
    )
    unheard.environment = {"PYTHONPATH": str(tmp_path)}
    unheard.start()
    _, writer = await asyncio.open_connection("127.0.0.1", unheard.port)
    writer.write(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    await unheard.until_logged("stands still")
    assert await asyncio.to_thread(end_of, unheard, signal.SIGTERM) == 1
    writer.close()


async def test_a_reader_of_the_log_that_has_gone_stops_nobody(unheard: Daemon, pipe: Pipe) -> None:
    """Nor does it keep the server from its end."""
    unheard.start_unheard(pipe.write_end)
    pipe.close()
    await fill_the_log(unheard, 200)
    assert (await unheard.put("/a", {})).status == 202
    assert await asyncio.to_thread(unheard.stop) == 0


async def test_a_full_disk_under_the_log_stops_nobody(unheard: Daemon) -> None:
    """Nor does it keep the server from its end."""
    full = os.open("/dev/full", os.O_WRONLY)
    unheard.start_unheard(full)
    os.close(full)
    await fill_the_log(unheard, 200)
    assert (await unheard.put("/a", {})).status == 202
    assert await asyncio.to_thread(unheard.stop) == 0


# The stand-in for stderr


class Disk:
    """Takes the place of os.write() on stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.writes = 0
        self.written = b""
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor: int, raw: bytes) -> int:
        """Take at most 7 bytes, or nothing."""
        assert descriptor == logs.STDERR
        self.writes += 1
        if self.full:
            raise OSError(28, "No space left on device")
        self.written += raw[:7]
        return len(raw[:7])


def test_what_could_not_be_written_is_counted_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is tried once, and told of as soon as one can be written again."""
    disk = Disk(monkeypatch)
    stderr = logs.Stderr()
    stderr.write("first\n")
    stderr.drain(TIMEOUT)
    disk.full = True
    before = disk.writes
    for number in range(3):
        stderr.write(f"{number}\n")
        stderr.drain(TIMEOUT)
    assert disk.writes == before + 3
    disk.full = False
    stderr.write("last\n")
    stderr.drain(TIMEOUT)
    first, last, told = disk.written.decode().splitlines()
    assert (first, last) == ("first", "last")
    assert told.endswith(" WARNING pypubsub: 3 lines were left out here: stderr did not take them")


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long nobody takes it; a line is taken whole or not at all."""
    writing, go_on = threading.Event(), threading.Event()
    written = bytearray()

    def write(descriptor: int, raw: memoryview) -> int:
        writing.set()
        go_on.wait(TIMEOUT)
        written.extend(raw)
        return len(raw)

    monkeypatch.setattr(os, "write", write)
    stderr = logs.Stderr()
    stderr.write("first\n")
    writing.wait(TIMEOUT)
    for _ in range(3000):
        stderr.write("x" * 999)
        stderr.write("\n")
    go_on.set()
    stderr.drain(TIMEOUT)
    _, *lines, told = written.decode().splitlines()
    assert len(lines) == logs.MAX_WAITING // 1000
    assert set(lines) == {"x" * 999}
    assert f" {3000 - len(lines)} lines were left out here" in told


# A program with this log


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program that logs to its end."""
    return subprocess.run(
        [sys.executable, "-c", f"from core import logs\nlogs.begin('INFO')\n{program}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def test_a_crash_is_seen() -> None:
    """The traceback follows what was logged before, and so do warnings and errors that nobody could catch."""
    ended = run(
        "import logging, warnings\n"
        "class Broken:\n"
        "    def __del__(self): raise KeyError('unraisable')\n"
        "for number in range(1000): logging.info('line %d', number)\n"
        "warnings.warn('be warned')\n"
        "Broken()\n"
        "raise ValueError('the reason')\n"
    )
    assert ended.returncode == 1
    lines = ended.stderr.splitlines()
    assert [line.rpartition(" ")[2] for line in lines[:1000]] == [str(number) for number in range(1000)]
    assert re.search("UserWarning: be warned.*KeyError: 'unraisable'.*Traceback", ended.stderr, re.DOTALL)
    assert lines[-1] == "ValueError: the reason"


def test_a_stderr_that_does_not_block_gets_every_line(pipe: Pipe) -> None:
    """A program that shares it may have made it so: that is no reason to lose lines."""
    flags = fcntl.fcntl(pipe.write_end, fcntl.F_GETFL)
    fcntl.fcntl(pipe.write_end, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    program = (
        "import logging\n"
        "from core import logs\n"
        "logs.begin('INFO')\n"
        "for number in range(3000): logging.info('%0100d', number)\n"
        "print('logged', flush=True)\n"
        "import sys\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=pipe.write_end
    ) as process:
        assert process.stdout
        assert process.stdin
        process.stdout.readline()  # by then the pipe is full
        process.stdin.close()
        lines = pipe.lines()
    assert [int(line.rpartition(" ")[2]) for line in lines] == list(range(3000))
