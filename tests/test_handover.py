"""From the backlog to the live events, and back: each event once, in order, whatever the others do."""

import asyncio
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon, StartDaemon
from wire import Stream, ending

pytestmark = pytest.mark.timeout(180)  # on a machine that others use too
CURSOR = re.compile(rb'"pubsub_cursor": "([^"]{36})"')
END = b'"n": "end"'
STORES = ("memory", "file")


def backlog(store: str, tmp_path: Path, **server: Any) -> dict[str, Any]:
    """A configuration with a large backlog, of which next to nothing fits into memory if there is a file."""
    settings: dict[str, Any] = {"size": 100_000}
    if store == "file":
        settings |= {"storage": str(tmp_path / "backlog.db"), "memory": "64 KiB"}
    return {"server": {"backlog": settings, "max_payload_size": "1 MiB"} | server}


async def cursors_until_the_end(stream: Stream, pace: float = 0) -> list[bytes]:
    """The cursor of every event up to the one that says that it is the last. pace: seconds between reads."""
    received = bytearray()
    looked_at = 0
    async with asyncio.timeout(150):
        while received.find(END, max(0, looked_at - len(END))) < 0:
            looked_at = len(received)
            piece = await stream.reader.read(256 * 1024)
            assert piece, received[-500:]
            received += piece
            await asyncio.sleep(pace)
    return CURSOR.findall(received)


async def publish_at_full_speed(daemon: Daemon, done: asyncio.Event, published: list[bytes]) -> None:
    """Publish one event after the other, noting their cursors."""
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.port)
    body = json.dumps({"n": 0, "filling": "x" * 300})
    request = f"PUT /a HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    while not done.is_set():
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 202 ")
        await reader.readexactly(len("accepted\n"))
        published += re.findall(rb"X-Cursor: (\S+)", head)
    writer.close()


@pytest.mark.parametrize("store", STORES)
async def test_fifty_replays_join_the_live_events(
    store: str, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Each at its own pace, with publishers at full speed; a live one waits for none of them."""
    daemon = start_daemon(backlog(store, tmp_path))
    dice = random.Random(store)
    for _ in range(4):
        await daemon.put_all("/a", [{"n": n, "filling": "x" * 300} for n in range(500)])
    async with daemon.subscriber("/a", {"X-Fetch-Since": "-1"}) as stream:
        held = [event["pubsub_cursor"].encode() for event in await stream.replay()]
    assert len(held) == 2000
    done = asyncio.Event()
    published: list[bytes] = []
    async with asyncio.TaskGroup() as tasks, daemon.subscriber("/a") as live:
        for _ in range(3):
            tasks.create_task(publish_at_full_speed(daemon, done, published))
        places = [dice.randrange(len(held)) for _ in range(50)]
        replays = [
            daemon.subscriber("/a", {"X-Fetch-Since-Cursor": held[place].decode()}) for place in places
        ]
        readers = []
        for n, replay in enumerate(replays):
            await replay.__aenter__()
            assert replay.headers["X-Replay"] == "complete"
            if (
                n % 3
            ):  # each third begins to read only after all others, and the live one, have read everything
                readers.append(tasks.create_task(cursors_until_the_end(replay, pace=n % 5 / 1000)))
        while len(published) < 1500:
            await live.chunk()
        done.set()
        await asyncio.sleep(0)
        await daemon.put("/a", {"n": "end"})
        await cursors_until_the_end(live)
        finished = await asyncio.gather(*readers)
        late = [await cursors_until_the_end(replay) for n, replay in enumerate(replays) if not n % 3]
    async with daemon.subscriber("/a", {"X-Fetch-Since": "-1"}) as stream:
        everything = [event["pubsub_cursor"].encode() for event in await stream.replay()]
    assert everything == sorted(set(everything))
    assert set(published) <= set(everything)
    for place, cursors in zip(
        [place for n, place in enumerate(places) if n % 3] + places[::3], [*finished, *late], strict=True
    ):
        assert cursors == everything[place + 1 :]
    for replay in replays:
        replay.close()


def resident_mib(daemon: Daemon) -> float:
    """Memory that the daemon holds."""
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


async def test_a_reader_that_stopped_goes_on_from_the_file(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """Over the same connection, once and in order; 60 MB that it left unread cost the server no memory."""
    daemon = start_daemon(backlog("file", tmp_path, subscriber_buffer="64 KiB"))
    filling = "x" * 50_000
    async with daemon.subscriber("/a") as stopped, daemon.subscriber("/a") as reading:
        await daemon.put("/a", {"n": -1})
        assert (await stopped.event())["n"] == -1
        stopped.stop_reading()
        before = resident_mib(daemon)
        for n in range(0, 1200, 10):
            await daemon.put_all("/a", [{"n": m, "filling": filling} for m in range(n, n + 10)])
            while (await reading.event())["n"] != n + 9:
                pass
        assert resident_mib(daemon) - before < 30
        stopped.read_on()
        for n in range(1200):
            assert (await stopped.event())["n"] == n
        await daemon.put("/a", {"n": "live again"})
        assert (await stopped.event())["n"] == "live again"
        assert list(await stopped.object()) == ["stillalive"]  # pings are back too


async def test_a_reader_that_stopped_goes_on_from_memory(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """Again and again."""
    daemon = start_daemon(backlog("memory", tmp_path, subscriber_buffer="64 KiB"))
    filling = "x" * 50_000
    async with daemon.subscriber("/a") as stopped:
        await stopped.object()
        for start in (0, 400, 800):
            stopped.stop_reading()
            for n in range(start, start + 400, 10):
                await daemon.put_all("/a", [{"n": m, "filling": filling} for m in range(n, n + 10)])
            stopped.read_on()
            for n in range(start, start + 400):
                assert (await stopped.event())["n"] == n


@pytest.mark.parametrize("store", STORES)
async def test_all_that_is_held_can_be_asked_for_while_it_is_pushed_out(
    store: str, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Who is told that something is missing is not cut off because, a moment later, more of it is."""
    config = backlog(store, tmp_path)
    config["server"]["backlog"]["size"] = 50
    daemon = start_daemon(config)
    await daemon.put_all("/a", [{"n": n} for n in range(100)])
    done = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(publish_at_full_speed(daemon, done, []))
        for _ in range(100):
            async with daemon.subscriber("/a", {"X-Fetch-Since": "-1"}) as stream:
                assert stream.headers["X-Replay"] == "partial"
                await stream.replay()
        done.set()


@pytest.mark.parametrize("store", STORES)
async def test_a_reader_is_cut_off_when_what_it_needs_has_left(
    store: str, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Rather than going on with a gap; with the reason in the log, and it can come back and be told."""
    config = backlog(store, tmp_path, subscriber_buffer="64 KiB")
    config["server"]["backlog"]["size"] = 20
    daemon = start_daemon(config)
    async with daemon.subscriber("/a") as stopped:
        await daemon.put("/a", {"n": 0})
        cursor = (await stopped.event())["pubsub_cursor"]
        stopped.stop_reading()
        for n in range(1, 400):
            await daemon.put("/a", {"n": n, "filling": "x" * 50_000})
        stopped.read_on()
        await daemon.until_logged("left after .*: what it needs next has left the backlog")
        received = b""
        try:
            while piece := await stopped.reader.read(2**20):
                received += piece
        except ConnectionResetError:
            pass
    numbers = [int(n) for n in re.findall(rb'\{"n": (\d+)', received)]
    assert numbers == list(range(1, len(numbers) + 1))
    verdict, replayed = await daemon.replay("/a", X_Fetch_Since_Cursor=cursor)
    assert (verdict, replayed) == ("partial", list(range(380, 400)))


async def test_a_reader_that_takes_nothing_for_long_is_cut_off(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Also in the middle of a replay."""
    daemon = start_daemon(backlog("file", tmp_path, write_timeout="1s"))
    for _ in range(20):
        await daemon.put_all("/a", [{"n": n, "filling": "x" * 50_000} for n in range(10)])
    async with daemon.subscriber("/a", {"X-Fetch-Since": "-1"}) as stopped:
        stopped.stop_reading()
        await daemon.until_logged("left after .*: took nothing for 1 seconds")


async def test_a_stop_ends_a_replay_early(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """Without the closing chunk, so that the client comes back for the rest; the daemon waits for nobody."""
    daemon = start_daemon(backlog("file", tmp_path))
    for _ in range(40):
        await daemon.put_all("/a", [{"n": n, "filling": "x" * 50_000} for n in range(10)])
    async with daemon.subscriber("/a", {"X-Fetch-Since": "-1"}) as stream:
        await stream.event()
        stopping = asyncio.create_task(asyncio.to_thread(daemon.stop))
        received = await stream.rest()
        assert await stopping == 0
    assert ending(received) == "early"
    assert received.count(b"pubsub_cursor") < 399
