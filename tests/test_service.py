"""pypubsub.service, as systemd would take it, with the paths of /opt replaced by those of a test."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from core.http.limits import FILES_OF_OUR_OWN, MAX_SURPLUS
from core.settings import ServerConfig
from daemon import ROOT, StartDaemon
from installation import UNIT, install, service_of


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """An installation."""
    install(tmp_path)
    return tmp_path


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


def test_reload_is_a_signal_that_it_survives(start_daemon: StartDaemon) -> None:
    """`systemctl reload` sends SIGHUP, and the daemon goes on."""
    daemon = start_daemon()
    command = service_of(UNIT)["ExecReload"].replace("$MAINPID", str(daemon.pid))
    subprocess.run(shlex.split(command), check=True)
    daemon.logged("SIGHUP")
    assert daemon.stop() == 0


def test_it_runs_as_the_user_that_the_guide_creates() -> None:
    """Not as root."""
    user = service_of(UNIT)["User"]
    assert user != "root"
    assert f"--shell /usr/sbin/nologin {user}\n" in (ROOT / "docs/operating.md").read_text()


def test_it_may_open_a_file_for_each_connection() -> None:
    """And for those that it refuses, beside its own."""
    connections = ServerConfig().max_connections + MAX_SURPLUS
    assert int(service_of(UNIT)["LimitNOFILE"]) > connections + FILES_OF_OUR_OWN
