"""How the daemon bears a crowd some of whom do not read, and one publisher as fast as it gets answers."""

import time
from multiprocessing.connection import Connection

from bench.clients import body, clients, open_stream, put, wait_for_beginning
from bench.figures import Figures, figure
from bench.readers import Background, read_all
from bench.rounds import percentile
from bench.servers import cpu_seconds, resident_kib, running


def stalled(subscribers: int, unread: int, events: int, size: int) -> Figures:
    """One publisher, as fast as it gets answers, to many; --unread: how many of them do not read."""
    with running() as daemon:
        memory_before = resident_kib(daemon)
        crowd = Background(_crowd, daemon.port, subscribers, unread, events)
        crowd.result()  # all streams have begun

        def request(n: int) -> bytes:
            return put("/bench", body(n, size) if n < events else b'{"end": true}')

        with clients(daemon, request) as publisher:
            cpu_before, begin = cpu_seconds(daemon), time.monotonic()
            published = publisher.run(events + 1)
            crowd.result()
            seconds, cpu = time.monotonic() - begin, cpu_seconds(daemon) - cpu_before
        deliveries = (subscribers - unread) * events
        return {
            "deliveries_per_second": figure([deliveries / seconds]),
            "cpu_us_per_delivery": figure([1e6 * cpu / deliveries]),
            "answered_ms_p50": figure([percentile(published.answered_ms, 50)]),
            "answered_ms_p99": figure([percentile(published.answered_ms, 99)]),
            "memory_mib_before": figure([memory_before / 1024]),
            "memory_mib_after": figure([resident_kib(daemon) / 1024]),
            "dropped_as_too_slow": figure([sum("too slow" in line for line in daemon.log)]),
        }


def _crowd(result: Connection, port: int, subscribers: int, unread: int, events: int) -> None:
    streams = []
    for n in range(subscribers):
        streams.append(open_stream(port, stalled=n < unread))
        wait_for_beginning(streams[-1])
    result.send("ready")
    result.send(read_all(streams[unread:], events, b'"end": true'))
    result.poll(None)  # those who do not read stay until the other end is closed
