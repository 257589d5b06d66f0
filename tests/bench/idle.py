"""What subscribers cost who come, and get pings only."""

import socket
import time

from bench.clients import open_streams
from bench.figures import Figures, figure
from bench.servers import Server, bare, cpu_seconds, resident_kib, running


class _Crowd:
    def __init__(self, server: Server, subscribers: int) -> None:
        before, cpu_before = resident_kib(server), cpu_seconds(server)
        self._server = server
        self._streams = open_streams(server.port, ["/bench"] * subscribers)
        self.kib_each = (resident_kib(server) - before) / subscribers
        self.cpu_us_to_join = 1e6 * (cpu_seconds(server) - cpu_before) / subscribers
        self._cpu_before = 0.0

    def begin(self) -> None:
        """Begin a round."""
        self._pings()
        self._cpu_before = cpu_seconds(self._server)

    def end(self) -> tuple[int, float]:
        """The pings that have come to all, and the server's CPU seconds."""
        cpu = cpu_seconds(self._server) - self._cpu_before
        return self._pings(), cpu

    def _pings(self) -> int:
        count = 0
        for stream in self._streams:
            try:
                received = stream.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            assert received, "the server ended a stream"
            count += received.count(b"stillalive")
        return count

    def close(self) -> None:
        """Hang up."""
        for stream in self._streams:
            stream.close()


def idle(subscribers: int, ping: float, seconds: float, rounds: int) -> Figures:
    """Subscribers who come, and then get pings only; --ping: every so many seconds."""
    with running(ping_interval=ping) as daemon, bare("each", ping) as reference:
        crowds = [_Crowd(server, subscribers) for server in (daemon, reference)]
        pings: list[list[float]] = [[], []]
        percent: list[list[float]] = [[], []]
        for _ in range(rounds):
            for crowd in crowds:
                crowd.begin()
            time.sleep(seconds)
            for crowd, us_per_ping, percents in zip(crowds, pings, percent, strict=True):
                count, cpu = crowd.end()
                assert count, "no ping has come"
                us_per_ping.append(1e6 * cpu / count)
                percents.append(100 * cpu / seconds)
        ours, theirs = crowds
        for crowd in crowds:
            crowd.close()
    return {
        "cpu_us_to_join": figure([ours.cpu_us_to_join], [theirs.cpu_us_to_join]),
        "memory_kib_per_subscriber": figure([ours.kib_each], [theirs.kib_each]),
        "cpu_us_per_ping": figure(pings[0], pings[1]),
        "cpu_percent": figure(percent[0], percent[1]),
    }
