"""Voxel counts of predictions on the device, and the mean Dice over cases and processes.

Shapes: N batch, K classes, R regions, D H W space, T scored targets (regions, or the foreground classes).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from utils.schema import LabelScheme
from utils.scores import dice_from_counts, finite_mean


def discretise(logits: Tensor, labels: LabelScheme) -> Tensor:
    """Class indices (N, D, H, W) uint8 of logits (N, K, D, H, W); regions: (N, R, D, H, W) bool, p > 0.5."""
    if labels.regions:
        return logits > 0
    return logits.argmax(dim=1).to(torch.uint8)


def case_counts(prediction: Tensor, label: Tensor, labels: LabelScheme) -> Tensor:
    """True positives, false positives and false negatives (T, 3) int64 of one case, in CPU memory.

    Args:
        prediction: what `discretise` gives for one case: (D, H, W) class indices or (R, D, H, W) bool.
        label: (D, H, W) class indices; ignored voxels are not counted.
    """
    valid = None if labels.ignore_index is None else label != labels.ignore_index
    rows = []
    for target in range(len(labels.target_names)):
        if labels.regions:
            found = prediction[target]
            true = torch.isin(label, torch.tensor(labels.regions[target].classes, device=label.device))
        else:
            found, true = prediction == target + 1, label == target + 1
        if valid is not None:
            found = found & valid
        # An ignored voxel has no target's class, so `true` needs no mask.
        both = (found & true).sum()
        rows.append(torch.stack([both, found.sum() - both, true.sum() - both]))
    return torch.stack(rows).cpu()


class DiceAccumulator:
    """Mean over cases of each target's Dice (0..1); a case in which neither mask has the target is left out.

    Holds one sum and one number of cases per target, so that processes are pooled by adding.
    """

    def __init__(self, labels: LabelScheme) -> None:
        num_targets = len(labels.target_names)
        self._sum = torch.zeros(num_targets, dtype=torch.float64)
        self._count = torch.zeros(num_targets, dtype=torch.float64)

    def add(self, counts: Tensor) -> None:
        """Count one case: (T, 3) true positives, false positives, false negatives."""
        dice = torch.from_numpy(dice_from_counts(counts.cpu().numpy()))
        self._sum += dice.nan_to_num(nan=0.0)
        self._count += ~dice.isnan()

    def merge(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Pool with the other processes; `reduce` returns the sum of a tensor over all of them."""
        self._sum, self._count = reduce(torch.stack([self._sum, self._count])).cpu().unbind()

    def compute(self) -> Tensor:
        """(T,) mean Dice, NaN for a target that is in no case."""
        return torch.where(self._count > 0, self._sum / self._count.clamp(min=1), torch.nan)

    def mean(self) -> float:
        """Mean over the targets that are in some case, NaN if there is none."""
        return float(finite_mean(self.compute().numpy()))
