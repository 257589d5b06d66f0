"""Where it listens: IPv6 and IPv4 together, names, and sockets in the file system."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import StartError
from core.http.unix_socket import UnixSocket
from core.settings import ServerConfig
from daemon import Daemon, StartDaemon

ALL_OF_IPV4 = "0.0.0.0"  # noqa: S104 (what it is)
# server.bind, and which addresses of it take IPv4 as well
BINDS = [
    ("::", ["::"]),
    (["::", "unix:/run/x"], ["::"]),
    (["::", "::1"], ["::"]),
    (["0:0::0", "unix:/run/x"], ["0:0::0"]),
    (["::", ALL_OF_IPV4], []),
    (["::", "127.0.0.1"], []),
    (["::", "localhost"], []),
    ("::1", []),
    (ALL_OF_IPV4, []),
]


@pytest.mark.parametrize(("bind", "expected"), BINDS)
def test_all_of_ipv6_takes_ipv4_as_well(bind: str | list[str], expected: list[str]) -> None:
    """Unless an address of IPv4, or a name, which may have one, is listed beside it."""
    server = ServerConfig.model_validate({"bind": bind})
    assert [address for address in server.bind if server.takes_ipv4_too(address)] == expected


async def reaches(daemon: Daemon, address: str) -> bool:
    """Whether a publish to an address of this machine is answered."""
    try:
        reader, writer = await asyncio.open_connection(address, daemon.port)
    except OSError:
        return False
    writer.write(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    async with asyncio.timeout(10):
        status = await reader.readline()
    writer.close()
    return b" 202 " in status


@pytest.mark.parametrize(
    ("bind", "reached", "loop"),
    [
        ("::", {"::1", "127.0.0.1"}, "uvloop"),
        ("::", {"::1", "127.0.0.1"}, "asyncio"),
        (["::", ALL_OF_IPV4], {"::1", "127.0.0.1"}, "uvloop"),
        (["::", "127.0.0.2"], {"::1"}, "uvloop"),
        ("::1", {"::1"}, "uvloop"),
    ],
)
async def test_the_addresses_that_are_listed_are_served(
    start_daemon: StartDaemon, bind: str | list[str], reached: set[str], loop: str
) -> None:
    """And no others; a publisher over IPv4 has its own address, whichever socket it came over."""
    config = {"server": {"bind": bind}, "clients": {"payloaders": ["127.0.0.1", "::1"]}}
    server = start_daemon(config, options=["--loop", loop])
    if isinstance(bind, list):
        server.logged("serves http://")  # the second one, too
    assert {address for address in ("::1", "127.0.0.1") if await reaches(server, address)} == reached


async def test_the_log_names_both(start_daemon: StartDaemon) -> None:
    """As --check does."""
    server = start_daemon({"server": {"bind": "::"}})
    server.logged(rf"serves http://0\.0\.0\.0:{server.port}$")
    assert any(line.endswith(f"serves http://[::]:{server.port}") for line in server.log)


# Sockets in the file system


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    """A server's socket whose accept queue is full."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "socket"))
        server.listen(0)
        client.connect(str(tmp_path / "socket"))
        yield server


def test_a_server_that_is_too_busy_to_accept_keeps_its_socket(
    listening: socket.socket, tmp_path: Path
) -> None:
    """The queue of those who wait to be accepted is full: that is no remnant."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.connect(str(tmp_path / "socket"))
    with pytest.raises(StartError, match=r"^cannot listen on unix:.*/socket: Address already in use$"):
        UnixSocket(tmp_path / "socket", 1)
    assert (tmp_path / "socket").exists()


def test_a_remnant_is_replaced(listening: socket.socket, tmp_path: Path) -> None:
    """Nobody listens any more; the new one is removed at its end, and nobody else's."""
    path = tmp_path / "socket"
    listening.close()
    first = UnixSocket(path, 1)
    path.unlink()
    second = UnixSocket(path, 1)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


# what is there -> what is said of it
IN_THE_WAY = {
    "a file": "a file is there that is no socket: expected another path",
    "a directory": "a file is there that is no socket: expected another path",
    "a socket of another kind": "Protocol wrong type for socket",
    "a link to nowhere": "Address already in use",
    "no directory": "No such file or directory",
    "a long path": "AF_UNIX path too long",
}


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_whatever_else_is_there_stays_and_stops_the_start(tmp_path: Path, name: str) -> None:
    """One line that says what is in the way."""
    path = tmp_path / "socket"
    other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if name == "a file":
        path.write_text("precious")
    elif name == "a directory":
        path.mkdir()
    elif name == "a socket of another kind":
        other.bind(str(path))
    elif name == "a link to nowhere":
        path.symlink_to(tmp_path / "nowhere")
    elif name == "no directory":
        path = tmp_path / "none" / "socket"
    else:
        path = tmp_path / ("x" * 200)
    there = path.is_symlink() or path.exists()
    with pytest.raises(StartError) as refused:
        UnixSocket(path, 1)
    assert str(refused.value) == f"cannot listen on unix:{path}: {IN_THE_WAY[name]}"
    assert (path.is_symlink() or path.exists()) == there
    other.close()


def test_a_socket_that_may_not_be_asked_is_left_alone(
    tmp_path: Path, listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether somebody listens cannot be told, so nothing is taken over."""

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(StartError, match=r"Permission denied$"):
        UnixSocket(tmp_path / "socket", 1)
    assert (tmp_path / "socket").exists()


async def test_a_file_in_the_way_stops_the_start(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """The daemon itself: exit 1, one line, and the file is as it was."""
    path = tmp_path / "precious"
    path.write_text("precious")
    server = Daemon(tmp_path, {"server": {"bind": [f"unix:{path}", "127.0.0.1"]}})
    with pytest.raises(AssertionError, match=f"cannot listen on unix:{path}: a file is there"):
        server.start()
    assert server.wait() == 1
    assert path.read_text() == "precious"
