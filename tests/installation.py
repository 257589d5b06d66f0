"""A folder laid out as pypubsub.service and the guides expect /opt/pypubsub."""

import configparser
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from daemon import ROOT, Daemon, merged
from wire import free_port

UNIT = ROOT / "pypubsub.service"
INSTALLED = "/opt/pypubsub"


def install(directory: Path) -> None:
    """Lay it out, with the settings as shipped, and the unit with this folder's name for that one."""
    python = directory / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    (directory / "pypubsub.py").symlink_to(ROOT / "pypubsub.py")
    shutil.copy(ROOT / "pypubsub.yaml", directory)
    (directory / UNIT.name).write_text(UNIT.read_text().replace(INSTALLED, str(directory)))


def service_of(unit: Path) -> Mapping[str, str]:
    """The settings of a unit's section [Service]."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(unit)
    return parser["Service"]


class InstalledDaemon(Daemon):
    """The daemon, installed in a folder and run as its unit says, on ports of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        install(directory)
        self._service = service_of(directory / UNIT.name)
        self.user = self._service["User"]
        self.cwd = Path(self._service["WorkingDirectory"])
        self.command = shlex.split(self._service["ExecStart"])
        self.tls_port = free_port()
        self.configure(self.config_path.read_text())

    def configure(self, settings: str) -> None:
        """Put settings into pypubsub.yaml, for the next start, with these ports."""
        self.config = merged(yaml.safe_load(settings), {"server": {"port": self.port}})
        if tls := self.config["server"].get("tls"):
            tls["port"] = self.tls_port
        self.config_path.write_text(yaml.safe_dump(self.config))

    def restart(self) -> None:
        """`systemctl restart`."""
        assert self.stop() == 0
        self.start()

    def reload_files(self) -> None:
        """`systemctl reload`, until the ACL file and the certificates are taken over."""
        command = self._service["ExecReload"].replace("$MAINPID", str(self.pid))
        subprocess.run(shlex.split(command), check=True)
        users = self.logged(" users$|the rights are as before")
        assert users.endswith(" users"), users
        if self.config["server"].get("tls"):
            certificates = self.logged("the certificates of server.tls|the old certificates stay")
            assert "reloaded" in certificates, certificates
