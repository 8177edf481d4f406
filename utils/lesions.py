"""Single lesions: how many connected parts of a label a mask has found, and how many of its own are in no lesion.

Shapes: D H W space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

COLUMNS = {"true": "lesions", "found": "lesions_found", "claimed": "lesions_claimed", "false": "lesions_false"}
"""Field of `LesionCounts` -> its column of a CSV file of scores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LesionCounts:
    """Lesions of one target, in one case or in several together.

    Attributes:
        true: connected parts of the label.
        found: those that share a voxel with the mask.
        claimed: connected parts of the mask.
        false: those that share no voxel with the label.
    """

    true: int = 0
    found: int = 0
    claimed: int = 0
    false: int = 0

    @property
    def sensitivity(self) -> float:
        """Share of the label's lesions that are found; NaN where there are none."""
        return self.found / self.true if self.true else np.nan

    @property
    def precision(self) -> float:
        """Share of the mask's parts that are in a lesion; NaN where there are none."""
        return (self.claimed - self.false) / self.claimed if self.claimed else np.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 where nothing is found or nothing claimed is true, NaN where nothing is there."""
        if not self.true and not self.claimed:
            return np.nan
        if not self.found:
            return 0.0
        return 2 * self.sensitivity * self.precision / (self.sensitivity + self.precision)


def count_lesions(prediction: np.ndarray, label: np.ndarray, ignored: np.ndarray | None = None) -> LesionCounts:
    """Lesions of two masks (D, H, W) of one grid; voxels that touch by a corner belong together.

    Args:
        prediction: whole, also where nothing is known.
        label: of the same target.
        ignored: where nothing is known; parts of the mask that lie there alone are not counted.

    Source: Carass et al., Longitudinal multiple sclerosis lesion segmentation (2017): any overlap detects a lesion.
    """
    # Only evaluation looks for parts, and scipy.ndimage is slow to import.
    from scipy import ndimage

    prediction, label = np.asarray(prediction, dtype=bool), np.asarray(label, dtype=bool)
    boxes = ndimage.find_objects((prediction | label).astype(np.uint8))
    if not boxes:
        return LesionCounts()
    prediction, label = prediction[boxes[0]], label[boxes[0]]
    everywhere = np.ones((3,) * label.ndim, dtype=bool)
    lesions, true = ndimage.label(label, structure=everywhere)
    parts, claimed = ndimage.label(prediction, structure=everywhere)
    if ignored is not None:
        claimed = len(np.unique(parts[prediction & ~ignored[boxes[0]]]))
    both = prediction & label
    found, right = (len(np.unique(numbers[both])) for numbers in (lesions, parts))
    return LesionCounts(true=true, found=found, claimed=claimed, false=claimed - right)


def together(counts: Iterable[LesionCounts]) -> LesionCounts:
    """The sum over cases or targets, so that each counts by its lesions."""
    counts = list(counts)
    return LesionCounts(**{name: sum(getattr(each, name) for each in counts) for name in COLUMNS})
