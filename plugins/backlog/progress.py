"""How far something is that takes minutes: a line now and then, with a bar at a terminal."""

import logging
import sys
import time

_PAUSE = 5.0  # seconds between two lines
_BAR = 30  # characters


class Progress:
    """Something that ends when nothing is left. what: what the line begins with; total: how much there is."""

    def __init__(self, log: logging.Logger, what: str, total: int) -> None:
        self._log = log
        self._what = what
        self._total = total
        self._shown = time.monotonic()

    def show(self, left: int) -> None:
        """Say how much is left, unless that was said a moment ago."""
        now = time.monotonic()
        if now < self._shown + _PAUSE:
            return
        self._shown = now
        done = min(max(1 - left / self._total, 0.0), 1.0)
        bar = f" [{'#' * round(done * _BAR):{_BAR}}]" if sys.stderr.isatty() else ""
        self._log.info("%s:%s %d %%, %d are left", self._what, bar, done * 100, left)
