"""What finding an event's subscribers costs: each event is for one of few, of more, of many subscriptions."""

import contextlib
import resource

from bench.clients import Clients, Round, body, clients, put
from bench.figures import Figures, figure
from bench.servers import Server, bare, running

_COUNTS = (500, 5_000, 50_000)  # subscriptions, all different
_CONNECTIONS = 5_000  # connections; with more subscriptions, a connection asks for several alternatives
_SPARE = 200  # descriptors for whatever else


def match(events: int, rounds: int, size: int, most: int) -> Figures:
    """One event after the other, in turn with 500, 5,000 and 50,000 subscriptions; most: with no more."""
    counts = [count for count in _COUNTS if count <= most]
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)  # the streams to all servers are open at once
    limit = min(_CONNECTIONS, (files - 2 * _COUNTS[0] - _SPARE) // 2) if files > 0 else _CONNECTIONS
    taken: dict[str, list[Round]] = {}
    with contextlib.ExitStack() as stack:
        sides = {"bare": _subscribed(stack, stack.enter_context(bare("turn")), _COUNTS[0], limit, size)}
        for count in counts:
            sides[str(count)] = _subscribed(stack, stack.enter_context(running()), count, limit, size)
        for _ in range(rounds):
            for side, connected in sides.items():
                taken.setdefault(side, []).append(connected.run(events, in_step=True))
    cost = {side: [each.cpu_us_per_event for each in rounds_of] for side, rounds_of in taken.items()}
    least, *more = map(str, counts)
    return {
        f"cpu_us_per_event_of_{least}": figure(cost[least], cost["bare"]),
        **{f"cpu_us_per_event_of_{count}": figure(cost[count], cost[least], least) for count in more},
    }


def _subscribed(stack: contextlib.ExitStack, server: Server, count: int, limit: int, size: int) -> Clients:
    """Connection c of C asks for the topics c, c + C, c + 2 C, ...: event n, of topic n, is for n mod C."""
    connections = min(count, next(c for c in range(limit, 0, -1) if count % c == 0))
    paths = [
        "/" + ",".join(f"topic{n}" for n in range(first, count, connections)) for first in range(connections)
    ]

    def request(n: int) -> bytes:
        return put(f"/topic{n % count}", body(n, size))

    return stack.enter_context(clients(server, request, paths=paths, in_turn=True))
