"""Signals, without handlers: they stay blocked, and threads wait for them and pass them on to the loop.

Of signals that come faster than the loop reads of them, loop.add_signal_handler() loses some, and CPython
may wait for ever, inside the handler, for a lock that the code it interrupted holds (trip_signal, when the
socket that wakes the loop is full).
"""

import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio  # which takes time to import, and this is imported before all that does

STOPS = {signal.SIGTERM, signal.SIGINT}
RELOADS = {signal.SIGHUP, signal.SIGUSR2}

Act = Callable[[signal.Signals], None]


def hold_back_reloads() -> None:
    """Have reloads wait until they are taken: they would end the process while it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, RELOADS)


def take_signals(loop: "asyncio.AbstractEventLoop", stop: Act, reload: Act) -> None:
    """Have the loop act on signals from now on. This thread, and those it starts, get none themselves."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS | RELOADS)
    # a thread for each: of those that are pending, sigwait() takes the least, SIGHUP, again and again
    for numbers, act in ((STOPS, stop), (RELOADS, reload)):
        threading.Thread(target=_pass_on, args=(numbers, loop, act), daemon=True).start()


def _pass_on(numbers: set[signal.Signals], loop: "asyncio.AbstractEventLoop", act: Act) -> None:
    """Wait for blocked signals, and have the loop act on one after the other, to the process's end."""
    acted = threading.Event()

    def act_on(number: signal.Signals) -> None:
        acted.set()
        act(number)

    while True:
        number = signal.Signals(signal.sigwait(numbers))
        acted.clear()
        try:
            loop.call_soon_threadsafe(act_on, number)
        except RuntimeError:  # the loop is closed, and the process, which ends, may still wait for a thread
            if number in STOPS:
                os._exit(1)
        acted.wait(1)  # else signals without end would keep the loop from all else; it may end without acting
