"""The line for what only a few can use at a time, such as the threads that verify passwords.

It is fair to networks: they get their turns one after another, and who comes from one waits behind its own.
So a flood delays itself. Those who go first wait apart, before all others, and have a place that nobody else
takes.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

PATIENCE = 30.0  # seconds that a log-in waits for its turn

_Turn = asyncio.Future[None]  # that somebody waits for


class FairLine:
    """places: how many have a turn at a time; kept: how many more may, if they are of those who go first."""

    def __init__(self, places: int, kept: int) -> None:
        self._places = places
        self._kept = kept
        self._busy = 0
        self._first = _Queue()
        self._others = _Queue()

    async def wait(self, networks: Sequence[str], *, first: bool, patience: float | None) -> None:
        """Wait for a turn, which end() ends. Raises TimeoutError after `patience` seconds; None: waits on.

        networks: those that the asker is in, the widest first; none: before all networks.
        """
        if self._busy < self._places + (self._kept if first else 0):  # then nobody waits who might take it
            self._busy += 1
            return
        queue = self._first if first else self._others
        turn: _Turn = asyncio.get_running_loop().create_future()
        queue.put(networks, turn)
        try:
            async with asyncio.timeout(patience):
                await turn
        except (TimeoutError, asyncio.CancelledError):
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self.end()
            else:
                queue.remove(networks, turn)
            raise

    def end(self) -> None:
        """A turn is over: the next one begins."""
        self._busy -= 1
        for queue, places in ((self._first, self._places + self._kept), (self._others, self._places)):
            while queue and self._busy < places:
                turn = queue.pop()
                if not turn.done():
                    self._busy += 1
                    turn.set_result(None)


class _Queue:
    """Who waits: in the order in which they came, or in a queue for each network, which take turns."""

    def __init__(self) -> None:
        self._turns: OrderedDict[_Turn, None] = OrderedDict()
        self._within: OrderedDict[str, _Queue] = OrderedDict()  # the network whose turn is next is first

    def __bool__(self) -> bool:
        return bool(self._turns or self._within)

    def put(self, networks: Sequence[str], turn: _Turn) -> None:
        """At the end of the queue of the narrowest network."""
        if networks:
            self._within.setdefault(networks[0], _Queue()).put(networks[1:], turn)
        else:
            self._turns[turn] = None

    def pop(self) -> _Turn:
        """The next. Raises KeyError if nobody waits."""
        if self._turns or not self._within:
            return self._turns.popitem(last=False)[0]
        network, queue = self._within.popitem(last=False)
        turn = queue.pop()
        if queue:
            self._within[network] = queue
        return turn

    def remove(self, networks: Sequence[str], turn: _Turn) -> None:
        """Undo put(), if pop() has not."""
        if not networks:
            self._turns.pop(turn, None)
        elif queue := self._within.get(networks[0]):
            queue.remove(networks[1:], turn)
            if not queue:
                del self._within[networks[0]]
