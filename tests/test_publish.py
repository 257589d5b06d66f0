"""Publishing: what is accepted, what is refused, and what an answer says."""

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from daemon import Daemon, StartDaemon
from wire import CURSOR_PATTERN, answer_head


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_a_json_object_is_accepted(server: Daemon, method: str) -> None:
    """202, a line of text, and the event's cursor."""
    answer = await server.request(method, "/fruits", {"colour": "green"})
    assert (answer.status, answer.text) == (202, "accepted\n")
    assert re.fullmatch(CURSOR_PATTERN, answer.headers["X-Cursor"])
    assert answer.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain; charset=foo", ""])
async def test_the_content_type_does_not_matter(server: Daemon, content_type: str) -> None:
    """`curl -d` says that it sends a form."""
    async with server.subscriber("/types") as stream:
        answer = await server.put("/types", '{"text": "grün"}'.encode(), Content_Type=content_type)
        assert answer.status == 202
        assert (await stream.event())["text"] == "grün"


async def test_a_program_may_ask_for_json(server: Daemon) -> None:
    """With Accept: application/json the answer is an object with cursor, timestamp and path."""
    async with server.subscriber("/fruits") as stream:
        answer = await server.put("/fruits//apples/", {}, Accept="application/json")
        event = await stream.event()
    assert answer.headers["Content-Type"].startswith("application/json")
    assert json.loads(answer.text) == {
        "cursor": event["pubsub_cursor"],
        "timestamp": event["pubsub_timestamp"],
        "path": "/fruits/apples",
    }
    assert answer.headers["X-Cursor"] == event["pubsub_cursor"]


DEEP = 600
REFUSED_BODIES = {
    "no body": (b"", "no body"),
    "not JSON": (b"{colour: green}", "not JSON: .* at column 2"),
    "two objects": (b"{}{}", "not JSON"),
    "two byte order marks": (b"\xef\xbb\xbf\xef\xbb\xbf{}", "not JSON"),
    "a list": (b"[1, 2]", "must be a JSON object, got a list"),
    "a string": (b'"text"', "must be a JSON object, got a string"),
    "null": (b"null", "must be a JSON object, got null"),
    "true": (b"true", "must be a JSON object, got a boolean"),
    "a number": (b"1", "must be a JSON object, got a number"),
    "NaN": (b'{"v": NaN}', "NaN"),
    "Infinity": (b'{"v": [Infinity]}', "Infinity"),
    "minus Infinity": (b'{"v": -Infinity}', "Infinity"),
    "a number beyond a double": (b'{"v": 1e400}', "range of a double"),
    "an integer that is too long": (b'{"v": ' + b"1" * 4301 + b"}", "4300 digits"),
    "nesting that is too deep": (b'{"v": ' + b"[" * DEEP + b"]" * DEEP + b"}", "nested more than 500 deep"),
    "nesting beyond Python's stack": (b'{"v": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", "nested"),
    "a lone surrogate": (b'{"v": "\\ud83d"}', "lone surrogate"),
    "a lone surrogate in a key": (b'{"\\udc00": 1}', "lone surrogate"),
    "surrogates in the wrong order": (b'{"v": "\\udc00\\ud83d"}', "lone surrogate"),
    "not UTF-8": (b'{"v": "\xff"}', "not UTF-8"),
    "UTF-16": ('{"v": 1}'.encode("utf-16"), "not UTF-8"),
    "what looks like a ping": (b'{"stillalive": 1}', "stillalive"),
    "a key that would make it look like a ping": (b'{"a": 1, "stillalive": null}', "stillalive"),
}


@pytest.mark.parametrize("name", REFUSED_BODIES)
async def test_what_is_no_json_object_is_refused_with_its_reason(server: Daemon, name: str) -> None:
    """400 and one line that says why; nothing is published, and the connection goes on being used."""
    body, reason = REFUSED_BODIES[name]
    url = f"{server.url}/refused"
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
        server.subscriber("/refused") as stream,
    ):
        async with session.put(url, data=body) as response:
            text = await response.text()
            assert response.status == 400
            assert re.search(reason, text)
            assert text.count("\n") == 1
            assert "Connection" not in response.headers
        async with session.put(url, data=body, headers={"Accept": "application/json"}) as response:
            assert json.loads(await response.text()) == {"error": text.strip()}
        async with session.put(url, data=b'{"after": 1}') as response:
            assert response.status == 202
        assert (await stream.event())["after"] == 1


ACCEPTED_BODIES = [
    '{"": {"": []}, "b": 1, "a": 2}',
    '{"v": ' + "9" * 4300 + "}",
    '{"v": -' + "9" * 4300 + "}",
    '{"v": [1.0, -0.0, 1e22, 0.1, 1e-07, 12345678901234567890, 1.7976931348623157e+308]}',
    '{"v": "\\ud83d\\ude00 \\u0000 \\u2028 \\\\ud83d \\" \\/"}',
    '{"v": ' + "[" * 499 + "]" * 499 + "}",
    '{"t": true, "f": false, "n": null, "s": {"stillalive": 1}}',
    ' \n{"v":\t1}\r\n ',
]


@pytest.mark.parametrize("body", ACCEPTED_BODIES)
async def test_a_payload_comes_out_as_it_went_in(server: Daemon, body: str) -> None:
    """Numbers, key order, nesting and text: unchanged, but for what Python's json writes otherwise."""
    async with server.subscriber("/unchanged") as stream:
        await stream.chunk()  # the ping at the start
        assert (await server.put("/unchanged", body.encode())).status == 202
        line = await stream.chunk()
    text = json.dumps(json.loads(body))
    assert line.decode("ascii").startswith(text[:-1] + ', "pubsub_topics": ["unchanged"], ')


async def test_keys_of_the_server_stand_last_and_win(server: Daemon) -> None:
    """The publisher's keys first, in their order; a publisher's own pubsub_ key of ours is overwritten."""
    async with server.subscriber("/mine") as stream:
        await server.put("/mine/a/a", {"pubsub_path": "/x", "b": 1, "pubsub_cursor": 1, "pubsub_own": 2})
        event = await stream.event()
    assert list(event) == [
        "b",
        "pubsub_own",
        "pubsub_topics",
        "pubsub_path",
        "pubsub_timestamp",
        "pubsub_cursor",
    ]
    assert event["pubsub_path"] == "/mine/a/a"
    assert event["pubsub_topics"] == ["mine", "a", "a"]


async def test_cursors_and_timestamps_grow(server: Daemon) -> None:
    """Cursors sort as text in publishing order; a timestamp is never smaller than the one before."""
    async with server.subscriber("/growing") as stream:
        body = b"{}\n" * 500
        await server.put("/growing", body, Content_Type="application/x-ndjson")
        await server.put("/growing", {})
        events = [await stream.event() for _ in range(501)]
    cursors = [event["pubsub_cursor"] for event in events]
    timestamps = [event["pubsub_timestamp"] for event in events]
    assert cursors == sorted(set(cursors))
    assert timestamps == sorted(timestamps)
    assert all(re.fullmatch(CURSOR_PATTERN, cursor) for cursor in cursors)


PATHS = {
    "/a/b": (["a", "b"], "/a/b"),
    "//a///b/": (["a", "b"], "/a/b"),
    "/a%2Fb": (["a", "b"], "/a/b"),
    "/gr%C3%BCn": (["grün"], "/grün"),
    "/a%20b+c": (["a b+c"], "/a b+c"),
    "/A/a": (["A", "a"], "/A/a"),
    "/": ([], "/"),
    "/a?b=c,d": (["a"], "/a"),
}


@pytest.mark.parametrize("path", PATHS)
async def test_a_path_is_decoded_and_split(server: Daemon, path: str) -> None:
    """Percent-decoded as UTF-8, split on slashes, empty parts dropped; case counts; a query is no topic."""
    topics, pubsub_path = PATHS[path]
    async with server.subscriber("/") as stream:
        request = f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}"
        assert b" 202 " in await answer_head(server.port, request.encode())
        event = await stream.event()
    assert (event["pubsub_topics"], event["pubsub_path"]) == (topics, pubsub_path)


@pytest.mark.parametrize("path", [b"/a,b", b"/a%2cb", b"/a%ff", b"/a\xff", b"/%C3", b"/%ED%A0%80"])
async def test_a_path_with_a_comma_or_not_in_utf8_is_refused(server: Daemon, path: bytes) -> None:
    """400, in either spelling."""
    request = b"PUT " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    assert b" 400 " in await answer_head(server.port, request)


async def test_a_body_that_is_too_large_is_refused_before_it_is_sent(server: Daemon) -> None:
    """413 from the Content-Length alone."""
    request = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 102401\r\n\r\n"
    assert b" 413 " in await answer_head(server.port, request)


async def test_a_chunked_body_is_refused_while_it_streams(server: Daemon) -> None:
    """413 in the middle of a body without an end, and the answer says that the connection closes."""
    begin = b"PUT /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    head = await answer_head(server.port, begin + 11 * (b"2710\r\n" + b"x" * 10_000 + b"\r\n"))
    assert b" 413 " in head
    assert b"\r\nConnection: close\r\n" in head


async def test_a_compressed_body_is_counted_after_inflating(server: Daemon) -> None:
    """A few hundred bytes of gzip that would become megabytes: 413."""
    bomb = gzip.compress(b'{"v": "' + b"x" * 5_000_000 + b'"}')
    assert len(bomb) < 10_000
    answer = await server.put("/a", bomb, Content_Encoding="gzip")
    assert answer.status == 413


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_body_is_inflated(
    server: Daemon, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    """Content-Encoding gzip and deflate."""
    async with server.subscriber("/small") as stream:
        answer = await server.put("/small", compress(b'{"v": 1}'), Content_Encoding=encoding)
        assert answer.status == 202
        assert (await stream.event())["v"] == 1


async def test_a_body_that_does_not_inflate_is_refused(server: Daemon) -> None:
    """400, and no traceback in the log."""
    assert (await server.put("/a", b"{}", Content_Encoding="gzip")).status == 400
    assert (await server.put("/a", b"{}", Content_Encoding="br")).status == 415
    assert not any("Traceback" in line for line in server.log)


@pytest.mark.parametrize("cut", ["short", "long"])
async def test_a_compressed_body_has_its_own_end(server: Daemon, cut: str) -> None:
    """400 if it breaks off before, or goes on after it."""
    whole = gzip.compress(b'{"v": 1}')
    body = whole[:-4] if cut == "short" else whole + b"more"
    assert (await server.put("/a", body, Content_Encoding="gzip")).status == 400


async def test_the_largest_body_is_accepted(server: Daemon) -> None:
    """max_payload_size itself is not too large, one more byte is."""
    body = b'{"v": "' + b"x" * (102_400 - 9) + b'"}'
    assert len(body) == 102_400
    assert (await server.put("/a", body)).status == 202
    assert (await server.put("/a", body + b" ")).status == 413


async def test_a_line_that_would_be_too_long_is_refused(start_daemon: StartDaemon) -> None:
    """Escaping can triple a body's size; readers in the field cannot take longer lines."""
    server = start_daemon({"server": {"max_payload_size": "1 MiB", "max_line_size": 60_000}})
    assert (await server.put("/a", {"v": "x" * 59_700})).status == 202
    answer = await server.put("/a", json.dumps({"v": "ü" * 20_000}, ensure_ascii=False).encode())
    assert answer.status == 413
    assert "60000" in answer.text


async def test_a_limit_above_aiohttps_own_is_kept(start_daemon: StartDaemon) -> None:
    """A body of 1.5 MB is fine where the operator allows it."""
    server = start_daemon({"server": {"max_payload_size": 3_000_000, "max_line_size": "2 MiB"}})
    async with server.subscriber("/large") as stream:
        assert (await server.put("/large", {"v": "x" * 1_500_000})).status == 202
        assert len((await stream.event())["v"]) == 1_500_000


async def test_a_publisher_who_expects_100_gets_it_at_once(server: Daemon) -> None:
    """curl sends Expect: 100-continue with large bodies, and waits a second for the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    async with asyncio.timeout(10):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert b" 202 " in await reader.readline()
    writer.close()


async def test_a_publisher_without_the_right_is_not_asked_to_send(start_daemon: StartDaemon) -> None:
    """The refusal comes instead of 100, and the connection closes: the body may come or not."""
    server = start_daemon({"clients": {"payloaders": []}})
    request = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    head = await answer_head(server.port, request)
    assert b" 403 " in head
    assert b"\r\nConnection: close\r\n" in head


async def test_another_expectation_is_refused(server: Daemon) -> None:
    """417, RFC 9110 section 10.1.1."""
    request = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: more\r\n\r\n{}"
    assert b" 417 " in await answer_head(server.port, request)


async def test_a_connection_serves_many_publishes_in_order(server: Daemon) -> None:
    """Keep-alive, also when requests are sent without waiting for answers."""
    async with server.subscriber("/many") as stream:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for n in range(50):
            body = b'{"n": %d}' % n
            writer.write(
                b"POST /many HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
        for _ in range(50):
            assert b" 202 " in await reader.readuntil(b"accepted\n")
        assert [(await stream.event())["n"] for _ in range(50)] == list(range(50))
        writer.close()


async def test_a_publisher_who_leaves_mid_body_publishes_nothing(server: Daemon) -> None:
    """Half a body is no event."""
    async with server.subscriber("/half") as stream:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b'PUT /half HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{"n": 1}')
        await writer.drain()
        writer.close()
        await server.put("/half", {"n": 2})
        assert (await stream.event())["n"] == 2


async def test_many_events_in_one_request(server: Daemon) -> None:
    """NDJSON: one object a line; all are published, in order, and the answer tells how many."""
    async with server.subscriber("/batch") as stream:
        body = b'{"n": 0}\n\n{"n": 1}\r\n  \n{"n": 2}'
        answer = await server.put(
            "/batch", body, Content_Type="application/x-ndjson; charset=utf-8", Accept="application/json"
        )
        events = [await stream.event() for _ in range(3)]
    assert [event["n"] for event in events] == [0, 1, 2]
    assert answer.status == 202
    assert json.loads(answer.text) == {"cursor": events[-1]["pubsub_cursor"], "count": 3}
    assert answer.headers["X-Cursor"] == events[-1]["pubsub_cursor"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b'{"n": 0}\n\n{"n": NaN}\n', "line 3: NaN"), (b"{}\n[]", "line 2: .* a list"), (b"\n \n", "no event")],
)
async def test_one_bad_line_refuses_them_all(server: Daemon, body: bytes, reason: str) -> None:
    """400 naming the line, and none is published."""
    async with server.subscriber("/batch") as stream:
        answer = await server.put("/batch", body, Content_Type="application/x-ndjson")
        assert answer.status == 400
        assert re.search(reason, answer.text)
        await server.put("/batch", {"after": 1})
        assert (await stream.event())["after"] == 1


async def test_a_private_event_is_accepted_and_shown_to_nobody(server: Daemon) -> None:
    """Nobody has rights to private events; the second `private` of a path is an ordinary topic."""
    async with server.subscriber("/") as everything, server.subscriber("/private") as private:
        assert (await server.put("/private/secrets", {"n": 1})).status == 202
        assert (await server.put("/%70rivate/secrets", {"n": 2})).status == 202
        assert (await server.put("/open/private", {"n": 3})).status == 202
        assert (await everything.event())["n"] == 3
        event = await private.event()
    assert (event["n"], event["pubsub_topics"]) == (3, ["open", "private"])


async def idempotent(server: Daemon, path: str, key: str, payload: Any) -> tuple[int, str | None, str | None]:
    """Publish with a key: status, cursor, and whether the answer is a repeated one."""
    answer = await server.put(path, payload, Idempotency_Key=key)
    return answer.status, answer.headers.get("X-Cursor"), answer.headers.get("Idempotency-Replayed")


async def test_a_repeated_publish_with_a_key_is_published_once(server: Daemon) -> None:
    """The first answer comes again; another path or another key is another publish."""
    async with server.subscriber("/once") as stream:
        first = await idempotent(server, "/once", "key-1", {"n": 1})
        again = await idempotent(server, "/once", "key-1", {"n": 1})
        other_path = await idempotent(server, "/once/more", "key-1", {"n": 2})
        other_key = await idempotent(server, "/once", "key-2", {"n": 3})
        numbers = [(await stream.event())["n"] for _ in range(3)]
    assert first[2] is None
    assert again == (202, first[1], "true")
    assert other_path[2] is other_key[2] is None
    assert numbers == [1, 2, 3]


async def test_a_key_is_not_used_for_two_bodies(server: Daemon) -> None:
    """422; a malformed key is 400; a refused request is not remembered."""
    await idempotent(server, "/keys", "key-3", {"n": 1})
    assert (await idempotent(server, "/keys", "key-3", {"n": 2}))[0] == 422
    for key in ("", "two words", "x" * 256, "ü"):
        assert (await idempotent(server, "/keys", key, {"n": 1}))[0] == 400
    assert (await idempotent(server, "/keys", "key-4", b"[]"))[0] == 400
    assert (await idempotent(server, "/keys", "key-4", {"n": 1}))[0] == 202


async def test_a_key_covers_a_whole_batch(server: Daemon) -> None:
    """NDJSON with a key: all its events once."""
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "key-5"}
    async with server.subscriber("/keyed") as stream:
        first = await server.request("POST", "/keyed", b'{"n": 1}\n{"n": 2}', headers)
        again = await server.request("POST", "/keyed", b'{"n": 1}\n{"n": 2}', headers)
        await server.put("/keyed", {"n": 3})
        assert [(await stream.event())["n"] for _ in range(3)] == [1, 2, 3]
    assert first.headers["X-Cursor"] == again.headers["X-Cursor"]
    assert first.text == again.text == "accepted 2 events\n"


async def test_the_lines_of_a_batch_are_bounded_together(server: Daemon) -> None:
    """Each holds the path, so a body of 100 KB could become a gigabyte: 413, and nothing is published."""
    async with server.subscriber("/") as stream:
        body = b"{}\n" * 5000
        answer = await server.put(f"/{'a' * 7000}", body, Content_Type="application/x-ndjson")
        assert answer.status == 413
        assert "send fewer" in answer.text
        await server.put("/after", {"n": 1})
        assert (await stream.event())["pubsub_path"] == "/after"
