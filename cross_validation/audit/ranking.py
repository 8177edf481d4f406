"""How unusual each case is among its data set, and above which score a label is suspicious."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from cross_validation.audit.signals import Signals

THRESHOLD = 4.0
"""A score above this is suspicious. Of sound labels none to four in a hundred have it, as measured: scores are the
length of four robust deviations, of which three count upwards only."""
LEAST_CASES = 8
"""Fewer cases say nothing of what is usual: all are ranked, none is suspicious by its score."""
LEAST_SPREADS = {"surprise": 0.02, "swap": 0.02, "shift": 0.05, "volume": 0.05}
"""Of each signal in its own unit: equal cases must not make the next one a wonder. Of shifts, in nats for each voxel
of the band, as half of all sound labels gain nothing by any move, and others a little, which no median says."""
EXPECTED_SPREADS = {"surprise": 0.15, "swap": 0.5, "shift": 0.08, "volume": 0.2}
"""What is expected before any case was seen: a few cases may lie close together by chance."""
EXPECTED_WEIGHT = 4.0
"""In cases: as many weigh as much as what is expected."""
FLOOR_VOXELS, FLOOR_SHARE = 10.0, 0.1
"""Added to volumes: the least, and a share of the usual volume of the class. Where that is absent, the many voxels of a
scan in which it is a bit probable must not be worth a ratio."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usual:
    """What is usual in a data set.

    Attributes:
        middle, spread: (S,) of surprise, swap, shift and the volumes, in this order; a spread is a robust standard
            deviation (1.4826 MAD).
        floor: (V,) voxels that are added to given and expected volumes before their ratio is taken.
        overlap: median.
    """

    middle: np.ndarray
    spread: np.ndarray
    floor: np.ndarray
    overlap: float

    def score(self, signals: Signals) -> float:
        """How far a case is from the usual one.

        That is the length of four deviations: how surprising its boundaries are, how wrong its volumes, and how much it
        would gain by a swap of classes and by a move.

        The first is what most errors raise. A label that is too large or too small everywhere lies on boundaries of
        which the networks are merely unsure; its volume tells it. All count deviations from the data set's own habit,
        since networks of few epochs draw everything too small or too large themselves.
        """
        deviations = np.nan_to_num((_row(signals, self.floor) - self.middle) / self.spread, nan=0.0)
        upwards, volume = np.maximum(deviations[:3], 0), np.abs(deviations[3:]).max()
        return float(np.sqrt((upwards**2).sum() + volume**2))

    def surprise(self, signals: Signals) -> float:
        """By how many spreads the boundaries of a case are more surprising than usual ones."""
        return float((signals.surprise - self.middle[0]) / self.spread[0])


def find_usual(found: Sequence[Signals]) -> Usual:
    """What is usual among these cases."""
    given = np.array([each.given for each in found])
    floor = np.array([max(FLOOR_VOXELS, FLOOR_SHARE * _middle_and_spread(column[column > 0])[0]) for column in given.T])
    pairs = [_middle_and_spread(column) for column in np.array([_row(each, floor) for each in found]).T]
    least, expected = ([each["surprise"], each["swap"], each["shift"], *[each["volume"]] * len(floor)]
                       for each in (LEAST_SPREADS, EXPECTED_SPREADS))  # fmt: skip
    share = len(found) / (len(found) + EXPECTED_WEIGHT)
    spreads = [max(math.sqrt(share * spread**2 + (1 - share) * before**2), lowest)
               for (_, spread), before, lowest in zip(pairs, expected, least)]  # fmt: skip
    return Usual(
        middle=np.array([middle for middle, _ in pairs]), spread=np.array(spreads), floor=floor,
        overlap=float(np.median([each.overlap for each in found])),
    )  # fmt: skip


def threshold(num_cases: int) -> float:
    """The score above which a label is suspicious; infinite for a handful of cases."""
    return THRESHOLD if num_cases >= LEAST_CASES else float("inf")


def _row(signals: Signals, floor: np.ndarray) -> np.ndarray:
    volumes = np.log((np.array(signals.given) + floor) / (np.array(signals.expected) + floor))
    return np.array([signals.surprise, signals.swap, signals.shift, *volumes], dtype=float)


def _middle_and_spread(column: np.ndarray) -> tuple[float, float]:
    known = column[~np.isnan(column)]
    if not known.size:
        return math.nan, 0.0
    middle = float(np.median(known))
    return middle, 1.4826 * float(np.median(np.abs(known - middle)))
