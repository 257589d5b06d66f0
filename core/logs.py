"""The log: on stderr, but written by a thread, so that a pipe which nobody reads stops nobody.

Everything that is written to sys.stderr goes this way, tracebacks and Python's own warnings as well. logging
has a handler with a queue, but that one is for logging alone, and waits for its reader when it is stopped.
"""

import atexit
import io
import logging
import os
import select
import sys
import threading

from core.log_line import LineFormatter
from core.signals import start_deaf_thread

MAX_WAITING = 1024**2  # characters that wait to be written; of more, lines are left out, and counted
LAST_LINES = 1.0  # seconds that the end of the process waits for its last lines to be written
STDERR = 2
FORMATTER = LineFormatter()

log = logging.getLogger("pypubsub")


class Stderr(io.TextIOBase):
    """Stands in for sys.stderr: takes text at once, whatever becomes of it."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[str] = []
        self._size = 0  # characters of what waits
        self._full = False  # since the thread last took what waits
        self._left_out = 0  # lines, since the log last said so
        self._writing = False
        start_deaf_thread(self._write_out, "log")

    def write(self, text: str) -> int:
        """Have text written, unless too much is waiting."""
        with self._changed:
            self._full = self._full or self._size + len(text) > MAX_WAITING
            if self._full:
                self._left_out += text.count("\n")
            else:
                self._waiting.append(text)
                self._size += len(text)
                self._changed.notify_all()
        return len(text)

    def writable(self) -> bool:
        """As every file says."""
        return True

    def fileno(self) -> int:
        """Of what it is written to."""
        return STDERR

    def flush(self) -> None:
        """It goes out by itself: nobody waits for that."""

    def drain(self, within: float) -> None:
        """Wait until all is written, up to so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._writing), within)

    def _write_out(self) -> None:
        """Write what comes, all that has come meanwhile at once, to the process's end."""
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                text = "".join(self._waiting)
                left_out = self._left_out
                self._waiting.clear()
                self._size = self._left_out = 0
                self._full = False
                self._writing = True
            if left_out:
                text += notice(left_out) if text.endswith("\n") else "\n" + notice(left_out)
            if not write_all(text.encode(self.encoding, self.errors)):
                with self._changed:
                    self._left_out += left_out + text.count("\n") - bool(left_out)


def notice(left_out: int) -> str:
    """The line that stands where others were left out."""
    message = "%d lines were left out here: stderr did not take them"
    return (
        FORMATTER.format(log.makeRecord(log.name, logging.WARNING, "", 0, message, (left_out,), None)) + "\n"
    )


def write_all(raw: bytes) -> bool:
    """Write to stderr. Whether all of it was taken: the disk may be full, or the pipe's reader gone."""
    rest = memoryview(raw)
    try:
        while rest:
            try:
                rest = rest[os.write(STDERR, rest) :]
            except BlockingIOError:  # a terminal, or a pipe, that another program has made so
                select.select([], [STDERR], [])
    except OSError:
        return False
    return True


def begin(level: str) -> None:
    """Log from now on, and have a thread write it."""
    stderr = sys.stderr = Stderr()
    atexit.register(stderr.drain, LAST_LINES)
    handler = logging.StreamHandler(stderr)
    handler.setFormatter(FORMATTER)
    logging.basicConfig(level=level, handlers=[handler])


def write_last_lines() -> None:
    """Let the log be written before the process ends by os._exit(), if that takes no more than a moment."""
    if isinstance(sys.stderr, Stderr):
        sys.stderr.drain(LAST_LINES)
