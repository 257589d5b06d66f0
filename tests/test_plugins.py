"""The life of a plugin, shown by the example of docs/plugins.md, which is run as it stands there."""

import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from core.auth.login import Provider
from core.delivery.fanout import Fanout, Listener
from core.errors import ConfigError
from core.events.cursor import Stamps
from core.events.event import Event
from core.events.intake import Source
from core.events.store import Store
from core.events.topics import publish_path
from core.settings import PluginSection, file_model, load
from daemon import ROOT, Daemon
from plugins import TABLE, Plugin, sections

GUIDE = (ROOT / "docs/plugins.md").read_text()


def blocks(language: str) -> list[str]:
    """The code of the guide in that language."""
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the program to which the guide's plugin has been added, as it says."""
    shutil.copy(ROOT / "pypubsub.py", tmp_path)
    for part in ("core", "plugins"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    code, line = blocks("python")
    (tmp_path / "plugins/tally").mkdir()
    (tmp_path / "plugins/tally/__init__.py").write_text(code)
    table = tmp_path / "plugins/__init__.py"
    last = '    "sqs": "plugins.sqs",\n'
    assert last in table.read_text()
    table.write_text(table.read_text().replace(last, last + line))
    return tmp_path


def section() -> dict[str, dict[str, str]]:
    """What the guide puts into pypubsub.yaml."""
    (text,) = blocks("yaml")
    content: dict[str, dict[str, str]] = yaml.safe_load(text)
    return content


async def test_the_plugin_of_the_guide_works(tree: Path, tmp_path: Path) -> None:
    """It counts public events, and private ones not; the daemon stops as ever."""
    home = tmp_path / "home"
    home.mkdir()
    daemon = Daemon(home, section())
    daemon.cwd = tree
    daemon.start()
    for path in ("/a", "/private/b", "/c"):
        assert (await daemon.put(path, {})).status == 202
    await daemon.until_logged(r"INFO pypubsub.tally: 2 events$")
    assert await asyncio.to_thread(daemon.stop) == 0


def checked(tree: Path, settings: object) -> subprocess.CompletedProcess[str]:
    """--check of the copy, with such a section."""
    (tree / "pypubsub.yaml").write_text(yaml.safe_dump({"tally": settings}))
    return subprocess.run(
        [sys.executable, "pypubsub.py", "--check"],
        check=False,
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_its_section_is_checked_like_any_other(tree: Path) -> None:
    """Its plan, its defaults, a wrong value, an unknown key; without the section it is not there."""
    assert "tally: every 5 seconds\n" in checked(tree, {"every": "5s"}).stdout
    assert "tally: every 60 seconds\n" in checked(tree, {"every": None}).stdout + checked(tree, {}).stdout
    assert "tally.every: expected a number of seconds" in checked(tree, {"every": "soon"}).stderr
    unknown = checked(tree, {"evry": 5})
    assert unknown.returncode == 1
    assert "tally.evry: unknown key, did you mean tally.every?" in unknown.stderr
    assert "tally" not in checked(tree, None).stdout


def test_the_example_is_short() -> None:
    """Thirty lines of code, without its imports and what stays blank."""
    code, _ = blocks("python")
    lines = [line for line in code.splitlines() if line.strip() and not re.match("from |import ", line)]
    assert len(lines) <= 30


def test_roles_are_told_by_what_a_plugin_has() -> None:
    """Not by its class: a plugin with no method of a role plays none."""

    class Hearing(Plugin):
        def hear(self, event: object) -> None:
            """Whatever it is."""

    assert isinstance(Hearing(), Listener)
    for role in (Store, Provider, Source):
        assert not isinstance(Hearing(), role)
    assert not isinstance(Plugin(), Listener)


def test_a_listener_that_fails_costs_nobody_the_event(caplog: pytest.LogCaptureFixture) -> None:
    """What it raises is logged, and those after it hear of the event."""
    heard = []

    class Failing:
        def hear(self, event: object) -> None:
            """Never well."""
            raise ValueError(f"cannot take {event}")

    class Hearing:
        def hear(self, event: object) -> None:
            """Always."""
            heard.append(event)

    fanout = Fanout(backlog=False)
    fanout.listeners = [Failing(), Hearing()]
    event = Event(publish_path("/a"), '{"a": 1', Stamps().next())
    fanout.deliver(event)
    assert heard == [event]
    assert "error in Failing, which was told of an event" in caplog.text


def test_the_default_life_does_nothing() -> None:
    """Each step may be left out."""
    plugin = Plugin()
    assert plugin.plan() == plugin.warnings() == []
    plugin.check()
    for step in (plugin.start, plugin.run, plugin.reload, plugin.stop):
        asyncio.run(step())


def test_every_plugin_is_in_the_table() -> None:
    """And its sections are those of pypubsub.yaml."""
    packages = {f"plugins.{init.parent.name}" for init in (ROOT / "plugins").glob("*/__init__.py")}
    assert packages == set(TABLE.values())
    assert set(sections()) == {"server.backlog", "clients.ldap", "sqs"}


def test_all_problems_of_all_sections_are_told_in_one_go(tmp_path: Path) -> None:
    """Those of the sections that are read apart, too, whose values are not shown."""
    file = tmp_path / "pypubsub.yaml"
    wrong = {
        "server": {"port": "x", "backlog": {"size": -1}},
        "clients": {"ldap": {"uri": "http://x"}},
        "sqs": {"q": {"queue": "a", "secret": "hidden", "wait": "hidden"}},
    }
    file.write_text(yaml.safe_dump(wrong))
    with pytest.raises(ConfigError) as raised:
        load(file, sections())
    told = str(raised.value)
    for key in ("server.port", "server.backlog.size", "clients.ldap.uri[0]", "sqs.q.wait"):
        assert f"{file}: {key}: " in told
    assert "hidden" not in told


def test_an_unknown_section_is_named_beside_those_of_plugins() -> None:
    """A near miss of one leads to it."""

    class Settings(PluginSection):
        """Of a plugin that is not there."""

        limit: int = 5

    model = file_model({"server.extra": Settings})
    assert model.model_validate({"server": {"extra": {"limit": 7}}})
    with pytest.raises(ValueError, match="extras"):
        model.model_validate({"server": {"extras": {}}})


def test_a_plugin_that_cannot_start_stops_the_start(tree: Path) -> None:
    """With its words, and status 1. Those that had started are stopped, in reverse."""
    code = tree / "plugins/tally/__init__.py"
    steps = """    async def start(self) -> None:
        log.info("starts")
        raise StartError("tally: cannot count today")

    async def stop(self) -> None:
        log.info("stops")

    async def run"""
    changed = code.read_text().replace("    async def run", steps)
    code.write_text(
        changed.replace("from core.events", "from core.errors import StartError\nfrom core.events", 1)
    )
    (tree / "pypubsub.yaml").write_text(yaml.safe_dump(section()))
    ended = subprocess.run(
        [sys.executable, "pypubsub.py"], check=False, cwd=tree, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 1
    words = [
        line.partition("pypubsub.tally: ")[2] for line in ended.stderr.splitlines() if "tally: s" in line
    ]
    assert words == ["starts", "stops"]
    assert ended.stderr.splitlines()[-1].endswith("ERROR pypubsub: tally: cannot count today")
    assert "serves" not in ended.stderr
