"""pypubsub.service, as systemd would take it, with the paths of /opt replaced by those of a test."""

import configparser
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from core.settings import Config
from daemon import ROOT, Daemon

UNIT = ROOT / "pypubsub.service"
INSTALLED = "/opt/pypubsub"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder laid out as /opt/pypubsub, and the unit in it, with this folder's name for that one."""
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    for name in ("pypubsub.py", "pypubsub.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / UNIT.name).write_text(UNIT.read_text().replace(INSTALLED, str(tmp_path)))
    return tmp_path


def service_of(unit: Path) -> Mapping[str, str]:
    """The settings of a unit's section [Service]."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(unit)
    return parser["Service"]


def test_systemd_finds_nothing_wrong(installed: Path) -> None:
    """`systemd-analyze verify`, which exits with 0 for most mistakes, has no complaint about this unit."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    verified = subprocess.run(
        ["systemd-analyze", "verify", installed / UNIT.name], capture_output=True, text=True, check=False
    )
    complaints = [line for line in verified.stderr.splitlines() if UNIT.name in line]
    assert complaints == []
    assert verified.returncode == 0, verified.stderr


def test_its_command_starts_the_daemon_from_its_directory(installed: Path) -> None:
    """The command finds the program and, in the working directory, its settings."""
    service = service_of(installed / UNIT.name)
    checked = subprocess.run(
        [*shlex.split(service["ExecStart"]), "--check"],
        cwd=service["WorkingDirectory"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "serves http://0.0.0.0:2069" in checked.stdout


def test_reload_is_a_signal_that_it_survives(start_daemon: Callable[..., Daemon]) -> None:
    """`systemctl reload` sends SIGHUP, and the daemon goes on."""
    daemon = start_daemon()
    command = service_of(UNIT)["ExecReload"].replace("$MAINPID", str(daemon.pid))
    subprocess.run(shlex.split(command), check=True)
    daemon.logged("SIGHUP")
    assert daemon.stop() == 0


def test_it_runs_as_the_user_that_the_readme_creates() -> None:
    """Not as root."""
    user = service_of(UNIT)["User"]
    assert user != "root"
    assert f"--shell /usr/sbin/nologin {user}\n" in (ROOT / "README.md").read_text()


def test_it_may_open_a_file_for_each_connection() -> None:
    """The limit of open files is above the default of server.max_connections."""
    assert int(service_of(UNIT)["LimitNOFILE"]) > Config().server.max_connections + 100
