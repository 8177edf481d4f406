"""How a signal is spread over the cases of a cross-validation, and how bad a value is beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from utils.certainty import Certainty, Value

WORST = 0.1
"""The share of a cross-validation's cases that count as its worst."""
_NARROWEST = 0.005
"""Signals of one data set that are closer than this are not told apart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Of a signal over the cases of a cross-validation: its median, the value that the worst decile falls below, and
    the share of cases in which there was none, as no network found the target."""

    median: float
    worst: float
    absent: float

    def badness(self, value: Value) -> float | None:
        """0 for the median, 1 for where the worst decile begins, and on from there; None where nothing is odd.

        A target that is not found where it nearly always was counts as a certainty of 0.
        """
        if value is None and self.absent >= WORST:
            return None
        return (self.median - (value or 0.0)) / max(self.median - self.worst, _NARROWEST)


Spreads = tuple[Spread | None, ...]
"""Of each target; None for one that no case has."""


def spreads_of(cases: Sequence[Certainty], signals: Sequence[str], number: int) -> dict[str, Spreads]:
    """Signal -> its spread for each of `number` targets."""
    return {
        name: tuple(spread_of([getattr(each, name)[t] for each in cases]) for t in range(number)) for name in signals
    }  # fmt: skip


def spread_of(values: Sequence[Value]) -> Spread | None:
    """The spread of a signal of one target over cases; None where no case has it."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    # Not between two cases: of ten the worst one.
    worst = float(np.quantile(there, WORST, method="higher")) if len(there) > 1 else there[0]
    return Spread(median=float(np.median(there)), worst=worst, absent=1 - len(there) / len(values))
