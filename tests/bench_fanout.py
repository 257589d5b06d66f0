"""How the daemon bears a crowd: many subscribers, some of whom do not read, and one publisher."""

import argparse
import time
from multiprocessing.connection import Connection

from bench_tools import (
    body,
    cpu_seconds,
    in_background,
    publish,
    put,
    quantiles,
    read_all,
    report,
    resident_kib,
    running,
    subscribe,
)

_AFTER_THE_LAST = b'"n": -1,'


def fan_out(arguments: argparse.Namespace) -> int:
    """Publish one event after the other to all subscribers."""
    with running() as daemon:
        memory_before = resident_kib(daemon)
        crowd = in_background(_crowd, daemon.port, arguments.subscribers, arguments.stalled, arguments.events)
        crowd.recv()  # all streams have begun
        cpu_before, begin = cpu_seconds(daemon), time.monotonic()
        numbers = [*range(arguments.events), -1]
        published = publish(daemon.port, 1, (put("/bench", body(n, arguments.size)) for n in numbers))
        reading = crowd.recv()
        seconds, cpu = time.monotonic() - begin, cpu_seconds(daemon) - cpu_before
        deliveries = (arguments.subscribers - arguments.stalled) * arguments.events
        report(
            measured="fanout",
            subscribers=arguments.subscribers,
            stalled=arguments.stalled,
            events=arguments.events,
            subscribers_with_loss=reading.wrong,
            deliveries_per_second=round(deliveries / seconds),
            server_cpu_us_per_delivery=round(cpu / deliveries * 1e6, 2),
            **quantiles("answer_ms", published.answers_ms),
            server_memory_mib_before=memory_before // 1024,
            server_memory_mib_after=resident_kib(daemon) // 1024,
            dropped_as_too_slow=sum("too slow" in line for line in daemon.log),
        )
    return 1 if reading.wrong else 0


def _crowd(result: Connection, port: int, subscribers: int, stalled: int, events: int) -> None:
    sockets = [subscribe(port, stalled=n < stalled) for n in range(subscribers)]
    result.send("ready")
    result.send(read_all(sockets[stalled:], events, _AFTER_THE_LAST))
    result.poll(None)  # those who do not read stay until the other end is closed


def idle(arguments: argparse.Namespace) -> int:
    """What subscribers cost who get pings only."""
    with running() as daemon:
        before = resident_kib(daemon)
        sockets = [subscribe(daemon.port, stalled=False) for _ in range(arguments.subscribers)]
        memory = resident_kib(daemon) - before
        cpu_before = cpu_seconds(daemon)
        time.sleep(arguments.seconds)
        cpu = cpu_seconds(daemon) - cpu_before
        report(
            measured="idle",
            subscribers=len(sockets),
            memory_kib_per_subscriber=round(memory / len(sockets), 1),
            cpu_percent=round(100 * cpu / arguments.seconds, 2),
        )
    return 0
