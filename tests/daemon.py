"""The real daemon, run as a subprocess on a free port."""

import asyncio
import contextlib
import copy
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import yaml

from wire import Stream, credentials, free_port

Acl = Mapping[str, Any]  # user -> entry, as in the ACL file

ROOT = Path(__file__).parent.parent
DEFAULT_CONFIG: dict[str, Any] = {
    "server": {"bind": "127.0.0.1", "refusal_delay": 0},
    "clients": {"payloaders": ["127.0.0.1/24", "::1"], "oldschoolers": ["svnwcsub"]},
}
# as CI runs it once: what is deprecated, not awaited or not closed is an error, and asyncio looks closely
STRICT = {"PYTHONWARNINGS": "error", "PYTHONASYNCIODEBUG": "1"}


class Answer(NamedTuple):
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    text: str


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """base with the keys of changes, section by section."""
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def basic(user: str, password: str = "secret") -> dict[str, str]:
    """The header with these credentials."""
    return {"Authorization": credentials(user, password).decode()}


class Daemon:
    """`python3 pypubsub.py` with a configuration of its own."""

    def __init__(
        self, directory: Path, config: Mapping[str, Any] | None = None, files: int | None = None
    ) -> None:
        self.config_path = directory / "pypubsub.yaml"
        self.acl_path = directory / "pypubsub_acl.yaml"
        self.config = merged(DEFAULT_CONFIG, config or {})
        self._files = files  # that it may open
        self.environment = (
            STRICT.copy() if "PYPUBSUB_STRICT" in os.environ else {}
        )  # beside that of the tests
        self.cwd = ROOT
        self.command = [sys.executable, "pypubsub.py"]
        self.command += ["--config", str(self.config_path), "--acl", str(self.acl_path)]
        loop = os.environ.get("PYPUBSUB_LOOP")  # CI runs some tests with each
        self.options = ["--loop", loop] if loop else []  # of the command line, beside the two files
        self.port = free_port()
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout: float = 10) -> None:
        """Start it, and wait until it listens."""
        self.config["server"].setdefault("port", self.port)
        self.config_path.write_text(yaml.safe_dump(self.config))
        limit = ["prlimit", f"--nofile={self._files}"] if self._files else []
        self._process = subprocess.Popen(
            [*limit, *self.command, *self.options],
            cwd=self.cwd,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines = queue.Queue()
        threading.Thread(target=self._read_log, args=(self._process, self._lines), daemon=True).start()
        line = self.logged("serves http://.*:[0-9]+$", timeout)
        self.port = self.config["server"]["port"] = int(line.rpartition(":")[2])

    def start_unheard(
        self, stderr: int | None = None, closed: Iterable[int] = (), before: Sequence[str] = ()
    ) -> None:
        """Start it with another stderr, or with standard descriptors closed: it listens when it answers.

        before: a command that runs it.
        """
        self.config["server"].setdefault("port", self.port)
        self.config_path.write_text(yaml.safe_dump(self.config))
        closing = " ".join(f"{number}>&-" for number in closed)
        self._process = subprocess.Popen(
            ["sh", "-c", f'exec "$@" {closing}', "sh", *before, *self.command, *self.options],
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if stderr is None else stderr,
            text=True,
        )
        while self.running:
            with contextlib.suppress(ConnectionRefusedError), socket.socket() as client:
                client.connect(("127.0.0.1", self.port))
                return
            time.sleep(0.01)
        raise AssertionError(f"the daemon ended with {self._process.returncode}")

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 20) -> int:
        """End it by a signal; its exit status."""
        assert self._process is not None
        if self.running:
            os.kill(self.pid, number)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float = 20) -> int:
        """Wait for its end; its exit status."""
        assert self._process is not None
        return self._process.wait(timeout)

    def logged(self, pattern: str, timeout: float = 10) -> str:
        """Wait for a line of the log, not yet waited for, that matches; the line."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line with {pattern!r} in the log: {self.log}") from None
            if line is None:
                raise AssertionError(f"the daemon ended before it logged {pattern!r}: {self.log}")
            if re.search(pattern, line):
                return line

    async def until_logged(self, pattern: str) -> str:
        """logged(), for a test whose own connections go on meanwhile."""
        return await asyncio.to_thread(self.logged, pattern)

    def _read_log(self, process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self.log.append(line.rstrip())
                lines.put(line.rstrip())
        lines.put(None)

    # What clients do

    async def request(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request; body: a JSON object, or bytes, or whatever aiohttp sends."""
        sent = {"json": body} if isinstance(body, dict | list) else {"data": body}
        timeout = aiohttp.ClientTimeout(total=20)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(method, self.url + path, headers=headers, **sent) as response,
        ):
            return Answer(response.status, response.headers, await response.text())

    async def put(self, path: str, payload: Any, **headers: str) -> Answer:
        """Publish."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request("PUT", path, payload, named)

    def write_acl(self, acl: Acl | str) -> None:
        """Put users, or any text, into the ACL file, which is read at the next start or reload."""
        self.acl_path.write_text(acl if isinstance(acl, str) else yaml.safe_dump(dict(acl)))

    async def reload(self, acl: Acl | str) -> str:
        """Put another ACL file in place, and wait until it is taken over or refused; what the log says."""
        self.write_acl(acl)
        self.signal(signal.SIGHUP)
        return await self.until_logged(
            rf"{re.escape(str(self.acl_path))}: (\d+ users|not taken over|is missing)"
        )

    async def put_all(self, path: str, payloads: Iterable[Any]) -> Answer:
        """Publish several events in one request."""
        lines = "".join(f"{json.dumps(payload)}\n" for payload in payloads)
        answer = await self.put(path, lines.encode(), Content_Type="application/x-ndjson")
        assert answer.status == 202, answer.text
        return answer

    async def replay(self, path: str, **headers: str) -> tuple[str | None, list[Any]]:
        """What X-Replay says, and the "n" of each event that is replayed."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.subscriber(path, named) as stream:
            assert stream.status == 200, stream.raw_head
            return stream.headers.get("X-Replay"), [event["n"] for event in await stream.replay()]

    def subscriber(self, path: str, headers: Mapping[str, str] | None = None, version: str = "1.1") -> Stream:
        """A stream, to be used in `async with`."""
        return Stream("127.0.0.1", self.port, path, headers or {}, version)


StartDaemon = Callable[..., Daemon]  # the fixture start_daemon
