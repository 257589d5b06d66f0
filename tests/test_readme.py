"""README.md tells the truth: its commands are run against a daemon, as they stand there.

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
from documents import Block, Scenario, next_line, sections, skip_without, started, yaml_of
from wire import TIMEOUT

README = (ROOT / "README.md").read_text()
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
    heading: blocks for heading, blocks in sections(README) if any(commands_of(block) for block in blocks)
}


def program_of(command: str) -> str:
    """The first program of a command."""
    program = shlex.split(command)[0]
    return sys.executable if program == PYTHON else program


def for_daemon(text: str, daemon: Daemon) -> str:
    """What stands in the README, for this daemon and this Python."""
    return text.replace(ADDRESS, f"127.0.0.1:{daemon.port}").replace(PYTHON, sys.executable)


def configuration(heading: str, directory: Path) -> dict[str, Any]:
    """What a section configures; a file that it names is put into that directory."""
    text = "".join(yaml_of(SECTIONS[heading], acl=False))
    return yaml.safe_load(re.sub(r"storage: (\S+)", rf"storage: {directory}/\1", text)) or {}


@pytest.mark.parametrize("heading", SECTIONS)
async def test_commands_do_what_the_readme_says(
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
async def test_programs_in_the_readme_follow(
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
    lines = [line for line in README.splitlines() if re.search(r"\bcurl\b.*://", line)]
    assert len(lines) > 20
    assert [line for line in lines if line not in run] == []


def test_make_run_prints_the_lines_to_try() -> None:
    """The lines that `make run` prints are the first ones of the README."""
    subscribe, publish = (commands_of(block)[0] for block in SECTIONS["Try it"][:2])
    recipe = (ROOT / "Makefile").read_text().replace("'\\''", "'")
    assert subscribe in recipe
    assert publish in recipe


def test_files_of_the_layout_are_there() -> None:
    """The layout names every module of core, and no file that is not there; so do the links."""
    named = set(re.findall(r"^\| `([^`]+)` \|", README.partition("## Layout")[2], re.MULTILINE))
    links = set(re.findall(r"\]\(([a-zA-Z_/.]+)(?:#[\w-]+)?\)", README))
    assert [name for name in named | links if not (ROOT / name).exists()] == []
    modules = {
        str(file.relative_to(ROOT))
        for part in ("core", "plugins")
        for file in (ROOT / part).rglob("[!_]*.py")
    }
    assert modules <= named


@pytest.mark.parametrize(
    "name", ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").iterdir())]
)
def test_contents_lead_to_every_part(name: str) -> None:
    """The list at the top has each heading of the second level below it, as GitHub names them."""
    before, _, after = (ROOT / name).read_text().partition("\n## ")
    headings = re.findall(r"^## (.*)$", f"## {after}", re.MULTILINE)
    entries = dict(re.findall(r"^- \[(.*)\]\(#(.*)\)$", before, re.MULTILINE))
    assert list(entries) == [heading for heading in headings if heading != "License"]
    for heading, anchor in entries.items():
        assert anchor == re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_protocol_lists_every_status_of_a_refusal() -> None:
    """The table of refusals has each status that the code refuses with."""
    code = "".join(
        file.read_text()
        for file in [ROOT / "pypubsub.py", *(ROOT / "core").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    )
    refused_with = set(re.findall(r"\bRefused\(\s*(\d{3})\b", code))
    table = (ROOT / "docs/protocol.md").read_text().partition("## Refusals")[2].partition("\n## ")[0]
    assert refused_with == set(re.findall(r"^\| (\d{3}) \|", table, re.MULTILINE))
