"""Subscribing: the head, the lines, the pings, and how a stream ends."""

import asyncio
import json
import re
import time

import pytest

from daemon import Daemon, StartDaemon
from wire import Stream, ending


async def test_event_with_more_topics_than_asked_arrives(server: Daemon) -> None:
    """A subscription to fruits/apples receives fruits/apples/red."""
    async with server.subscriber("/fruits/apples") as stream:
        await server.put("/fruits/apples/red", {"n": 1})
        assert (await stream.event())["n"] == 1


# subscribe path, publish path, whether the event arrives
MATCHES = [
    ("/", "/fruits", True),
    ("/fruits", "/fruits", True),
    ("/fruits", "/", False),
    ("/apples", "/fruits/apples", True),
    ("/apples/fruits", "/fruits/apples", True),
    ("/fruits/apples", "/fruits", False),
    ("/fruits", "/Fruits", False),
    ("/fruits", "/fruit", False),
    ("/fruits,tools", "/tools/saw", True),
    ("/fruits/apples,tools/saw", "/fruits/saw", False),
    ("/fruits%2Ctools", "/tools", True),
    ("/fruits%2Fapples", "/apples/fruits", True),
    ("/fruits,", "/tools", False),
    ("/,/fruits", "/fruits", True),
    ("/gr%C3%BCn", "/gr%c3%bcn", True),
    ("/fruits/fruits", "/fruits", True),
    ("/private", "/open", False),
    ("/private/svn/private/committers/commit", "/svn/private/committers/commit", True),
]


@pytest.mark.parametrize(("subscribed", "published", "arrives"), MATCHES)
async def test_what_matches(server: Daemon, subscribed: str, published: str, arrives: bool) -> None:
    """The topics of a batch are AND-ed in any order, the batches OR-ed."""
    async with server.subscriber(subscribed) as stream:
        await server.put(published, {"this": 1})
        parts = subscribed.replace("%2C", ",").split(",")
        met = next((part for part in parts if part.strip("/")), "")
        await server.put(f"/also/{met}", {"this": 0})  # one that matches, so that the wait ends
        assert (await stream.event())["this"] == int(arrives)


async def test_an_event_comes_once_however_many_batches_match(server: Daemon) -> None:
    """A subscriber of a, b and a/b gets /a/b once."""
    async with server.subscriber("/a,b,a/b,b/a") as stream:
        for n in range(3):
            await server.put("/a/b", {"n": n})
        assert [(await stream.event())["n"] for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("path", ["/,", "/,,,", "/,/,/", "/%2c"])
async def test_nothing_but_commas_is_refused(server: Daemon, path: str) -> None:
    """A stray comma does not open the whole stream."""
    answer = await server.request("GET", path)
    assert answer.status == 400
    assert "commas" in answer.text


async def test_the_head_of_a_stream(server: Daemon) -> None:
    """200, chunked, not to be stored, buffered or compressed; who serves, and how many follow."""
    async with server.subscriber("/head", {"Accept-Encoding": "gzip, deflate, br"}) as stream:
        headers = stream.headers
        assert stream.status == 200
        assert headers["Content-Type"] == "application/vnd.pypubsub-stream"
        assert headers["Transfer-Encoding"] == "chunked"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Accel-Buffering"] == "no"
        assert re.fullmatch(r"PyPubSub/[0-9.]+", headers["Server"])
        assert re.fullmatch(r"[0-9a-f-]{36}", headers["X-Cursor"])
        assert "Content-Encoding" not in headers
        assert "X-Replay" not in headers
        assert int(headers["X-Requests"]) > 0
        async with server.subscriber("/head") as second:
            assert int(second.headers["X-Subscribers"]) == int(headers["X-Subscribers"]) + 1
            assert int(second.headers["X-Requests"]) == int(headers["X-Requests"]) + 1
            assert second.headers["X-Cursor"] > headers["X-Cursor"]


async def test_an_event_is_published_after_the_cursor_of_an_open_stream(server: Daemon) -> None:
    """X-Cursor is a position that lies before whatever comes after the head."""
    async with server.subscriber("/position") as stream:
        await server.put("/position", {})
        event = await stream.event()
        async with server.subscriber("/position") as later:
            assert stream.headers["X-Cursor"] < event["pubsub_cursor"] < later.headers["X-Cursor"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Accept": "text/event-stream"},
        {"Accept": "text/html"},
        {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
        {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"},
    ],
)
async def test_whoever_asks_for_another_form_gets_the_plain_stream(
    server: Daemon, headers: dict[str, str]
) -> None:
    """Other ways to read are to come."""
    async with server.subscriber("/plain", headers) as stream:
        assert stream.status == 200
        await server.put("/plain", {"n": 1})
        assert (await stream.event())["n"] == 1


async def test_a_ping_comes_at_once(server: Daemon) -> None:
    """The first line is an object with the one key stillalive, in a chunk of its own."""
    async with server.subscriber("/idle") as stream:
        line = await stream.chunk()
    ping = json.loads(line)
    assert list(ping) == ["stillalive"]
    assert ping["stillalive"] == pytest.approx(time.time(), abs=60)
    assert line.endswith(b"}\n")


async def test_pings_go_on_coming_to_everybody(start_daemon: StartDaemon) -> None:
    """Every ping_interval, whatever was asked for, between events and without any."""
    server = start_daemon({"server": {"ping_interval": 0.1}})
    async with server.subscriber("/a") as first, server.subscriber("/b") as second:
        for stream in (first, second):
            for _ in range(4):
                assert list(await stream.object()) == ["stillalive"]


async def test_a_ping_never_overtakes_an_event(start_daemon: StartDaemon) -> None:
    """Pings in the middle of a burst change neither order nor number of events."""
    server = start_daemon({"server": {"ping_interval": 0.01}})
    async with server.subscriber("/burst") as stream:
        pings = 0
        for n in range(300):
            await server.put("/burst", {"n": n})
            while list(event := await stream.object()) == ["stillalive"]:
                pings += 1
            assert event["n"] == n
        assert pings > 3


async def test_one_event_is_one_chunk_with_one_newline(server: Daemon) -> None:
    """Deployed clients parse chunk by chunk; several chunks may come in one write."""
    async with server.subscriber("/chunks") as stream:
        await stream.chunk()
        lines = b"".join(b'{"n": %d, "text": "a\\nb"}\n' % n for n in range(200))
        await server.put("/chunks", lines, Content_Type="application/x-ndjson")
        for n in range(200):
            chunk = await stream.chunk()
            assert chunk.endswith(b"}\n")
            assert chunk.count(b"\n") == 1
            assert json.loads(chunk)["n"] == n


async def test_lines_are_ascii(server: Daemon) -> None:
    """Characters beyond ASCII are escaped: a reader may decode each piece on its own."""
    async with server.subscriber("/ascii") as stream:
        await stream.chunk()
        await server.put("/ascii/gr%C3%BCn", {"é": "😀"})
        chunk = await stream.chunk()
    assert chunk.isascii()
    assert json.loads(chunk)["é"] == "😀"
    assert json.loads(chunk)["pubsub_path"] == "/ascii/grün"


@pytest.mark.parametrize("connection", [{}, {"Connection": "keep-alive"}])
async def test_http_1_0_gets_bare_lines(server: Daemon, connection: dict[str, str]) -> None:
    """nginx speaks HTTP/1.0 to its upstreams by default."""
    async with server.subscriber("/old", connection | {"User-Agent": "nginx"}, version="1.0") as stream:
        assert "Transfer-Encoding" not in stream.headers
        assert stream.headers.get("Connection") != "keep-alive"
        assert json.loads(await stream.line()).keys() == {"stillalive"}
        await server.put("/old", {"n": 1})
        assert json.loads(await stream.line())["n"] == 1


async def test_oldschoolers_get_a_nul_after_each_newline(server: Daemon) -> None:
    """In the same chunk, pings too; for the listed user agents only."""
    agent = {"User-Agent": "python/svnwcsub 1.0"}
    async with server.subscriber("/nul", agent) as stream, server.subscriber("/nul") as other:
        assert (await stream.chunk()).endswith(b"}\n\0")
        await server.put("/nul", {"n": 1})
        assert (await stream.chunk()).endswith(b"}\n\0")
        await other.chunk()
        assert (await other.chunk()).endswith(b"}\n")
    async with server.subscriber("/nul", agent, version="1.0") as stream:
        assert (await stream.line()).endswith(b"}\n")
        await server.put("/nul", {"n": 1})
        assert (await stream.line()).startswith(b'\0{"n": 1')


# What is asked for, as headers and as a query
ASKED = [
    ({"X-Fetch-Since": "1588132959"}, ""),
    ({"X-Fetch-Since": "1588132959.6066568"}, ""),
    ({"X-Fetch-Since": "-1"}, ""),
    ({"X-Fetch-Since": "0"}, ""),
    ({"X-Fetch-Since": "10m"}, ""),
    ({"X-Fetch-Since": "2026-11-24T08:00:00Z"}, ""),
    ({"X-Fetch-Since-Cursor": "1c4a1ac8-1b22-4d5f-8a5f-0f4c8a1e6f9b"}, ""),
    ({"Last-Event-ID": "1c4a1ac8-1b22-4d5f-8a5f-0f4c8a1e6f9b"}, ""),
    ({}, "?since=7d"),
    ({}, "?since=2026-11-24T08:00:00+01:00"),
    ({}, "?cursor=1c4a1ac8-1b22-4d5f-8a5f-0f4c8a1e6f9b"),
]


@pytest.mark.parametrize(("headers", "query"), ASKED)
async def test_who_asks_for_a_replay_is_told_that_there_is_none(
    server: Daemon, headers: dict[str, str], query: str
) -> None:
    """X-Replay: none, then the live stream."""
    await server.put("/again", {"n": 0})
    async with server.subscriber(f"/again{query}", headers) as stream:
        assert stream.status == 200
        assert stream.headers["X-Replay"] == "none"
        await server.put("/again", {"n": 1})
        assert (await stream.event())["n"] == 1


MALFORMED = [
    ({"X-Fetch-Since": value}, "")
    for value in ("", "yesterday", "NaN", "inf", "none", "1e999", "10 parsecs", "2026-13-01")
] + [
    ({"X-Fetch-Since-Cursor": "short"}, ""),
    ({"X-Fetch-Since-Cursor": "x" * 35 + "!"}, ""),
    ({"X-Fetch-Since-Cursor": "x" * 37}, ""),
    ({"Last-Event-ID": "5"}, ""),
    ({}, "?since="),
    ({}, "?cursor=1"),
]


@pytest.mark.parametrize(("headers", "query"), MALFORMED)
async def test_a_malformed_replay_is_refused(server: Daemon, headers: dict[str, str], query: str) -> None:
    """400, although there is no backlog."""
    answer = await server.request("GET", f"/again{query}", headers=headers)
    assert answer.status == 400
    assert re.search("X-Fetch-Since|Last-Event-ID|since|cursor", answer.text)


async def test_head_tells_how_many_follow(server: Daemon) -> None:
    """204 for any path, at once, with the three headers."""
    before = await server.request("HEAD", "/any,thing")
    async with server.subscriber("/counted"):
        answer = await server.request("HEAD", "/")
    assert answer.status == 204
    assert answer.headers["Server"].startswith("PyPubSub/")
    assert int(answer.headers["X-Subscribers"]) == int(before.headers["X-Subscribers"]) + 1
    assert int(answer.headers["X-Requests"]) > int(before.headers["X-Requests"])


async def test_options_and_unknown_methods(server: Daemon) -> None:
    """OPTIONS: 204 with Allow. Others: 405 with Allow."""
    options = await server.request("OPTIONS", "/a")
    assert (options.status, options.headers["Allow"]) == (204, "GET, HEAD, OPTIONS, POST, PUT")
    for method in ("DELETE", "PATCH", "TRACE"):
        answer = await server.request(method, "/a")
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD, OPTIONS, POST, PUT")
        assert answer.text.count("\n") == 1


async def test_a_refused_subscriber_is_answered_late(start_daemon: StartDaemon) -> None:
    """Deployed readers ask again without any pause. A refused publisher is answered at once."""
    server = start_daemon({"server": {"refusal_delay": 0.5}})
    begin = time.monotonic()
    assert (await server.request("PUT", "/a,b", {})).status == 400
    published = time.monotonic()
    assert (await server.request("GET", "/,")).status == 400
    assert time.monotonic() - published >= 0.5
    assert published - begin < time.monotonic() - published


async def test_a_client_that_leaves_is_noticed_at_once(start_daemon: StartDaemon) -> None:
    """Without a ping or an event to write: it is counted out and logged."""
    server = start_daemon({"server": {"ping_interval": "1h"}})
    async with server.subscriber("/leaving") as stream:
        await stream.chunk()
        assert (await server.request("HEAD", "/")).headers["X-Subscribers"] == "1"
    await server.until_logged("subscriber 127.0.0.1 of /leaving left after .* the client disconnected")
    assert (await server.request("HEAD", "/")).headers["X-Subscribers"] == "0"


@pytest.mark.parametrize("more", [b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", b"\0 not HTTP\r\n\r\n"])
async def test_what_comes_after_the_request_is_dropped(server: Daemon, more: bytes) -> None:
    """Though it be a megabyte: events come all the same, and the end is noticed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /chatter HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.readuntil(b"stillalive")
    writer.write(more * (2**20 // len(more)))
    await writer.drain()
    await server.put("/chatter", {"n": 1})
    await reader.readuntil(b'"n": 1')
    writer.close()
    await server.until_logged("of /chatter left")


async def test_a_client_that_leaves_while_its_refusal_is_held_back_is_noticed(
    start_daemon: StartDaemon,
) -> None:
    """The connection stays watched."""
    server = start_daemon({"server": {"refusal_delay": "1h", "max_connections": 1}})
    for _ in range(3):  # with the first one still counted, the next would be one too many
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /, HTTP/1.1\r\nHost: x\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    while (await server.request("HEAD", "/")).status != 204:
        pass


async def read_all(stream: Stream) -> bytes:
    """The raw bytes of a stream up to its end."""
    return await stream.rest()


async def test_a_stop_sends_what_is_queued_and_ends_streams_early(start_daemon: StartDaemon) -> None:
    """Every event accepted before SIGTERM arrives; the closing chunk does not; the exit status is 0."""
    server = start_daemon()
    async with server.subscriber("/stop") as fast, server.subscriber("/stop") as second:
        for n in range(20):
            await server.put("/stop", {"n": n, "filling": "x" * 50_000})
        reading = [asyncio.create_task(read_all(stream)) for stream in (fast, second)]
        status = await asyncio.to_thread(server.stop)
        for task in reading:
            raw = await task
            assert raw.count(b'"pubsub_cursor"') == 20
            assert ending(raw) == "early"
    assert status == 0
