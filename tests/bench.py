#!/usr/bin/env python3
"""How the daemon bears a crowd: many subscribers, some of whom do not read, and one publisher.

    make bench                            # 2,000 subscribers, 20 of them stalled, 1,000 events
    .venv/bin/python tests/bench.py --subscribers 200 --stalled 5 --size 20000

Run by hand: it takes a while, and its figures are those of the machine. The daemon gets the first CPU,
subscribers and publisher share the second. Says what every subscriber got, and how long the publisher
waited for its answers. Exit 1 if a subscriber that reads misses an event, gets one twice or out of order.
"""

import argparse
import http.client
import json
import multiprocessing
import os
import re
import resource
import selectors
import socket
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from daemon import Daemon

NUMBER = re.compile(rb'"n": (\d+),')
END = b'"n": -1,'  # in the event after the last one


def main() -> int:
    """Run it, and print the figures as lines of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subscribers", type=int, default=2000)
    parser.add_argument("--stalled", type=int, default=20, help="how many of them do not read")
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--size", type=int, default=200, help="bytes of each event's filling")
    parser.add_argument(
        "--idle", type=float, default=0, help="instead: measure so many seconds without events"
    )
    arguments = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as directory:
        daemon = Daemon(Path(directory))
        daemon.start()
        try:
            cpus = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(daemon.pid, cpus[:1])
            os.sched_setaffinity(0, cpus[-1:])
            return idle(daemon, arguments) if arguments.idle else fan_out(daemon, arguments)
        finally:
            daemon.stop()


def fan_out(daemon: Daemon, arguments: argparse.Namespace) -> int:
    """Publish one event after the other to all subscribers."""
    memory_before = resident_kib(daemon)
    sockets = [subscribe(daemon.port, stalled=n < arguments.stalled) for n in range(arguments.subscribers)]
    here, there = multiprocessing.Pipe()
    publisher = multiprocessing.Process(target=publish_all, args=(daemon.port, arguments, there))
    cpu_before, begin = cpu_seconds(daemon), time.monotonic()
    publisher.start()
    os.nice(10)  # so that on the CPU they share the publisher need not wait for the readers
    wrong = read_all(sockets[arguments.stalled :], arguments.events)
    seconds, cpu = time.monotonic() - begin, cpu_seconds(daemon) - cpu_before
    answers_ms = sorted(here.recv())
    publisher.join()
    deliveries = (arguments.subscribers - arguments.stalled) * arguments.events
    report(
        subscribers=arguments.subscribers,
        stalled=arguments.stalled,
        events=arguments.events,
        subscribers_with_loss=wrong,
        deliveries_per_second=round(deliveries / seconds),
        server_cpu_us_per_delivery=round(cpu / deliveries * 1e6, 2),
        answer_ms_p50=round(statistics.median(answers_ms), 1),
        answer_ms_p99=round(answers_ms[len(answers_ms) * 99 // 100], 1),
        answer_ms_max=round(answers_ms[-1], 1),
        server_memory_mib_before=memory_before // 1024,
        server_memory_mib_after=resident_kib(daemon) // 1024,
        dropped_as_too_slow=sum("too slow" in line for line in daemon.log),
    )
    return 1 if wrong else 0


def idle(daemon: Daemon, arguments: argparse.Namespace) -> int:
    """What subscribers cost who get pings only."""
    before = resident_kib(daemon)
    sockets = [subscribe(daemon.port, stalled=False) for _ in range(arguments.subscribers)]
    memory = resident_kib(daemon) - before
    cpu_before = cpu_seconds(daemon)
    time.sleep(arguments.idle)
    cpu = cpu_seconds(daemon) - cpu_before
    report(
        idle_subscribers=len(sockets),
        memory_kib_per_subscriber=round(memory / len(sockets), 1),
        cpu_percent=round(100 * cpu / arguments.idle, 2),
    )
    return 0


def report(**figures: float) -> None:
    """Print figures, one line."""
    print(json.dumps(figures))


def subscribe(port: int, *, stalled: bool) -> socket.socket:
    """A subscriber whose stream has begun."""
    subscriber = socket.socket()
    if stalled:
        subscriber.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    subscriber.connect(("127.0.0.1", port))
    subscriber.sendall(b"GET /bench HTTP/1.1\r\nHost: bench\r\n\r\n")
    head = b""
    while b"stillalive" not in head:
        head += subscriber.recv(4096)
    return subscriber


def publish_all(port: int, arguments: argparse.Namespace, result: Connection) -> None:
    """Publish all events over one connection; sends back how many ms each answer took."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    answers_ms = []
    for n in [*range(arguments.events), -1]:
        body = json.dumps({"n": n, "filling": "x" * arguments.size})
        begin = time.monotonic()
        connection.request("PUT", "/bench", body)
        answer = connection.getresponse()
        answer.read()
        answers_ms.append(1000 * (time.monotonic() - begin))
        assert answer.status == 202
    result.send(answers_ms)


def read_all(sockets: list[socket.socket], events: int) -> int:
    """Read every stream to the last event; how many did not get each event once and in order."""
    selector = selectors.EpollSelector()
    expected = dict.fromkeys(sockets, 0)  # the number of the next event
    tails = dict.fromkeys(sockets, b"")
    wrong = set()
    for reader in sockets:
        selector.register(reader, selectors.EVENT_READ, data=reader)
    while selector.get_map():
        for key, _ in selector.select():
            subscriber: socket.socket = key.data
            try:
                received = subscriber.recv(1 << 20)
            except ConnectionResetError:
                received = b""  # dropped, as too slow for this publisher
            complete, newline, tails[subscriber] = (tails[subscriber] + received).rpartition(b"\n")
            for number in NUMBER.findall(complete + newline):
                if int(number) != expected[subscriber]:
                    wrong.add(subscriber)
                expected[subscriber] += 1
            if END in complete or not received:
                selector.unregister(subscriber)
                subscriber.close()
    return len(wrong | {reader for reader in sockets if expected[reader] != events})


def cpu_seconds(daemon: Daemon) -> float:
    """CPU time the daemon has used."""
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_kib(daemon: Daemon) -> int:
    """Memory the daemon holds."""
    line = next(
        line for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines() if "VmRSS" in line
    )
    return int(line.split()[1])


if __name__ == "__main__":
    sys.exit(main())
