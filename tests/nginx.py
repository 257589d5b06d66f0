"""A real nginx: with any servers, or before the daemon with the `location` block of docs/operating.md."""

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import trustme

from daemon import ROOT

BINARY = shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
DOCUMENTED_UPSTREAM = "http://127.0.0.1:2069;"
CONFIGURATION = """
daemon off;
{user}
worker_processes 1;
pid {directory}/pid;
error_log {log} notice;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    {servers}
}}
"""
PLAIN_AND_TLS = """
server {{
    listen 127.0.0.1:{port} reuseport;
    {location}
}}
server {{
    listen 127.0.0.1:{tls_port} ssl reuseport;
    ssl_certificate {directory}/crt;
    ssl_certificate_key {directory}/key;
    {location}
}}
"""


def documented_location() -> str:
    """The block of nginx's configuration in docs/operating.md."""
    block: str
    guide = (ROOT / "docs/operating.md").read_text()
    (block,) = re.findall(r"^```nginx\n(.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    assert block.count(DOCUMENTED_UPSTREAM) == 1
    return block


def reserved_port() -> socket.socket:
    """A socket that keeps a free port of 127.0.0.1 from others, and lets nginx listen on it (reuseport)."""
    reserving = socket.socket()
    reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserving.bind(("127.0.0.1", 0))
    return reserving


class NginxProcess:
    """nginx with any servers, at first none. To be used in `with`.

    directory: for its configuration, log and other files.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = directory / "error.log"
        files = ["-p", directory, "-c", directory / "nginx.conf", "-e", self._log]
        self._command = [str(BINARY), *map(str, files)]
        self.configure("")

    def __enter__(self) -> Self:
        assert BINARY is not None, "nginx is not installed"
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
        try:
            self._wait_until_started()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        print(self.log)  # pytest shows it if the test has failed

    def configure(self, servers: str) -> None:
        """Put its `server` blocks in place, for the next start or reload."""
        configuration = CONFIGURATION.format(
            user="user root root;" if os.geteuid() == 0 else "",  # or its workers could not read these files
            directory=self._directory,
            log=self._log,
            servers=servers,
        )
        (self._directory / "nginx.conf").write_text(configuration)

    def check(self) -> None:
        """`nginx -t`, which must find nothing wrong with the configuration."""
        checked = subprocess.run([*self._command, "-t"], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        assert "[warn]" not in checked.stderr

    def reload(self, port: int) -> None:
        """`systemctl reload nginx`, until it listens on this port."""
        self._process.send_signal(signal.SIGHUP)
        self.wait_for(port)

    @property
    def log(self) -> str:
        """What it has complained of."""
        return self._log.read_text() if self._log.exists() else ""

    def wait_for(self, port: int) -> None:
        """Wait until it listens on this port."""
        self._wait_until(partial(listens, port), f"listen on {port}")

    def _wait_until_started(self) -> None:
        """Wait until it can take signals."""
        self._wait_until(lambda: "start worker process " in self.log, "start")

    def _wait_until(self, happened: Callable[[], bool], what: str, timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        while not happened():
            assert self._process.poll() is None, f"nginx has ended: {self.log}"
            assert time.monotonic() < deadline, f"nginx does not {what}: {self.log}"
            time.sleep(0.01)

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class Nginx(NginxProcess):
    """On two ports of its own, one with TLS. upstream: the port of the daemon on 127.0.0.1."""

    def __init__(self, directory: Path, upstream: int) -> None:
        super().__init__(directory)
        self._reserved = reserved_port(), reserved_port()
        self.port, self.tls_port = (reserving.getsockname()[1] for reserving in self._reserved)
        self._authority = trustme.CA()
        pair = self._authority.issue_cert("127.0.0.1")
        pair.cert_chain_pems[0].write_to_path(directory / "crt")
        pair.private_key_pem.write_to_path(directory / "key")
        self.configure(
            PLAIN_AND_TLS.format(
                directory=directory,
                port=self.port,
                tls_port=self.tls_port,
                location=documented_location().replace(DOCUMENTED_UPSTREAM, f"http://127.0.0.1:{upstream};"),
            )
        )

    def trusting(self) -> ssl.SSLContext:
        """A client's TLS context that trusts its certificate."""
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context

    def _wait_until_started(self) -> None:
        for port in (self.port, self.tls_port):
            self.wait_for(port)

    def _stop(self) -> None:
        try:
            super()._stop()
        finally:
            for reserving in self._reserved:
                reserving.close()


def listens(port: int) -> bool:
    """Whether somebody listens on a port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
