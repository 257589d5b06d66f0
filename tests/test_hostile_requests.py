"""What a request costs the daemon that anybody may send: little time, whatever is in it, and no memory.

Each request is sent byte by byte, again and again, by somebody who may not publish, and the kernel tells what
CPU time the daemon took for it. A plain PUT that is refused, in the same run, is the measure.
"""

import asyncio
import contextlib
import gc
import gzip
import json
import time
import timeit
import tracemalloc
import unicodedata
import weakref
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.auth.attempts import Attempts
from core.auth.login import alike
from core.errors import Refused
from core.events.event import depth_of, parse_payload
from core.events.subscription import parse_subscription
from core.events.topics import parse_publish_path
from core.expiring import Expiring
from daemon import Daemon
from hostile import Client, chunks, cost, resident
from wire import TIMEOUT, credentials

MOST = 10  # times a plain refused PUT
AT_LEAST = 0.002  # seconds that are let pass anyhow, which is less than a turn of the loop may take
MOST_LEFT = (
    12_000_000  # bytes that thousands of requests may leave in memory: caches, and what the allocator keeps
)
STRANGER, PROXY, LISTED = "127.0.0.9", "127.0.0.2", "127.0.0.1"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon that all requests are sent to."""
    config = {
        "server": {"trusted_proxies": [PROXY], "backlog": {"size": 100}},
        "clients": {"payloaders": [LISTED], "secure_topics": ["deploy"]},
    }
    daemon = Daemon(tmp_path_factory.mktemp("hostile"), config)
    daemon.write_acl({"alice": {"password": "secret", "acl": {"team": ["git"]}, "topics": ["deploy"]}})
    daemon.start()
    yield daemon
    assert daemon.stop() == 0


def request(
    method: str = "PUT",
    target: bytes = b"/a",
    fields: bytes = b"",
    body: bytes = b"{}",
    framing: bytes | None = None,
) -> bytes:
    """A request in which nothing is tidied up. framing: in the place of a Content-Length."""
    if method == "GET":
        body = framing = b""
    if framing is None:
        framing = b"Content-Length: %d\r\n" % len(body)
    start = b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\n" % (method.encode(), target)
    return start + fields + framing + b"\r\n" + body


def field(name: str, *values: bytes) -> bytes:
    """A header field, once or several times."""
    return b"".join(b"%s: %s\r\n" % (name.encode(), value) for value in values)


def basic(user: str, password: str = "x") -> bytes:
    """The header with credentials of any length."""
    return field("Authorization", credentials(user, password))


def cut(text: str, size: int) -> str:
    """As many of its characters as so many bytes hold."""
    return text.encode()[:size].decode(errors="ignore")


# combining marks, those that Unicode's forms put last coming first
MARKS = "".join(
    mark * 8
    for mark in sorted(
        filter(unicodedata.combining, map(chr, range(0x300, 0x1E000))), key=unicodedata.combining
    )[::-1]
)
NAMES = {
    "combining marks": cut(MARKS, 6000),
    "combining marks of two classes": ("\u0301\u0316" * 1500),
    "255 bytes of combining marks": cut(MARKS, 255),
    "255 bytes of marks that are two": cut("\u0344" * 255, 255),
    "255 bytes of one that are eighteen": cut("\ufdfa" * 255, 255),
    "one that are eighteen": "\ufdfa" * 2000,
    "spaces": "a" + " " * 5900 + "b",
    "dotted capitals": "\u0130" * 3000,
    "Hangul": "\ud55c" * 2000,
    "variation selectors": "a" + "\ufe00" * 1900,
}
VALUES = {
    "digits": b"9" * 8000,
    "commas": b"a," * 4000,
    "semicolons": b"a;" * 4000,
    "quotes": b';"' * 4000,
    "equals signs": b"a=;" * 2600,
    "spaces": b"a" + b" " * 8000 + b"b",
    "stars": b"a/b" + b"".join(b';a*%d="x"' % number for number in range(700)),
    "percent signs": b"%41" * 2600,
    "combining marks": cut(MARKS, 8000).encode(),
    "brackets": b"http://[" + b":" * 8000 + b"]",
    "colons": b"http://" + b"a:" * 4000,
    "marks in a URL": b"http://" + cut(MARKS, 8000).encode(),
    "a long duration": b"9" * 8000 + b"d",
    "a long fraction": b"1." + b"1" * 8000,
    "a long exponent": b"1e" + b"9" * 8000,
    "a time with a long fraction": b"2026-11-24T08:00:00." + b"1" * 8000,
    "a time zone far off": b" " * 4000 + b"1" + b" " * 3000 + b"0100",
    "dashes": b"-" * 8000,
}
HEADERS = [
    *("Accept", "Accept-Encoding", "Accept-Language", "Access-Control-Request-Headers", "Authorization"),
    *("Connection", "Content-Encoding", "Content-Type", "Cookie", "Expect", "Forwarded", "Idempotency-Key"),
    *("If-Match", "If-Modified-Since", "If-None-Match", "If-Range", "Keep-Alive", "Last-Event-ID", "Origin"),
    *("Range", "Sec-Fetch-Site", "TE", "Upgrade", "User-Agent", "Via", "X-Fetch-Since"),
    *("X-Fetch-Since-Cursor", "X-Forwarded-For", "X-HTTP-Method-Override"),
]
TARGETS = {
    "4,000 topics": b"/a" * 4000,
    "as many different topics": b"".join(b"/%x" % number for number in range(1700)),
    "64 long topics": (b"/" + b"a" * 120) * 64,
    "65 alternatives of 15 topics": b"/"
    + b",".join([b"/".join(b"%x" % n for n in range(s, s + 15)) for s in range(65)]),
    "4,000 alternatives": b"/" + b"a," * 4000,
    "190 alternatives": b"/" + b",".join(b"%x" % number for number in range(190)),
    "percent signs": b"/" + b"%41" * 2700,
    "bytes that are no UTF-8": b"/" + b"%FF" * 2700,
    "dots": b"/.." * 2700,
    "slashes": b"/" * 8000,
    "colons": b":" * 8000,
    "1,800 query keys": b"/a?" + b"&".join(b"%x" % number for number in range(1800)),
    "4,000 equal query keys": b"/a?" + b"a=&" * 2600,
    "ampersands": b"/a?" + b"&" * 8000,
    "a percent-encoded query": b"/a?since=" + b"%39" * 2600,
    "a query that is no UTF-8": b"/a?a=" + b"%FF" * 2600,
    "plus signs": b"/a?since=" + b"+" * 8000,
    "a host of many labels": b"http://" + b"a." * 4000 + b"/x",
    "a host in Punycode": b"http://xn--" + b"a9" * 4000 + b"/x",
    "a host in brackets": b"http://[" + b":" * 8000 + b"]/x",
    "a host with users": b"http://" + b"@" * 8000 + b"/x",
    "a long port": b"http://a:" + b"1" * 8000 + b"/x",
}


CHUNKED = b"Transfer-Encoding: chunked\r\n"
LONG = b'{"a": "' + b"x" * 100_000 + b'"}'
BODIES = {
    "100 KB": request(body=LONG),
    "chunks of one byte": request(body=chunks(LONG, 1), framing=CHUNKED),
    "chunks of 20 bytes": request(body=chunks(LONG, 20), framing=CHUNKED),
    "a long chunk extension": request(body=chunks(b"{}", 1, b";" + b"a" * 8000), framing=CHUNKED),
    "chunk extensions": request(body=chunks(LONG, 1000, b';a="b"' * 100), framing=CHUNKED),
    "trailers": request(body=b"2\r\n{}\r\n0\r\n" + field("X-A", *[b"a"] * 1000) + b"\r\n", framing=CHUNKED),
    "gzip of zeros": request(
        fields=field("Content-Encoding", b"gzip"), body=gzip.compress(b"\0" * 50_000_000)
    ),
    "deflated zeros": request(
        fields=field("Content-Encoding", b"deflate"), body=zlib.compress(b"\0" * 50_000_000)
    ),
}
HEADS = {
    "fields of 57 KB": request(fields=b"".join(field(f"X-{n}", b"a" * 8000) for n in range(7))),
    "120 fields": request(fields=b"".join(field(f"X-{n}", b"a") for n in range(120))),
    "one field 120 times": request(fields=field("Accept", *[b"application/json"] * 120)),
    "2,000 fields": request(fields=b"".join(field(f"X-{n}", b"a") for n in range(2000))),
    "fields without values": request(fields=b"".join(field(f"X-{n}", b"") for n in range(120))),
    "credentials 100 times": request(fields=basic(cut(MARKS, 255)) * 100),
    "a long method": request("X" * 8000),
    "a NUL": request(target=b"/\0" + b"a" * 8000),
    "a long field": request(fields=field("X-A", b"a" * 60_000)),
}
CHAINS = {
    "X-Forwarded-For of 57 KB": field("X-Forwarded-For", *[b"127.0.0.2," * 800] * 7),
    "the same, before the client": field("X-Forwarded-For", *[b"127.0.0.2," * 800] * 7, b"192.0.2.9"),
    "Forwarded of 57 KB": field("Forwarded", *[b"for=127.0.0.2," * 570] * 7),
    "the same, before the client, in Forwarded": field(
        "Forwarded", *[b"for=127.0.0.2," * 570] * 7, b"for=192.0.2.9"
    ),
    "semicolons in Forwarded": field("Forwarded", *[b"for=127.0.0.2;" * 570] * 7),
    "quotes in Forwarded": field("Forwarded", *[b'for="a,b";' * 800] * 7),
    "proxies as IPv6": field("X-Forwarded-For", *[b"::ffff:127.0.0.2," * 450] * 7),
}


def table() -> Iterator[tuple[str, bytes, str | None]]:
    """What it is, the request, and where it comes from."""
    for method in ("GET", "PUT"):
        for name, target in TARGETS.items():
            yield f"{method} {name}", request(method, target), STRANGER
        for user, text in NAMES.items():
            # from another address each time: guesses that are too many cost less
            yield f"{method} user: {user}", request(method, b"/deploy", basic(text)), None
            yield f"{method} password: {user}", request(method, b"/deploy", basic("alice", text)), None
        for header in HEADERS:
            for name, value in VALUES.items():
                yield f"{method} {header}: {name}", request(method, fields=field(header, value)), STRANGER
        for name, fields in CHAINS.items():
            yield f"{method} {name}", request(method, fields=fields), PROXY
    for requests in (BODIES, HEADS):
        for name, sent in requests.items():
            yield name, sent, STRANGER


def test_no_request_costs_much_more_than_a_plain_one_that_is_refused(daemon: Daemon) -> None:
    """Ten times as much CPU time at most, and a daemon that has had all of them is no larger."""
    plain, statuses = cost(daemon, request(), STRANGER)
    assert statuses == {403}
    before = resident(daemon.pid)
    dear = {}
    for name, sent, source in table():
        seconds, _ = cost(daemon, sent, source, rounds=1, repetitions=3)
        if seconds > max(MOST * plain, AT_LEAST):
            seconds, _ = cost(daemon, sent, source)  # this machine may have been busy
        if seconds > max(MOST * plain, AT_LEAST):
            dear[name] = f"{seconds * 1000:.1f} ms, {seconds / plain:.0f} times a plain one"
    assert not dear
    assert resident(daemon.pid) - before < MOST_LEFT


# What stays in memory

REQUESTS = 1000
LEFT: dict[str, Callable[[int], bytes]] = {
    "guessed names": lambda n: request("GET", fields=basic(f"{n}" + cut("\ufdfa" * 2000, 5000))),
    "guessed names of 255 bytes": lambda n: request("GET", fields=basic(f"{n}-" + cut("\ufdfa" * 255, 240))),
    "guessed passwords": lambda n: request("GET", fields=basic("alice", f"{n}" + "x" * 5000)),
    "long paths": lambda n: request(target=b"/%d" % n + b"/a" * 4000),
    "long paths that may be published on": lambda n: request(target=b"/%d" % n + (b"/" + b"a" * 124) * 60),
    "short paths": lambda n: request(target=b"/%d" % n + b"".join(b"/%x" % k for k in range(40))),
    "subscriptions": lambda n: request("GET", b"/%d" % n + b",a" * 4000),
    "queries": lambda n: request("GET", b"/?%d&" % n + b"&".join(b"%x" % key for key in range(1700))),
    "other fields": lambda n: request(
        fields=b"".join(
            field(name, b"%d" % n + b"a" * 8000)
            for name in (
                "Content-Encoding",
                "Cookie",
                "Expect",
                "Idempotency-Key",
                "Origin",
                "X-Forwarded-For",
            )
        )
    ),
    "queries of 60 keys": lambda n: request(
        "GET", b"/,?%d&" % n + b"&".join(b"%x=%s" % (k, b"a" * 120) for k in range(60))
    ),
    "plain fields": lambda n: request(
        fields=b"".join(
            field(name, b"%d" % n + b"a" * 8000)
            for name in ("Accept", "Accept-Encoding", "Accept-Language", "Content-Type", "User-Agent")
        )
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_refused_requests_leave_nothing_in_memory(daemon: Daemon, kind: str) -> None:
    """However many and however different, from one address."""
    with Client(daemon, STRANGER) as client:
        for number in range(100):
            client.ask(LEFT[kind](number + REQUESTS))
        before = resident(daemon.pid)
        statuses = {client.ask(LEFT[kind](number)) for number in range(REQUESTS)}
    assert statuses <= {400, 401, 403, 429}
    assert resident(daemon.pid) - before < MOST_LEFT


def test_streams_that_have_ended_leave_room_for_others(daemon: Daemon) -> None:
    """A second wave of large subscriptions finds the memory that the first one had."""

    def wave(number: int) -> None:
        with contextlib.ExitStack() as clients:
            for stream in range(100):
                client = clients.enter_context(Client(daemon, STRANGER))
                alternatives = b",".join(b"%x-%x-%x" % (number, stream, topic) for topic in range(190))
                assert client.ask(request("GET", b"/" + alternatives)) == 200

    wave(0)
    until_nobody_follows(daemon)
    before = resident(daemon.pid)
    for number in range(1, 5):
        wave(number)
        until_nobody_follows(daemon)
    assert resident(daemon.pid) - before < MOST_LEFT


def until_nobody_follows(daemon: Daemon) -> None:
    """Ask until all streams are gone."""
    with Client(daemon, STRANGER) as client:
        while (
            client.ask(b"HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            and client.fields["x-subscribers"] != "0"
        ):
            pass


def kept_by(call: Callable[[int], object], number: int) -> int:
    """Bytes that so many calls leave in memory."""
    gc.collect()
    tracemalloc.start()
    try:
        for argument in range(number):
            with contextlib.suppress(Refused):
                call(argument)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_names_are_counted_without_being_kept() -> None:
    """A name of 255 bytes may be as one of 1,530 characters in what is looked for."""
    attempts = Attempts()

    def guess(number: int) -> None:
        user = alike(f"{number} " + "\ufdfa" * 80)
        attempts.check("192.0.2.1", user, exempt=False)
        attempts.begin("192.0.2.1", user)

    assert kept_by(guess, 1000) < 1_000_000


@pytest.mark.parametrize("rest", [("/" + "a" * 100) * 60, "/a" * 62 + "/" + "b" * 60], ids=["8 KB", "short"])
def test_long_paths_are_not_remembered(rest: str) -> None:
    """Neither the topics that were read, nor the text that events on them have."""

    def publish(number: int) -> None:
        parse_payload(b"{}", parse_publish_path(f"/{number}{rest}"), 1_000_000)

    assert kept_by(publish, 1000) < 500_000


def test_subscriptions_are_not_remembered() -> None:
    """Those that are open are kept once, where the events are matched."""
    assert kept_by(lambda number: parse_subscription(f"/{number}" + ",a/b" * 50), 1000) < 500_000


async def test_a_table_lets_go_of_what_is_old_without_being_asked() -> None:
    """Each entry when its time has come, also after the table was empty."""
    table: Expiring[int, object] = Expiring(0.2, 10)
    for _ in range(2):
        ends = []
        for key in range(3):
            value, gone = object_and_end()
            table.put(key, value, age=0.15 - key / 20)
            ends.append(gone)
        del value
        for number, gone in enumerate(ends, 1):
            async with asyncio.timeout(TIMEOUT):
                await gone.wait()
            assert len(table) <= 3 - number
        assert len(table) == 0


class Anything:
    """A value."""


def object_and_end() -> tuple[Anything, asyncio.Event]:
    """A value, and what is set when nothing holds it any more."""
    value, gone = Anything(), asyncio.Event()
    weakref.finalize(value, gone.set)
    return value, gone


# Depth

JSON = st.recursive(
    st.one_of(st.none(), st.text("[]{}\\\"' a\u20ac", max_size=5)),
    lambda below: st.one_of(
        st.lists(below, max_size=3), st.dictionaries(st.text('[{\\"', max_size=3), below, max_size=3)
    ),
)


def depth(value: object) -> int:
    """By a walk through all of it."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(JSON, st.booleans())
def test_depth_is_read_off_the_text(value: object, escaped: bool) -> None:
    """Brackets in strings, escaped quotes and backslashes change nothing."""
    assert depth_of(json.dumps(value, ensure_ascii=escaped)) == depth(value)


def test_looking_how_deep_a_payload_is_takes_less_than_reading_it() -> None:
    """However many lists are in one another."""
    deep = '{"a": [' + ",".join(["[" * 400 + "]" * 400] * 120) + "]}"
    assert depth_of(deep) == 402
    assert shortest(lambda: depth_of(deep)) < 2 * shortest(lambda: json.loads(deep))


def shortest(call: Callable[[], object]) -> float:
    """CPU seconds of a call, the least of several."""
    return min(timeit.repeat(call, time.process_time, number=1, repeat=10))
