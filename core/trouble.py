"""What the log says of something that fails again and again: that it does, why, and that it is over."""

import logging
import time


class Trouble:
    """Says so when that changes. began: the line for it, with %s for the reason; over: the line at the end.

    quiet: seconds from one failure in the log to the next, where somebody may bring them about at will.
    level: of the line for it, as in the module logging; the line at the end is of the level INFO.
    """

    def __init__(
        self,
        log: logging.Logger,
        began: str,
        over: str,
        quiet: float = 0.0,
        level: int = logging.WARNING,
    ) -> None:
        self.lasts = False  # whether it has failed, and not worked since
        self._log = log
        self._began = began
        self._over = over
        self._quiet = quiet
        self._level = level
        self._told: str | None = None  # the kind in the log, while it is the last word there
        self._quiet_until = 0.0  # monotonic

    def began(self, reason: str, kind: str | None = None, fault: Exception | None = None) -> None:
        """It fails, or still does.

        kind: what tells it from other failures, if not the reason; fault: a mistake of the program's own.
        """
        self.lasts = True
        kind = kind or reason
        if kind != self._told and time.monotonic() >= self._quiet_until:
            self._told = kind
            self._quiet_until = time.monotonic() + self._quiet
            self._log.log(self._level, self._began, reason, exc_info=fault)

    def ended(self) -> None:
        """It works, or still does."""
        self.lasts = False
        if self._told is not None:
            self._told = None
            self._log.info("%s", self._over)
