"""What is counted where it happens, told by the last lines of the log."""

import asyncio
import re

from core.counters import Counters
from daemon import StartDaemon


async def test_a_stop_tells_what_was_done(start_daemon: StartDaemon) -> None:
    """Events by what became of them, deliveries, and how streams ended: one line before the last ones."""
    daemon = start_daemon({"server": {"ping_interval": 60}})
    async with daemon.subscriber("/a") as stream, daemon.subscriber("/a") as other:
        for path in ("/a", "/b"):
            assert (await daemon.put(path, {"n": 1}, Idempotency_Key="k")).status == 202
        assert (await daemon.put("/a", {"n": 1}, Idempotency_Key="k")).status == 202
        assert (await daemon.put("/a", b"no JSON")).status == 400
        await daemon.put_all("/a", [{"n": 2}, {"n": 3}])
        for each in (stream, other):
            assert [(await each.event())["n"] for _ in range(3)] == [1, 2, 3]
        other.close()
        await daemon.until_logged("the client disconnected")
        assert await asyncio.to_thread(daemon.stop) == 0
    (line,) = [line for line in daemon.log if " pypubsub: in all: " in line]
    assert "in all: 4 events accepted, 1 repeated, 1 rejected; 6 deliveries of " in line
    assert line.endswith("; 2 streams, ended: 1 client, 1 server_stops")
    assert int(re.findall(r"deliveries of (\d+) bytes", line)[0]) > 6 * len(
        '{"n": 1, "pubsub_topics": ["a"]}'
    )
    assert daemon.log.index(line) >= len(daemon.log) - 3


def test_the_lag_of_the_loop_is_counted_in_nanoseconds() -> None:
    """All together, the longest, and how often it was looked at; a loop is never early."""
    counters = Counters()
    for seconds in (0.001, 0.003, -0.5):
        counters.note_lag(seconds)
    assert counters.loop_looks == 3
    assert counters.loop_lag_ns == 4_000_000
    assert counters.longest_loop_lag_ns == 3_000_000


def test_numbers_are_integers_and_begin_at_nothing() -> None:
    """Whoever reads them need not ask whether they are there."""
    for name, value in vars(Counters()).items():
        assert value in (0, {}), name
