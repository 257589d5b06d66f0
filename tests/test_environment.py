"""What a parent may hand on to a program: closed descriptors, ignored signals."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

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
