"""Starting the daemon: the command line, the configuration and its errors, signals."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daemon import ROOT, Daemon, StartDaemon

# A configuration as PyPubSub 0.7 installations have it
OF_0_7 = """
server:
  port: 2069
  bind: 0.0.0.0
  max_payload_size:          102400
  backlog:
    size:           1000
    max_age:      48h
    storage: backlog.json
clients:
  payloaders:
    - 127.0.0.1/24
    - 10.0.0.1/24
    - 2001:db8::/32
  oldschoolers:
    - svnwcsub
  secure_topics: ~
  ldap:
    uri: ldaps://ldap.example.org
    user_dn: uid=%s,ou=people,dc=example,dc=org
    base_scope: dc=example,dc=org
    membership_patterns:
      - member=uid=%s,ou=people,dc=example,dc=org
    acl:
      "cn=syadmins,ou=teams,dc=example,dc=org":
        - accounts
sqs:
  defaultQueue:
    queue: myQueueName.fifo
    region: us-east-1
    delete: true
"""


def run(
    directory: Path, *arguments: str, config: str | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run pypubsub.py to its end, with a configuration file."""
    if config is not None:
        (directory / "pypubsub.yaml").write_text(config)
    return subprocess.run(
        [sys.executable, ROOT / "pypubsub.py", *arguments],
        cwd=directory,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_the_version(tmp_path: Path) -> None:
    """--version, the same as in pyproject.toml."""
    ended = run(tmp_path, "--version")
    assert ended.returncode == 0
    version = ended.stdout.removeprefix("PyPubSub ").strip()
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()


def test_check_says_what_would_be_served(tmp_path: Path) -> None:
    """--check of a 0.7 file: exit 0, addresses, publishers, directory and queues."""
    ended = run(tmp_path, "--check", config=OF_0_7)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "serves http://0.0.0.0:2069\n" in ended.stdout
    assert "10.0.0.1/24" in ended.stdout
    assert "directory: ldaps://ldap.example.org\n" in ended.stdout
    assert "sqs defaultQueue: myQueueName.fifo in us-east-1, whose items are deleted\n" in ended.stdout


def test_check_says_what_is_kept(tmp_path: Path) -> None:
    """The backlog's bounds and place; settings without effect; a directory that is not there is a problem."""
    backlog = "{size: 5, max_age: 1m, storage: %s}"
    here = run(tmp_path, "--check", config=f"server: {{backlog: {backlog % 'backlog.db'}}}")
    assert here.returncode == 0
    assert "backlog: 5 public and as many private events, for 60 seconds at most, backlog.db\n" in here.stdout
    assert not (tmp_path / "backlog.db").exists()
    bounded = (
        "{size: 5, max_bytes: 1 MiB, storage: b.db, keep: {ci/logs: {max_age: 1d}, audit: {max_age: 0}}}"
    )
    kept = run(tmp_path, "--check", config=f"server: {{backlog: {bounded}}}").stdout
    assert "backlog: 5 public and as many private events, 1 MiB of each at most, b.db\n" in kept
    assert (
        "backlog of ci/logs: for 86400 seconds at most\nbacklog of audit: until others push it out\n" in kept
    )
    there = run(tmp_path, "--check", config=f"server: {{backlog: {backlog % 'nowhere/b.db'}}}")
    assert there.returncode == 1
    assert "server.backlog.storage: nowhere/b.db: there is no directory nowhere" in there.stderr
    idle = run(tmp_path, "--check", config="server: {backlog: {storage: b.db}}").stdout
    assert "backlog: none\n" in idle
    assert "server.backlog.storage: has no effect while server.backlog.size is 0" in idle
    memory = run(tmp_path, "--check", config="server: {backlog: {size: 1, memory: 1 MiB}}").stdout
    assert "backlog: 1 public and as many private events, 1024 MiB of each at most, in memory\n" in memory
    assert "server.backlog.memory: has no effect without server.backlog.storage" in memory


def test_wrong_backlog_settings_are_explained(tmp_path: Path) -> None:
    """With what is accepted."""
    settings = "{size: -1, max_age: a week, storage: dir/, memory: none, sice: 1}"
    lines = run(tmp_path, "--check", config=f"server: {{backlog: {settings}}}").stderr.splitlines()
    assert len(lines) == 5
    for key, expected in {
        "size": "greater than or equal to 0",
        "max_age": "a number with a unit (45s, 30m, 12h, 7d)",
        "storage": "the path of a file",
        "memory": "a number with a unit (64 KiB, 1 MiB)",
        "sice": "did you mean server.backlog.size?",
    }.items():
        assert [line for line in lines if f"server.backlog.{key}: " in line and expected in line], lines


def test_the_shipped_configuration_is_sound(tmp_path: Path) -> None:
    """No problem and no warning; every key is in it, with its default."""
    ended = run(ROOT, "--check")
    assert ended.returncode == 0
    assert "warning" not in ended.stdout


@pytest.mark.parametrize("arguments", [[], ["--check"]])
def test_every_problem_of_a_file_is_reported_at_once(tmp_path: Path, arguments: list[str]) -> None:
    """Each with the key's path, what was found and what is accepted; the key that was probably meant."""
    ended = run(
        tmp_path,
        *arguments,
        config="""
server:
  port: high
  max_payload_sise: 5
  ping_interval: 5 parsecs
  write_timeout: 0
  subscriber_buffer: -1
  access_log: perhaps
  bind: []
  payloaders: [127.0.0.1]
  max_connections: "many"
  cors_origins: ["https://example.org/"]
clients:
  payloaders: [10.0.0.0/8, 10.0.0.0/99]
  secure_topics: [2024]
  colour: green
servers: 1
""",
    )
    assert ended.returncode == (1 if arguments else 2)
    lines = ended.stderr.splitlines()
    expected = [
        "server.port: expected a port from 1 to 65535 (0: any free one), got 'high'",
        "server.max_payload_sise: unknown key, did you mean server.max_payload_size?",
        "server.ping_interval: expected a number of seconds, or a number with a unit (45s, 30m, 12h, 7d), "
        "got '5 parsecs'",
        "server.write_timeout: expected a number of seconds",
        "server.subscriber_buffer: expected a number of bytes, or a number with a unit (64 KiB, 1 MiB), "
        "got -1",
        "server.access_log: expected true or false, got 'perhaps'",
        "server.bind: expected",
        "server.payloaders: unknown key, did you mean clients.payloaders?",
        "server.max_connections: expected a whole number, got 'many'",
        "server.cors_origins[0]: expected an origin",
        'clients.payloaders[1]: expected a network such as 10.0.0.0/8, an address, or "unix", '
        "got '10.0.0.0/99'",
        "clients.secure_topics[0]: expected text (in quotes if it looks like a number), got 2024",
        "clients.colour: unknown key; known here: ldap, oldschoolers, payloader_certs, payloaders, "
        "secure_topics, wrong_credentials",
        "servers: unknown key, did you mean server?",
    ]
    for line in expected:
        assert any(found.startswith(f"pypubsub.yaml: {line}") for found in lines), (line, lines)
    assert len(lines) == len(expected)


BROKEN_FILES = {
    "not YAML": ("server: [", "line 1|line 2"),
    "a list": ("- server", "expected keys"),
    "text": ("hello", "expected keys"),
    "a tab": ("server:\n\tport: 1", "line 2"),
    "an unknown tag": ("server: !!python/object:os.system {}", "line 1"),
    "a control character": ("server: \x01", "not YAML"),
    "a section within itself": ("server: &x\n  port: *x\n", "not YAML"),
    "a boolean that is none": ("server: {access_log: !!bool maybe}", "not YAML"),
    "a number that is none": ('server: {port: !!int ""}', "not YAML"),
    "a time that is none": ("server: {port: !!timestamp foo}", "not YAML"),
    "an empty User-Agent": ('clients: {oldschoolers: [""]}', "text that is not empty"),
    "an empty topic": ('clients: {secure_topics: [""]}', "a topic"),
    "a topic with a slash": ("clients: {secure_topics: [a/b]}", "a topic"),
    "an origin with a path": ('server: {cors_origins: ["https://a?x"]}', "an origin"),
    "no address": ("server: {bind: []}", "a list that is not empty"),
    "an address with a NUL": ('server: {bind: "127.0.0.1\\0x"}', "an address"),
    "a size beyond all bounds": ("server: {max_payload_size: 99999999999999999999}", "1 TiB|KiB"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_a_broken_file_is_one_clear_line(tmp_path: Path, name: str) -> None:
    """Exit 2, the file's name, the line where there is one, no traceback."""
    content, said = BROKEN_FILES[name]
    ended = run(tmp_path, config=content)
    assert ended.returncode == 2
    assert ended.stderr.startswith("pypubsub.yaml: ")
    assert ended.stderr.count("\n") == 1
    assert any(part in ended.stderr for part in said.split("|"))


@pytest.mark.parametrize(
    "password", ["*hunter2", "!hunter2", "!!int hunter2", "&x", "@hunter2", "hunter2: x"]
)
def test_a_broken_acl_file_is_not_quoted(tmp_path: Path, password: str) -> None:
    """A password that YAML takes for something else is not shown, neither by --check nor at the start."""
    (tmp_path / "pypubsub_acl.yaml").write_text(f"alice:\n  password: {password}hunter2\n  *hunter2")
    for arguments in ([], ["--check"]):
        ended = run(tmp_path, *arguments, config="")
        assert ended.returncode in (1, 2)
        assert ended.stderr.startswith("pypubsub_acl.yaml: ")
        assert "hunter2" not in ended.stderr + ended.stdout


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    """Exit 2; the same for a directory, and for a broken ACL file."""
    ended = run(tmp_path, "--config", "elsewhere.yaml")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("elsewhere.yaml: cannot be read: No such file")
    assert run(tmp_path, "--config", ".").returncode == 2
    (tmp_path / "acl.yaml").write_text("a: [")
    assert run(tmp_path, "--acl", "acl.yaml", config="").returncode == 2


def test_an_empty_file_means_defaults(tmp_path: Path) -> None:
    """As do empty sections and keys; that nobody may publish is said."""
    nulls = "server: {port: ~, tls: ~, max_payload_size: ~}\nclients: {payloaders: ~}\n"
    for content in ("", "server:\nclients:\n", nulls):
        ended = run(tmp_path, "--check", config=content)
        assert ended.returncode == 0
        assert "serves http://0.0.0.0:2069" in ended.stdout
        assert "nobody may publish" in ended.stdout


def test_a_port_in_use_is_one_clear_line(server: Daemon, tmp_path: Path) -> None:
    """Exit 1, and which address it is."""
    ended = run(tmp_path, config=f"server: {{bind: 127.0.0.1, port: {server.port}}}")
    assert ended.returncode == 1
    assert f"cannot listen on http://127.0.0.1:{server.port}: Address already in use" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_name_that_cannot_be_an_address_is_one_clear_line(tmp_path: Path) -> None:
    """Exit 1, no traceback."""
    for bind in ("exam..ple", "x" * 70):
        ended = run(tmp_path, config=f"server: {{bind: {bind}, port: 0}}")
        assert ended.returncode == 1
        assert f"cannot listen on http://{bind}:0" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert run(tmp_path, "--acl", "x" * 300, config="").returncode == 2


def test_a_certificate_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    """Exit 1, also with --check."""
    config = "server: {bind: 127.0.0.1, port: 0, tls: {port: 0, cert: no.crt, key: no.key}}"
    for arguments in ([], ["--check"]):
        ended = run(tmp_path, *arguments, config=config)
        assert ended.returncode == 1
        assert "server.tls.cert: no.crt: No such file or directory" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_problems_of_both_files_are_reported_together(tmp_path: Path) -> None:
    """And what would be served is said although the certificate cannot be used."""
    (tmp_path / "pypubsub_acl.yaml").write_text("alice: [")
    ended = run(tmp_path, "--check", config="server: {port: high}")
    assert ended.returncode == 1
    assert [line.partition(":")[0] for line in ended.stderr.splitlines()] == [
        "pypubsub.yaml",
        "pypubsub_acl.yaml",
    ]
    (tmp_path / "pypubsub_acl.yaml").unlink()
    ended = run(tmp_path, "--check", config="server: {tls: {cert: no.crt, key: no.key}}")
    assert ended.returncode == 1
    assert "serves https://0.0.0.0:2070" in ended.stdout
    assert "server.tls.cert: no.crt: No such file" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it(start_daemon: StartDaemon, number: signal.Signals) -> None:
    """Exit 0, and a line for the start and for the stop."""
    server = start_daemon()
    assert server.stop(number) == 0
    assert any("PyPubSub" in line and "serves http://127.0.0.1" in line for line in server.log)
    assert server.log[-1].endswith("stopped")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
async def test_a_reload_keeps_streams_open(start_daemon: StartDaemon, number: signal.Signals) -> None:
    """SIGHUP and SIGUSR2: a line in the log, and everybody goes on."""
    server = start_daemon()
    async with server.subscriber("/a") as stream:
        server.signal(number)
        await server.until_logged(f"{number.name}: .*reload")
        await server.put("/a", {"n": 1})
        assert (await stream.event())["n"] == 1


async def connects(port: int) -> bool:
    """Whether somebody listens."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.close()
    return True


async def test_a_publish_under_way_is_answered_before_it_stops(start_daemon: StartDaemon) -> None:
    """Its event reaches the subscribers; new connections are refused meanwhile."""
    server = start_daemon()
    async with server.subscriber("/last") as stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"PUT /last HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\nExpect: 100-continue\r\n\r\n")
        async with asyncio.timeout(10):
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        server.signal(signal.SIGTERM)
        await server.until_logged("SIGTERM: stopping")
        while await connects(server.port):
            pass  # the port is closed within a turn or two of the server's loop
        writer.write(b'{"n": 1}')
        async with asyncio.timeout(10):
            assert b" 202 " in await reader.readline()
        assert (await stream.event())["n"] == 1
        assert await asyncio.to_thread(server.wait) == 0


async def test_a_request_on_an_open_connection_is_refused_while_stopping(start_daemon: StartDaemon) -> None:
    """503, and the connection closes."""
    server = start_daemon()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    busy_reader, busy = await asyncio.open_connection("127.0.0.1", server.port)
    busy.write(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    writer.write(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(10):
        await busy_reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        server.signal(signal.SIGTERM)
        await server.until_logged("SIGTERM: stopping")
        writer.write(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 503 " in head
        assert b"\r\nRetry-After: " in head
        busy.write(b"{}")
        assert b" 202 " in await busy_reader.readline()
    assert await asyncio.to_thread(server.wait) == 0
    writer.close()
    busy.close()


async def test_readers_who_do_not_read_do_not_hold_up_a_stop(start_daemon: StartDaemon) -> None:
    """It ends within drain_timeout, exit 0, and says how many were cut off."""
    server = start_daemon({"server": {"drain_timeout": 0.2, "subscriber_buffer": "64 MiB"}})
    async with server.subscriber("/a") as stream:
        stream.stop_reading()
        for _ in range(200):
            await server.put("/a", {"filling": "x" * 100_000})
        assert await asyncio.to_thread(server.stop) == 0
    assert any("1 subscribers did not read in time and are cut off" in line for line in server.log)


async def test_a_publisher_who_never_ends_does_not_hold_up_a_stop(start_daemon: StartDaemon) -> None:
    """Half a body, and no more: it is cut off. Subscribers get their events and a proper end all the same."""
    server = start_daemon({"server": {"drain_timeout": 1}})
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    async with server.subscriber("/a") as stream, asyncio.timeout(10):
        await reader.readuntil(b"\r\n\r\n")
        await server.put("/a", {"n": 1})
        assert await asyncio.to_thread(server.stop, timeout=10) == 0
        assert b'{"n": 1,' in await stream.rest()
    assert any("1 publishes did not end in time and are cut off" in line for line in server.log)
    writer.close()


async def test_a_second_signal_ends_it_at_once(start_daemon: StartDaemon) -> None:
    """Whatever is under way."""
    server = start_daemon({"server": {"drain_timeout": "1h"}})
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    async with asyncio.timeout(10):
        await reader.readuntil(b"\r\n\r\n")
    server.signal(signal.SIGTERM)
    await server.until_logged("SIGTERM: stopping")
    assert await asyncio.to_thread(end_of, server, signal.SIGTERM) == 1
    await server.until_logged("SIGTERM again: leaving at once")
    writer.close()


async def test_two_stops_at_once_count_as_one(start_daemon: StartDaemon) -> None:
    """`timeout` sends one to the process, and one to its group: what is under way is not cut off by that."""
    server = start_daemon({"server": {"drain_timeout": "1h"}})
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    async with asyncio.timeout(10):
        await reader.readuntil(b"\r\n\r\n")
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        server.signal(number)
    await server.until_logged(": stopping")
    while await connects(server.port):
        pass
    writer.write(b"{}")
    async with asyncio.timeout(10):
        assert b" 202 " in await reader.readline()
    assert await asyncio.to_thread(server.wait) == 0
    assert not any("leaving" in line for line in server.log)
    writer.close()


def test_a_signal_that_means_nothing_here_is_not_the_end(start_daemon: StartDaemon) -> None:
    """SIGUSR1, which other servers reload or open their logs by."""
    server = start_daemon()
    server.signal(signal.SIGUSR1)
    server.signal(signal.SIGHUP)
    server.logged("SIGHUP: reloading")
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("option", "loop"), [([], "uvloop"), (["--loop", "uvloop"], "uvloop"), (["--loop", "asyncio"], "asyncio")]
)
async def test_the_event_loop_is_chosen(start_daemon: StartDaemon, option: list[str], loop: str) -> None:
    """uvloop, where it is installed."""
    daemon = start_daemon(options=[*(option or ["--loop", "auto"]), "--log-level", "debug"])
    assert any(line.endswith(f"DEBUG pypubsub: event loop: {loop}") for line in daemon.log)
    assert (await daemon.put("/a", {})).status == 202


async def test_it_runs_where_there_is_no_uvloop(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """Unless uvloop is asked for, which is told to be missing."""
    (tmp_path / "uvloop.py").write_text("raise ImportError('none for this platform')")
    daemon = Daemon(tmp_path)
    daemon.environment["PYTHONPATH"] = str(tmp_path)
    daemon.options = ["--log-level", "debug"]
    daemon.start()
    assert any(line.endswith("event loop: asyncio") for line in daemon.log)
    assert daemon.stop() == 0
    refused = run(tmp_path, "--loop", "uvloop", environment={"PYTHONPATH": str(tmp_path)})
    assert refused.returncode == 1
    assert "--loop uvloop: it is not installed: " in refused.stderr
    assert "-m pip install" in refused.stderr
    assert run(tmp_path, "--loop", "trio").returncode == 2


def test_the_log_level_is_chosen(server: Daemon, tmp_path: Path) -> None:
    """--log-level error leaves only the error; an unknown level is refused."""
    config = f"server: {{bind: 127.0.0.1, port: {server.port}}}"
    assert run(tmp_path, config=config).stderr.count("\n") > 1
    assert run(tmp_path, "--log-level", "error", config=config).stderr.count("\n") == 1
    assert run(tmp_path, "--log-level", "loud", config=config).returncode == 2


def test_a_reload_that_is_asked_for_during_the_start_follows_it(tmp_path: Path) -> None:
    """From the first lines of the program on: a signal for which nothing is ready would end the process."""
    server = Daemon(tmp_path)
    try:
        with ThreadPoolExecutor(1) as threads:
            starting = threads.submit(server.start)
            while not starting.done() and not blocks(server, signal.SIGHUP):
                pass
            server.signal(signal.SIGHUP)
            starting.result()
        if not any("SIGHUP: reloading" in line for line in server.log):
            server.logged("SIGHUP: reloading")  # after it serves
    finally:
        assert server.stop() == 0


def test_reloads_that_are_asked_for_without_end_do_not_disturb_a_stop(start_daemon: StartDaemon) -> None:
    """Faster than they are served, before it and to its last moment."""
    server = start_daemon()
    for _ in range(5000):
        server.signal(signal.SIGHUP)
        server.signal(signal.SIGUSR2)
    server.signal(signal.SIGTERM)
    assert end_of(server, signal.SIGHUP, signal.SIGUSR2) == 0
    server.logged("stopped$")
    assert [line for line in server.log if " pypubsub" not in line] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_that_are_asked_for_without_end_end_it(
    number: signal.Signals, start_daemon: StartDaemon
) -> None:
    """By the second one, unless the first has done it meanwhile."""
    server = start_daemon()
    assert end_of(server, number) in {0, 1}
    server.logged(f"{number.name}: stopping")
    assert [line for line in server.log if " pypubsub" not in line] == []


def end_of(server: Daemon, *numbers: signal.Signals) -> int:
    """Send signals until the process ends, for some seconds at most; its exit status."""
    deadline = time.monotonic() + 15
    while server.running and time.monotonic() < deadline:
        for number in numbers:
            server.signal(number)
    return server.wait(timeout=0.1)


def blocks(server: Daemon, number: signal.Signals) -> bool:
    """Whether the process, if it is there already, lets a signal wait."""
    try:
        status = Path(f"/proc/{server.pid}/status").read_text()
    except AssertionError:
        return False
    return bool(int(status.partition("SigBlk:")[2].split()[0], 16) & 1 << number - 1)
