"""The log: on stderr, but written by a thread, so that a pipe which nobody reads stops nobody.

Everything that is written to sys.stderr goes this way, tracebacks and Python's own warnings as well. logging
has a handler with a queue, but that one is for logging alone, and waits for its reader when it is stopped.

A line of it stays one line, whatever others put into it: names, paths, what a directory answers.
"""

import atexit
import io
import logging
import os
import select
import sys
import threading
from types import TracebackType

from core.signals import start_deaf_thread

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_WAITING = 1024**2  # characters that wait to be written; of more, lines are left out, and counted
LAST_LINES = 1.0  # seconds that the end of the process waits for its last lines to be written
STDERR = 2

log = logging.getLogger("pypubsub")


def printable(text: str) -> str:
    """The text with what would break or bend a line, such as U+2028 and U+202E, as an escape of Python's."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


class LineFormatter(logging.Formatter):
    """A record as one line, and below it the traceback if there is one."""

    def __init__(self) -> None:
        super().__init__(_FORMAT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line."""
        return printable(super().formatMessage(record))

    def formatException(  # noqa: N802
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        """The traceback, which holds what others sent if an error's message does."""
        return "\n".join(map(printable, super().formatException(ei).split("\n")))


FORMATTER = LineFormatter()


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
        """True: it can be written to."""
        return True

    def fileno(self) -> int:
        """The descriptor of the real stderr."""
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
