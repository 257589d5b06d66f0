"""The daemon and the reference as processes on the first CPU, and what they use of it."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from daemon import Daemon

CPUS = sorted(os.sched_getaffinity(0))
DISK = "/var/tmp"  # noqa: S108 (a directory of one's own is made in it; /tmp may be no disk)
PING_INTERVAL = 5.0  # seconds; the daemon's default


class Server(Protocol):
    """What both are."""

    port: int

    @property
    def pid(self) -> int:
        """The process."""


class Reference:
    """The reference, in a process of its own."""

    def __init__(self, mode: str, ping_interval: float) -> None:
        program = str(Path(__file__).with_name("reference.py"))
        command = [sys.executable, program, mode, str(ping_interval)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid


@contextlib.contextmanager
def bare(mode: str, ping_interval: float = PING_INTERVAL) -> Iterator[Reference]:
    """The reference, in one of the modes that reference.py tells of."""
    reference = Reference(mode, ping_interval)
    try:
        _pin(reference)
        yield reference
    finally:
        reference.process.communicate()  # ends its standard input


@contextlib.contextmanager
def running(
    where: str | None = None,
    size: int = 0,
    *,
    storage: bool | Path = False,
    patience: float = 10,
    ping_interval: float = PING_INTERVAL,
    queues: Mapping[str, Any] | None = None,
    tls: Mapping[str, Any] | None = None,
    acl: Mapping[str, Any] | None = None,
) -> Iterator[Daemon]:
    """A daemon with a backlog of that size, in memory or in a file: one beneath `where`, or a named one.

    patience: seconds that its start may take; queues: of SQS; tls: server.tls; acl: the ACL file.
    """
    with tempfile.TemporaryDirectory(prefix="pypubsub-bench-", dir=where) as directory:
        file = f"{directory}/backlog" if storage is True else str(storage) if storage else None
        settings = {
            "backlog": {"size": size, "storage": file},
            "ping_interval": ping_interval,
            "max_payload_size": "10 MiB",  # for large batches
            "head_timeout": "1h",  # a publisher is there long before its first request
            **({"tls": tls} if tls else {}),
        }
        daemon = Daemon(Path(directory), {"server": settings, "sqs": dict(queues or {})})
        if setpriv := shutil.which("setpriv"):  # it ends with this process, however that does
            daemon.command = [setpriv, "--pdeathsig", "TERM", *daemon.command]
        if acl:
            daemon.write_acl(acl)
        start(daemon, patience)
        try:
            yield daemon
        except AssertionError:
            print(*daemon.log[-5:], sep="\n", file=sys.stderr)  # it may say why
            raise
        finally:
            daemon.stop()


def start(daemon: Daemon, patience: float = 10) -> None:
    """Start it, on the first CPU. patience: seconds that it may take."""
    daemon.start(patience)
    _pin(daemon)


def _pin(server: Server) -> None:
    """Have all its threads run on the first CPU."""
    for thread in Path(f"/proc/{server.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), CPUS[:1])


def cpu_seconds(server: Server) -> float:
    """CPU time the process has used, by the clock that Linux keeps for it: /proc knows 10 ms only."""
    return time.clock_gettime((~server.pid << 3) | 2)


def resident_kib(server: Server, which: str = "VmRSS") -> int:
    """Memory the process holds; VmHWM: the most it has held."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which))
