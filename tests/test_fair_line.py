"""FairLine: who waits for whom. No test measures time: what counts is the order."""

import asyncio
from collections.abc import Sequence

import pytest

from core.auth.fair_line import FairLine
from core.auth.networks import queues_of


class Crowd:
    """Those who ask for turns; `served` has their names, in the order in which their turns came."""

    def __init__(self, places: int = 1, kept: int = 0) -> None:
        self.line = FairLine(places, kept)
        self.served: list[str] = []
        self.asking: list[asyncio.Task[None]] = []

    def ask(self, name: str, networks: Sequence[str] = (), *, first: bool = False) -> asyncio.Task[None]:
        """Somebody who comes now."""
        task = asyncio.create_task(self._ask(name, networks, first))
        self.asking.append(task)
        return task

    async def _ask(self, name: str, networks: Sequence[str], first: bool) -> None:
        await self.line.wait(networks, first=first, patience=None)
        self.served.append(name)

    async def settle(self) -> None:
        """Let everybody do what can be done now."""
        for _ in range(5):
            await asyncio.sleep(0)

    async def serve_all(self) -> list[str]:
        """End turns until everybody had one."""
        await self.settle()
        while not all(task.done() for task in self.asking):
            self.line.end()
            await self.settle()
        return self.served


def at(address: str) -> tuple[str, ...]:
    """The networks of an address, the widest first."""
    return queues_of(address)


async def test_so_many_have_a_turn_at_a_time() -> None:
    """The next one begins when one is over."""
    crowd = Crowd(places=2)
    for name in "abcd":
        crowd.ask(name)
    await crowd.settle()
    assert crowd.served == ["a", "b"]
    crowd.line.end()
    await crowd.settle()
    assert crowd.served == ["a", "b", "c"]
    assert await crowd.serve_all() == ["a", "b", "c", "d"]


async def test_a_flood_from_one_site_delays_itself() -> None:
    """Somebody from elsewhere, who comes last, waits for one of them."""
    crowd = Crowd()
    for n in range(50):
        crowd.ask(f"flood {n}", at("192.0.2.1"))
    crowd.ask("somebody", at("192.0.2.2"))
    assert (await crowd.serve_all()).index("somebody") <= 2


async def test_sites_take_turns() -> None:
    """Each in the order in which its own came."""
    crowd = Crowd()
    crowd.ask("has it")
    await crowd.settle()
    came = [("a1", "192.0.2.1"), ("a2", "192.0.2.1"), ("b1", "::1"), ("b2", "::1"), ("c", "198.51.100.1")]
    for name, address in came:
        crowd.ask(name, at(address))
    assert await crowd.serve_all() == ["has it", "a1", "b1", "c", "a2", "b2"]


@pytest.mark.parametrize("network", ["2001:db8:0:{:x}::1", "2001:db8:0:{:x}00::1"])
async def test_an_ipv6_network_has_one_turn(network: str) -> None:
    """Whoever has a /48 has 65,536 of 64 bits, which are no more than one of another."""
    crowd = Crowd()
    for n in range(1, 50):
        crowd.ask(f"flood {n}", at(network.format(n)))
    crowd.ask("somebody", at("2001:db8:1::1"))
    assert (await crowd.serve_all()).index("somebody") <= 2


async def test_neighbours_in_ipv4_have_one_turn_too() -> None:
    """Who has many addresses mostly has those beside one another; each is served, if later."""
    crowd = Crowd()
    for n in range(1, 50):
        crowd.ask(f"flood {n}", at(f"192.0.2.{n}"))
    crowd.ask("neighbour", at("192.0.2.99"))
    crowd.ask("somebody", at("198.51.100.1"))
    served = await crowd.serve_all()
    assert served.index("somebody") <= 2
    assert len(served) == 51


async def test_within_a_network_the_narrower_ones_take_turns() -> None:
    """So that a neighbour of who floods is served too."""
    crowd = Crowd()
    for n in range(50):
        crowd.ask(f"flood {n}", at("2001:db8::1"))
    crowd.ask("neighbour", at("2001:db8:0:1::1"))
    crowd.ask("of another /56", at("2001:db8:0:ff00::1"))
    served = await crowd.serve_all()
    assert max(served.index("neighbour"), served.index("of another /56")) <= 5


async def test_some_come_first() -> None:
    """Before all who wait, and they have a place that nobody else takes."""
    crowd = Crowd(places=1, kept=1)
    for n in range(3):
        crowd.ask(f"flood {n}", at("192.0.2.1"))
    for n in range(3):
        crowd.ask(f"known {n}", at("192.0.2.1"), first=True)
    await crowd.settle()
    assert crowd.served == ["flood 0", "known 0"]
    assert (await crowd.serve_all())[2:4] == ["known 1", "known 2"]
    assert len(crowd.served) == 6


async def test_nobody_waits_longer_than_asked_for() -> None:
    """Who has waited in vain, or has left, takes no turn of others."""
    crowd = Crowd()
    crowd.ask("has it")
    await crowd.settle()
    with pytest.raises(TimeoutError):
        await crowd.line.wait(at("192.0.2.1"), first=False, patience=0.01)
    gone = crowd.ask("gone", at("2001:db8::1"))
    at_its_turn = crowd.ask("gone at its turn", at("192.0.2.2"))
    crowd.ask("last", at("192.0.2.3"))
    await crowd.settle()
    gone.cancel()
    await crowd.settle()
    crowd.line.end()
    at_its_turn.cancel()  # it has the turn, and does not know yet
    await crowd.settle()
    assert crowd.served == ["has it", "last"]
    crowd.line.end()
    crowd.ask("later")
    await crowd.settle()
    assert crowd.served[-1] == "later"


async def test_who_has_left_leaves_nothing() -> None:
    """Lines that nobody stands in are not kept."""
    crowd = Crowd()
    crowd.ask("has it")
    await crowd.settle()
    asking = [crowd.ask("gone", at(f"2001:db8:0:{n:x}::1")) for n in range(10)]
    await crowd.settle()
    assert crowd.line._others
    for task in asking:
        task.cancel()
    await crowd.settle()
    assert not crowd.line._others
