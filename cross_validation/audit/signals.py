"""Numbers of a case that say how far its given label is from what the networks believe. Axes: S A R."""

from __future__ import annotations

import dataclasses

import numpy as np

from cross_validation.audit.edits import best_shift, deficit, sums_by_class, swap_gain, worth_of
from cross_validation.audit.evidence import Evidence, log_of

LEAST_PROBABILITY = 0.1
"""That counts for an expected volume: many voxels that are background all but surely would outweigh a structure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signals:
    """Of one case.

    Attributes:
        surprise: mean of -log p(given class) in the band of one voxel on either side of the boundaries, those of the
            label and of the prediction. High where the boundary lies elsewhere.
        sided: mean log p(foreground) just inside the given foreground, minus mean log p(background) just outside it.
            Negative where the label is too large, positive where it is too small.
        given: voxels of all foreground and then of each class.
        expected: the same by the sum of the probabilities that are not negligible.
        missed: the gain of putting every voxel right, in nats for each voxel of the band.
        swap: the gain of exchanging two classes in nats for each of their voxels, for the two that gain most; far below
            0 where classes are what they are called. NaN where the label has fewer than two.
        shift: the gain of the best move, in nats for each voxel of the band.
        overlap: Dice of the foreground of label and prediction; 1 where both are empty.
    """

    surprise: float
    sided: float
    given: tuple[float, ...]
    expected: tuple[float, ...]
    missed: float
    swap: float
    shift: float
    overlap: float


def signals(evidence: Evidence) -> Signals:
    """The numbers of a case."""
    label, counts = evidence.label, evidence.counts
    band = (edge(label) | edge(evidence.predicted)) & counts
    surprise = np.zeros(label.shape, np.float32)
    number = evidence.labels.num_classes
    expected, given, sums = [], [], np.zeros((number, number))
    background = evidence.probability(0)
    for index in range(number):
        if evidence.alike[index] != index:
            # Nothing tells it from an earlier class, which has its voxels.
            expected.append(0.0)
            given.append(0)
            continue
        probability = background if index == 0 else evidence.probability(index)
        here = label == index
        logs = log_of(probability)
        surprise[here] = -logs[here]
        sums[:, index] = sums_by_class(evidence, logs)
        expected.append(float(probability[counts & (probability >= LEAST_PROBABILITY)].sum(dtype=np.float64)))
        given.append(int(here.sum()))
    foreground = counts & (label > 0)
    worth = worth_of(background, counts)
    size = max(1, int(band.sum()))
    return Signals(
        surprise=float(surprise[band].mean()) if band.any() else 0.0, sided=_sided(foreground, background, counts),
        given=(sum(given[1:]), *given[1:]), expected=(sum(expected[1:]), *expected[1:]),
        missed=deficit(foreground, worth) / size,
        swap=swap_gain(sums, given), shift=best_shift(foreground, worth).gain / size,
        overlap=_dice(foreground, counts & (evidence.predicted > 0)),
    )  # fmt: skip


def edge(classes: np.ndarray) -> np.ndarray:
    """Voxels with a face neighbour of another class, on both sides of each boundary."""
    found = np.zeros(classes.shape, dtype=bool)
    for axis in range(classes.ndim):
        turned, into = np.moveaxis(classes, axis, 0), np.moveaxis(found, axis, 0)
        differs = turned[1:] != turned[:-1]
        into[1:] |= differs
        into[:-1] |= differs
    return found


def _dice(first: np.ndarray, second: np.ndarray) -> float:
    both = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / both if both else 1.0


def _sided(foreground: np.ndarray, background: np.ndarray, counts: np.ndarray) -> float:
    rim = edge(foreground) & counts
    inner, outer = background[rim & foreground], background[rim & ~foreground]
    if not inner.size or not outer.size:
        return 0.0
    return float(log_of(1 - inner).mean() - log_of(outer).mean())
