"""A page of a backlog, from the parts in which its events are kept."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
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


def page_of(found: Sequence[Found], frames: Callable[[Sequence[bytes]], bytes], gone: Gone) -> Page:
    """The page of lines that lie between one another. It ends where the first of these parts ends."""
    end = min(part.end for part in found)
    parts = [part for part in (_upto(end, part) for part in found) if part.lines or part.block]
    if not parts:
        return Page(end, gone=gone)
    if len(parts) == 1 and (block := parts[0].block) and frames is chunks:
        return Page(end, block.chunks, block.events, block.first, gone)
    lines = [line for part in parts for line in (part.block.lines if part.block else part.lines)]
    if len(parts) > 1:
        lines.sort(key=position_in)
    return Page(end, frames(lines), len(lines), position_in(lines[0]), gone)


def _upto(end: int, part: Found) -> Found:
    """A part without what lies behind a position."""
    if part.end <= end:
        return part
    lines = part.block.lines if part.block else part.lines
    return Found(lines[: bisect_right(lines, end, key=position_in)], end)
