"""What can go wrong on purpose: a refused request, and configuration that cannot be used."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

RETRY_AFTER = {"Retry-After": "5"}  # seconds, for what is worth asking again


class Refused(Exception):  # noqa: N818 (it says what happened to the request)
    """A request that is answered with an error status; raised anywhere below the request handler.

    status: the HTTP status (400 to 599).
    message: one line for the client: what is wrong and what is accepted.
    headers: added to the answer, such as WWW-Authenticate or Retry-After.
    close: the connection cannot be used for another request.
    reason: a short word that refusals are counted by, where others have the same status.
    quiet: it is counted, and not worth a line of the log.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
        reason: str = "",
        quiet: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
        self.close = close
        self.reason = reason
        self.quiet = quiet


class ConfigError(Exception):
    """A configuration that cannot be used: every problem found in it, one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class StartError(Exception):
    """Something outside the configuration stops the start, such as a port in use. One line."""


@contextlib.contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Add the problems of a ConfigError to a list, so that those after it are found as well."""
    try:
        yield
    except ConfigError as error:
        problems += error.problems
