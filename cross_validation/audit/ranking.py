"""How unusual each case is among its data set, and above which score a label is suspicious."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cross_validation.audit.signals import Signals

THRESHOLD = 4.0
"""A score above this is suspicious. Of sound labels one in a hundred or fewer has it, as their scores are the length of
four robust deviations of which three count upwards only."""
LEAST_CASES = 8
"""Fewer cases say nothing of what is usual: all are ranked, none is suspicious by its score."""
LEAST_SPREAD = 0.02
"""Of a signal in its own unit: equal cases must not make the next one a wonder."""
LEAST_SHIFT_SPREAD = 0.03
"""Nats for each voxel of the band: half of all sound labels gain nothing by any move, and others a little."""


def robust_deviations(values: Sequence[float], least_spread: float = LEAST_SPREAD) -> np.ndarray:
    """(N,) how many robust standard deviations each value lies above the median (1.4826 MAD for one); 0 for NaN."""
    array = np.asarray(values, dtype=float)
    known = array[~np.isnan(array)]
    if not known.size:
        return np.zeros_like(array)
    middle = np.median(known)
    spread = max(1.4826 * float(np.median(np.abs(known - middle))), least_spread)
    return np.nan_to_num((array - middle) / spread, nan=0.0)


def scores(found: Sequence[Signals]) -> np.ndarray:
    """(N,) how far each case is from the usual one.

    That is the length of four deviations: how surprising its boundaries are, how wrong its volumes, and how much it
    would gain by a swap of classes and by a move.

    The first is what most errors raise. A label that is too large or too small everywhere lies on boundaries of which
    the networks are merely unsure; its volume tells it. All count deviations from the data set's own habit, since
    networks of few epochs draw everything too small or too large themselves.
    """
    spreads = {"surprise": LEAST_SPREAD, "swap": LEAST_SPREAD, "shift": LEAST_SHIFT_SPREAD}
    surprise, swap, shift = (
        np.maximum(robust_deviations([getattr(each, name) for each in found], spread), 0)
        for name, spread in spreads.items()
    )
    volumes = np.abs([robust_deviations(column) for column in zip(*(each.volume for each in found))]).max(axis=0)
    return np.sqrt(surprise**2 + volumes**2 + swap**2 + shift**2)


def threshold(num_cases: int) -> float:
    """The score above which a label is suspicious; infinite for a handful of cases."""
    return THRESHOLD if num_cases >= LEAST_CASES else float("inf")
