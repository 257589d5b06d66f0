"""A page of a backlog, from the parts in which its events are kept."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from core.events.event import position_in
from core.events.replay import Gone
from core.events.store import Page


class Found(NamedTuple):
    """Lines of a part that are wanted, in order, and the position up to which they were looked for."""

    lines: list[bytes]
    end: int


def page_of(found: Sequence[Found], frames: Callable[[Sequence[bytes]], bytes], gone: Gone) -> Page:
    """The page of lines that lie between one another. It ends where the first of these parts ends."""
    end = min(part.end for part in found)
    parts = [part.lines for part in found if part.lines]
    if len(parts) > 1:
        lines = sorted(chain.from_iterable(parts), key=position_in)
    else:
        lines = parts[0] if parts else []
    if any(part.end > end for part in found):
        del lines[bisect_right(lines, end, key=position_in) :]
    if not lines:
        return Page(end, gone=gone)
    return Page(end, frames(lines), len(lines), position_in(lines[0]), gone)
