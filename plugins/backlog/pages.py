"""A page of a backlog, from the parts in which its events are kept, and where its newest events are."""

import math
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple

from core.delivery.wire import chunks
from core.events.event import position_in
from core.events.replay import Gone
from core.events.store import Page
from plugins.backlog.block import Block


class Found(NamedTuple):
    """Lines of a part that are wanted, in order, and the position up to which they were looked for.

    block: all lines of this block, instead.
    """

    lines: list[bytes]
    end: int
    block: Block | None = None


class LookedBack(NamedTuple):
    """Where events of a part are that are wanted, in order: all of those behind a position."""

    positions: list[int]
    after: int  # that position; 0 if there is nothing before


def page_of(
    found: Sequence[Found], frames: Callable[[Sequence[bytes]], bytes], gone: Gone, most: int | None = None
) -> Page:
    """The page of lines that lie between one another. It ends where the first of these parts ends.

    most: how many of them there may be, one at least.
    """
    end = min(part.end for part in found)
    parts = [part for part in (_upto(end, part) for part in found) if part.lines or part.block]
    if not parts:
        return Page(end, gone=gone)
    if (
        len(parts) == 1
        and (block := parts[0].block)
        and frames is chunks
        and block.events <= (most or math.inf)
    ):
        return Page(end, block.chunks, block.events, block.first, gone)
    lines = [line for part in parts for line in (part.block.lines if part.block else part.lines)]
    if len(parts) > 1:
        lines.sort(key=position_in)
    if most is not None and len(lines) > most:
        del lines[most:]
        end = position_in(lines[-1])
    return Page(end, frames(lines), len(lines), position_in(lines[0]), gone)


def _upto(end: int, part: Found) -> Found:
    """A part without what lies behind a position."""
    if part.end <= end:
        return part
    lines = part.block.lines if part.block else part.lines
    return Found(lines[: bisect_right(lines, end, key=position_in)], end)


async def newest(count: int, upto: int, parts: Iterable[Callable[[int], Awaitable[LookedBack]]]) -> list[int]:
    """The positions of the newest events that are wanted, in order: so many, or all if there are fewer.

    upto: position that they have at most. parts: each is asked what it has up to a position, and looks at
    some of its events in a call.
    """
    found: list[int] = []
    for look_back in parts:
        of_part: list[int] = []  # the newest first
        end = upto
        # beyond what is found elsewhere nothing is looked for
        while len(of_part) < count and end > (found[0] if len(found) == count else 0):
            positions, end = await look_back(end)
            of_part += reversed(positions)
        found = sorted(found + of_part)[-count:]
    return found
