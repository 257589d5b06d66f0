"""Publishes that nobody follows: one event in a request, and many."""

from bench.clients import NDJSON, Round, body, clients, put
from bench.figures import Figures
from bench.rounds import answered_ms, compared, cpu_us_per_event, events_per_second, in_turn
from bench.servers import bare, running


def publish(publishers: int, events: int, rounds: int, size: int) -> Figures:
    """64 publishers over connections that stay, each as fast as it gets answers; --events: each one's."""
    ours, theirs = _rounds(put("/bench", body(0, size)), publishers, events, rounds)
    return {
        "cpu_us_per_publish": compared(cpu_us_per_event, ours, theirs),
        "answered_ms_p50": compared(answered_ms(50), ours, theirs),
        "answered_ms_p99": compared(answered_ms(99), ours, theirs),
        "publishes_per_second": compared(events_per_second, ours, theirs),
    }


def batches(batch: int, requests: int, rounds: int, size: int) -> Figures:
    """One publisher, 1,000 events in each request, which the reference does not look at."""
    request = put("/bench", b"\n".join(body(n, size) for n in range(batch)), NDJSON)
    taken = _rounds(request, 1, requests, rounds)
    ours, theirs = ([each._replace(events=each.events * batch) for each in side] for side in taken)
    return {
        "cpu_us_per_event": compared(cpu_us_per_event, ours, theirs),
        "events_per_second": compared(events_per_second, ours, theirs),
    }


def _rounds(request: bytes, publishers: int, each: int, rounds: int) -> list[list[Round]]:
    """The daemon's, and the reference's."""
    with (
        running() as daemon,
        bare("each") as reference,
        clients(daemon, lambda _: request, publishers=publishers) as daemons,
        clients(reference, lambda _: request, publishers=publishers) as references,
    ):
        return in_turn(rounds, lambda: daemons.run(each), lambda: references.run(each))
