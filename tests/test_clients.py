"""The three clients keep their promises: run as the programs they are, and used as the modules they are."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import demo
from client import PublishError, listen, publish
from daemon import Daemon
from scripted import HEAD, LAST_CHUNK, PING, TIMEOUT, Do, Script, Scripted, answer, byte_by_byte, chunk

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


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    """Each of the clients' languages whose program is there."""
    name: str = request.param
    if shutil.which(LANGUAGES[name].program) is None:
        pytest.skip(f"{LANGUAGES[name].program} is not installed")
    return name


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
        self.language = language
        self._programs: list[Program] = []

    async def client(
        self, *arguments: str, env: Mapping[str, str] | None = None, stdout: int = PIPE
    ) -> Program:
        """Its command line."""
        program, file, _ = LANGUAGES[self.language]
        return await self._start(program, str(file), *arguments, env=env, stdout=stdout)

    async def follow(self, url: str, *options: str, silence: float = 10, max_wait: float = 0.05) -> Program:
        """Its command line, following a URL with next to no pause between two connections."""
        return await self.client("--silence", str(silence), "--max-wait", str(max_wait), *options, url)

    async def code(self, codes: Mapping[str, str], *arguments: str) -> Program:
        """A few lines of code, written once for each language, in the client's directory."""
        program, file, option = LANGUAGES[self.language]
        end_of_options = ["--"] if self.language == "node" else []
        return await self._start(
            program, option, codes[self.language], *end_of_options, *arguments, cwd=file.parent
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

    async def stop(self) -> None:
        """End all of them, and wait for that."""
        for program in self._programs:
            if program.process.returncode is None:
                program.process.kill()
            await program.process.communicate()


@pytest.fixture
async def run(language: str) -> AsyncIterator[Runner]:
    """Runs the client under test."""
    runner = Runner(language)
    yield runner
    await runner.stop()


def line(**event: Any) -> bytes:
    """An event as a server sends it."""
    return json.dumps(event).encode() + b"\n"


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
    """What came before the end is printed, half a line is not, and the events after it are."""
    back = {name: [HEAD, chunk(line(after=name))] for name in ENDINGS}
    async with Scripted(*(script for name in ENDINGS for script in (ENDINGS[name], back[name]))) as server:
        client = await run.follow(server.url)
        for name, ending in ENDINGS.items():
            if ending[: len(BEFORE)] == BEFORE:
                assert await client.event() == {"which": "before"}, f"the event before a stream ended {name}"
            assert await client.event() == {"after": name}
        assert all(request.path == "/" for request in server.requests)
        client.process.kill()
        assert not [text for text in await client.rest_of_complaints() if "nothing came" in text]


async def test_a_stream_that_goes_on_as_something_else_is_left(run: Runner) -> None:
    """At once, or, where the HTTP library keeps it to itself, after a silence."""
    garbage: list[bytes | Do] = [Do.BREATHE, b"no chunk length\r\n", Do.HOLD]
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
    pings: list[bytes | Do] = [chunk(PING), Do.BREATHE] * 300
    async with Scripted([HEAD, *pings, chunk(line(n=1)), Do.HOLD]) as server:
        client = await run.follow(server.url, silence=0.3)
        assert await client.event() == {"n": 1}
        assert len(server.requests) == 1


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


LOADED_DICE = {  # the first argument takes the place of chance, the second is the limit
    "python": """
import asyncio, logging, random, sys, client
random.uniform = lambda least, most: least + (most - least) * float(sys.argv[2])
logging.basicConfig(format="%(message)s")
async def main():
    async for event in client.listen(sys.argv[1], max_wait=float(sys.argv[3])):
        pass
asyncio.run(main())
""",
    "node": """
const [url, chance, maxWait] = process.argv.slice(1);
Math.random = () => Number(chance);
(async () => {
  for await (const event of require('./client.js').listen(url, { maxWait: Number(maxWait) }));
})();
""",
    "ruby": """
require './client'
PyPubSub.define_singleton_method(:rand) { ARGV[1].to_f }
PyPubSub.listen(ARGV[0], max_wait: ARGV[2].to_f) { |event| }
""",
}


async def test_pauses_start_anew_after_a_stream_that_gave_a_line(run: Runner) -> None:
    """Be it a ping; a stream that gave nothing is a failure like others."""
    failure: Script = [answer("503 Service Unavailable")]
    scripts = [failure, [HEAD, LAST_CHUNK], failure, [HEAD, chunk(PING)], failure, failure]
    async with Scripted(*scripts) as server:
        program = await run.code(LOADED_DICE, server.url, "0.01", "60")
        pauses = [(await program.says("again in")).rpartition("again in ")[2] for _ in range(6)]
        assert pauses == ["0.01 s", "0.02 s", "0.04 s", "0.01 s", "0.02 s", "0.04 s"], program.complaints


async def test_pauses_are_longer_where_a_right_is_missing(run: Runner) -> None:
    """That will not change soon: at least half of the limit."""
    refusals = [answer(status) for status in ("503 Service Unavailable", "403 Forbidden", "401 Unauthorized")]
    async with Scripted(*([refusal] for refusal in refusals)) as server:
        program = await run.code(LOADED_DICE, server.url, "0.5", "0.08")
        pauses = [(await program.says("again in")).rpartition("again in ")[2] for _ in range(3)]
        assert pauses == ["0.04 s", "0.06 s", "0.06 s"]


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
    events: list[bytes | Do] = [chunk(line(n=1)), Do.BREATHE] * 1000
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
    pings: list[bytes | Do] = [chunk(PING), Do.BREATHE] * 300
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
def node() -> Runner:
    """Runs node only."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    return Runner("node")


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


async def test_python_an_event_too_deep_for_it_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """And not asked for again and again."""
    deep = b'{"a": %b%b}\n' % (b"[" * 100_000, b"]" * 100_000)
    async with Scripted([HEAD, chunk(deep), chunk(line(n=1)), Do.HOLD]) as server:
        async with contextlib.aclosing(listen(server.url)) as events:
            assert await anext(events) == {"n": 1}
        assert "nested too deep" in caplog.text


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
            client = await run.client("publish", f"{server.url}/a", "{}")
            status, output, complaints = await client.end()
            assert (status, output, len(complaints)) == (1, "", 1), complaints
            assert text in complaints[0]
        assert len(server.requests) == len(failures)


ONCE = {
    "python": """
import asyncio, sys, client
try:
    asyncio.run(client.publish(sys.argv[1], {"n": 1}))
except client.PublishError as error:
    print(error.status)
""",
    "node": """
require('./client.js').publish(process.argv[1], { n: 1 }, { method: 'PUT' }).catch((error) => {
  console.log(error.status);
});
""",
    "ruby": """
require './client'
begin
  PyPubSub.publish(ARGV[0], { n: 1 }, method: 'PUT')
rescue PyPubSub::PublishError => error
  p error.status
end
""",
}


async def test_publish_sends_an_event_once(run: Runner) -> None:
    """Even if no answer came: it may be published. (Only with PUT, aiohttp sends it again.)"""
    accepted = answer("202 Accepted")
    async with Scripted([], [accepted]) as server:
        program = await run.code(ONCE, server.url)
        assert (await program.line()).decode().strip() in ("None", "null", "nil")
        assert len(server.requests) == 1


USAGE = {
    "URL": [],
    "publish URL JSON": ["publish", "http://127.0.0.1:2069/"],
    "--colour": ["--colour", "http://127.0.0.1:2069/"],
    "ftp://127.0.0.1/": ["ftp://127.0.0.1/"],
    "--silence": ["--silence", "-1", "http://127.0.0.1:2069/"],
    "--user": ["--user", "me", "http://127.0.0.1:2069/"],
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
    for text in ("--user", "--silence", "--max-wait", "publish URL JSON"):
        assert text in output


async def test_python_publish_gives_the_cursor() -> None:
    """An object is sent as JSON, a text as it is; an answer without a cursor is fine."""
    accepted = answer("202 Accepted", headers="X-Cursor: 0190-abc\r\n")
    async with Scripted([accepted], [answer("200 OK")]) as server:
        assert await publish(server.url, {"é": 1}, method="PUT") == "0190-abc"
        assert await publish(server.url, '{"é":  1}', user="me", password="word") is None  # noqa: S106
        assert [request.method for request in server.requests] == ["PUT", "POST"]
        assert [request.body.decode() for request in server.requests] == ['{"\\u00e9": 1}', '{"é":  1}']


async def test_python_publish_raises_what_the_server_said() -> None:
    """The status and the text; without an answer no status."""
    async with Scripted([answer("413 Too large", b"too large\n")], [], [Do.HOLD]) as server:
        with pytest.raises(PublishError, match=r"^413 too large$") as caught:
            await publish(server.url, {})
        assert (caught.value.status, caught.value.text) == (413, "too large")
        with pytest.raises(PublishError) as caught:
            await publish(server.url, {})
        assert caught.value.status is None
        with pytest.raises(PublishError, match=r"nothing came for 0\.1 s"):
            await publish(server.url, {}, timeout=0.1)
    with pytest.raises(PublishError):
        await publish(server.url, {})


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
