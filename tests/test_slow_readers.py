"""A subscriber that does not read keeps nobody waiting, and does not stay for ever."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

from daemon import StartDaemon

FILLING = "x" * 50_000


def resident_bytes(pid: int) -> int:
    """Memory of a process that is not shared or swapped: VmRSS."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


async def test_a_reader_that_stops_delays_nobody(start_daemon: StartDaemon) -> None:
    """A healthy reader gets every event in order while another one is stuck; the stuck one is dropped."""
    server = start_daemon()
    async with server.subscriber("/a") as stuck, server.subscriber("/a") as healthy:
        stuck.stop_reading()

        async def read() -> list[int]:
            return [(await healthy.event())["n"] for _ in range(400)]

        reading = asyncio.create_task(read())
        for n in range(400):
            assert (await server.put("/a", {"n": n, "filling": FILLING})).status == 202
        assert await reading == list(range(400))
        await server.until_logged("subscriber .* left after .*: too slow: [0-9]+ bytes waiting")
        assert (await server.request("HEAD", "/")).headers["X-Subscribers"] == "1"


async def test_what_a_slow_reader_got_has_no_hole(start_daemon: StartDaemon) -> None:
    """It is disconnected, but nothing is left out in the middle of what it was sent."""
    server = start_daemon()
    async with server.subscriber("/a") as stuck:
        stuck.stop_reading()
        n = 0
        while not any("too slow" in line for line in server.log):
            await server.put("/a", {"n": n, "filling": FILLING})
            n += 1
        stuck.read_on()
        numbers = []
        try:
            while True:
                numbers.append((await stuck.event())["n"])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the early end
    assert numbers == list(range(len(numbers)))
    assert 0 < len(numbers) < n


async def test_a_reader_that_pauses_within_its_buffer_misses_nothing(start_daemon: StartDaemon) -> None:
    """It reads on where it stopped, over the same connection."""
    server = start_daemon({"server": {"subscriber_buffer": "64 MiB"}})
    async with server.subscriber("/a") as stream:
        stream.stop_reading()
        for n in range(300):
            await server.put("/a", {"n": n, "filling": FILLING})
        stream.read_on()
        assert [(await stream.event())["n"] for _ in range(300)] == list(range(300))
        await server.put("/a", {"n": 300})
        assert (await stream.event())["n"] == 300


async def test_a_burst_within_the_buffer_reaches_a_reader_of_any_pace(start_daemon: StartDaemon) -> None:
    """One line larger than a write, among small ones: all arrive, whole and in order."""
    server = start_daemon({"server": {"max_payload_size": "1 MiB"}})
    async with server.subscriber("/a") as stream:
        sizes = [10, 500_000, 10, 200_000, 10, 130_000, 10]
        for n, size in enumerate(sizes):
            await server.put("/a", {"n": n, "filling": "x" * size})
        got = [await stream.event() for _ in sizes]
    assert [(event["n"], len(event["filling"])) for event in got] == list(enumerate(sizes))


async def test_large_events_at_the_same_moment_reach_a_reader_who_reads(start_daemon: StartDaemon) -> None:
    """More in one turn of the server's loop than may wait for long: the reader gets the time to take them."""
    server = start_daemon()
    body = json.dumps({"filling": "é" * 49_000}, ensure_ascii=False).encode()
    head = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with server.subscriber("/a") as stream:
        publishers = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(8)]
        for _, writer in publishers:
            writer.write(head + body[:-1])
            await writer.drain()
        await server.put("/a", {"n": 0})
        await stream.event()
        for _, writer in publishers:
            writer.write(body[-1:])
        for reader, writer in publishers:
            assert b" 202 " in await reader.readline()
            writer.close()
        for _ in publishers:
            assert len((await stream.event())["filling"]) == 49_000


async def test_a_batch_larger_than_a_buffer_reaches_a_reader_who_reads(start_daemon: StartDaemon) -> None:
    """Ten thousand tiny events in one request: all arrive."""
    server = start_daemon()
    async with server.subscriber("/a") as stream:

        async def count() -> int:
            return len([await stream.event() for _ in range(10_000)])

        reading = asyncio.create_task(count())
        answer = await server.put("/a", b"{}\n" * 10_000, Content_Type="application/x-ndjson")
        assert answer.text == "accepted 10000 events\n"
        assert await reading == 10_000


async def test_a_reader_that_takes_nothing_is_dropped_in_the_end(start_daemon: StartDaemon) -> None:
    """After write_timeout, even if little waits for it."""
    server = start_daemon({"server": {"write_timeout": 0.5, "subscriber_buffer": "64 MiB"}})
    async with server.subscriber("/a") as stuck, server.subscriber("/b") as idle:
        stuck.stop_reading()
        for _ in range(200):
            await server.put("/a", {"filling": FILLING})
        await server.until_logged("of /a left after .*: took nothing for 0.5 seconds")
        await server.put("/b", {"n": 1})
        assert (await idle.event())["n"] == 1


async def test_memory_stays_bounded_with_many_who_do_not_read(start_daemon: StartDaemon) -> None:
    """200 stalled readers of 40 MB: the daemon grows by a small part of the 8 GB that they do not take."""
    server = start_daemon()
    async with AsyncExitStack() as stack:
        for _ in range(200):
            stream = await stack.enter_async_context(server.subscriber("/a"))
            stream.stop_reading()
        before = resident_bytes(server.pid)
        for _ in range(800):
            assert (await server.put("/a", {"filling": FILLING})).status == 202
        grown = resident_bytes(server.pid) - before
        for _ in range(200):
            await server.until_logged("too slow")
    assert grown < 60 * 1024**2


def kernel_holds(port: int) -> int:
    """Bytes that the kernel holds to be sent from a port of 127.0.0.1, in connections of any state."""
    connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = "0A"  # its queue is of connections, not of bytes
    return sum(
        int(fields[4].partition(":")[0], 16)
        for fields in connections
        if fields[1] == f"0100007F:{port:04X}" and fields[3] != listening
    )


async def test_the_kernel_holds_little_for_a_reader_who_has_stopped(start_daemon: StartDaemon) -> None:
    """Its memory for all connections of the machine is limited; it would take megabytes for each."""
    server = start_daemon({"server": {"subscriber_buffer": "64 MiB"}})
    async with server.subscriber("/a") as stuck:
        stuck.stop_reading()
        for _ in range(400):
            await server.put("/a", {"filling": FILLING})
        assert 0 < kernel_holds(server.port) < 1024**2


async def test_the_kernel_holds_nothing_for_a_reader_who_was_dropped(start_daemon: StartDaemon) -> None:
    """It would go on offering what was not read for minutes."""
    server = start_daemon()
    async with server.subscriber("/a") as stuck:
        stuck.stop_reading()
        while not any("too slow" in line for line in server.log):
            await server.put("/a", {"filling": FILLING})
        assert kernel_holds(server.port) == 0
