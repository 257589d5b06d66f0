"""The daemon under test. With PYPUBSUB_NO_SKIP set, as in CI, a test that skips has failed."""

import os
import signal
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from aws import Moto
from daemon import Acl, Daemon, StartDaemon
from slapd import Slapd

pytest.register_assert_rewrite("commands", "documents", "installation")  # where tests' own assertions stand
# programs under test run as they do elsewhere
os.environ.pop("PYTHONUNBUFFERED", None)
for ignored in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # which Python ignores itself
    if signal.getsignal(ignored) is signal.SIG_IGN:  # as a shell does for what runs in the background
        signal.signal(ignored, signal.default_int_handler if ignored == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where everything that tests need is installed."""
    report = yield
    if report.skipped and "PYPUBSUB_NO_SKIP" in os.environ:
        report.outcome = "failed"
        report.longrepr = f"skipped, where no test may skip: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon with the default settings, for all tests that need no other."""
    daemon = Daemon(tmp_path_factory.mktemp("shared"))
    yield daemon
    if daemon.running:
        daemon.stop()


@pytest.fixture
def server(shared_daemon: Daemon) -> Daemon:
    """A running daemon with the default settings. A test may stop and start it."""
    if not shared_daemon.running:
        shared_daemon.start()
    return shared_daemon


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[StartDaemon]:
    """Starts daemons with settings and users of their own: start_daemon({"server": {"ping_interval": 1}})."""
    daemons: list[Daemon] = []

    def start(
        config: dict[str, Any] | None = None,
        files: int | None = None,
        acl: Acl | str | None = None,
        options: Sequence[str] = (),
    ) -> Daemon:
        directory = tmp_path / str(len(daemons))
        directory.mkdir()
        daemons.append(Daemon(directory, config, files))
        daemons[-1].options += options
        if acl is not None:
            daemons[-1].write_acl(acl)
        daemons[-1].start()
        return daemons[-1]

    yield start
    for daemon in daemons:
        if daemon.running:
            daemon.stop()


@pytest.fixture
def slapd(tmp_path: Path) -> Iterator[Slapd]:
    """A directory of the test's own."""
    slapd = Slapd(tmp_path / "slapd")
    slapd.start()
    yield slapd
    slapd.close()


@pytest.fixture(scope="session")
def shared_moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    """One AWS for all tests that need no other."""
    moto = Moto(tmp_path_factory.mktemp("moto"))
    moto.start()
    yield moto
    moto.stop()


@pytest.fixture
def moto(shared_moto: Moto) -> Moto:
    """A running AWS. Tests use queues of their own in it, and leave it running."""
    assert shared_moto.running, shared_moto.log
    return shared_moto


@pytest.fixture
def own_moto(tmp_path: Path) -> Iterator[Moto]:
    """An AWS of the test's own, not yet started, which it may stop and start."""
    moto = Moto(tmp_path / "moto")
    yield moto
    moto.stop()
