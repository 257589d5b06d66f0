"""What finding an event's subscribers costs: each event is for one of few, of more, of many of them."""

import base64
import contextlib
import resource
from functools import partial

from bench.clients import Clients, body, clients, put
from bench.figures import Figures
from bench.rounds import compared, cpu_us_per_event, in_turn
from bench.servers import Server, bare, running

_ALTERNATIVES = 200  # that the daemon takes in a path
_SPARE = 200  # descriptors for whatever else


def match(fewest: int, connections: int, events: int, rounds: int, size: int) -> Figures:
    """Each event for one of 500, 5,000 and 50,000 subscriptions (--fewest: 500), over --connections.

    With a low limit of open files, more subscriptions than such connections can ask for are left out.
    """
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY:  # the streams to all servers are open at once
        connections = min(connections, (files - 2 * fewest - _SPARE) // 2)
    all_counts = [fewest, 10 * fewest, 100 * fewest]  # subscriptions, all different
    counts = [n for n in all_counts if n <= _ALTERNATIVES * _connections(n, connections)]
    with contextlib.ExitStack() as stack:
        sides = {"bare": _subscribed(stack, stack.enter_context(bare("turn")), fewest, connections, size)}
        for count in counts:
            sides[str(count)] = _subscribed(stack, stack.enter_context(running()), count, connections, size)
        runs = [partial(connected.run, events, in_step=True) for connected in sides.values()]
        taken = dict(zip(sides, in_turn(rounds, *runs), strict=True))
    least, *more = map(str, counts)
    return {
        f"cpu_us_per_event_of_{least}": compared(cpu_us_per_event, taken[least], taken["bare"]),
        **{
            f"cpu_us_per_event_of_{count}": compared(cpu_us_per_event, taken[count], taken[least], least)
            for count in more
        },
    }


def _subscribed(stack: contextlib.ExitStack, server: Server, count: int, most: int, size: int) -> Clients:
    """Connection c of C asks for the topics c, c + C, c + 2 C, ...: event n, of topic n, is for n mod C."""
    connections = _connections(count, most)
    paths = [
        "/" + ",".join(f"topic{n}" for n in range(first, count, connections)) for first in range(connections)
    ]

    def request(n: int) -> bytes:
        return put(f"/topic{n % count}", body(n, size))

    return stack.enter_context(clients(server, request, paths=paths, in_turn=True))


def rights(fewest: int, events: int, rounds: int, size: int) -> Figures:
    """Each private event for one of 100 and 1,000 users (--fewest: 100), who have other rights each."""
    counts = [fewest, 10 * fewest]
    with contextlib.ExitStack() as stack:
        sides = [_users(stack, count, size) for count in counts]
        few, many = in_turn(rounds, *(partial(side.run, events, in_step=True) for side in sides))
    return {
        f"cpu_us_per_event_of_{counts[1]}": compared(cpu_us_per_event, many, few, str(counts[0])),
    }


def _users(stack: contextlib.ExitStack, count: int, size: int) -> Clients:
    """User n may see the private events of topic n."""
    acl = {f"user{n}": {"password": "secret", "acl": {"own": [f"topic{n}"]}} for n in range(count)}
    headers = [
        f"Authorization: Basic {base64.b64encode(f'{user}:secret'.encode()).decode()}\r\n" for user in acl
    ]

    def request(n: int) -> bytes:
        return put(f"/private/topic{n % count}", body(n, size))

    server = stack.enter_context(running(acl=acl))
    return stack.enter_context(clients(server, request, paths=["/"] * count, headers=headers, in_turn=True))


def _connections(count: int, most: int) -> int:
    """As many as there may be, with equally many subscriptions over each."""
    return next(each for each in range(min(count, most), 0, -1) if count % each == 0)
