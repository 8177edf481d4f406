"""Numbers as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "–"
"""What stands where there is no value."""


def decimal(value: float | None, digits: int = 3) -> str:
    """A number with that many digits after the point; no value as a dash, infinity as its sign."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.{digits}f}"


def significant(value: float | None, digits: int = 3) -> str:
    """A number with that many digits in all: volumes, learning rates."""
    if value is None or not math.isfinite(value):
        return decimal(value)
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:.{places}f}"
    return f"{value:.{digits - 1}e}"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours, whichever a person would say."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def mean(values: list[float]) -> float:
    """Mean of the finite values; NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def quantile(values: list[float], share: float) -> float:
    """Value below which a share (0..1) of the sorted values lies, between neighbours by a straight line."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def listed(names: Sequence[str], most: int = 5) -> str:
    """Names in a row; of many the first ones and how many more."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


def plural(number: int, singular: str) -> str:
    """`1 case`, `2 cases`."""
    return f"{number} {noun(number, singular)}"


def noun(number: int, singular: str) -> str:
    """`case` for one, `cases` for several."""
    return singular if number == 1 else f"{singular}s"
