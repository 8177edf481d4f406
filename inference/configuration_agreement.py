"""How far several configurations agree on a scan: mean Dice of their own masks, two at a time, on the scan's grid.

Each configuration's mask is made on the way to the mean of all and would be thrown away; here it is held, one byte a
voxel, until the last one has come. Nothing else is computed again.

Shapes: S A R of the scan, K classes (without the ignored one), T targets.
"""

from __future__ import annotations

import numpy as np

from utils.certainty import Value
from utils.schema import LabelScheme

_BLOCK_VOXELS = 1 << 20
"""Of about as many voxels pairs of classes are counted at a time."""


class ConfigurationAgreement:
    """Compares masks (S, A, R) uint8 of file values as they come.

    Args:
        labels: that all configurations have.
        configurations: how many masks will come.
    """

    def __init__(self, labels: LabelScheme, configurations: int) -> None:
        self._labels, self._waiting = labels, configurations
        self._masks: list[np.ndarray] = []
        self._pairs = np.zeros((labels.num_classes, labels.num_classes))
        self._index = np.zeros(256, np.uint16)
        self._index[list(labels.values)] = np.arange(labels.num_classes)

    def add(self, mask: np.ndarray) -> None:
        """Take the mask of the next configuration; it is not changed."""
        for other in self._masks:
            self._compare(other, mask)
        self._waiting -= 1
        # After the last one nothing is held.
        self._masks = [*self._masks, mask] if self._waiting > 0 else []

    def _compare(self, first: np.ndarray, second: np.ndarray) -> None:
        number, step = self._labels.num_classes, max(1, _BLOCK_VOXELS // max(first[0].size, 1))
        for start in range(0, len(first), step):
            a, b = (self._index[mask[start : start + step]] for mask in (first, second))
            found = (a > 0) | (b > 0)
            # In a wider type: 255 times 255 is more than 16 bits hold.
            pairs = a[found].astype(np.int64) * number + b[found]
            self._pairs += np.bincount(pairs, minlength=number * number).reshape(number, number)

    def result(self) -> tuple[Value, ...]:
        """(T,) Dice over all pairs; None for a target that no configuration found, and where nothing was compared."""
        classes = [region.classes for region in self._labels.regions] or [
            (k,) for k in range(1, self._labels.num_classes)
        ]
        values: list[Value] = []
        for of_target in map(list, classes):
            both = self._pairs[np.ix_(of_target, of_target)].sum()
            voxels = self._pairs[of_target].sum() + self._pairs[:, of_target].sum()
            values.append(float(2 * both / voxels) if voxels else None)
        return tuple(values)
