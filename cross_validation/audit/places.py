"""Where a label contradicts what the networks believe: connected parts, each with its weight in nats. Axes: S A R."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import ndimage

from cross_validation.audit.evidence import Evidence, log_of

CERTAIN = math.log(4)
"""A voxel counts where the predicted class is at least four times as probable as the given one."""
MOST = 3
"""Places of a case that are kept, the weightiest first."""
FEW_VOXELS = 10
"""Smaller places are the raggedness of a boundary."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """One connected part.

    Attributes:
        weight: summed log(p of the predicted class / p of the given class).
        voxels: how many.
        given, predicted: the commonest classes (indices) in label and prediction there.
        apart: whether the label has no foreground there or beside it (missing), or the prediction has none (extra).
        box: (start, stop) along S, A, R of the whole scan.
    """

    weight: float
    voxels: int
    given: int
    predicted: int
    apart: bool
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

    @property
    def kind(self) -> str:
        """What the label looks like there."""
        if self.given and self.predicted:
            return "another class"
        if self.predicted:
            return "missing structure" if self.apart else "too small"
        return "extra structure" if self.apart else "too large"


def find_places(evidence: Evidence) -> tuple[Place, ...]:
    """The weightiest places of a case."""
    ratio = log_ratio(evidence)
    parts, number = ndimage.label(ratio >= CERTAIN)
    if not number:
        return ()
    voxels = np.bincount(parts.ravel(), minlength=number + 1)
    weights = np.bincount(parts.ravel(), ratio.ravel(), minlength=number + 1)
    boxes = ndimage.find_objects(parts)
    order = [int(index) for index in np.argsort(-weights[1:], kind="stable") + 1 if voxels[index] >= FEW_VOXELS]
    found = []
    for index in order[:MOST]:
        near = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in boxes[index - 1])
        inside = parts[near] == index
        given, predicted = (_commonest(array[near][inside]) for array in (evidence.label, evidence.predicted))
        others = evidence.predicted[near] if given and not predicted else evidence.label[near]
        around = ndimage.binary_dilation(inside)
        s, a, r = ((whole.start + part.start, whole.start + part.stop)
                   for whole, part in zip(evidence.box, boxes[index - 1]))  # fmt: skip
        found.append(Place(
            weight=float(weights[index]), voxels=int(voxels[index]), given=given, predicted=predicted,
            apart=not bool(others[around].any()), box=(s, a, r),
        ))  # fmt: skip
    return tuple(found)


def log_ratio(evidence: Evidence) -> np.ndarray:
    """(S, A, R) float32: log(p of the predicted class / p of the given class), 0 where they agree."""
    found = np.zeros(evidence.label.shape, np.float32)
    differs = evidence.counts & (evidence.label != evidence.predicted)
    for index in range(evidence.labels.num_classes):
        given, predicted = differs & (evidence.label == index), differs & (evidence.predicted == index)
        if given.any() or predicted.any():
            logs = log_of(evidence.probability(index))
            found[given] -= logs[given]
            found[predicted] += logs[predicted]
    return found


def _commonest(classes: np.ndarray) -> int:
    return int(np.bincount(classes).argmax())
