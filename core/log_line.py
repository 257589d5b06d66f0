"""A line of the log stays one line, whatever others put into it: names, paths, what a directory answers."""

import logging
from types import TracebackType

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


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
