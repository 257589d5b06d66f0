"""To many subscribers: one event after the other, and many at once."""

from bench.clients import Round, body, clients, put
from bench.figures import Figures, figure, quantiles
from bench.servers import bare, running


def one_at_a_time(subscribers: int, events: int, rounds: int, size: int) -> Figures:
    """Publish an event when all subscribers have had the one before."""
    return _fan_out("each", 1, subscribers, events, rounds, size)


def bursts(publishers: int, subscribers: int, events: int, rounds: int, size: int) -> Figures:
    """Many publishers at once, each as fast as it gets answers; events: each one's."""
    return _fan_out("joined", publishers, subscribers, events, rounds, size)


def _fan_out(mode: str, publishers: int, subscribers: int, events: int, rounds: int, size: int) -> Figures:
    def request(n: int) -> bytes:
        return put("/bench", body(n, size))

    paths = ["/bench"] * subscribers
    daemon_rounds: list[Round] = []
    bare_rounds: list[Round] = []
    with (
        running() as daemon,
        bare(mode) as reference,
        clients(daemon, request, publishers=publishers, paths=paths) as daemons,
        clients(reference, request, publishers=publishers, paths=paths) as references,
    ):
        for _ in range(rounds):
            daemon_rounds.append(daemons.run(events, in_step=publishers == 1))
            bare_rounds.append(references.run(events, in_step=publishers == 1))
    return {
        "cpu_us_per_delivery": figure(
            [each.cpu_us_per_delivery for each in daemon_rounds],
            [each.cpu_us_per_delivery for each in bare_rounds],
        ),
        **quantiles(
            "delivered_ms",
            [each.delivered_ms for each in daemon_rounds],
            [each.delivered_ms for each in bare_rounds],
        ),
        "events_per_second": figure(
            [each.events_per_second for each in daemon_rounds],
            [each.events_per_second for each in bare_rounds],
        ),
    }
