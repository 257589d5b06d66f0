"""Behind nginx, as docs/operating.md configures it: who publishes, what arrives, how streams flow and end."""

import asyncio
import contextlib
import json
import ssl
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import Answer, Daemon, StartDaemon
from nginx import BINARY, Nginx
from wire import TIMEOUT

BehindNginx = Callable[..., tuple[Daemon, Nginx]]
LISTED, PROXY, OTHER = "127.0.0.2", "127.0.0.1", "127.0.0.3"  # a publisher, where nginx asks from, a stranger


@pytest.fixture
def behind_nginx(start_daemon: StartDaemon, tmp_path: Path) -> Iterator[BehindNginx]:
    """Starts a daemon that lets LISTED publish, with nginx before it; trusted: that it believes nginx."""
    if BINARY is None:
        pytest.skip("nginx is not installed")
    with contextlib.ExitStack() as running:

        def start(*, payloader: str = LISTED, trusted: bool = True, **server: Any) -> tuple[Daemon, Nginx]:
            server["trusted_proxies"] = [PROXY] if trusted else []
            clients = {"payloaders": [payloader], "secure_topics": ["deploy"]}
            daemon = start_daemon({"server": server, "clients": clients})
            return daemon, running.enter_context(Nginx(tmp_path, daemon.port))

        yield start


async def ask(
    port: int,
    target: str,
    *headers: str,
    source: str = LISTED,
    body: str = "{}",
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
) -> Answer:
    """A publish as it is written here, byte by byte, from an address of 127.0.0.0/8; what is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, local_addr=(source, 0))
    head = [f"PUT {target} HTTP/1.1", f"Host: {host}:{port}", "Connection: close", *headers]
    writer.write("\r\n".join([*head, f"Content-Length: {len(body)}", "", body]).encode())
    async with asyncio.timeout(TIMEOUT):
        answer = await reader.read()
    writer.close()
    lines, _, text = answer.decode().partition("\r\n\r\n")
    status, *fields = lines.split("\r\n")
    return Answer(int(status.split()[1]), dict(field.split(": ", 1) for field in fields), text)


async def test_the_publishers_own_address_counts(behind_nginx: BehindNginx) -> None:
    """nginx reports it, and the server trusts nginx, which itself is no publisher."""
    daemon, nginx = behind_nginx()
    assert (await ask(nginx.port, "/a")).status == 202
    refused = await ask(nginx.port, "/a", source=OTHER)
    assert refused.status == 403
    assert refused.text.startswith(f"{OTHER} may not publish here")
    assert (await ask(daemon.port, "/a", source=PROXY)).status == 403


@pytest.mark.parametrize(("payloader", "status"), [(PROXY, 202), (LISTED, 403)])
async def test_the_proxys_address_counts_if_it_is_not_trusted(
    behind_nginx: BehindNginx, payloader: str, status: int
) -> None:
    """For everybody: docs/operating.md warns of a proxy that may publish."""
    _, nginx = behind_nginx(payloader=payloader, trusted=False)
    assert (await ask(nginx.port, "/a", source=LISTED)).status == status
    assert (await ask(nginx.port, "/a", source=OTHER)).status == status


FORGED = [
    [f"X-Forwarded-For: {LISTED}"],
    [f"X-Forwarded-For: {PROXY}", f"X-Forwarded-For: {LISTED}"],
    [f"X_Forwarded_For: {LISTED}"],
    [f"Forwarded: for={LISTED}"],
    [f"X-Forwarded-For: {LISTED}", f"forwarded: for={LISTED}", f"X-Real-IP: {LISTED}"],
    [f"X-Forwarded-For: {LISTED}", "Connection: X-Forwarded-For"],
]


@pytest.mark.parametrize("headers", FORGED, ids=str)
async def test_what_a_client_says_of_its_address_is_not_passed_on(
    behind_nginx: BehindNginx, headers: list[str]
) -> None:
    """A stranger gains nothing, and a publisher loses nothing, whatever it says."""
    _, nginx = behind_nginx()
    refused = await ask(nginx.port, "/a", *headers, source=OTHER)
    assert refused.status == 403
    assert refused.text.startswith(f"{OTHER} may not publish here")
    lies = [header.replace(LISTED, OTHER) for header in headers]
    assert (await ask(nginx.port, "/a", *lies)).status == 202


# the target of a request -> the path of its event
TARGETS = {
    "/d%C3%A9licieuse": "/délicieuse",
    "/%64eliciousness%20%25": "/deliciousness %",
    "/a%2Fb": "/a/b",
    "//a//b/": "/a/b",
    "/a/../b": "/a/../b",
    "/a/./b%2E%2E": "/a/./b..",
    "/a+b;c=1?query": "/a+b;c=1",
    "/a%3Fb%23c": "/a?b#c",
}


async def test_paths_arrive_as_they_were_sent(behind_nginx: BehindNginx) -> None:
    """Encoded, with double slashes and dots: nginx changes nothing of them."""
    _, nginx = behind_nginx()
    for target, path in TARGETS.items():
        answer = await ask(nginx.port, target, "Accept: application/json")
        assert (answer.status, json.loads(answer.text).get("path")) == (202, path), answer.text
    for target in ("/a,b", "/a%2Cb"):
        refused = await ask(nginx.port, target)
        assert refused.status == 400
        assert "comma" in refused.text


async def next_object(reader: asyncio.StreamReader, key: str) -> Any:
    """The value of a key in the next object that has it, in a line: nginx makes chunks as it likes."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            line = await reader.readline()
            assert line.endswith(b"\n"), "the stream has ended"
            if line.startswith(b"{") and key in (value := json.loads(line)):
                return value[key]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
async def test_a_stream_is_not_buffered(behind_nginx: BehindNginx, version: str, encrypted: bool) -> None:
    """The ping comes at once, and each event though no other line follows it."""
    _, nginx = behind_nginx(ping_interval="1h")
    port, tls = (nginx.tls_port, nginx.trusting()) if encrypted else (nginx.port, None)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(f"GET /d%C3%A9licieuse HTTP/{version}\r\nHost: x\r\n\r\n".encode())
    await next_object(reader, "stillalive")
    for n in range(3):
        await ask(nginx.port, "/d%C3%A9licieuse", body=f'{{"n": {n}}}')
        assert await next_object(reader, "n") == n
    writer.close()


async def test_a_streams_early_end_is_seen(behind_nginx: BehindNginx) -> None:
    """curl exits with 18, as it does without a proxy."""
    daemon, nginx = behind_nginx()
    curl = await asyncio.create_subprocess_exec(
        "curl", "-sN", f"http://127.0.0.1:{nginx.port}/a", stdout=PIPE
    )
    assert curl.stdout is not None
    async with asyncio.timeout(TIMEOUT):
        assert b"stillalive" in await curl.stdout.readline()
        assert await asyncio.to_thread(daemon.stop) == 0
        await curl.communicate()
    assert curl.returncode == 18


async def test_a_body_may_be_as_large_as_without_nginx(behind_nginx: BehindNginx) -> None:
    """One byte more is refused by the server, not by nginx."""
    _, nginx = behind_nginx()
    largest = json.dumps({"x": "x" * (102_400 - 9)})
    assert (await ask(nginx.port, "/a", body=largest)).status == 202
    refused = await ask(nginx.port, "/a", body=f"{largest} ")
    assert refused.status == 413
    assert "the 102400 bytes that are accepted" in refused.text


async def test_credentials_and_the_demand_for_them_pass(behind_nginx: BehindNginx) -> None:
    """The answers are those that the server gives without a proxy."""
    daemon, nginx = behind_nginx()
    for headers, status in (([], 401), (["Authorization: Basic YTpi"], 403)):
        answer = await ask(nginx.port, "/deploy", *headers)
        direct = await ask(daemon.port, "/deploy", *headers)
        assert answer.status == direct.status == status
        assert answer.text == direct.text
        assert answer.headers.get("WWW-Authenticate") == direct.headers.get("WWW-Authenticate")


async def test_a_page_of_the_proxys_own_site_may_publish(behind_nginx: BehindNginx) -> None:
    """The Host that the browser asked for is passed on, with its port; another site's page stays outside."""
    _, nginx = behind_nginx()
    assert (await ask(nginx.port, "/a", f"Origin: http://127.0.0.1:{nginx.port}")).status == 202
    assert (await ask(nginx.port, "/a", "Origin: http://127.0.0.1")).status == 403


async def test_a_page_under_the_proxys_name_may_publish_if_the_name_is_listed(
    behind_nginx: BehindNginx,
) -> None:
    """The server sees the name in Host, and cannot know by itself that it is one of its own."""
    _, nginx = behind_nginx(hosts=["pubsub.example.org"])
    for name, status in (("pubsub.example.org", 202), ("evil.example", 403)):
        own_page = f"Origin: http://{name}:{nginx.port}"
        assert (await ask(nginx.port, "/a", own_page, host=name)).status == status


async def test_nginx_may_do_the_tls(behind_nginx: BehindNginx) -> None:
    """The publisher's address counts, and a page of the site may publish."""
    _, nginx = behind_nginx()
    own_page = f"Origin: https://127.0.0.1:{nginx.tls_port}"
    assert (await ask(nginx.tls_port, "/a", own_page, tls=nginx.trusting())).status == 202
    assert (await ask(nginx.tls_port, "/a", tls=nginx.trusting(), source=OTHER)).status == 403
