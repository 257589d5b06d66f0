"""To many subscribers: one event after the other, and many at once."""

from bench.clients import body, clients, put
from bench.figures import Figures
from bench.rounds import compared, cpu_us_per_delivery, delivered_ms, events_per_second, in_turn
from bench.servers import bare, running


def one_at_a_time(subscribers: int, events: int, rounds: int, size: int) -> Figures:
    """One publisher, who waits until all subscribers have had the event before."""
    return _fan_out("each", 1, subscribers, events, rounds, size)


def bursts(publishers: int, subscribers: int, events: int, rounds: int, size: int) -> Figures:
    """All publishers at once, and again when all subscribers have had all of it; --events: how often."""
    return _fan_out("joined", publishers, subscribers, events, rounds, size)


def _fan_out(mode: str, publishers: int, subscribers: int, events: int, rounds: int, size: int) -> Figures:
    def request(n: int) -> bytes:
        return put("/bench", body(n, size))

    paths = ["/bench"] * subscribers
    with (
        running() as daemon,
        bare(mode) as reference,
        clients(daemon, request, publishers=publishers, paths=paths) as daemons,
        clients(reference, request, publishers=publishers, paths=paths) as references,
    ):
        ours, theirs = in_turn(
            rounds,
            lambda: daemons.run(events, in_step=True),
            lambda: references.run(events, in_step=True),
        )
    return {
        "cpu_us_per_delivery": compared(cpu_us_per_delivery, ours, theirs),
        "delivered_ms_p50": compared(delivered_ms(50), ours, theirs),
        "delivered_ms_p99": compared(delivered_ms(99), ours, theirs),
        "events_per_second": compared(events_per_second, ours, theirs),
    }
