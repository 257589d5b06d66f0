"""HTTP in the forms in which others speak it: bodies, fields, queries, and what the log makes of them."""

import asyncio
import gzip
import json
import os
import re
import zlib

import pytest

from core.errors import Refused
from core.http.requests import inflate
from core.logs import printable
from daemon import Daemon, StartDaemon, basic
from wire import CURSOR, answer_head

JSON = b'{"v": "gr\xc3\xbcn"}'


def deflated_alone(body: bytes) -> bytes:
    """Without zlib's header, as many send it (RFC 9110 section 8.4.1.2 has a note on them)."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


BODIES = {
    "gzip in two members": ("gzip", gzip.compress(JSON[:5], mtime=0) + gzip.compress(JSON[5:], mtime=0)),
    "gzip with empty members": (
        "gzip",
        99 * gzip.compress(b"", mtime=0) + gzip.compress(JSON, mtime=0) + gzip.compress(b"", mtime=0),
    ),
    "x-gzip": ("X-GZIP", gzip.compress(JSON, mtime=0)),
    "zlib": ("deflate", zlib.compress(JSON)),
    "raw deflate": ("deflate", deflated_alone(JSON)),
    "a byte order mark": ("", b"\xef\xbb\xbf" + JSON),
    "a byte order mark in gzip": ("gzip", gzip.compress(b"\xef\xbb\xbf" + JSON, mtime=0)),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_is_read_in_every_form_it_comes_in(server: Daemon, name: str) -> None:
    """All members of gzip, deflate with and without zlib's header, UTF-8 with a byte order mark."""
    encoding, body = BODIES[name]
    async with server.subscriber("/forms") as stream:
        answer = await server.put("/forms", body, Content_Encoding=encoding)
        assert (answer.status, answer.text) == (202, "accepted\n")
        assert (await stream.event())["v"] == "grün"


RAW_LOOKS_LIKE_ZLIB = b"\x78\x01" + b"\x00" * 4  # a first block that zlib would take for its header


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(JSON, mtime=0) + b"more",
        gzip.compress(JSON, mtime=0) + gzip.compress(JSON, mtime=0)[:-1],
        gzip.compress(JSON, mtime=0) + b"\x1f\x8b",
        zlib.compress(JSON) + b"more",
        deflated_alone(JSON)[:-1],
        deflated_alone(JSON) + b"more",
        RAW_LOOKS_LIKE_ZLIB,
        JSON,
    ],
    ids=lambda body: f"{len(body)} bytes",
)
def test_a_compressed_body_has_its_own_end_in_every_form(body: bytes) -> None:
    """400 if it breaks off, goes on, or is not compressed."""
    with pytest.raises(Refused, match=r"cut short|does not inflate") as refused:
        inflate(body, 1000)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        200 * gzip.compress(b"x" * 100, mtime=0),
        gzip.compress(b"x" * 10_000, mtime=0) + gzip.compress(b"x" * 1, mtime=0),
        5000 * gzip.compress(b"", mtime=0),
        deflated_alone(b"x" * 10_001),
        zlib.compress(b"x" * 10_001),
    ],
    ids=lambda body: f"{len(body)} bytes",
)
def test_the_limit_holds_for_all_of_a_compressed_body(body: bytes) -> None:
    """413: the members of gzip count together, and are bounded in number, for even an empty one costs."""
    with pytest.raises(Refused, match=r"10000 bytes|1000 gzip members") as refused:
        inflate(body, 10_000)
    assert refused.value.status == 413


def test_compressed_bodies_of_every_size_come_out_as_they_went_in() -> None:
    """Up to the limit itself, however the members are cut."""
    content = os.urandom(5000) + b"x" * 5000
    for size in (0, 1, 1023, 1024, 1025, 10_000):
        part = content[:size]
        for cut in (0, 1, size // 2, size):
            assert (
                inflate(gzip.compress(part[:cut], mtime=0) + gzip.compress(part[cut:], mtime=0), 10_000)
                == part
            )
        assert inflate(deflated_alone(part), 10_000) == inflate(zlib.compress(part), 10_000) == part


@pytest.mark.parametrize(
    "content_type",
    ["application/x-ndjson", "application/ndjson", "application/jsonl", "Application/JSONL; v=1"],
)
async def test_ndjson_has_several_names(server: Daemon, content_type: str) -> None:
    """All mean one object a line. One is "1 event" in the answer."""
    async with server.subscriber("/names") as stream:
        body = b'{"n": 1}\n{"n": 2}\n'
        assert (await server.put("/names", body, Content_Type=content_type)).text == "accepted 2 events\n"
        assert (
            await server.put("/names", b'{"n": 3}', Content_Type=content_type)
        ).text == "accepted 1 event\n"
        assert [(await stream.event())["n"] for _ in range(3)] == [1, 2, 3]


async def test_a_form_with_a_payload_is_told_what_to_change(server: Daemon) -> None:
    """What GitHub's webhooks send until that is set: 400. JSON that is called a form is fine."""
    form = {"Content_Type": "application/x-www-form-urlencoded; charset=utf-8"}
    answer = await server.put("/hooks", b"payload=%7B%22zen%22%3A+%22x%22%7D", **form)
    assert answer.status == 400
    assert re.search('"Content type" to application/json in the settings of the webhook', answer.text)
    assert (await server.put("/hooks", b'{"payload=": 1}', **form)).status == 202


def publish(fields: bytes, body: bytes = JSON) -> bytes:
    """A request as it goes over the wire."""
    size = b"" if b"Transfer-Encoding" in fields else b"Content-Length: %d\r\n" % len(body)
    return b"PUT /twice HTTP/1.1\r\nHost: x\r\n" + fields + size + b"\r\n" + body


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(JSON), JSON)
FRAMINGS = {
    b"Idempotency-Key: 1\r\nIdempotency-Key: 2\r\n": 400,
    b"Idempotency-Key: 1\r\nidempotency-key: 1\r\n": 400,
    b"Content-Encoding: identity\r\nContent-Encoding: identity\r\n": 400,
    b"Content-Type: text/plain\r\nContent-Type: application/x-ndjson\r\n": 400,
    b"Host: y\r\n": 400,
    b"Content-Length: 11\r\n": 400,
    b"Content-Length: 11\r\nTransfer-Encoding: chunked\r\n": 400,
    b"Transfer-Encoding: gzip, chunked\r\n": 501,
    b"Transfer-Encoding: Chunked\r\n": 202,
    b"Transfer-Encoding: gzip\r\n": 400,
    b"Transfer-Encoding: chunked, gzip\r\n": 400,
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n": 400,
}


@pytest.mark.parametrize("fields", FRAMINGS)
async def test_what_can_be_read_in_two_ways_is_refused(server: Daemon, fields: bytes) -> None:
    """Fields that come twice, bodies with two lengths (RFC 9112 section 6.3): 400; other codings: 501."""
    body = CHUNKED if b"Transfer-Encoding" in fields else JSON
    async with server.subscriber("/twice") as stream:
        head = await answer_head(server.port, publish(fields, body))
        status = int(head.split()[1])
        assert status == FRAMINGS[fields]
        assert head.startswith(b"HTTP/1.1 ")
        await server.put("/twice", {"v": "after"})
        assert (await stream.event())["v"] == ("grün" if status == 202 else "after")


QUERIES = {
    "sicne=10m": "unknown key 'sicne'; known are since, cursor, last, until, limit",
    "Since=10m": "unknown key 'Since'",
    "since=10m&_=1795777461": "unknown key '_'",
    "1795777461": "unknown key '1795777461'",
    "%ff%E2%80%A8=1": "unknown key '",
    "x" * 200: "unknown key 'x{40}…'".replace("…", re.escape("\\u2026")),
    "since=10m&since=20m": "since is there more than once",
    f"cursor={CURSOR}&cursor={CURSOR}": "cursor is there more than once",
    "since=1795777461000": "since: lies more than a day in the future: Unix seconds are meant",
    "since=2126-01-01": "since: lies more than a day in the future",
    "since=10m&until=1795777461000": "until: lies more than a day in the future: Unix seconds are meant",
    "since=10m&until=5m&until=5m": "until is there more than once",
    "since=10m&limit=1&limit=1": "limit is there more than once",
    "last=1&last=1": "last is there more than once",
    "since=10m&until=": "until: expected Unix seconds .*, or a cursor",
    "since=10m&limit=0": "limit: expected a number of events, from 1 to 1000000",
    "last=10001": "last: expected a number of events, from 1 to 10000",
    "until=10m": "until: says where to end: add where to begin, by since, cursor or last",
    "limit=10": "limit: says how many events: add where to begin, by since or cursor",
    "last=10&since=10m": "last: says itself where to begin: leave out since, cursor",
    f"last=10&cursor={CURSOR}": "last: says itself where to begin",
    "last=10&limit=10": "last: says itself where to begin",
}


@pytest.mark.parametrize("query", QUERIES)
async def test_a_query_that_would_not_do_what_it_says_is_refused(server: Daemon, query: str) -> None:
    """400, rather than a stream without its replay."""
    answer = await server.request("GET", f"/a?{query}")
    assert answer.status == 400
    assert re.search(QUERIES[query], answer.text), answer.text


@pytest.mark.parametrize("name", ["X-Fetch-Since", "X-Fetch-Since-Cursor", "Last-Event-ID"])
async def test_a_replay_that_is_asked_for_twice_is_refused(server: Daemon, name: str) -> None:
    """400: one of the two would have been left out."""
    value = "10m" if name == "X-Fetch-Since" else CURSOR
    fields = f"{name}: {value}\r\n" * 2
    assert b" 400 " in await answer_head(server.port, f"GET /a HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode())


@pytest.mark.parametrize("method", ["PUT", "POST", "HEAD", "OPTIONS"])
async def test_the_query_of_other_methods_means_nothing(server: Daemon, method: str) -> None:
    """It is left alone."""
    body: dict[str, int] | None = {} if method in ("PUT", "POST") else None
    assert (await server.request(method, "/a?since=x&sicne=y", body)).status in (202, 204)


async def test_a_time_ahead_of_the_clock_is_read_by_that_of_the_events(
    start_daemon: StartDaemon, server: Daemon
) -> None:
    """A day ahead is accepted, for clocks differ: nothing to replay, and no refusal."""
    del start_daemon
    async with server.subscriber("/a?since=2026-11-24", {}) as stream:
        now = (await stream.object())["stillalive"]
    for ahead, status in ((80_000, 200), (90_000, 400)):
        async with server.subscriber("/a", {"X-Fetch-Since": str(now + ahead)}) as stream:
            assert stream.status == status


NAMES = {"ali\u2028ce": "ali\\u2028ce", "ål\u2029ice": "ål\\u2029ice"}


async def test_names_of_others_do_not_break_the_lines_of_the_log(start_daemon: StartDaemon) -> None:
    """Line and paragraph separators are escaped, in the names of users too."""
    acl = {name: {"password": "secret", "acl": {"all": ["x"]}} for name in NAMES}
    server = start_daemon(acl=acl)
    for name, shown in NAMES.items():
        async with server.subscriber("/named", basic(name)) as stream:
            await stream.chunk()
        line = await server.until_logged(" of /named left")
        assert f"subscriber 127.0.0.1 ({shown}) of /named left" in line


def test_printable_text_is_left_as_it_is() -> None:
    """What breaks a line is escaped, and nothing else; half a surrogate pair can be written too."""
    assert printable("grün 日本 /a%20b") == "grün 日本 /a%20b"
    assert printable("a\nb\r\x1b[31m\u2029\x85\ud800") == "a\\nb\\r\\x1b[31m\\u2029\\x85\\ud800"


async def test_a_connection_without_a_byte_is_no_line_of_the_log(start_daemon: StartDaemon) -> None:
    """Browsers open some in advance. It is counted, and told; whoever has sent something has a line."""
    server = start_daemon({"server": {"head_timeout": 0.3}})
    for sent in (b"", b"PUT"):
        head = await answer_head(server.port, sent)
        assert head.startswith(b"HTTP/1.1 408 ")
    await server.until_logged("refused .* 408 the request's head did not come")
    server.stop()
    assert "1 of 408 (head_timeout), 1 of 408 (silent)" in server.log[-2]
    assert sum("refused UNKNOWN" in line for line in server.log) == 1


# In the place of PyPubSub 0.7


@pytest.mark.parametrize("agent", [{}, {"User-Agent": ""}])
async def test_http_1_0_without_a_user_agent_gets_nul_ended_lines(
    server: Daemon, agent: dict[str, str]
) -> None:
    """Subversion's svnwcsub and watcher ask so, and cut what comes at NULs."""
    async with server.subscriber("/old", agent, version="1.0") as stream, asyncio.timeout(20):
        assert json.loads((await stream.reader.readuntil(b"\0"))[:-1]).keys() == {"stillalive"}
        await server.put("/old", {"n": 1})
        assert json.loads((await stream.reader.readuntil(b"\0"))[:-1])["n"] == 1
    async with server.subscriber("/old", agent) as stream:  # HTTP/1.1
        assert (await stream.chunk()).endswith(b"}\n")


UNKNOWN_CREDENTIALS = {
    "a user the ACL does not know": basic("queue", "whatever"),
    "a wrong password": basic("alice", "wrong"),
    "a Bearer token": {"Authorization": "Bearer abc"},
    "malformed": {"Authorization": "garbage"},
    "not Base64": {"Authorization": "Basic !"},
    "an empty one": {"Authorization": ""},
}


@pytest.mark.parametrize("way", [{}, {"X-Long-Way": "1"}])
@pytest.mark.parametrize("sent", UNKNOWN_CREDENTIALS)
async def test_credentials_that_are_not_needed_are_not_looked_at(
    start_daemon: StartDaemon, sent: str, way: dict[str, str]
) -> None:
    """A publish that its address allows: 202, as often as it likes. On a secure topic, and for a GET: 401."""
    acl = {"alice": {"password": "secret", "acl": {"x": ["x"]}, "topics": ["deploy"]}}
    settings = {"clients": {"payloaders": ["127.0.0.1/32"], "secure_topics": ["deploy"]}}
    server = start_daemon(settings, acl=acl)
    headers = UNKNOWN_CREDENTIALS[sent] | way
    for _ in range(12):  # more than the guesses that one address has in a minute
        assert (await server.request("PUT", "/a", {}, headers)).status == 202
    assert (await server.request("PUT", "/private/a", {}, headers)).status == 202
    assert (await server.request("PUT", "/a/deploy", {}, headers)).status == 401
    assert (await server.request("GET", "/a", None, headers)).status == 401
    right = basic("alice") | way
    assert (await server.request("PUT", "/a/deploy", {}, right)).status == 202


async def test_credentials_are_looked_at_where_the_address_is_not_enough(start_daemon: StartDaemon) -> None:
    """Wrong ones: 401. Right ones, which give no right to publish elsewhere: 403."""
    acl = {"alice": {"password": "secret", "acl": {"x": ["x"]}}}
    server = start_daemon({"clients": {"payloaders": []}}, acl=acl)
    assert (await server.put("/a", {})).status == 403
    assert (await server.request("PUT", "/a", {}, basic("alice", "wrong"))).status == 401
    assert (await server.request("PUT", "/a", {}, {"Authorization": "Bearer abc"})).status == 401
    assert (await server.request("PUT", "/a", {}, basic("alice"))).status == 403


async def test_a_key_belongs_to_the_address_where_credentials_are_not_looked_at(
    start_daemon: StartDaemon,
) -> None:
    """So a publisher that asks again with other credentials, or with none, is the same."""
    acl = {"alice": {"password": "secret", "acl": {"x": ["x"]}, "topics": ["deploy"]}}
    settings = {"clients": {"payloaders": ["127.0.0.1/32"], "secure_topics": ["deploy"]}}
    server = start_daemon(settings, acl=acl)
    key = {"Idempotency-Key": "1"}
    first = await server.request("PUT", "/a", {}, key | basic("alice"))
    for headers in ({}, basic("alice", "wrong"), {"Authorization": "Bearer x"}):
        again = await server.request("PUT", "/a", {}, key | headers)
        assert again.headers["Idempotency-Replayed"] == "true"
        assert again.headers["X-Cursor"] == first.headers["X-Cursor"]
    secure = await server.request("PUT", "/deploy", {}, key | basic("alice"))
    assert (secure.status, secure.headers.get("Idempotency-Replayed")) == (202, None)


async def test_a_replay_is_asked_for_as_asfpy_does(start_daemon: StartDaemon) -> None:
    """`X-Fetch-Since: None`, and numbers below -1: all that is held."""
    server = start_daemon({"server": {"backlog": {"size": 10}}})
    for n in range(3):
        await server.put("/a", {"n": n})
    for since in ("None", "-1", "-2", "-1795777461.5"):
        verdict, numbers = await server.replay("/a", X_Fetch_Since=since)
        assert (verdict, numbers) == ("partial", [0, 1, 2]), since
    assert (await server.request("GET", "/a", None, {"X-Fetch-Since": "none"})).status == 400


async def test_a_port_may_stand_in_quotes(start_daemon: StartDaemon) -> None:
    """As in settings of 0.7."""
    assert (await start_daemon({"server": {"port": "0"}}).put("/a", {})).status == 202
