"""Signals, without handlers: they stay blocked, and threads wait for them and pass them on to the loop.

Of signals that come faster than the loop reads of them, loop.add_signal_handler() loses some, and CPython
may wait for ever, inside the handler, for a lock that the code it interrupted holds (trip_signal, when the
socket that wakes the loop is full).
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio  # which takes time to import, and this is imported before all that does

STOPS = {signal.SIGTERM, signal.SIGINT}
RELOADS = {signal.SIGHUP, signal.SIGUSR2}
TOGETHER = 1.0  # seconds within which stops count as one: `timeout` signals the process, and its group

Act = Callable[[signal.Signals], None]


def hold_back_reloads() -> None:
    """Have reloads wait until they are taken: they would end the process while it starts.

    SIGUSR1, which means a reload to other servers, never ends it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, RELOADS)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def start_deaf_thread(work: Callable[[], None], name: str) -> None:
    """Start a thread that gets no signals, and does not keep the process from its end.

    One that is started before signals are taken would get a stop, which ends the process then and there.
    """
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # which the thread inherits
    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)


def take_signals(loop: "asyncio.AbstractEventLoop", stop: Act, leave: Act, reload: Act) -> None:
    """Have the loop act on signals from now on. This thread, and those it starts, get none themselves.

    leave: called for a second stop, in a thread, as the loop may be what does not stop.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS | RELOADS)
    # a thread for each: of those that are pending, sigwait() takes the least, SIGHUP, again and again
    threading.Thread(target=_pass_on_stops, args=(loop, stop, leave), daemon=True).start()
    threading.Thread(target=_pass_on_reloads, args=(loop, reload), daemon=True).start()


def _pass_on_stops(loop: "asyncio.AbstractEventLoop", stop: Act, leave: Act) -> None:
    """Wait for the first stop, which the loop acts on, and for those after it."""
    number = signal.Signals(signal.sigwait(STOPS))
    first = time.monotonic()
    try:
        loop.call_soon_threadsafe(stop, number)
    except RuntimeError:  # the loop is closed, and the process, which ends, may still wait for a thread
        os._exit(1)
    while True:
        number = signal.Signals(signal.sigwait(STOPS))
        if time.monotonic() - first >= TOGETHER:
            leave(number)


def _pass_on_reloads(loop: "asyncio.AbstractEventLoop", reload: Act) -> None:
    """Wait for reloads, and have the loop act on one after the other, to its end."""
    acted = threading.Event()

    def act_on(number: signal.Signals) -> None:
        acted.set()
        reload(number)

    while True:
        number = signal.Signals(signal.sigwait(RELOADS))
        acted.clear()
        try:
            loop.call_soon_threadsafe(act_on, number)
        except RuntimeError:  # the loop is closed
            return
        acted.wait(1)  # else signals without end would keep the loop from all else; it may end without acting
