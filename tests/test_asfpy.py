"""The client library that deployed subscribers use, unchanged: both its listen() and its older Listener."""

import asyncio
import contextlib
import json
import sys
import warnings
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from typing import Any

from daemon import Daemon, StartDaemon

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from asfpy.pubsub import listen


LISTENER = """
import json, sys, warnings
warnings.simplefilter("ignore")
from asfpy.pubsub import Listener
url, raw = sys.argv[1], sys.argv[2] == "raw"
Listener(url).attach(lambda payload: print(json.dumps(payload), flush=True), raw=raw, since=sys.argv[3])
"""


async def next_object(stream: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """The next event or ping."""
    async with asyncio.timeout(30):
        return await anext(stream)


async def next_event(stream: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    """The next event, as programs on listen() pick it out."""
    while "stillalive" in (value := await next_object(stream)):
        pass
    return value


async def test_listen_yields_pings_and_events(server: Daemon) -> None:
    """A ping at once, then each event."""
    async with contextlib.aclosing(listen(f"{server.url}/asfpy")) as stream:
        assert list(await next_object(stream)) == ["stillalive"]
        for n in range(20):
            await server.put("/asfpy", {"n": n, "text": "é😀" * n})
            event = await next_event(stream)
            assert (event["n"], event["text"]) == (n, "é😀" * n)


async def test_listen_takes_the_largest_line(start_daemon: StartDaemon) -> None:
    """The limit on lines is below what its reader can buffer."""
    server = start_daemon({"server": {"max_payload_size": "1 MiB"}})
    async with contextlib.aclosing(listen(f"{server.url}/asfpy")) as stream:
        await next_object(stream)
        assert (await server.put("/asfpy", {"v": "x" * 599_700})).status == 202
        assert len((await next_event(stream))["v"]) == 599_700
        assert (await server.put("/asfpy", {"v": "x" * 600_000})).status == 413


async def test_listen_comes_back_after_a_restart(server: Daemon) -> None:
    """The way a stream ends makes it reconnect by itself, with its last cursor."""
    async with contextlib.aclosing(listen(f"{server.url}/asfpy")) as stream:
        await next_object(stream)
        await server.put("/asfpy", {"n": 1})
        assert (await next_event(stream))["n"] == 1
        await asyncio.to_thread(server.stop)
        server.start()
        assert list(await next_object(stream)) == ["stillalive"]
        await server.put("/asfpy", {"n": 2})
        assert (await next_event(stream))["n"] == 2


async def test_the_listener_gets_each_event(server: Daemon) -> None:
    """It reads chunk by chunk: 200 chunks in one write, and it misses none. It asks with X-Fetch-Since."""
    for mode in ("raw", "payload"):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", LISTENER, f"{server.url}/asfpy", mode, "1588132959.5", stdout=PIPE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                if mode == "raw":
                    assert list(json.loads(await process.stdout.readline())) == ["stillalive"]
                else:
                    while (await server.request("HEAD", "/")).headers["X-Subscribers"] == "0":
                        pass
                lines = b"".join(b'{"payload": {"n": %d}}\n' % n for n in range(200))
                await server.put("/asfpy", lines, Content_Type="application/x-ndjson")
                for n in range(200):
                    got = json.loads(await process.stdout.readline())
                    assert (got["payload"] if mode == "raw" else got) == {"n": n}
        finally:
            process.kill()
            await process.wait()
        while (await server.request("HEAD", "/")).headers["X-Subscribers"] != "0":
            pass
