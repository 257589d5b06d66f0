"""The documents' blocks of code, and their commands, run as they stand there.

A `text` block is what the commands of the block above it print; a `json` block is what the last stream shows
next. Cursors, times and counts may differ.
"""

import asyncio
import contextlib
import os
import re
import shutil
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from daemon import ROOT
from wire import TIMEOUT

DOCUMENTS = sorted(
    str(file.relative_to(ROOT)) for directory in (ROOT, ROOT / "docs") for file in directory.glob("*.md")
)
PING = '{"stillalive": '
VARIABLE = {
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": "<cursor>",
    r"\b\d{10}\.\d+": "<seconds>",
    r"^(X-Subscribers|X-Requests): \d+": r"\1: <number>",
    r"^Date: .*": "Date: <date>",
    r"PyPubSub/[0-9.]+": "PyPubSub/<version>",
    r"\$[\w+/]{22}\$[\w+/]{43}$": "$<salt>$<hash>",
}


class Block(NamedTuple):
    """A fenced block of code."""

    language: str
    lines: list[str]


def sections(document: str) -> Iterator[tuple[str, list[Block]]]:
    """The headings of a document, each with the blocks below it."""
    heading, blocks, inside = "", list[Block](), False
    for line in document.splitlines():
        if line.startswith("```"):
            inside = not inside
            if inside:
                blocks.append(Block(line.removeprefix("```"), []))
        elif inside:
            blocks[-1].lines.append(line)
        elif line.startswith("#"):
            yield heading, blocks
            heading, blocks = line.lstrip("# "), []
    assert not inside, "a block of code has no end"
    yield heading, blocks


def without_blocks(document: str) -> str:
    """A document without its blocks of code, fenced and indented."""
    return re.sub(r"(?ms)^```.*?^```$|^ {4}.*?$", "", document)


def headings(document: str) -> list[str]:
    """All headings of a document."""
    return re.findall(r"^#+ (.*)$", without_blocks(document), re.MULTILINE)


def anchor(heading: str) -> str:
    """What GitHub names a heading in a link."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def yaml_of(blocks: Iterable[Block], *, acl: bool) -> Iterator[str]:
    """The settings in some blocks, or what stands in the ACL file."""
    for block in blocks:
        if block.language == "yaml" and (block.lines[0] == "# pypubsub_acl.yaml") == acl:
            yield "\n".join([*block.lines, ""])


def skip_without(program: str) -> None:
    """Skip a test whose program a user's machine may lack."""
    if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip(f"{program} is not installed")


def runs_a_client(command: str) -> bool:
    """Whether it is one of the clients that a command runs, not curl."""
    return " clients/" in command


def follows(command: str) -> bool:
    """Whether a command goes on for ever."""
    if runs_a_client(command):
        return " publish " not in command
    return re.search(r"\bcurl (.* )?-s?N\b", command) is not None


def plain(line: str) -> str:
    """A line without what differs from run to run."""
    for pattern, name in VARIABLE.items():
        line = re.sub(pattern, name, line)
    return line


async def next_line(stream: asyncio.StreamReader | None) -> str:
    """The next line of a program's output."""
    assert stream is not None
    async with asyncio.timeout(TIMEOUT):
        line = await stream.readline()
    assert line.endswith(b"\n"), f"the program ended with {line!r}"
    return line.decode().rstrip("\r\n")


@asynccontextmanager
async def started(
    *words: str | Path, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    """A program, ended at the end with all that it has started. environment: beside that of the tests."""
    process = await asyncio.create_subprocess_exec(
        *words,
        cwd=cwd,
        env=os.environ | (environment or {}),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


class Scenario:
    """Commands on their way, one after the other; the streams among them go on until `running` ends.

    environment: beside that of the tests. typed: what is on the standard input of every command.
    """

    def __init__(
        self,
        running: contextlib.AsyncExitStack,
        *,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
        typed: str = "",
    ) -> None:
        self.streams: list[Process] = []
        self._running = running
        self._cwd = cwd
        self._environment = environment
        self._typed = typed.encode()
        self._printed: list[str] | None = None  # by the last block's commands; None: one of them is a stream
        self._first_line: str | None = None  # of the last stream, if that was read and not yet checked

    async def run(self, commands: Iterable[str]) -> None:
        """Run the commands of a block; a stream is left running as soon as it is there."""
        self._printed = []
        for command in commands:
            await self.run_one(command)

    async def run_one(self, command: str) -> None:
        """Run a command, which must succeed."""
        program = started("sh", "-c", command, cwd=self._cwd, environment=self._environment)
        if follows(command):
            stream = await self._running.enter_async_context(program)
            self._first_line = await first_line(stream, shows_pings=not runs_a_client(command))
            self.streams.append(stream)
            self._printed = None
            return
        async with program as process, asyncio.timeout(TIMEOUT):
            printed, complaints = await process.communicate(self._typed)
        assert process.returncode == 0, f"{command}: {complaints.decode()}"
        self._printed = (self._printed or []) + [line.rstrip("\r") for line in printed.decode().splitlines()]

    async def check_printed(self, expected: list[str]) -> None:
        """Check what the last block's commands print."""
        if self._printed is None:
            await self.check_stream(expected)
        else:
            assert list(map(plain, self._printed)) == list(map(plain, expected))

    async def check_stream(self, expected: list[str]) -> None:
        """Check what the last stream shows next, past pings that are not expected."""
        for text in expected:
            async with asyncio.timeout(TIMEOUT):
                line = self._first_line or await next_line(self.streams[-1].stdout)
                self._first_line = None
                while plain(line) != plain(text) and line.startswith(PING):
                    line = await next_line(self.streams[-1].stdout)
            assert plain(line) == plain(text)


async def first_line(process: Process, *, shows_pings: bool) -> str | None:
    """Wait until a stream is there; its first line, if there is one before the first event."""
    if shows_pings:
        return await next_line(process.stdout)
    while "following" not in await next_line(process.stderr):
        pass
    return None
