"""README.md and guides tell the truth: their commands are run against a daemon, as they stand there.

What is run is every line of an `sh` block that names 127.0.0.1:2069; documents.py says what it must print. A
section is a scenario of its own: its streams stay open until it ends. A `yaml` block is what its daemon is
configured with, or its ACL file.
"""

import asyncio
import contextlib
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon import ROOT, Daemon, merged
from documents import DOCUMENTS, Block, Scenario, next_line, sections, skip_without, started, yaml_of
from wire import TIMEOUT

RUN = ["README.md", "docs/clients.md", "docs/operating.md"]
RUN_ELSEWHERE = {"docs/access.md"}  # by test_access_guide.py
NOT_RUN = {"docs/sqs.md"}  # what it follows is a queue at AWS
ADDRESS = "127.0.0.1:2069"
PYTHON = ".venv/bin/python"
SNIPPETS = {  # language of a block -> how to run it, beside which client
    "python": ([sys.executable, "-u"], "python/client.py"),
    "js": (["node"], "nodejs/client.js"),
    "ruby": (["ruby", "-e", "$stdout.sync = true; load ARGV[0]"], "ruby/client.rb"),
}

StartDaemon = Callable[..., Daemon]


def commands_of(block: Block) -> list[str]:
    """The lines that talk to the daemon."""
    return [line for line in block.lines if block.language == "sh" and ADDRESS in line]


SECTIONS = {
    f"{name}: {heading}": blocks
    for name in RUN
    for heading, blocks in sections((ROOT / name).read_text())
    if any(commands_of(block) for block in blocks)
}


def program_of(command: str) -> str:
    """The first program of a command."""
    program = shlex.split(command)[0]
    return sys.executable if program == PYTHON else program


def for_daemon(text: str, daemon: Daemon) -> str:
    """What stands in a document, for this daemon and this Python."""
    return text.replace(ADDRESS, f"127.0.0.1:{daemon.port}").replace(PYTHON, sys.executable)


def configuration(heading: str, directory: Path) -> dict[str, Any]:
    """What a section configures; a file that it names is put into that directory."""
    text = "".join(yaml_of(SECTIONS[heading], acl=False))
    return yaml.safe_load(re.sub(r"storage: (\S+)", rf"storage: {directory}/\1", text)) or {}


@pytest.mark.parametrize("heading", SECTIONS)
async def test_commands_do_what_the_document_says(
    heading: str, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """The commands of a section print what the blocks below them hold."""
    for block in SECTIONS[heading]:
        for command in commands_of(block):
            skip_without(program_of(command))
    settings = merged({"server": {"ping_interval": 0.5}}, configuration(heading, tmp_path))
    daemon = start_daemon(settings, acl="".join(yaml_of(SECTIONS[heading], acl=True)))
    async with contextlib.AsyncExitStack() as running:
        scenario = Scenario(running)
        for block in SECTIONS[heading]:
            if commands := commands_of(block):
                await scenario.run(for_daemon(command, daemon) for command in commands)
            elif block.language == "text":
                await scenario.check_printed(block.lines)
            elif block.language == "json":
                await scenario.check_stream(block.lines)


@pytest.mark.parametrize("language", SNIPPETS)
async def test_programs_in_the_documents_follow(
    language: str, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """The few lines for each language, beside a copy of its client, print the path of an event."""
    words, client = SNIPPETS[language]
    skip_without(words[0])
    (block,) = [block for blocks in SECTIONS.values() for block in blocks if block.language == language]
    daemon = start_daemon()
    shutil.copy(ROOT / "clients" / client, tmp_path)
    snippet = tmp_path / f"snippet.{language}"
    snippet.write_text(for_daemon("\n".join(block.lines), daemon))
    async with started(*words, snippet, cwd=tmp_path) as process, asyncio.timeout(TIMEOUT):
        while (await daemon.request("HEAD", "/")).headers["X-Subscribers"] == "0":
            assert process.returncode is None, await process.communicate()
        await daemon.put("/fruits/apples", {})
        assert await next_line(process.stdout) == "/fruits/apples"


def test_every_curl_line_is_run() -> None:
    """No curl line with an address stands anywhere but where the test above finds it."""
    run = [command for blocks in SECTIONS.values() for block in blocks for command in commands_of(block)]
    lines = [
        line
        for name in DOCUMENTS
        if name not in RUN_ELSEWHERE | NOT_RUN
        for line in (ROOT / name).read_text().splitlines()
        if re.search(r"\bcurl\b.*://", line)
    ]
    assert len(lines) > 20
    assert [line for line in lines if line not in run] == []


def test_make_run_prints_the_lines_to_try() -> None:
    """The lines that `make run` prints are the first ones of the README."""
    subscribe, publish = (commands_of(block)[0] for block in SECTIONS["README.md: Try it"][:2])
    recipe = (ROOT / "Makefile").read_text().replace("'\\''", "'")
    assert subscribe in recipe
    assert publish in recipe
