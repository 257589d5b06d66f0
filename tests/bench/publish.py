"""Publishes that nobody follows: one event in a request, and many."""

from bench.clients import NDJSON, Round, body, clients, put
from bench.figures import Figures, figure, quantiles
from bench.servers import bare, running


def publish(publishers: int, events: int, rounds: int, size: int) -> Figures:
    """Many publishers over connections that stay, each as fast as it gets answers; events: each one's."""
    daemon_rounds, bare_rounds = _rounds(put("/bench", body(0, size)), publishers, events, rounds)
    return {
        "cpu_us_per_publish": figure(
            [each.cpu_us_per_event for each in daemon_rounds],
            [each.cpu_us_per_event for each in bare_rounds],
        ),
        **quantiles(
            "answered_ms",
            [each.answered_ms for each in daemon_rounds],
            [each.answered_ms for each in bare_rounds],
        ),
        "publishes_per_second": figure(
            [each.events_per_second for each in daemon_rounds],
            [each.events_per_second for each in bare_rounds],
        ),
    }


def batches(batch: int, requests: int, rounds: int, size: int) -> Figures:
    """One publisher, so many events in each request (the reference reads them, and does not look at them)."""
    request = put("/bench", b"\n".join(body(n, size) for n in range(batch)), NDJSON)
    daemon_rounds, bare_rounds = _rounds(request, 1, requests, rounds)
    return {
        "cpu_us_per_event": figure(
            [each.cpu_us_per_event / batch for each in daemon_rounds],
            [each.cpu_us_per_event / batch for each in bare_rounds],
        ),
        "events_per_second": figure(
            [each.events_per_second * batch for each in daemon_rounds],
            [each.events_per_second * batch for each in bare_rounds],
        ),
    }


def _rounds(request: bytes, publishers: int, each: int, rounds: int) -> tuple[list[Round], list[Round]]:
    daemon_rounds: list[Round] = []
    bare_rounds: list[Round] = []
    with (
        running() as daemon,
        bare("each") as reference,
        clients(daemon, lambda _: request, publishers=publishers) as daemons,
        clients(reference, lambda _: request, publishers=publishers) as references,
    ):
        for _ in range(rounds):
            daemon_rounds.append(daemons.run(each))
            bare_rounds.append(references.run(each))
    return daemon_rounds, bare_rounds
