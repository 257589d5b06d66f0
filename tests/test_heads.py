"""core.http.heads and core.http.limits by themselves: what is watched, counted and refused."""

import asyncio

import pytest
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import HttpRequestParserPy
from netaddr import IPNetwork

from core.auth.networks import Networks
from core.errors import Refused
from core.http import heads
from core.http.heads import HeadWatch, malformed
from core.http.incoming import end_of_head, is_one_request
from core.http.limits import Connections, Entry

HEAD = b"PUT /a HTTP/1.1\r\nContent-Length: 2\r\n\r\n"


async def watched(*parts: bytes, stop: bool = False) -> list[Refused]:
    """What a watch of no time says after some parts of a head, which may end with the whole head."""
    said: list[Refused] = []
    watch = HeadWatch(asyncio.get_running_loop(), 0)
    watch.begin(said.append)
    assert watch.waits
    for part in parts:
        watch.add(part)
    if stop:
        watch.stop()
        assert not watch.waits
    for _ in range(3):  # a timer of no time comes in one of these turns
        await asyncio.sleep(0)
    return said


async def test_a_late_head_is_refused_and_a_silent_client_quietly() -> None:
    """Both are 408; the log has no line of connections that browsers open in advance."""
    (late,) = await watched(b"PUT", b" /a")
    assert (late.status, late.reason, late.quiet) == (408, "head_timeout", False)
    (silent,) = await watched()
    assert (silent.status, silent.reason, silent.quiet) == (408, "silent", True)
    assert await watched(b"PUT", stop=True) == []


async def test_a_head_that_grows_without_end_is_too_large() -> None:
    """However small its parts are; the next head begins with nothing."""
    watch = HeadWatch(asyncio.get_running_loop(), 60)
    watch.begin(print)
    part = b"x" * 1000
    parts = 1
    while not watch.add(part):
        parts += 1
    assert (parts - 1) * len(part) <= heads.MOST_OF_A_HEAD < parts * len(part)
    assert watch.end == b"x" * heads.TAIL_KEPT
    watch.stop()
    assert (watch.size, watch.end) == (0, b"")
    watch.stop()  # as often as one likes


# what comes -> whether it is one request, and where its head ends
COMES = [
    (HEAD + b"{}", True, len(HEAD)),
    (HEAD + b"{}\n", False, len(HEAD)),
    (HEAD + b"{", False, len(HEAD)),
    (HEAD + b"{}" + HEAD + b"{}", False, len(HEAD)),
    (HEAD.replace(b"Content-Length", b"content-length") + b"{}", True, len(HEAD)),
    (b"GET / HTTP/1.1\r\n\r\n", False, 18),
    (HEAD[:-2], False, len(HEAD) - 2),
    (b"\r\n\r\n" + HEAD, False, 4),
    (b"\n" + HEAD, False, 1),
    (b"ength: 2\r", False, 9),
]


@pytest.mark.parametrize(("data", "one", "end"), COMES)
def test_where_a_request_ends(data: bytes, one: bool, end: int) -> None:
    """One that comes alone, as nearly all do, is told from several, and from parts."""
    assert is_one_request(data) == one
    assert end_of_head(data, 0) == end
    assert end_of_head(b"body" + data, 4) == 4 + end


@pytest.mark.parametrize(
    ("error", "message", "expected"),
    [
        (LineTooLong(b"secret", heads.MAX_TARGET), "", "414 the path and query have more than 8190 bytes"),
        (LineTooLong(b"secret", heads.MAX_FIELD), "", "431 a header field has more than 8192 bytes"),
        (None, "Too many headers received: secret", "431 there are more than 128 header fields"),
        (None, "Invalid method:\n\n  secret", "400 not HTTP/1.1: Invalid method"),
        (None, "Expected PRI/2.0: secret", "400 not HTTP/1.1: HTTP/2 is not known here, HTTP/1.1 is"),
        (None, "", "400 not HTTP/1.1: not a request"),
    ],
)
def test_what_cannot_be_parsed_is_named_and_not_quoted(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, message: str, expected: str
) -> None:
    """Each ends its connection. These are the words of aiohttp's parser in C, wherever the test runs."""
    monkeypatch.setattr(heads, "HttpRequestParserPy", None)
    refused = malformed(400, error, message)
    assert refused.close
    assert "secret" not in refused.message
    assert f"{refused.status} {refused.message}" == expected


def test_the_words_of_the_parser_in_python_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """They quote more than the first line."""
    monkeypatch.setattr(heads, "HttpRequestParser", HttpRequestParserPy)
    refused = malformed(400, None, "secret")
    assert refused.message == "not HTTP/1.1: the head or a chunk cannot be parsed"


# Connections, counted


def verdicts(limits: Connections, *peers: str | None) -> list[Entry]:
    """What is said of connections that come one after the other, and stay."""
    return [limits.enter(peer) for peer in peers]


def test_connections_are_admitted_then_surplus_then_closed() -> None:
    """Room for another is there again when one leaves, of those that count for the same limit."""
    limits = Connections(2, 1, 0, Networks([]))
    assert limits.has_room()
    assert verdicts(limits, "192.0.2.1", None, "192.0.2.1") == ["admitted", "admitted", "connections"]
    assert not limits.has_room()
    assert limits.enter("192.0.2.1") == "closed"
    limits.leave("192.0.2.1", "closed")  # which was never counted
    assert not limits.has_room()
    limits.leave("192.0.2.1", "connections")
    assert limits.enter("192.0.2.1") == "connections"
    limits.leave(None, "admitted")
    assert limits.enter("192.0.2.1") == "admitted"


def test_an_address_with_its_share_takes_no_place_of_others() -> None:
    """Its surplus is bounded with everybody's; networks that are exempt have no share."""
    limits = Connections(10, 1, 2, Networks([IPNetwork("198.51.100.0/24")]))
    two = verdicts(limits, "192.0.2.1", "192.0.2.1")
    assert two == ["admitted", "admitted"]
    assert verdicts(limits, "192.0.2.1", "192.0.2.1") == ["connections_per_address", "closed"]
    assert verdicts(limits, "192.0.2.2", *["198.51.100.7"] * 4) == ["admitted"] * 5


@pytest.mark.parametrize(
    ("entry", "status"),
    [("admitted", None), ("connections", 503), ("connections_per_address", 429), ("closed", 429)],
)
def test_every_request_of_a_surplus_connection_is_refused(entry: Entry, status: int | None) -> None:
    """With the setting that is reached, and when to ask again; that ends the connection."""
    refused = Connections(1, 1, 7, Networks([])).refusal(entry)
    assert (refused and refused.status) == status
    if refused:
        assert refused.close
        assert "Retry-After" in refused.headers
        assert "server.max_connections" in refused.message
