"""The three clients keep their promises: run as the programs they are, and used as the modules they are."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
import pytest

import demo
from client import PublishError, listen, publish
from daemon import Daemon, StartDaemon
from scripted import (
    HEAD,
    LAST_CHUNK,
    PING,
    Do,
    Forever,
    Script,
    Scripted,
    Step,
    answer,
    byte_by_byte,
    chunk,
    head,
)
from wire import TIMEOUT

CLIENTS = Path(__file__).parent.parent / "clients"


class Language(NamedTuple):
    """How to run a client, or a few lines of code beside it."""

    program: str
    file: Path
    code_option: str


LANGUAGES = {
    "python": Language(sys.executable, CLIENTS / "python" / "client.py", "-c"),
    "node": Language("node", CLIENTS / "nodejs" / "client.js", "-e"),
    "ruby": Language("ruby", CLIENTS / "ruby" / "client.rb", "-e"),
}


class Program:
    """A running client."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.complaints: list[str] = []  # the lines of stderr so far

    async def line(self) -> bytes:
        """The next line of its output."""
        assert self.process.stdout is not None
        async with asyncio.timeout(TIMEOUT):
            line = await self.process.stdout.readline()
        assert line.endswith(b"\n"), f"the client ended: {await self.rest_of_complaints()}"
        return line

    async def event(self) -> Any:
        """The next event."""
        return json.loads(await self.line())

    async def says(self, text: str) -> str:
        """Wait for a line on stderr, not waited for before, that contains the text."""
        assert self.process.stderr is not None
        async with asyncio.timeout(TIMEOUT):
            while line := (await self.process.stderr.readline()).decode().rstrip("\n"):
                self.complaints.append(line)
                if text in line:
                    return line
        raise AssertionError(f"the client never said {text!r}, but: {self.complaints}")

    async def rest_of_complaints(self) -> list[str]:
        """All lines of stderr, once the client has ended."""
        assert self.process.stderr is not None
        async with asyncio.timeout(TIMEOUT):
            self.complaints += (await self.process.stderr.read()).decode().splitlines()
        return self.complaints

    def peak(self) -> int:
        """The most memory, in MB, that it has taken so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024

    async def end(self) -> tuple[int, str, list[str]]:
        """Wait for its end: the status, what is left of stdout, the lines of stderr."""
        assert self.process.stdout is not None
        complaints = await self.rest_of_complaints()
        async with asyncio.timeout(TIMEOUT):
            output = (await self.process.stdout.read()).decode()
            return await self.process.wait(), output, complaints


class Runner:
    """Starts the client of a language, and ends what is still running after the test."""

    def __init__(self, language: str) -> None:
        if shutil.which(LANGUAGES[language].program) is None:
            pytest.skip(f"{LANGUAGES[language].program} is not installed")
        self.language = language
        self._file = LANGUAGES[language].file
        self._programs: list[Program] = []

    def tune(self, directory: Path, **constants: float) -> None:
        """From now on run a copy, in that directory, of the client with these values of its constants."""
        text = self._file.read_text()
        for name, value in constants.items():
            text, count = re.subn(
                rf"^(\s*(const )?{name} = )[0-9._]+", rf"\g<1>{value}", text, flags=re.MULTILINE
            )
            assert count == 1, f"{count} constants {name}"
        self._file = directory / self._file.name
        self._file.write_text(text)

    async def client(
        self, *arguments: str, env: Mapping[str, str] | None = None, stdout: int = PIPE
    ) -> Program:
        """Its command line."""
        program = LANGUAGES[self.language].program
        return await self._start(program, str(self._file), *arguments, env=env, stdout=stdout)

    async def follow(self, url: str, *options: str, silence: float = 10, max_wait: float = 0.05) -> Program:
        """Its command line, following a URL with next to no pause between two connections."""
        return await self.client("--silence", str(silence), "--max-wait", str(max_wait), *options, url)

    async def code(self, codes: Mapping[str, str], *arguments: str) -> Program:
        """A few lines of code, written once for each language, in the client's directory."""
        program, _, option = LANGUAGES[self.language]
        end_of_options = ["--"] if self.language == "node" else []
        return await self._start(
            program, option, codes[self.language], *end_of_options, *arguments, cwd=self._file.parent
        )

    async def _start(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: int = PIPE,
    ) -> Program:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=stdout, stderr=PIPE, env=os.environ | (env or {}), cwd=cwd, limit=2**22
        )
        self._programs.append(Program(process))
        return self._programs[-1]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all of them, and wait for that."""
        for program in self._programs:
            if program.process.returncode is None:
                program.process.kill()
            await program.process.communicate()


@pytest.fixture(params=LANGUAGES)
async def run(request: pytest.FixtureRequest) -> AsyncIterator[Runner]:
    """Runs the client under test: each of them in turn."""
    async with Runner(request.param) as runner:
        yield runner


def line(**event: Any) -> bytes:
    """An event as a server sends it."""
    return json.dumps(event).encode() + b"\n"


def cursor(n: int) -> str:
    """The cursor of event n."""
    return f"{n:08x}-fa11-7000-8000-00000000ca11"


def event(n: int) -> bytes:
    """Event n as a server sends it, in its chunk."""
    return chunk(line(n=n, pubsub_cursor=cursor(n)))


def head_at(n: int) -> bytes:
    """The head of a stream that began when event n was the last one."""
    return head(f"X-Cursor: {cursor(n)}")


async def asked(server: Scripted, count: int) -> list[str | None]:
    """The cursors after which the first so many requests asked for events."""
    requests = [await server.request(number) for number in range(count)]
    return [request.headers.get("x-fetch-since-cursor") for request in requests]


# Following


async def test_events_are_printed_one_a_line_and_pings_are_not(run: Runner) -> None:
    """Events come out in order; a ping is an object whose only key is stillalive."""
    events: list[dict[str, Any]] = [{"n": 1}, {"n": 2, "stillalive": 3.5}, {}, {"n": "\n😀\u2028\0"}]
    script: Script = [
        HEAD,
        *(step for event in events for step in (chunk(PING), chunk(line(**event)))),
        Do.HOLD,
    ]
    async with Scripted(script) as server:
        client = await run.follow(server.url)
        assert [await client.event() for _ in events] == events


BEFORE = [HEAD, chunk(PING), chunk(line(which="before"))]
ENDINGS: dict[str, Script] = {
    "with a closing chunk": [*BEFORE, LAST_CHUNK],
    "closed without a closing chunk": [*BEFORE],
    "reset": [HEAD, Do.BREATHE, Do.RESET],
    "in the middle of a line": [*BEFORE, chunk(b'{"which": "half')],
    "in the middle of a line, with a closing chunk": [*BEFORE, chunk(b'{"which": "half"}'), LAST_CHUNK],
    "in the middle of a chunk": [*BEFORE, b'40\r\n{"which": "half'],
    "in the middle of a chunk's length": [*BEFORE, b"4"],
    "after a chunk, before its end of line": [*BEFORE, b"23\r\n" + PING],
    "with a line that is not JSON": [*BEFORE, chunk(b"<html>\n"), Do.HOLD],
    "with half a line of JSON": [*BEFORE, chunk(b'{"which":\n'), Do.HOLD],
    "with a line that is a list": [*BEFORE, chunk(b'[{"which": 1}]\n'), Do.HOLD],
    "with a line that is a number": [*BEFORE, chunk(b"12\n"), Do.HOLD],
    "with a line that is null": [*BEFORE, chunk(b"null\n"), Do.HOLD],
    "with a line that is not UTF-8": [*BEFORE, chunk(b'{"which": "\xff"}\n'), Do.HOLD],
    "closed at once": [],
    "reset at once": [Do.RESET],
    "in the middle of the head": [HEAD[:40]],
    "with no HTTP at all": [b"\x16\x03\x01 220 smtp.example.org ESMTP\r\n\r\n"],
    "with the head of an upgrade": [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    ],
    "with an empty body": [HEAD, LAST_CHUNK],
    "with an empty body of known length": [answer("200 OK")],
    "with a page of HTML": [answer("200 OK", b"<!DOCTYPE html>\n<html>\n")],
    "without a body": [answer("204 No Content")],
    "refused": [answer("403 Forbidden", b"not for you\n")],
    "refused for now": [answer("503 Service Unavailable", b"later\n", "Retry-After: 2\r\n")],
    "refused in mid sentence": [b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 99\r\n\r\nlat"],
    "redirected": [answer("302 Found", headers="Location: /elsewhere\r\n")],
}


async def test_however_a_stream_ends_the_client_comes_back(run: Runner) -> None:
    """What came before the end is printed, half a line is not, and the events after it are. Each time it asks
    for what follows the last event that it has printed, those without a cursor aside."""
    back = {name: [HEAD, event(n)] for n, name in enumerate(ENDINGS)}
    async with Scripted(*(script for name in ENDINGS for script in (ENDINGS[name], back[name]))) as server:
        client = await run.follow(server.url)
        for n, (name, ending) in enumerate(ENDINGS.items()):
            if ending[: len(BEFORE)] == BEFORE:
                assert await client.event() == {"which": "before"}, f"the event before a stream ended {name}"
            assert await client.event() == json.loads(line(n=n, pubsub_cursor=cursor(n))), name
        printed_before = [None, *map(cursor, range(len(ENDINGS) - 1))]
        assert await asked(server, 2 * len(ENDINGS)) == [each for each in printed_before for _ in range(2)]
        assert all(request.path == "/" for request in server.requests)
        client.process.kill()
        assert not [text for text in await client.rest_of_complaints() if "nothing came" in text]


async def test_a_stream_that_goes_on_as_something_else_is_left(run: Runner) -> None:
    """At once, or, where the HTTP library keeps it to itself, after a silence."""
    garbage: list[Step] = [Do.BREATHE, b"no chunk length\r\n", Do.HOLD]
    after: Script = [HEAD, chunk(line(which="after")), Do.HOLD]
    async with Scripted([HEAD, *garbage], [*BEFORE, *garbage], after) as server:
        client = await run.follow(server.url, silence=0.3)
        while await client.event() != {"which": "after"}:
            pass  # what came in one packet with the garbage may be lost
        await server.left(2)


async def test_a_server_that_is_not_there_yet_is_waited_for(run: Runner) -> None:
    """A refused connection is tried again until it is not."""
    async with Scripted([HEAD, chunk(line(n=1))]) as server:
        await server.stop()
        client = await run.follow(server.url)
        await client.says("again in")
        await client.says("again in")
        await server.start()
        assert await client.event() == {"n": 1}


async def test_a_name_without_an_address_is_asked_for_again(run: Runner) -> None:
    """A resolver may be down for a while."""
    client = await run.follow("http://nowhere.invalid:2069/", silence=2)
    for _ in range(2):
        assert "nowhere.invalid" in await client.says("again in")


async def test_a_silent_server_is_left(run: Runner) -> None:
    """No byte for so many seconds, before the head, behind it or in a line: a new connection is made."""
    silent: list[Script] = [[Do.HOLD], [HEAD, Do.HOLD], [*BEFORE, Do.HOLD], [HEAD, chunk(b'{"n'), Do.HOLD]]
    async with Scripted(*silent, [HEAD, chunk(line(n=1)), Do.HOLD]) as server:
        client = await run.follow(server.url, silence=0.2)
        for _ in silent:
            assert "nothing came for 0.2 s" in await client.says("again in")
        assert await client.event() == {"which": "before"}
        assert await client.event() == {"n": 1}
        await server.left(len(silent))


async def test_a_stream_of_nothing_but_pings_is_not_silent(run: Runner) -> None:
    """Pings for twice as long as the silence that ends a connection do not end it."""
    pings: list[Step] = [chunk(PING), Do.BREATHE] * 300
    async with Scripted([HEAD, *pings, chunk(line(n=1)), Do.HOLD]) as server:
        client = await run.follow(server.url, silence=0.3)
        assert await client.event() == {"n": 1}
        assert len(server.requests) == 1


FLOOD = b"z" * 60_000
REFUSAL = b"HTTP/1.1 403 Forbidden\r\n"
ENDLESS_HEADS: dict[str, Script] = {
    "empty lines": [Forever(b"\r\n" * 10_000)],
    "a status line": [b"HTTP/1.1 200 ", Forever(FLOOD)],
    "answers that are not the last": [Forever(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 100)],
    "answers that are not the last, slowly": [Forever(b"HTTP/1.1 102 Processing\r\n\r\n", 0.02)],
    "a header": [b"HTTP/1.1 200 OK\r\nX: ", Forever(FLOOD)],
    "a header, slowly": [b"HTTP/1.1 200 OK\r\nX: ", Forever(b"z", 0.02)],
    "headers": [b"HTTP/1.1 200 OK\r\n", Forever(b"X: y\r\n" * 1000)],
}
ENDLESS_REFUSALS: dict[str, Script] = {
    "a refusal": [REFUSAL + b"\r\n", Forever(FLOOD)],
    "a refusal, slowly": [REFUSAL + b"\r\n", Forever(b"z", 0.04)],
    "a refusal's length of a chunk": [
        REFUSAL + b"Transfer-Encoding: chunked\r\n\r\n",
        Forever(b"0" * 10_000),
    ],
}
ENDLESS_BODIES: dict[str, Script] = {
    "a chunk's length": [Forever(b"0" * 60_000)],
    "a chunk's length, slowly": [Forever(b"0", 0.02)],
    "a chunk's extension": [b"5;x=", Forever(FLOOD)],
    "trailers": [b"0\r\n", Forever(b"X: y\r\n" * 1000)],
    "a trailer": [b"0\r\nX: ", Forever(FLOOD)],
    "a trailer, slowly": [b"0\r\nX: ", Forever(b"z", 0.02)],
    "a line": [Forever(chunk(FLOOD))],
}
ENDLESS_STREAMS = (
    ENDLESS_HEADS | ENDLESS_REFUSALS | {name: [HEAD, *body] for name, body in ENDLESS_BODIES.items()}
)
MEMORY = 160  # MB; of this Node.js takes 90 for itself


async def test_what_has_no_end_is_left(run: Runner) -> None:
    """By bytes or by time, whichever comes first, and it is not kept in memory."""
    good: list[Script] = [[HEAD, event(1), Do.HOLD]] * 9
    async with Scripted(*ENDLESS_STREAMS.values(), *good) as server:
        client = await run.follow(server.url, silence=0.2)
        for number, name in enumerate(ENDLESS_STREAMS, 1):
            await client.says("again in")
            await server.left(number)
            assert client.peak() < MEMORY, name
        assert (await client.event())["n"] == 1


async def test_lines_may_be_cut_anywhere(run: Runner) -> None:
    """At every byte, in a character, in an escape, by chunks and packets; lines may share a chunk."""
    event = {"é😀": "\n\té\\", "n": 1}
    cut = json.dumps(event, ensure_ascii=False).encode() + b"\n" + line(**event)
    script = [
        HEAD,
        *byte_by_byte(cut),
        b"".join(chunk(cut[n : n + 1]) for n in range(len(cut))),
        chunk(cut + cut + cut[:20]) + chunk(cut[20:]),
        Do.HOLD,
    ]
    async with Scripted(script) as server:
        client = await run.follow(server.url)
        for _ in range(10):
            assert await client.event() == event


async def test_a_nul_after_each_newline_does_no_harm(run: Runner) -> None:
    """As servers send it to clients that they take for old ones; in the same chunk or in the next."""
    script = [HEAD, chunk(PING + b"\0"), chunk(line(n=1) + b"\0"), chunk(line(n=2)), chunk(b"\0" + line(n=3))]
    async with Scripted([*script, Do.HOLD]) as server:
        client = await run.follow(server.url)
        assert [await client.event() for _ in range(3)] == [{"n": 1}, {"n": 2}, {"n": 3}]


async def test_whatever_a_server_may_send_is_taken(run: Runner) -> None:
    """Lines of 600,000 bytes, objects 500 deep, integers of 4,300 digits, the smallest floats."""
    deep: Any = {}
    for _ in range(249):
        deep = {"deep": [deep]}
    events = [
        {"a": "x" * 599_990},
        {"a": deep},
        {"a": int("7" * 4300), "b": 2**53 + 1},
        {"a": -5e-324, "b": 1e308},
    ]
    assert len(line(**events[0])) == 600_000
    async with Scripted([HEAD, *(chunk(line(**event)) for event in events), Do.HOLD]) as server:
        client = await run.follow(server.url)
        for event in events:
            assert await client.event() == event


def deep(levels: int, **event: Any) -> bytes:
    """An event as a server sends it, nested so many levels deep."""
    inner = max(levels - 1, 1)
    return chunk(b'{"a": %b%b, %b' % (b"[" * inner, b"]" * inner, line(**event)[1:]))


async def test_an_event_that_is_too_much_for_its_language_is_left_out(run: Runner) -> None:
    """With a line in the log. The stream goes on, and all that the language can take is printed."""
    ordinary = [0, 500, 900]
    much = [*range(950, 1050, 3), 20_000, 1_000_000]
    steps: list[Step] = [deep(levels, n=levels) for each in much for levels in (*ordinary, each)]
    digits = chunk(b'{"n": %b}\n' % (b"7" * 5000))
    async with Scripted([HEAD, *steps, digits, deep(2, n="last"), Do.HOLD]) as server:
        client = await run.follow(server.url)
        printed: list[bytes] = []
        while (number := re.search(rb'"n": ?([0-9]+)', await client.line())) is not None:
            printed.append(number[1])
        assert len(server.requests) == 1
        client.process.kill()
        left_out = [text for text in await client.rest_of_complaints() if "left out" in text]
    assert len(printed) + len(left_out) == len(steps) + 1
    assert all(printed.count(b"%d" % levels) == len(much) for levels in ordinary)
    assert run.language == "node" or len(left_out) > 2
    assert all(len(text) < 300 for text in left_out)


async def test_the_cursor_of_an_event_that_was_left_out_is_not_known(run: Runner, tmp_path: Path) -> None:
    """It is no ping either: only what comes after it takes the place on."""
    too_deep = deep(1_000_000, n=1, pubsub_cursor=cursor(1))
    async with Scripted([head_at(1), too_deep], [head_at(2), too_deep, chunk(PING)]) as server:
        await run.follow(server.url)
        after = cursor(1) if run.language == "node" else None
        assert await asked(server, 3) == [None, after, cursor(2)]


async def test_a_refusal_is_reported_in_the_servers_words(run: Runner) -> None:
    """With its status, and where it points."""
    refusals = {
        "401 no such user": answer("401 Unauthorized", b"no such\nuser\n"),
        "403 not your topic": answer("403 Forbidden", b"not your topic\n"),
        "503 Service Unavailable": answer("503 Service Unavailable"),
        "302 Found (Location: /elsewhere)": answer("302 Found", headers="Location: /elsewhere\r\n"),
    }
    async with Scripted(*([refusal] for refusal in refusals.values())) as server:
        client = await run.follow(server.url)
        for text in refusals:
            assert f"refused: {text}; again in" in await client.says("again in")


async def test_the_request_is_what_was_asked_for(run: Runner) -> None:
    """The path as it is, the credentials as UTF-8, wherever given, and no compression."""
    async with Scripted() as server:
        await run.follow(f"{server.url}/a/b,c%20d?since=1", "--user", "zoë:a:b")
        await run.follow(f"{server.url.replace('//', '//zo%C3%AB:a%3Ab@')}/a/b,c%20d?since=1")
        for number in range(2):
            request = await server.request(number)
            assert request.path == "/a/b,c%20d?since=1"
            assert (
                base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
                == "zoë:a:b"
            )
            assert request.headers.get("accept-encoding", "identity") == "identity"


async def test_a_password_is_not_logged(run: Runner) -> None:
    """The URL in the log is without the credentials that came in it."""
    async with Scripted([answer("503 Service Unavailable")], [HEAD, chunk(PING), Do.HOLD]) as server:
        client = await run.follow(f"{server.url.replace('//', '//me:secret@')}/a")
        await client.says(f"following {server.url}/a")
        assert len(client.complaints) == 2
        assert not any("secret" in complaint for complaint in client.complaints)


BACKOFF = {
    "python": "import client, json;"
    "print(json.dumps([[client.backoff(n, 60) for _ in range(99)] for n in range(12)]))",
    "node": "const { backoff } = require('./client.js'); console.log(JSON.stringify("
    "[...Array(12).keys()].map((n) => [...Array(99)].map(() => backoff(n, 60)))));",
    "ruby": "require './client';"
    "puts JSON.generate((0...12).map { |n| Array.new(99) { PyPubSub.backoff(n, 60) } })",
}


async def test_pauses_grow_up_to_a_limit_and_are_random(run: Runner) -> None:
    """After n failures in a row: anything up to 2**n seconds, and never more than the limit."""
    program = await run.code(BACKOFF)
    for failures, pauses in enumerate(json.loads(await program.line())):
        limit = min(60, 2**failures)
        assert 0 <= min(pauses) < limit / 2 < max(pauses) <= limit


PAUSES = {  # says its pauses, and makes none; the second argument stands for chance, the third is the limit
    "python": """
import asyncio, logging, random, sys, client
sleep = asyncio.sleep
asyncio.sleep = lambda seconds: sleep(0)
random.uniform = lambda least, most: least + (most - least) * float(sys.argv[2])
logging.basicConfig(format="%(message)s")
async def main():
    async for event in client.listen(sys.argv[1], max_wait=float(sys.argv[3])):
        pass
asyncio.run(main())
""",
    "node": """
const [url, chance, maxWait] = process.argv.slice(1);
require('node:timers/promises').setTimeout = async () => {};
Math.random = () => Number(chance);
(async () => {
  for await (const event of require('./client.js').listen(url, { maxWait: Number(maxWait) }));
})();
""",
    "ruby": """
require './client'
PyPubSub.define_singleton_method(:rand) { ARGV[1].to_f }
PyPubSub.define_singleton_method(:sleep) { |seconds| }
PyPubSub.listen(ARGV[0], max_wait: ARGV[2].to_f) { |event| }
""",
}


async def pauses(program: Program, count: int) -> list[float]:
    """So many pauses that it says it makes."""
    return [float((await program.says("again in")).split()[-2]) for _ in range(count)]


REFUSED: Script = [answer("503 Service Unavailable")]


async def test_pauses_grow_after_streams_that_ended_soon(run: Runner) -> None:
    """Whatever they gave: a server that ends each stream after its ping, or after an event, is not well."""
    scripts = [
        REFUSED,
        [HEAD, LAST_CHUNK],
        [HEAD, chunk(PING)],
        [HEAD, event(1)],
        [HEAD, chunk(PING), LAST_CHUNK],
    ]
    async with Scripted(*scripts, REFUSED) as server:
        program = await run.code(PAUSES, server.url, "1", "60")
        assert await pauses(program, 6) == [1, 2, 4, 8, 16, 32]


async def test_pauses_start_anew_after_a_stream_that_lived(run: Runner, tmp_path: Path) -> None:
    """For ten seconds in earnest, here for a shorter time."""
    run.tune(tmp_path, STEADY=0.05)
    steady: Script = [HEAD, chunk(PING), *[Do.BREATHE] * 250]
    async with Scripted(REFUSED, REFUSED, steady, REFUSED) as server:
        program = await run.code(PAUSES, server.url, "1", "60")
        assert await pauses(program, 4) == [1, 2, 1, 2]


async def test_pauses_are_longer_where_a_right_is_missing(run: Runner) -> None:
    """That will not change soon: at least half of the limit."""
    refusals = [answer(status) for status in ("503 Service Unavailable", "403 Forbidden", "401 Unauthorized")]
    async with Scripted(*([refusal] for refusal in refusals)) as server:
        program = await run.code(PAUSES, server.url, "0.5", "60")
        assert await pauses(program, 3) == [0.5, 45, 45]


def later(wish: str, status: str = "503 Service Unavailable") -> Script:
    """A refusal that says when to come again."""
    return [answer(status, headers=f"Retry-After: {wish}\r\n")]


async def test_a_server_that_asks_to_wait_is_given_the_time(run: Runner) -> None:
    """As far as the limit allows. What is not understood, or over, is no wish."""
    wishes = {"7": 7, "007": 7, "61": 60, "9" * 400: 60, "0": 0, "-5": 0, "soon": 0, "1e9": 0, "": 0}
    dates = {formatdate(time.time() + away, usegmt=True): away for away in (40, 4000, -4000)}
    scripts = [
        *map(later, wishes),
        *map(later, dates),
        later("7", "403 Forbidden"),
        later("7", "429 Too Many"),
    ]
    async with Scripted(*scripts) as server:
        program = await run.code(PAUSES, server.url, "0", "60")
        assert await pauses(program, len(wishes)) == list(wishes.values())
        soon, far, over = await pauses(program, len(dates))
        assert 0 < soon <= 40
        assert (far, over) == (60, 0)
        assert await pauses(program, 2) == [30, 7]


async def test_ctrl_c_ends_it_quietly(run: Runner) -> None:
    """No traceback."""
    async with Scripted([HEAD, chunk(line(n=1)), Do.HOLD]) as server:
        client = await run.follow(f"{server.url}/a")
        await client.event()
        client.process.send_signal(signal.SIGINT)
        status, output, complaints = await client.end()
        assert (status, output) == (130, "")
        assert [text.partition(": ")[2] for text in complaints] == [f"following {server.url}/a"]


async def test_it_ends_quietly_when_nobody_reads_its_output(run: Runner) -> None:
    """As in `client.py URL | head -1`."""
    read_end, write_end = os.pipe()
    events: list[Step] = [chunk(line(n=1)), Do.BREATHE] * 1000
    async with Scripted([HEAD, *events, Do.HOLD]) as server:
        client = await run.client(f"{server.url}/a", stdout=write_end)
        os.close(write_end)
        os.close(read_end)
        assert client.process.stderr is not None
        complaints = await client.rest_of_complaints()
        assert [text.partition(": ")[2] for text in complaints] == [f"following {server.url}/a"]
        assert await client.process.wait() == 0


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, signed by nobody else, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("certificate")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
    extension = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *extension], check=True, capture_output=True)
    return certificate, key


async def test_it_follows_over_tls_whom_it_can_trust(run: Runner, certificate: tuple[Path, Path]) -> None:
    """Nothing is sent to a server whose certificate is not vouched for."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*certificate)
    async with Scripted([HEAD, chunk(line(n=1)), Do.HOLD], tls=tls) as server:
        untrusting = await run.follow(server.url)
        assert "certificate" in await untrusting.says("again in")
        assert server.requests == []
        trust = {"SSL_CERT_FILE": str(certificate[0]), "NODE_EXTRA_CA_CERTS": str(certificate[0])}
        client = await run.client(server.url, env=trust)
        assert await client.event() == {"n": 1}


# Going on from where it was


async def test_a_stream_is_resumed_from_its_head_once_the_first_ping_has_come(run: Runner) -> None:
    """The ping says that everything up to the head has come. Events after it say more, other pings do not."""
    scripts: dict[int | None, Script] = {  # each ends with the position given
        None: [head_at(1), chunk(line(n=0))],
        2: [head_at(2), chunk(PING)],
        3: [head_at(3), chunk(line(n=0)), chunk(PING), chunk(line(n=0))],
        5: [head_at(5), event(4), chunk(PING)],
        7: [head_at(6), chunk(PING), event(7), chunk(PING)],
        1: [head_at(8), chunk(PING), event(1)],  # the cursors of other servers are in no order
    }
    not_cursors = [line(pubsub_cursor=each) for each in (None, 7, "short", cursor(9) + "\n", "ü" * 36)]
    no_change: list[Script] = [
        [head_at(9), LAST_CHUNK],
        [HEAD, chunk(PING)],
        [head("X-Cursor: short"), chunk(PING)],
        [HEAD, *map(chunk, not_cursors)],
    ]
    async with Scripted(*scripts.values(), *no_change) as server:
        await run.follow(server.url)
        positions = [None if n is None else cursor(n) for n in scripts]
        assert await asked(server, 11) == [None, *positions, *[cursor(1)] * len(no_change)]


async def test_a_start_may_be_given(run: Runner) -> None:
    """A time is asked for until there is a cursor; where there is one, no time is."""
    scripts = [[answer("503 Service Unavailable")], [HEAD, chunk(line(n=1))], [HEAD, event(2)]]
    async with Scripted(*scripts) as server:
        await run.follow(server.url, "--since", "10m")
        assert await asked(server, 4) == [None, None, None, cursor(2)]
        times = [request.headers.get("x-fetch-since") for request in server.requests]
        assert times == ["10m", "10m", "10m", None]
    async with Scripted() as server:
        await run.follow(server.url, "--since", "10m", "--cursor", cursor(1))
        assert await asked(server, 1) == [cursor(1)]
        assert "x-fetch-since" not in server.requests[0].headers


CURSOR_FILE = {  # on each event, prints which file is there and what it holds, before the event is handled
    "python": """
import asyncio, os, sys, client
url, file = sys.argv[1:]
async def main():
    async for event in client.listen(url, max_wait=0.05, cursor_file=file):
        print(os.stat(file).st_ino, open(file).read().strip(), flush=True)
asyncio.run(main())
""",
    "node": """
const fs = require('node:fs');
const [url, cursorFile] = process.argv.slice(1);
(async () => {
  for await (const event of require('./client.js').listen(url, { maxWait: 0.05, cursorFile })) {
    console.log(fs.statSync(cursorFile).ino, fs.readFileSync(cursorFile, 'utf8').trim());
  }
})();
""",
    "ruby": """
require './client'
$stdout.sync = true
url, file = ARGV
PyPubSub.listen(url, max_wait: 0.05, cursor_file: file) do |event|
  puts "#{File.stat(file).ino} #{File.read(file)}"
end
""",
}


async def test_the_cursor_file_follows_what_was_handled(run: Runner, tmp_path: Path) -> None:
    """It is another file each time, put in place whole, and nothing is left beside it."""
    file = tmp_path / "cursor"
    first: Script = [head_at(1), chunk(PING), event(2), event(3), chunk(line(n=0))]
    second: Script = [head_at(5), chunk(PING), event(6), event(7), Do.HOLD]
    async with Scripted(first, second) as server:
        program = await run.code(CURSOR_FILE, server.url, str(file))
        found = [(await program.line()).decode().split() for _ in range(5)]
        assert [content for _, content in found] == [cursor(n) for n in (1, 2, 3, 5, 6)]
        assert all(before != after for (before, _), (after, _) in itertools.pairwise(found))
        await until_it_holds(file, f"{cursor(7)}\n")
        assert os.listdir(tmp_path) == ["cursor"]


async def test_a_client_that_was_killed_goes_on_from_its_cursor_file(run: Runner, tmp_path: Path) -> None:
    """Whatever its command line says else. The event that it was about can be the one before or this one."""
    file = tmp_path / "cursor"
    options = "--cursor-file", str(file), "--cursor", cursor(1), "--since", "0"
    async with Scripted([HEAD, event(2), event(3), event(4), Do.HOLD], [HEAD, event(5), Do.HOLD]) as server:
        client = await run.follow(server.url, *options)
        for _ in range(3):
            await client.line()
        client.process.kill()
        await client.process.wait()
        saved = file.read_text()
        assert saved in (f"{cursor(3)}\n", f"{cursor(4)}\n")
        client = await run.follow(server.url, *options)
        await client.line()
        assert await asked(server, 2) == [cursor(1), saved.strip()]
        assert "x-fetch-since" not in server.requests[1].headers


DAMAGED = [b"", b"\n", b"short\n", b"x" * 37, b"x" * 36 + b"\n" + b"x" * 36, b"\xff" * 36, "ü".encode() * 18]


async def test_a_damaged_cursor_file_is_refused(run: Runner, tmp_path: Path) -> None:
    """Before anything is asked for: to start without it would lose events in silence."""
    async with Scripted() as server:
        clients = {}
        for n, content in enumerate(DAMAGED):
            path = tmp_path / str(n)
            path.write_bytes(content)
            clients[f"{path}: expected 36 characters of "] = await run.follow(
                server.url, "--cursor-file", str(path)
            )
        clients[str(tmp_path)] = await run.follow(server.url, "--cursor-file", str(tmp_path))
        for text, client in clients.items():
            status, output, complaints = await client.end()
            assert (status, output, len(complaints)) == (2, "", 1), complaints
            assert text in complaints[0]
        assert server.requests == []


def unusable_places(directory: Path) -> list[Path]:
    """Paths that no cursor can be kept in, not even by root."""
    os.mkfifo(directory / "pipe")
    (directory / "file").write_text("")
    (directory / "loop").symlink_to("loop")
    (directory / "astray").symlink_to("missing/cursor")
    (directory / "device").symlink_to("/dev/null")
    names = ["missing/cursor", "file/cursor", "pipe", "loop", "astray", "device", ".", "x" * 255]
    return [Path("/proc/cursor"), *(directory / name for name in names)]


UNUSABLE = {  # starts to follow with each cursor file that is given, and prints what is wrong with it
    "python": """
import asyncio, sys, client
async def main():
    for file in sys.argv[2:]:
        try:
            await anext(client.listen(sys.argv[1], cursor_file=file))
        except OSError as error:
            print(error)
asyncio.run(main())
""",
    "node": """
const [url, ...files] = process.argv.slice(1);
(async () => {
  for (const cursorFile of files) {
    const events = require('./client.js').listen(url, { cursorFile });
    await events.next().catch((error) => console.log(error.message));
  }
})();
""",
    "ruby": """
require './client'
url, *files = ARGV
files.each do |file|
  PyPubSub.listen(url, cursor_file: file)
rescue ArgumentError, SystemCallError => e
  puts e.message
end
""",
}


async def test_an_unusable_place_for_the_cursor_is_said_at_once(run: Runner, tmp_path: Path) -> None:
    """Before anything is asked for: the next run would start from too far back."""
    places = [str(place) for place in unusable_places(tmp_path)]
    before = sorted(os.listdir(tmp_path))
    async with Scripted() as server:
        program = await run.code(UNUSABLE, server.url, *places)
        for place in places:
            assert f"cursor file {place}" in (await program.line()).decode()
        assert await program.end() == (0, "", [])
        assert server.requests == []
    assert sorted(os.listdir(tmp_path)) == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("step", [event(1), chunk(PING)], ids=["after an event", "at the first ping"])
async def test_a_cursor_file_that_cannot_be_written_any_more_ends_it(
    run: Runner, step: bytes, tmp_path: Path
) -> None:
    """With its name, and nothing is left beside it."""
    file, usable = tmp_path / "cursor", asyncio.Event()
    async with Scripted([head_at(0), usable, step, event(2), Do.HOLD]) as server:
        client = await run.follow(server.url, "--cursor-file", str(file))
        await server.request(0)
        file.mkdir()
        usable.set()
        status, output, (_, complaint) = await client.end()
        assert status == 2
        assert cursor(2) not in output
        assert f"cursor file {file}" in complaint
        assert os.listdir(tmp_path) == ["cursor"]


async def until_it_holds(file: Path, text: str) -> None:
    """Wait until that is what a file holds."""
    async with asyncio.timeout(TIMEOUT):
        while not (file.exists() and file.read_text() == text):  # noqa: ASYNC110, ASYNC240 (a file tells nobody)
            await asyncio.sleep(0.001)


async def test_a_cursor_file_keeps_its_mode(run: Runner, tmp_path: Path) -> None:
    """A new one has that of any new file."""
    old, new, other = tmp_path / "old", tmp_path / "new", tmp_path / "other"
    old.write_text(f"{cursor(1)}\n")
    old.chmod(0o606)
    other.touch()
    async with Scripted([HEAD, event(2), Do.HOLD], [HEAD, event(2), Do.HOLD]) as server:
        for file, mode in ((old, 0o606), (new, other.stat().st_mode & 0o777)):
            await run.follow(server.url, "--cursor-file", str(file))
            await until_it_holds(file, f"{cursor(2)}\n")
            assert file.stat().st_mode & 0o777 == mode


async def test_a_cursor_file_may_be_a_link(run: Runner, tmp_path: Path) -> None:
    """The file that it leads to holds the cursor, be it there at first or not; the link stays."""
    far = tmp_path / "far"
    far.mkdir()
    (far / "there").write_text(f"{cursor(1)}\n")
    (far / "step").symlink_to("not yet")
    for name, target in {"a": "far/there", "b": "far/step"}.items():
        (tmp_path / name).symlink_to(target)
    async with Scripted([HEAD, event(2), Do.HOLD], [HEAD, event(2), Do.HOLD]) as server:
        for name, file in {"a": far / "there", "b": far / "not yet"}.items():
            await run.follow(server.url, "--cursor-file", str(tmp_path / name))
            await until_it_holds(file, f"{cursor(2)}\n")
            assert (tmp_path / name).is_symlink()
        assert await asked(server, 2) == [cursor(1), None]
    assert (far / "step").is_symlink()
    assert sorted(os.listdir(far)) == ["not yet", "step", "there"]


async def test_what_a_killed_run_left_beside_the_cursor_file_is_removed(run: Runner, tmp_path: Path) -> None:
    """By the next one as it starts, and nothing else is."""
    file = tmp_path / "cursor"
    others = ["cursor.old", "cursor.12", "cursor.x.new", "cursor.12.newer", "xcursor.12.new", "cursorx12.new"]
    for name in ("cursor.12.new", "cursor.4194304.new", *others):
        (tmp_path / name).touch()
    async with Scripted([HEAD, event(1), Do.HOLD]) as server:
        await run.follow(server.url, "--cursor-file", str(file))
        await server.request(0)
        assert sorted(os.listdir(tmp_path)) == sorted(others)
        await until_it_holds(file, f"{cursor(1)}\n")


async def test_no_link_beside_a_cursor_file_is_followed(run: Runner, tmp_path: Path) -> None:
    """Somebody else may write in that directory too."""
    file, planted = tmp_path / "cursor", asyncio.Event()
    (tmp_path / "victim").write_text("precious")
    async with Scripted([HEAD, planted, event(1), Do.HOLD]) as server:
        client = await run.follow(server.url, "--cursor-file", str(file))
        await server.request(0)
        (tmp_path / f"cursor.{client.process.pid}.new").symlink_to("victim")
        (tmp_path / f"cursor.{client.process.pid}").symlink_to("victim")
        planted.set()
        status, _, complaints = await client.end()
        assert status == 2
        assert f"cursor file {file}" in complaints[-1]
    assert (tmp_path / "victim").read_text() == "precious"


UNHANDLED = {  # leaves the first loop by a break, the second by an error, both in the middle of event 2
    "python": """
import asyncio, contextlib, sys, client
url, file = sys.argv[1:]
async def follow(error):
    async with contextlib.aclosing(client.listen(url, cursor_file=file)) as events:
        async for event in events:
            print(event["n"], flush=True)
            if event["n"] == 2:
                if error:
                    raise error
                break
async def main():
    await follow(None)
    try:
        await follow(OSError("disk full"))
    except OSError:
        pass
    await follow(None)
asyncio.run(main())
""",
    "node": """
const { listen } = require('./client.js');
const [url, cursorFile] = process.argv.slice(1);
async function follow(error) {
  for await (const { n } of listen(url, { cursorFile })) {
    console.log(n);
    if (n === 2 && error) throw error;
    if (n === 2) break;
  }
}
follow().then(() => follow(new Error('disk full'))).catch(() => follow());
""",
    "ruby": """
require './client'
$stdout.sync = true
url, file = ARGV
[nil, IOError, nil].each do |error|
  PyPubSub.listen(url, cursor_file: file) do |event|
    puts event['n']
    raise error, 'disk full' if event['n'] == 2 && error
    break if event['n'] == 2
  end
rescue IOError
  # as intended
end
""",
}


async def test_an_event_is_not_handled_if_the_program_left_in_the_middle_of_it(
    run: Runner, tmp_path: Path
) -> None:
    """By a break or by an error: it is asked for again."""
    again: Script = [HEAD, event(2), Do.HOLD]
    async with Scripted([HEAD, event(1), event(2), event(3), Do.HOLD], again, again) as server:
        program = await run.code(UNHANDLED, server.url, str(tmp_path / "cursor"))
        assert await program.end() == (0, "1\n2\n2\n2\n", program.complaints)
        assert await asked(server, 3) == [None, cursor(1), cursor(1)]


VERDICTS = {
    "python": """
import asyncio, sys, client
def on_replay(verdict):
    print(verdict, flush=True)
    if verdict == "bad":
        raise OSError("no such verdict")
async def main():
    async for event in client.listen(sys.argv[1], max_wait=0.05, on_replay=on_replay):
        print(event["n"], flush=True)
try:
    asyncio.run(main())
except OSError as error:
    print(error)
""",
    "node": """
const onReplay = (verdict) => {
  console.log(verdict);
  if (verdict === 'bad') throw new Error('no such verdict');
};
(async () => {
  for await (const { n } of require('./client.js').listen(process.argv[1], { maxWait: 0.05, onReplay })) {
    console.log(n);
  }
})().catch((error) => console.log(error.message));
""",
    "ruby": """
require './client'
$stdout.sync = true
on_replay = lambda do |verdict|
  puts verdict
  raise IOError, 'no such verdict' if verdict == 'bad'
end
begin
  PyPubSub.listen(ARGV[0], max_wait: 0.05, on_replay: on_replay) { |event| puts event['n'] }
rescue IOError => error
  puts error.message
end
""",
}


async def test_the_program_learns_what_a_replay_left_out(run: Runner) -> None:
    """Before the events of each connection that asked for one. A server that does not say has no backlog. An
    error of the program's own ends it."""
    verdicts = ["complete", "partial", "unknown", "none"]
    scripts: list[Script] = [[head(f"X-Replay: {verdict}"), event(1)] for verdict in verdicts]
    refusal: Script = [answer("503 Service Unavailable", headers="X-Replay: partial\r\n")]
    bad: Script = [head("X-Replay: bad"), event(1), Do.HOLD]
    async with Scripted([HEAD, event(0)], *scripts, refusal, [HEAD, event(2)], bad) as server:
        program = await run.code(VERDICTS, server.url)
        expected = ["0", *(text for verdict in verdicts for text in (verdict, "1")), "none", "2", "bad"]
        assert [(await program.line()).decode().strip() for _ in expected] == expected
        assert await program.line() == b"no such verdict\n"


async def test_what_a_replay_left_out_is_logged(run: Runner) -> None:
    """In plain words; nothing is said where nothing is missing."""
    meanings = {
        "partial": "events of the time away are missing",
        "unknown": "the server cannot tell whether events are missing",
        "none": "the server keeps no backlog, or does not tell: events of the time away may be missing",
    }
    scripts: list[Script] = [[head(f"X-Replay: {each}"), event(1)] for each in ("complete", *meanings)]
    async with Scripted([HEAD, event(0)], *scripts) as server:
        client = await run.follow(f"{server.url}/a")
        for verdict, meaning in meanings.items():
            assert f"{server.url}/a: the replay was {verdict}: {meaning}" in await client.says(
                "the replay was"
            )


# As a module

LEAVE = {
    "python": """
import asyncio, sys, client
async def main():
    async for event in client.listen(sys.argv[1]):
        break
    print("left", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
""",
    "node": """
(async () => {
  for await (const event of require('./client.js').listen(process.argv[1])) break;
  console.log('left');
  setTimeout(() => {}, 60000);
})();
""",
    "ruby": """
require './client'
PyPubSub.listen(ARGV[0]) { |event| break }
puts 'left'
$stdout.flush
sleep 60
""",
}


async def test_leaving_the_loop_closes_the_connection(run: Runner) -> None:
    """While the program goes on."""
    async with Scripted([HEAD, chunk(line(n=1)), Do.HOLD]) as server:
        program = await run.code(LEAVE, server.url)
        assert await program.line() == b"left\n"
        await server.left()
        assert program.process.returncode is None


SLOW = {
    "python": """
import asyncio, sys, client
async def main():
    async for event in client.listen(sys.argv[1], silence=0.5, max_wait=0.05):
        await asyncio.sleep(0.01)
        print(event["n"], flush=True)
asyncio.run(main())
""",
    "node": """
(async () => {
  for await (const event of require('./client.js').listen(process.argv[1], { silence: 0.5, maxWait: 0.05 })) {
    await new Promise((resolve) => setTimeout(resolve, 10));
    console.log(event.n);
  }
})();
""",
    "ruby": """
require './client'
$stdout.sync = true
PyPubSub.listen(ARGV[0], silence: 0.5, max_wait: 0.05) do |event|
  sleep 0.01
  puts event['n']
end
""",
}


async def test_a_slow_consumer_gets_all_that_came_before_the_end(run: Runner) -> None:
    """A server's last events come faster than they are taken, and then the connection breaks."""
    events = [chunk(line(n=n)) for n in range(20)]
    script: Script = [HEAD, *(step for event in events for step in (event, Do.BREATHE))]
    async with Scripted(script, [HEAD, chunk(line(n=20)), Do.HOLD]) as server:
        program = await run.code(SLOW, server.url)
        assert [int(await program.line()) for _ in range(21)] == list(range(21))


async def test_a_slow_consumer_of_megabytes_gets_all_of_them(run: Runner) -> None:
    """More than a client takes in ahead of it."""
    events = [chunk(line(n=n, filler="x" * 100_000)) for n in range(50)]
    async with Scripted([HEAD, *events, Do.HOLD]) as server:
        program = await run.code(SLOW, server.url)
        assert [int(await program.line()) for _ in range(50)] == list(range(50))


BUSY = {
    "python": """
import asyncio, sys, time, client
async def main():
    async for event in client.listen(sys.argv[1], silence=0.2, max_wait=0.05):
        print(event["n"], flush=True)
        time.sleep(0.4)
asyncio.run(main())
""",
    "node": """
(async () => {
  for await (const event of require('./client.js').listen(process.argv[1], { silence: 0.2, maxWait: 0.05 })) {
    console.log(event.n);
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 400);
  }
})();
""",
    "ruby": """
require './client'
$stdout.sync = true
PyPubSub.listen(ARGV[0], silence: 0.2, max_wait: 0.05) do |event|
  puts event['n']
  sleep 0.4
end
""",
}


async def test_a_program_that_is_busy_for_long_does_not_take_that_for_silence(run: Runner) -> None:
    """Bots work for minutes on an event; what came meanwhile is still there, on the same connection."""
    pings: list[Step] = [chunk(PING), Do.BREATHE] * 300
    async with Scripted([HEAD, chunk(line(n=1)), *pings, chunk(line(n=2)), *pings, Do.HOLD]) as server:
        program = await run.code(BUSY, server.url)
        assert [await program.line(), await program.line()] == [b"1\n", b"2\n"]
        assert len(server.requests) == 1


OWN_ERROR = {
    "python": """
import asyncio, sys, client
async def main():
    async for event in client.listen(sys.argv[1]):
        raise OSError("disk full")
try:
    asyncio.run(main())
except OSError as error:
    print(error)
""",
    "node": """
(async () => {
  for await (const event of require('./client.js').listen(process.argv[1])) throw new Error('disk full');
})().catch((error) => console.log(error.message));
""",
    "ruby": """
require './client'
begin
  PyPubSub.listen(ARGV[0]) { |event| raise IOError, 'disk full' }
rescue IOError => error
  begin
    PyPubSub.listen(ARGV[0]) { |event| raise StopIteration, error.message }
  rescue StopIteration => error
    puts error.message
  end
end
""",
}


async def test_an_error_of_the_program_is_not_taken_for_one_of_the_stream(run: Runner) -> None:
    """Even if it is of a kind that connections have too, or loops."""
    script: Script = [HEAD, chunk(line(n=1)), Do.HOLD]
    async with Scripted(script, script) as server:
        program = await run.code(OWN_ERROR, server.url)
        assert await program.line() == b"disk full\n"
        await server.left()


@pytest.fixture
async def node() -> AsyncIterator[Runner]:
    """Runs node only."""
    async with Runner("node") as runner:
        yield runner


ABORT = {
    "node": """
const stop = new AbortController();
(async () => {
  const options = { signal: stop.signal, log: () => stop.abort() };
  for await (const event of require('./client.js').listen(process.argv[1], options));
  console.log('left');
})();
""",
}


@pytest.mark.parametrize("script", [[HEAD, chunk(PING), Do.HOLD], [answer("403 Forbidden")]])
async def test_node_an_abort_signal_ends_the_wait_for_an_event(node: Runner, script: Script) -> None:
    """In mid stream as well as in a pause."""
    async with Scripted(script) as server:
        program = await node.code(ABORT, server.url)
        assert await program.end() == (0, "left\n", [])


async def test_node_a_line_in_tiny_pieces_takes_the_memory_of_a_line(node: Runner) -> None:
    """Each byte in a chunk of its own, which Node.js hands out as an object of its own."""
    pieces = chunk(b'"') + chunk(b"x") * 300_000 + chunk(b'"')
    async with Scripted([HEAD, chunk(b'{"n": '), pieces, chunk(b"}\n"), Do.HOLD]) as server:
        client = await node.follow(server.url)
        assert await client.event() == {"n": "x" * 300_000}
        assert client.peak() < MEMORY


async def test_python_closing_the_generator_closes_the_connection() -> None:
    """At once, with contextlib.aclosing."""
    async with Scripted([HEAD, chunk(line(n=1)), Do.HOLD]) as server:
        async with contextlib.aclosing(listen(server.url)) as events:
            assert await anext(events) == {"n": 1}
        await server.left()


async def test_python_a_task_that_listens_can_be_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """While it waits for an event, and in the pause before a reconnect."""

    async def follow(url: str) -> None:
        async for _ in listen(url):
            pass

    async with Scripted([HEAD, chunk(PING), Do.HOLD]) as server:
        following = asyncio.create_task(follow(server.url))
        await server.request(0)
        await server.stop()
        pausing = asyncio.create_task(follow(server.url))
        async with asyncio.timeout(TIMEOUT):
            while "again in" not in caplog.text:  # noqa: ASYNC110 - a line of the log sets no Event
                await asyncio.sleep(0.001)
        for task in (following, pausing):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await server.left()


async def test_python_a_wrong_url_is_an_error_and_not_tried_again() -> None:
    """There is nothing to wait for."""
    for url in ("ftp://127.0.0.1/", "127.0.0.1:2069", "http://", "http://a..b/", ""):
        with pytest.raises(ValueError, match=r"URL|http"):
            await anext(listen(url))


# Publishing


async def test_publish_prints_the_cursor(run: Runner) -> None:
    """The payload goes out as it was given, as JSON, with the credentials."""
    payload = '{"n":  12345678901234567890, "é": 1e2}'
    async with Scripted([answer("202 Accepted", b"published\n", "X-Cursor: 0190-abc\r\n")]) as server:
        client = await run.client("publish", "--user", "me:pass:word", f"{server.url}/a/b%20c", payload)
        assert await client.end() == (0, "0190-abc\n", [])
        method, path, headers, body = await server.request(0)
        assert (method, path, body.decode()) == ("POST", "/a/b%20c", payload)
        assert headers["content-type"] == "application/json"
        assert headers["authorization"] == "Basic " + base64.b64encode(b"me:pass:word").decode()


async def test_publish_tells_why_it_did_not_work(run: Runner) -> None:
    """In one line, with the server's words, and exit status 1."""
    failures = {
        "403 not from your address": [answer("403 Forbidden", b"not from\nyour address\n")],
        "302 Found (Location: /elsewhere)": [answer("302 Found", headers="Location: /elsewhere\r\n")],
        "http://127.0.0.1": [],
    }
    async with Scripted(*failures.values()) as server:
        for text in failures:
            client = await run.client("publish", "--retry-for", "0", f"{server.url}/a", "{}")
            status, output, complaints = await client.end()
            assert (status, output, len(complaints)) == (1, "", 1), complaints
            assert text in complaints[0]
        assert len(server.requests) == len(failures)


FLOODED = {  # publishes once to each script of the server, and prints what came of it
    "python": """
import asyncio, sys, client
async def main():
    for _ in range(int(sys.argv[2])):
        try:
            print(await client.publish(sys.argv[1], {}, timeout=0.2, retry_for=0), flush=True)
        except client.PublishError as error:
            print(f"error {error.status}", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
""",
    "node": """
const { publish } = require('./client.js');
const [url, count] = process.argv.slice(1);
(async () => {
  for (let n = 0; n < Number(count); n += 1) {
    const failed = (error) => `error ${error.status}`;
    console.log(await publish(url, {}, { timeout: 0.2, retryFor: 0 }).catch(failed));
  }
  setTimeout(() => {}, 60000);
})();
""",
    "ruby": """
require './client'
$stdout.sync = true
ARGV[1].to_i.times do
  puts PyPubSub.publish(ARGV[0], {}, timeout: 0.2, retry_for: 0)
rescue PyPubSub::PublishError => e
  puts "error #{e.status}"
end
sleep 60
""",
}


async def test_publish_leaves_an_answer_that_has_no_end(run: Runner) -> None:
    """Once its head has come it is known what became of the event; what follows is read up to 1,000 bytes."""
    accepted = head("X-Cursor: abc").replace(b"200 OK", b"202 Accepted")
    no_answer = {"python": "error None", "node": "error null", "ruby": "error "}[run.language]
    known = (
        {"abc", no_answer} if run.language == "python" else {"abc"}
    )  # aiohttp may forget a head over trailers
    cases: list[tuple[set[str], Script]] = [
        *((known, [accepted, *body]) for body in ENDLESS_BODIES.values()),
        *(({no_answer}, script) for script in ENDLESS_HEADS.values()),
        *(({"error 403"}, script) for script in ENDLESS_REFUSALS.values()),
    ]
    async with Scripted(*(script for _, script in cases)) as server:
        program = await run.code(FLOODED, server.url, str(len(cases)))
        for expected, script in cases:
            assert (await program.line()).decode().rstrip("\n") in expected, script
            assert program.peak() < MEMORY, script
        await server.left(len(cases))


AGAIN = {  # without any pause
    "python": """
import asyncio, random, sys, client
random.uniform = lambda least, most: 0.0
print(asyncio.run(client.publish(sys.argv[1], {"n": 1}, timeout=0.5)))
""",
    "node": """
Math.random = () => 0;
require('./client.js').publish(process.argv[1], { n: 1 }, { timeout: 0.5 }).then(console.log);
""",
    "ruby": """
require './client'
PyPubSub.define_singleton_method(:rand) { 0 }
puts PyPubSub.publish(ARGV[0], { n: 1 }, timeout: 0.5)
""",
}


async def test_publish_sends_the_same_again_until_it_is_accepted(run: Runner) -> None:
    """With the same key, so that the server, which may have published it, does not publish it again."""
    statuses = ("503 Service Unavailable", "429 Too Many Requests", "502 Bad Gateway", "504 Gateway Timeout")
    broken: list[Script] = [[], [Do.RESET], [b"HTTP/1.1 2"], [Do.HOLD]]
    failures = [*broken, *([answer(each)] for each in statuses)]
    accepted = [answer("202 Accepted", headers="X-Cursor: 0190-abc\r\n")]
    async with Scripted(*failures, accepted, accepted) as server:
        program = await run.code(AGAIN, server.url)
        assert await program.line() == b"0190-abc\n"
        first, *others = server.requests
        assert others == [first] * len(failures)
        program = await run.code(AGAIN, server.url)
        assert await program.line() == b"0190-abc\n"
        keys = {request.headers["idempotency-key"] for request in server.requests}
        assert [len(key) for key in keys] == [36, 36]


async def test_publish_says_what_it_waits_for(run: Runner) -> None:
    """At least as long as the server asks for, as far as there is time left; then it gives up."""
    later = answer("503 Service Unavailable", b"later\n", "Retry-After: 7\r\n")
    date = formatdate(time.time() + 29, usegmt=True)
    at_a_time: Script = [answer("503 Service Unavailable", headers=f"Retry-After: {date}\r\n")]
    async with Scripted([later], at_a_time, [later], [later]) as server:
        client = await run.client("publish", "--key", "a key", f"{server.url}/a", "{}")
        assert "503 later; again in 7.00 s" in await client.says("again in")
        client = await run.client("publish", f"{server.url}/a", "{}")
        assert 10 < float((await client.says("again in")).split()[-2]) <= 29
        client = await run.client("publish", "--retry-for", "1", "--key", "a key", f"{server.url}/a", "{}")
        status, output, (waits, gives_up) = await client.end()
        assert (status, output) == (1, "")
        assert float(waits.rpartition("503 later; again in ")[2].removesuffix(" s")) <= 1
        assert gives_up.endswith(": 503 later")
        keys = [request.headers["idempotency-key"] for request in server.requests]
        assert keys == ["a key", keys[1], "a key", "a key"]
        await server.stop()
        client = await run.client("publish", "--retry-for", "1", f"{server.url}/a", "{}")
        status, _, complaints = await client.end()
        assert status == 1
        assert f"{server.url}/a: " in complaints[0]
        assert "again in" in complaints[0]


async def test_publish_does_not_repeat_what_is_refused(run: Runner) -> None:
    """The answer would be the same."""
    refusals = ("400 Bad Request", "401 Unauthorized", "403 Forbidden", "413 Too Large", "422 No", "500 Oh")
    async with Scripted(*([answer(each)] for each in refusals)) as server:
        for refusal in refusals:
            client = await run.client("publish", f"{server.url}/a", "{}")
            status, _, complaints = await client.end()
            assert (status, len(complaints)) == (1, 1), complaints
            assert refusal in complaints[0]
        assert len(server.requests) == len(refusals)


USAGE = {
    "URL": [],
    "publish URL JSON": ["publish", "http://127.0.0.1:2069/"],
    "--colour": ["--colour", "http://127.0.0.1:2069/"],
    "ftp://127.0.0.1/": ["ftp://127.0.0.1/"],
    "--silence": ["--silence", "-1", "http://127.0.0.1:2069/"],
    "--user": ["--user", "me", "http://127.0.0.1:2069/"],
    "--retry-for": ["--retry-for", "-1", "publish", "http://127.0.0.1:2069/", "{}"],
    "cursor: expected 36 characters of": ["--cursor", "1", "http://127.0.0.1:2069/"],
}


async def test_wrong_arguments_are_explained_in_one_line(run: Runner) -> None:
    """Exit status 2."""
    clients = {text: await run.client(*arguments) for text, arguments in USAGE.items()}
    for text, client in clients.items():
        status, output, complaints = await client.end()
        assert (status, output, len(complaints)) == (2, "", 1), complaints
        assert text in complaints[0]


async def test_help_names_the_options(run: Runner) -> None:
    """And both ways to call it."""
    status, output, complaints = await (await run.client("--help")).end()
    assert (status, complaints) == (0, [])
    both = ("--user",)
    following = ("--silence", "--max-wait", "--cursor", "--since", "--cursor-file")
    publishing = ("publish URL JSON", "--key", "--retry-for")
    for text in both + following + publishing:
        assert text in output


async def test_python_publish_gives_the_cursor() -> None:
    """An object is sent as JSON, a text as it is; an answer without a cursor is fine."""
    accepted = answer("202 Accepted", headers="X-Cursor: 0190-abc\r\n")
    async with Scripted([accepted], [answer("200 OK")]) as server:
        assert await publish(server.url, {"é": 1}, method="PUT") == "0190-abc"
        assert await publish(server.url, '{"é":  1}', user="me", password="word") is None
        assert [request.method for request in server.requests] == ["PUT", "POST"]
        assert [request.body.decode() for request in server.requests] == ['{"\\u00e9": 1}', '{"é":  1}']


async def test_python_publish_raises_what_the_server_said() -> None:
    """The status and the text; without an answer no status."""
    async with Scripted([answer("413 Too large", b"too large\n")], [], [Do.HOLD]) as server:
        with pytest.raises(PublishError, match=r"^413 too large$") as caught:
            await publish(server.url, {}, retry_for=0)
        assert (caught.value.status, caught.value.text) == (413, "too large")
        with pytest.raises(PublishError) as caught:
            await publish(server.url, {}, retry_for=0)
        assert caught.value.status is None
        with pytest.raises(PublishError, match=r"nothing came for 0\.1 s"):
            await publish(server.url, {}, timeout=0.1, retry_for=0)
    with pytest.raises(PublishError):
        await publish(server.url, {}, retry_for=0)


# Against the daemon


async def test_what_one_client_publishes_another_prints(run: Runner, server: Daemon) -> None:
    """With everything the server adds to it."""
    follower = await run.follow(f"{server.url}/fruits")
    await follower.says("following")
    payload = {"colour": "röt", "big": 2**80, "deep": [{"a": []}], "emoji": "😀"}
    publisher = await run.client("publish", f"{server.url}/fruits/apples", json.dumps(payload))
    _, cursor, complaints = await publisher.end()
    assert complaints == []
    event = await follower.event()
    assert event.pop("pubsub_timestamp") > 0
    assert event == payload | {
        "pubsub_topics": ["fruits", "apples"],
        "pubsub_path": "/fruits/apples",
        "pubsub_cursor": cursor.strip(),
    }


async def test_a_restart_of_the_daemon_is_survived(run: Runner, server: Daemon) -> None:
    """The client follows again without help."""
    follower = await run.follow(f"{server.url}/fruits")
    await follower.says("following")
    server.stop()
    await follower.says("again in")
    server.start()
    await follower.says("following")
    await server.put("/fruits", {"n": 1})
    assert (await follower.event())["n"] == 1


async def test_a_refusal_of_the_daemon_is_passed_on(run: Runner, server: Daemon) -> None:
    """A comma cannot be part of a topic."""
    publisher = await run.client("publish", f"{server.url}/a,b", "{}")
    status, _, complaints = await publisher.end()
    assert status == 1
    assert ": 400 " in complaints[0]


# The demo


WEBHOOKS: list[dict[str, Any]] = [
    {
        "name": "push",
        "examples": [
            {"repository": {"full_name": "octo/hello, world"}, "sender": {"login": "mona"}},
            {"ref": "é😀", "repository": {"full_name": "octo/hello"}},
        ],
    },
    {
        "name": "organization",
        "examples": [{"organization": {"login": "octo org"}, "sender": {"login": "mona"}}],
    },
    {
        "name": "installation",
        "examples": [{"installation": {"account": {"login": "octo"}}, "repository": None}],
    },
    {"name": "sponsorship", "examples": [{"sender": {"login": "mona"}}]},
    {"name": "security_advisory", "examples": [{"action": "published"}]},
]
WEBHOOK_PATHS = [
    "/github/push/octo/hello_%20world",
    "/github/push/octo/hello",
    "/github/organization/octo%20org",
    "/github/installation/octo",
    "/github/sponsorship/mona",
    "/github/security_advisory",
]


@pytest.fixture
def webhooks(tmp_path: Path) -> Path:
    """A folder as the npm package lays it out."""
    file = tmp_path / "api.github.com" / "index.json"
    file.parent.mkdir()
    file.write_text(json.dumps(WEBHOOKS))
    (tmp_path / "package.json").write_text("{}")
    return tmp_path


def test_examples_are_named_by_what_they_are_about(webhooks: Path) -> None:
    """The event, then the repository, or who else it names; no topic holds a comma."""
    found = list(demo.examples(webhooks))
    assert [path for path, _ in found] == WEBHOOK_PATHS
    assert [payload for _, payload in found] == [each for kind in WEBHOOKS for each in kind["examples"]]
    assert list(demo.examples(webhooks / "api.github.com" / "index.json")) == found


async def test_the_demo_publishes_every_example(webhooks: Path, server: Daemon) -> None:
    """Unchanged and in order."""
    async with server.subscriber("/github") as stream:
        command = [sys.executable, str(CLIENTS / "python" / "demo.py"), "--url", server.url, str(webhooks)]
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
        output, complaints = await process.communicate()
        assert output.decode().splitlines() == WEBHOOK_PATHS, complaints.decode()
        for kind in WEBHOOKS:
            for payload in kind["examples"]:
                event = await stream.event()
                assert {key: event[key] for key in payload} == payload


async def test_the_demo_gives_up_at_once_where_there_is_no_server(webhooks: Path) -> None:
    """Whoever started it is looking on."""
    async with Scripted() as server:
        await server.stop()
        command = [sys.executable, str(CLIENTS / "python" / "demo.py"), "--url", server.url, str(webhooks)]
        process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
        output, complaints = await process.communicate()
        assert (process.returncode, output, complaints.count(b"\n")) == (1, b"", 1), complaints


# All of it together


async def cursors_until_last(client: Program) -> list[str]:
    """Those of the events it prints, up to the one that says it is the last."""
    cursors = []
    while "last" not in (event := await client.event()):
        cursors.append(event["pubsub_cursor"])
    return cursors


@pytest.mark.timeout(300)
async def test_clients_following_through_20_kills_miss_nothing(
    start_daemon: StartDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each event that was acknowledged is printed once, in the order of the cursors, and nothing else is."""
    monkeypatch.setattr("client.backoff", lambda *_: 0.05)  # seconds; of the publishers
    backlog = {"size": 100_000, "storage": str(tmp_path / "backlog")}
    daemon = start_daemon({"server": {"backlog": backlog}})
    url = f"{daemon.url}/kills"
    acknowledged: asyncio.Queue[str | None] = asyncio.Queue()  # the cursors
    over = asyncio.Event()

    async def publish_until_over(publisher: int) -> None:
        async with aiohttp.ClientSession() as session:
            for n in itertools.count():
                event = {"publisher": publisher, "n": n}
                acknowledged.put_nowait(await publish(url, event, session=session, retry_for=60))
                if over.is_set():
                    return

    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for language in LANGUAGES:
            run = await stack.enter_async_context(Runner(language))
            clients[language] = await run.follow(url, "--cursor-file", str(tmp_path / language))
            await clients[language].says("following")
        async with asyncio.TaskGroup() as followers:
            printed = {
                name: followers.create_task(cursors_until_last(each)) for name, each in clients.items()
            }
            async with asyncio.TaskGroup() as publishers:
                for publisher in range(4):
                    publishers.create_task(publish_until_over(publisher))
                expected = []
                for _ in range(20):
                    expected += [await acknowledged.get() for _ in range(random.randint(1, 200))]
                    await asyncio.to_thread(daemon.stop, signal.SIGKILL)
                    await asyncio.to_thread(daemon.start)
                over.set()
            expected += [acknowledged.get_nowait() for _ in range(acknowledged.qsize())]
            await publish(url, {"last": True})
    assert None not in expected
    for language, task in printed.items():
        assert task.result() == sorted(map(str, expected)), language
