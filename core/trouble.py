"""What the log says of something that fails again and again: that it does, why, and that it is over."""

import logging
import time


class Trouble:
    """Says so when that changes. began: the line for it, with %s for the reason; over: the line at the end.

    quiet: seconds from one failure in the log to the next, where somebody may bring them about at will.
    """

    def __init__(self, log: logging.Logger, began: str, over: str, quiet: float = 0.0) -> None:
        self._log = log
        self._began = began
        self._over = over
        self._quiet = quiet
        self._told: str | None = None  # the kind in the log, while it is the last word there
        self._quiet_until = 0.0  # monotonic

    def began(self, reason: str, kind: str | None = None, fault: Exception | None = None) -> None:
        """It fails, or still does.

        kind: what tells it from other failures, if not the reason; fault: a mistake of the program's own.
        """
        kind = kind or reason
        if kind != self._told and time.monotonic() >= self._quiet_until:
            self._told = kind
            self._quiet_until = time.monotonic() + self._quiet
            self._log.warning(self._began, reason, exc_info=fault)

    def ended(self) -> None:
        """It works, or still does."""
        if self._told is not None:
            self._told = None
            self._log.info("%s", self._over)
