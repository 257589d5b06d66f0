"""Both sides in turn, in short rounds, so that noise hits both."""

from collections.abc import Callable
from typing import TypeVar

from bench.clients import Round
from bench.figures import BARE, Figure, figure

T = TypeVar("T")


def in_turn(rounds: int, *sides: Callable[[], T]) -> list[list[T]]:
    """Call each side in turn, so many times, and once before that to warm up. What each returned."""
    for side in sides:
        side()
    taken = [[side() for side in sides] for _ in range(rounds)]
    return [[each[n] for each in taken] for n in range(len(sides))]


def compared(
    value: Callable[[Round], float], ours: list[Round], theirs: list[Round], against: str = BARE
) -> Figure:
    """One figure of each round."""
    return figure([value(each) for each in ours], [value(each) for each in theirs], against)


def cpu_us_per_delivery(each: Round) -> float:
    """The server's."""
    return 1e6 * each.cpu_seconds / each.deliveries


def cpu_us_per_event(each: Round) -> float:
    """The server's."""
    return 1e6 * each.cpu_seconds / each.events


def events_per_second(each: Round) -> float:
    """By the clock on the wall."""
    return each.events / each.seconds


def delivered_ms(part: int) -> Callable[[Round], float]:
    """What so many of a hundred deliveries did not take longer than, from the publisher's sending on."""
    return lambda each: percentile(each.delivered_ms, part)


def answered_ms(part: int) -> Callable[[Round], float]:
    """The same for answers to publishers."""
    return lambda each: percentile(each.answered_ms, part)


def percentile(values: list[float], part: int) -> float:
    """What so many of a hundred do not exceed."""
    return sorted(values)[len(values) * part // 100]
