"""Figures: the middle of some rounds with the least and the most, and ratios of rounds taken in pairs."""

import statistics
from collections.abc import Sequence
from typing import Any

Figure = dict[str, Any]  # value, and perhaps: base, the same of what it is compared to; against, what; ratio
Figures = dict[str, Figure]  # by name
BARE = "bare"  # the reference


def spread(values: Sequence[float]) -> dict[str, float]:
    """The middle, and how far the rounds lie apart."""
    figures = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def figure(values: Sequence[float], base: Sequence[float] | None = None, against: str = BARE) -> Figure:
    """One value a round. base: that of the other side, in the same rounds."""
    if base is None:
        return {"value": spread(values)}
    compared: Figure = {"value": spread(values), "against": against, "base": spread(base)}
    # a short round's CPU time may be less than the clock shows
    if ratios := [ours / theirs for ours, theirs in zip(values, base, strict=True) if theirs > 0]:
        compared["ratio"] = spread(ratios)
    return compared


def line(name: str, each: Figure) -> str:
    """A figure to be read."""
    text = f"  {name:32} {_readable(each['value'])}"
    if "base" in each:
        text += f"  {each['against']} {_readable(each['base'])}"
    if "ratio" in each:
        text += f"  ratio {_readable(each['ratio'])}"
    return text


def _readable(values: dict[str, float]) -> str:
    if values["min"] == values["max"]:
        return f"{values['median']:g}"
    return f"{values['median']:g} ({values['min']:g}..{values['max']:g})"
