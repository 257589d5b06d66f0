"""A body that holds an event, or many: NDJSON, a JSON object on each line."""

import re
from collections.abc import Iterator
from itertools import islice

from core.errors import Refused
from core.events.event import MAX_BATCH, parse_payload
from core.events.topics import PublishPath
from core.events.turns import Slice

_FILLED_LINE = re.compile(rb"\S[^\n]*")
_LOOK_EVERY = 10  # lines, at the clock


def count_ndjson(body: bytes) -> int:
    """How many events such a body may hold, at most. Raises Refused(413) if they are too many."""
    lines = body.count(b"\n") + 1
    if lines > MAX_BATCH:
        lines = sum(1 for _ in islice(_FILLED_LINE.finditer(body), MAX_BATCH + 1))
    if lines > MAX_BATCH:
        raise Refused(413, f"a request may have {MAX_BATCH} events at most: send fewer at once")
    return lines


def parse_ndjson(body: bytes, path: PublishPath, max_line_size: int) -> Iterator[str]:
    """The openings (see parse_payload) of a body that holds a payload on each line.

    Raises Refused, naming the first bad line.
    """
    empty = True
    for number, line in enumerate(body.split(b"\n"), 1):
        if line.strip():
            empty = False
            try:
                yield parse_payload(line, path, max_line_size)
            except Refused as refused:
                raise Refused(refused.status, f"line {number}: {refused.message}") from None
    if empty:
        raise Refused(400, "there is no event in the body: expected a JSON object on each line")


async def parse_ndjson_in_slices(body: bytes, path: PublishPath, max_line_size: int, most: int) -> list[str]:
    """The openings of such a body as a list, while others have their turns. Raises Refused.

    most: bytes that the openings may have together, each of which repeats the path.
    """
    openings = []
    size = 0
    piece = Slice()
    for opening in parse_ndjson(body, path, max_line_size):
        openings.append(opening)
        size += len(opening)
        if size > most:
            raise Refused(413, f"the events' lines would have more than {most} bytes together: send fewer")
        if not len(openings) % _LOOK_EVERY and piece.over:
            await piece.next()
    return openings
