"""Who may publish: networks, proxies, other sites, secure topics."""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from netaddr import IPNetwork
from pydantic import TypeAdapter, ValidationError

from core.auth.networks import MOST_PROXIES, Networks, plain_address, publisher_address
from core.auth.web_pages import WebPages
from core.errors import Refused
from core.settings import Network
from daemon import Daemon, StartDaemon, basic


def networks(*written: str) -> Networks:
    """Networks as the configuration reads them."""
    return Networks(TypeAdapter(list[Network]).validate_python(written))


# network as configured, address of a publisher, whether it is in it
NETWORKS = [
    ("127.0.0.1/24", "127.0.0.77", True),
    ("127.0.0.1/24", "127.0.1.1", False),
    ("127.0.0.1", "127.0.0.1", True),
    ("127.0.0.1", "::ffff:127.0.0.1", True),
    ("::ffff:127.0.0.1", "127.0.0.1", True),
    ("::ffff:10.0.0.0/104", "10.9.9.9", True),
    ("10.0.0.0/8", "::ffff:11.0.0.1", False),
    ("::1", "::1", True),
    ("fe80::/10", "fe80::1%eth0", True),
    ("2001:db8::1/32", "2001:db8:1::", True),
    ("::/0", "127.0.0.1", False),
    ("0.0.0.0/0", "::1", False),
    ("unix", "127.0.0.1", False),
]


@pytest.mark.parametrize(("network", "address", "held"), NETWORKS)
def test_which_addresses_a_network_holds(network: str, address: str, held: bool) -> None:
    """Host bits are fine; IPv4-mapped IPv6 addresses are the IPv4 ones, on either side."""
    assert networks(network).hold(plain_address(address)) is held


def test_a_unix_peer_is_held_only_by_unix() -> None:
    """It has no address, so no network holds it; an unknown address is held by nothing."""
    assert networks("127.0.0.1", "unix").hold("unix")
    assert not networks("0.0.0.0/0", "::/0").hold("unix")
    assert not networks("0.0.0.0/0", "::/0", "unix").hold(None)


@pytest.mark.parametrize(
    "wrong", ["10.0.0.0/33", "localhost", "", "300.1.1.1", 5, None, ["10.0.0.1"], "Unix"]
)
def test_what_is_no_network_is_refused(wrong: object) -> None:
    """The configuration says so."""
    with pytest.raises(ValidationError, match="a network such as"):
        TypeAdapter(Network).validate_python(wrong)


# peer, X-Forwarded-For, Forwarded, the publisher's address; 10.0.0.0/8 and unix are trusted proxies
FORWARDED = [
    ("192.0.2.1", ["127.0.0.1"], ["for=127.0.0.1"], "192.0.2.1"),
    ("10.0.0.1", [], [], "10.0.0.1"),
    ("10.0.0.1", ["192.0.2.1"], [], "192.0.2.1"),
    ("10.0.0.1", ["127.0.0.1, 192.0.2.1"], [], "192.0.2.1"),
    ("10.0.0.1", ["127.0.0.1", "192.0.2.1"], [], "192.0.2.1"),
    ("10.0.0.1", ["127.0.0.1, 192.0.2.1, 10.0.0.2"], [], "192.0.2.1"),
    ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], [], "10.0.0.3"),
    ("10.0.0.1", ["127.0.0.1, nonsense"], [], None),
    ("10.0.0.1", ["127.0.0.1, "], [], None),
    ("10.0.0.1", ["127.0.0.1, unix"], [], None),
    ("10.0.0.1", ["::ffff:192.0.2.1"], [], "192.0.2.1"),
    ("10.0.0.1", ["192.0.2.1:4711"], [], "192.0.2.1"),
    ("10.0.0.1", [], ["for=127.0.0.1, for=192.0.2.1;proto=https;by=10.0.0.1"], "192.0.2.1"),
    ("10.0.0.1", [], ['For="[2001:db8::1]:4711"'], "2001:db8::1"),
    ("10.0.0.1", [], ["for=127.0.0.1", "for=unknown"], None),
    ("10.0.0.1", [], ["for=127.0.0.1, by=10.0.0.1"], None),
    ("10.0.0.1", [], ["for=127.0.0.1;for=192.0.2.1"], None),
    ("10.0.0.1", [], ['for=127.0.0.1, for="x, for=127.0.0.1"'], None),
    ("10.0.0.1", ["192.0.2.1"], ["for=192.0.2.1"], "192.0.2.1"),
    ("10.0.0.1", ["192.0.2.1"], ["for=127.0.0.1"], None),
    ("unix", ["192.0.2.1"], [], "192.0.2.1"),
    (None, ["127.0.0.1"], [], None),
]


@pytest.mark.parametrize(("peer", "x_forwarded_for", "forwarded", "address"), FORWARDED)
def test_whose_address_counts_behind_proxies(
    peer: str | None, x_forwarded_for: list[str], forwarded: list[str], address: str | None
) -> None:
    """The headers are read from the right, through trusted proxies only; nonsense raises nobody's rights."""
    assert publisher_address(peer, networks("10.0.0.0/8", "unix"), x_forwarded_for, forwarded) == address


def test_no_more_than_so_many_proxies_are_believed() -> None:
    """A longer list gives no address: reading it would take longer than the request."""
    proxies = networks("10.0.0.0/8")
    for separate in (False, True):
        for number, address in ((MOST_PROXIES - 1, "192.0.2.1"), (MOST_PROXIES, None)):
            chain = ["192.0.2.1"] + ["10.0.0.2"] * number
            assert (
                publisher_address("10.0.0.1", proxies, chain if separate else [",".join(chain)], [])
                == address
            )
            elements = [f"for={node}" for node in chain]
            assert (
                publisher_address("10.0.0.1", proxies, [], elements if separate else [",".join(elements)])
                == address
            )


class Counting(Networks):
    """Networks that count how often they are asked."""

    asked = 0

    def hold(self, address: str | None) -> bool:
        """Count."""
        self.asked += 1
        return super().hold(address)


@pytest.mark.parametrize("element", ["{}", "for={}"])
def test_forwarding_headers_are_read_no_further_than_to_the_client(element: str) -> None:
    """Whatever a client has put before the entry that the proxy adds: it may be 57 KB."""
    proxies = Counting([IPNetwork("10.0.0.0/8")])
    values = [",".join([element.format("10.0.0.2")] * 700)] * 6 + [element.format("192.0.2.1")]
    headers = ([], values) if "for" in element else (values, [])
    assert publisher_address("10.0.0.1", proxies, *headers) == "192.0.2.1"
    assert proxies.asked == 2


@given(st.lists(st.text(max_size=30), max_size=3), st.lists(st.text(max_size=30), max_size=3))
def test_any_nonsense_in_the_headers_is_read_without_an_error(
    x_forwarded_for: list[str], forwarded: list[str]
) -> None:
    """And gives an address or none."""
    address = publisher_address("10.0.0.1", networks("10.0.0.1"), x_forwarded_for, forwarded)
    assert address is None or IPNetwork(address)


# Sec-Fetch-Site, Origin, whether it is a request from another site; Host is example.org:2069
SITES = [
    (None, None, False),
    ("same-origin", "http://example.org:2069", False),
    ("none", None, False),
    ("same-site", "http://ci.example.org", True),
    ("cross-site", "http://evil.example", True),
    ("cross-site", None, True),
    (None, "http://example.org:2069", False),
    (None, "https://EXAMPLE.org:2069", False),
    (None, "http://example.org", True),
    (None, "http://evil.example:2069", True),
    (None, "null", True),
    (None, "", True),
    (None, "http://[", True),
    ("cross-site", "https://listed.example", False),
    (None, "https://listed.example", False),
]


@pytest.mark.parametrize(("fetch_site", "origin", "other"), SITES)
def test_what_counts_as_another_site(fetch_site: str | None, origin: str | None, other: bool) -> None:
    """Sec-Fetch-Site decides; without it, Origin against the host's own."""
    headers = {"Sec-Fetch-Site": fetch_site, "Origin": origin, "Host": "example.org:2069"}
    sent = {name: value for name, value in headers.items() if value is not None}
    with pytest.raises(Refused, match="another site") if other else contextlib.nullcontext():
        WebPages(["https://listed.example"], ["example.org"]).check(sent)


# what the header Host says, whether it is a name of this server: server.hosts holds Pubsub.Example.org
HOSTS = [
    ("127.0.0.1:2069", True),
    ("192.0.2.1", True),
    ("[::1]:2069", True),
    ("[2001:db8::1]", True),
    ("localhost:2069", True),
    ("LocalHost", True),
    ("localhost.", True),
    ("pubsub.localhost:2069", True),
    (socket.gethostname(), True),
    (f"{socket.gethostname().upper()}:80", True),
    ("pubsub.example.org", True),
    ("PUBSUB.example.org.:2070", True),
    ("evil.example:2069", False),
    ("pubsub.example.org.evil.example", False),
    ("evil-pubsub.example.org", False),
    ("example.org", False),
    ("localhost.evil.example", False),
    ("evillocalhost", False),
    ("127.0.0.1.evil.example", False),
    ("127.0.0.1@evil.example", False),
    ("evil.example#127.0.0.1", False),
    ("[::1].evil.example", False),
    ("2130706433.", False),
    ("..", False),
    ("", False),
    ("pubsub.example.org:x", False),
    ("pubsub.example.ôrg", False),
]
PAGES = [
    {"Origin": "http://HOST", "Sec-Fetch-Site": "same-origin"},
    {"Origin": "http://HOST"},
    {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Dest": "empty"},
]


@pytest.mark.parametrize("page", PAGES, ids=str)
@pytest.mark.parametrize(("host", "ours"), HOSTS)
def test_a_page_under_a_foreign_name_may_not_publish(host: str, ours: bool, page: dict[str, str]) -> None:
    """Its owner may have pointed that name here, so that the browser takes the page for one of ours."""
    sent = {name: value.replace("HOST", host) for name, value in page.items()} | {"Host": host}
    web_pages = WebPages(["https://listed.example"], ["Pubsub.Example.org"])
    with contextlib.nullcontext() if ours else pytest.raises(Refused):
        web_pages.check(sent)
    web_pages.check({"Host": host})  # of a program
    web_pages.check(page | {"Host": host, "Origin": "https://listed.example"})


async def test_a_rebound_name_opens_nothing(start_daemon: StartDaemon) -> None:
    """403, and the setting that would allow it; nothing is published. Names that are listed are known."""
    server = start_daemon({"server": {"hosts": ["pubsub.example.org"]}})
    for name, status in (("evil.example", 403), ("pubsub.example.org", 202), ("localhost", 202)):
        page = {"Host": f"{name}:2069", "Origin": f"http://{name}:2069", "Sec-Fetch-Site": "same-origin"}
        for method in ("PUT", "POST"):
            answer = await server.request(method, "/a", {}, page)
            assert answer.status == status
            assert ("server.hosts" in answer.text) == (status == 403)
        assert (await server.request("PUT", "/a", {}, {"Host": f"{name}:2069"})).status == 202


async def test_only_listed_addresses_may_publish(start_daemon: StartDaemon) -> None:
    """403 names the address, and nothing is published."""
    server = start_daemon({"clients": {"payloaders": ["10.0.0.0/8"]}})
    answer = await server.put("/a", {})
    assert answer.status == 403
    assert "127.0.0.1" in answer.text
    assert "refused PUT /a from 127.0.0.1: 403" in server.logged("refused")


async def test_a_proxy_speaks_for_its_clients_only_if_it_is_trusted(start_daemon: StartDaemon) -> None:
    """The proxy is listed as a publisher, its clients are not."""
    trusting = start_daemon({"server": {"trusted_proxies": ["127.0.0.1"]}})
    assert (await trusting.put("/a", {}, X_Forwarded_For="192.0.2.1")).status == 403
    assert (await trusting.put("/a", {}, X_Forwarded_For="192.0.2.1, 127.0.0.9")).status == 202
    plain = start_daemon()
    assert (await plain.put("/a", {}, X_Forwarded_For="192.0.2.1")).status == 202


async def test_a_page_of_another_site_may_not_publish(start_daemon: StartDaemon) -> None:
    """Any web page could publish from a listed machine otherwise. Listed origins may, with CORS headers."""
    server = start_daemon({"server": {"cors_origins": ["https://ci.example.org"]}})
    assert (await server.put("/a", {}, Origin="https://evil.example")).status == 403
    assert (await server.put("/a", {}, Sec_Fetch_Site="cross-site")).status == 403
    allowed = await server.put("/a", {}, Origin="https://ci.example.org", Sec_Fetch_Site="cross-site")
    assert allowed.status == 202
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://ci.example.org"
    preflight = await server.request("OPTIONS", "/a", headers={"Origin": "https://ci.example.org"})
    assert "PUT" in preflight.headers["Access-Control-Allow-Methods"]
    assert "Idempotency-Key" in preflight.headers["Access-Control-Allow-Headers"]
    other = await server.request("OPTIONS", "/a", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in other.headers
    async with server.subscriber("/a", {"Origin": "https://ci.example.org"}) as stream:
        assert stream.headers["Access-Control-Allow-Origin"] == "https://ci.example.org"
        assert stream.headers["Vary"] == "Origin"


async def test_a_page_of_a_listed_site_may_send_credentials(start_daemon: StartDaemon) -> None:
    """To follow and to publish; it may read refusals, too. Pages of other sites may read nothing."""
    server = start_daemon(
        {"server": {"cors_origins": ["https://ci.example.org"]}, "clients": {"secure_topics": ["deploy"]}},
        acl={"alice": {"password": "secret", "acl": {"s": ["git"]}, "topics": ["deploy"]}},
    )
    listed, other = {"Origin": "https://ci.example.org"}, {"Origin": "https://evil.example"}
    preflight = await server.request("OPTIONS", "/git", headers=listed)
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    async with server.subscriber("/git", listed | basic("alice")) as stream:
        assert stream.headers["Access-Control-Allow-Credentials"] == "true"
        answer = await server.request("PUT", "/private/git/deploy", {}, listed | basic("alice"))
        assert (answer.status, answer.headers["Access-Control-Allow-Credentials"]) == (202, "true")
        assert (await stream.event())["pubsub_path"] == "/private/git/deploy"
    for method in ("GET", "PUT"):
        refused = await server.request(method, "/deploy", headers=listed | basic("alice", "wrong"))
        assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, listed["Origin"])
    async with server.subscriber("/git", other | basic("alice")) as stream:
        assert "Access-Control-Allow-Origin" not in stream.headers
    refused = await server.request("PUT", "/deploy", {}, other | basic("alice"))
    assert refused.status == 403
    assert "Access-Control-Allow-Origin" not in refused.headers


async def test_a_secure_topic_needs_credentials(start_daemon: StartDaemon) -> None:
    """401 without, 403 with such that give no right; wherever in the path it stands."""
    server = start_daemon({"clients": {"secure_topics": ["deploy", "private"]}})
    refused = await server.put("/a/deploy", {})
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"].startswith("Basic ")
    assert (await server.put("/a/%64eploy", {}, Authorization="Basic YTpi")).status == 403
    assert (await server.put("/private/a", {})).status == 401
    assert (await server.put("/a", {})).status == 202
    async with server.subscriber("/deploy") as stream:
        assert stream.status == 200


async def test_credentials_that_nobody_can_check_are_no_error(server: Daemon) -> None:
    """No provider of credentials is configured: the public stream, and a publish as without them."""
    async with server.subscriber("/a", {"Authorization": "Basic garbage"}) as stream:
        assert stream.status == 200
    assert (await server.put("/a", {}, Authorization="garbage")).status == 202


async def over_unix(path: Path, request: bytes) -> bytes:
    """The status line of an answer over a unix socket."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    async with asyncio.timeout(10):
        line = await reader.readline()
    writer.close()
    return line


async def test_a_unix_peer_publishes_only_if_unix_is_listed(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """A socket in the file system is served beside a port, and is gone after a stop."""
    request = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    for payloaders, status in ((["unix"], b" 202 "), (["0.0.0.0/0", "::/0"], b" 403 ")):
        path = tmp_path / "socket"
        server = start_daemon(
            {"server": {"bind": ["127.0.0.1", f"unix:{path}"]}, "clients": {"payloaders": payloaders}}
        )
        server.logged("serves unix:")
        assert status in await over_unix(path, request)
        assert server.stop() == 0
        assert not path.exists()


async def test_a_socket_that_is_served_already_is_not_taken_over(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """The second daemon does not start; a remnant that nobody listens on is replaced."""
    path = tmp_path / "socket"
    config = {"server": {"bind": ["127.0.0.1", f"unix:{path}"]}, "clients": {"payloaders": ["unix"]}}
    with socket.socket(socket.AF_UNIX) as remnant:
        remnant.bind(str(path))
    first = start_daemon(config)
    first.logged("serves unix:")
    second = start_daemon(config)
    assert second.wait() == 1
    assert f"cannot listen on unix:{path}: Address already in use" in second.log[-1]
    request = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    assert b" 202 " in await over_unix(path, request)


async def test_several_addresses_are_served(start_daemon: StartDaemon) -> None:
    """IPv4 and IPv6 on the same port; the IPv6 peer is judged by its own address."""
    server = start_daemon({"server": {"bind": ["127.0.0.1", "::1"]}})
    server.logged(r"serves http://\[::1\]:")
    reader, writer = await asyncio.open_connection("::1", server.port)
    writer.write(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    async with asyncio.timeout(10):
        assert b" 202 " in await reader.readline()
    writer.close()
