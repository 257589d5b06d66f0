"""A real nginx before the daemon, configured with the `location` block of README.md as it stands there."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import time
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
}}
"""


def documented_location() -> str:
    """The block of nginx's configuration in README.md."""
    block: str
    (block,) = re.findall(
        r"^```nginx\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert block.count(DOCUMENTED_UPSTREAM) == 1
    return block


def reserved_port() -> socket.socket:
    """A socket that keeps a free port of 127.0.0.1 from others, and lets nginx listen on it (reuseport)."""
    reserving = socket.socket()
    reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    reserving.bind(("127.0.0.1", 0))
    return reserving


class Nginx:
    """nginx on two ports of its own, one with TLS. To be used in `with`.

    directory: for its configuration, log and other files. upstream: the port of the daemon on 127.0.0.1.
    """

    def __init__(self, directory: Path, upstream: int) -> None:
        self._directory = directory
        self._upstream = upstream
        self._log = directory / "error.log"
        self._reserved = reserved_port(), reserved_port()
        self.port, self.tls_port = (reserving.getsockname()[1] for reserving in self._reserved)
        self._authority = trustme.CA()

    def __enter__(self) -> Self:
        assert BINARY is not None, "nginx is not installed"
        pair = self._authority.issue_cert("127.0.0.1")
        pair.cert_chain_pems[0].write_to_path(self._directory / "crt")
        pair.private_key_pem.write_to_path(self._directory / "key")
        configuration = CONFIGURATION.format(
            user="user root root;" if os.geteuid() == 0 else "",  # or its workers could not read these files
            directory=self._directory,
            log=self._log,
            port=self.port,
            tls_port=self.tls_port,
            location=documented_location().replace(
                DOCUMENTED_UPSTREAM, f"http://127.0.0.1:{self._upstream};"
            ),
        )
        (self._directory / "nginx.conf").write_text(configuration)
        self._process = subprocess.Popen(
            [BINARY, "-p", self._directory, "-c", self._directory / "nginx.conf", "-e", self._log],
            stdin=subprocess.DEVNULL,
        )
        try:
            for port in (self.port, self.tls_port):
                self._wait_for(port)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        print(self.log)  # pytest shows it if the test has failed

    def trusting(self) -> ssl.SSLContext:
        """A client's TLS context that trusts its certificate."""
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context

    @property
    def log(self) -> str:
        """What it has complained of."""
        return self._log.read_text() if self._log.exists() else ""

    def _wait_for(self, port: int, timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except ConnectionRefusedError:
                assert self._process.poll() is None, f"nginx has ended: {self.log}"
                assert time.monotonic() < deadline, f"nginx does not listen: {self.log}"

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        finally:
            for reserving in self._reserved:
                reserving.close()
