"""What a parent may hand on to a program: closed descriptors, ignored signals."""

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core.auth.web_pages import WebPages
from daemon import ROOT, Daemon


@pytest.mark.parametrize(
    ("closed", "loop"),
    [([0], "uvloop"), ([1], "uvloop"), ([2], "uvloop"), ([0, 1, 2], "uvloop"), ([0, 1, 2], "asyncio")],
)
async def test_it_runs_and_stops_with_standard_descriptors_closed(
    tmp_path: Path, closed: list[int], loop: str
) -> None:
    """Exit 0; they are /dev/null then, so no connection and no file takes their place."""
    daemon = Daemon(tmp_path)
    daemon.options = ["--loop", loop]
    daemon.start_unheard(closed=closed)
    try:
        assert (await daemon.put("/a", {})).status == 202
        for number in closed:
            assert Path(f"/proc/{daemon.pid}/fd/{number}").readlink() == Path("/dev/null")  # noqa: ASYNC240
    finally:
        assert daemon.stop() == 0


IGNORED = "import subprocess, sys\nimport conftest\nsubprocess.run(['grep', 'SigIgn', '/proc/self/status'])"


def test_tests_start_their_programs_with_default_signals() -> None:
    """Though a shell that runs them in the background ignores SIGINT, and nohup SIGHUP."""
    numbers = [signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1]
    command = "trap '' " + " ".join(str(int(number)) for number in numbers) + '; exec "$@"'
    ended = subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-c", IGNORED],
        cwd=ROOT / "tests",
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    ignored = int(ended.stdout.split()[1], 16)
    assert not [number for number in numbers if ignored & 1 << number - 1]


def test_a_stop_is_for_no_thread_but_the_one_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while a slow resolver is asked for the machine's name: in that thread it would end the process."""
    asked, answer = threading.Event(), threading.Event()
    blocked: list[set[int]] = []

    def look_up() -> str:
        blocked.append({int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())})
        asked.set()
        answer.wait()
        return "example.org"

    monkeypatch.setattr(socket, "getfqdn", look_up)
    WebPages((), ())
    assert asked.wait(20)
    answer.set()
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2} <= blocked[0]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT}
