"""Dice plus cross-entropy (or focal) loss for classes and for overlapping regions, with deep supervision.

Shapes: N batch, K classes or regions, D H W space (2D has no D).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dice_entropy import SMOOTH, DiceEntropy, log_softmax, num_valid
from utils.schema import LabelScheme

FOCAL_GAMMA = 2.0


class SegmentationLoss(nn.Module):
    """(1 - Dice) + cross-entropy of logits against class indices, in float32 whatever the precision around.

    Classes: softmax; Dice per foreground class, cross-entropy over all classes.
    Regions: sigmoid; Dice and binary cross-entropy per region.
    Dice is taken over the whole batch as one volume or, without `batch_dice`, over each patch.
    `focal` puts the focal loss in place of the cross-entropy: binary, one term per foreground class or
    region, on the logits themselves. The background leaves the Dice term after the softmax, as in MONAI 1.6
    (MONAI 1.0 dropped it before, and got other probabilities).
    Ignored voxels enter neither term.

    Source: Isensee et al., nnU-Net (2021), Methods; Lin et al., Focal Loss (2017), equation 4 (no alpha).
    """

    def __init__(self, labels: LabelScheme, *, focal: bool = False, batch_dice: bool = True) -> None:
        super().__init__()
        self.focal, self.batch_dice, self.has_regions = focal, batch_dice, bool(labels.regions)
        self.ignore_index = labels.ignore_index
        self.parts = output_classes(labels)

    def forward(self, outputs: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Scalar loss.

        Args:
            outputs: logits (N, K, D, H, W), or several at decreasing resolution, full size first.
            label: (N, 1, D, H, W) class indices at full size.
        """
        heads = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        with torch.autocast(heads[0].device.type, enabled=False):
            losses = [self._head_loss(head, shrink_label(label, head.shape[2:])) for head in heads]
        weighted = [weight * loss for weight, loss in zip(head_weights(len(heads)), losses)]
        return sum(weighted[1:], start=weighted[0])

    def _head_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        label = label.to(logits.device)
        target = torch.cat([_is_one_of(label, classes) for classes in self.parts], dim=1)
        valid = None if self.ignore_index is None else label != self.ignore_index
        if not self.focal:
            return DiceEntropy.apply(logits, target, valid, not self.has_regions, self.batch_dice)
        logits = logits.float()
        probabilities = logits.sigmoid() if self.has_regions else log_softmax(logits).exp()
        first = 0 if self.has_regions else 1
        dice_loss = soft_dice_loss(probabilities[:, first:], target[:, first:], valid, over_batch=self.batch_dice)
        return dice_loss + self._focal_term(logits[:, first:], target[:, first:], valid)

    def _focal_term(self, logits: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
        # exp(-entropy) is the probability given to the truth.
        focal = entropy * (-torch.expm1(-entropy)) ** FOCAL_GAMMA
        if valid is not None:
            focal = focal * valid
        return focal.sum() / (num_valid(valid, logits) * logits.shape[1])


def soft_dice_loss(
    probabilities: Tensor, target: Tensor, valid: Tensor | None = None, *, over_batch: bool = True
) -> Tensor:
    """1 - Dice, averaged over channels.

    Dice is taken over batch and space together, or over space alone and averaged over the batch.

    Args:
        probabilities: (N, K, D, H, W).
        target: (N, K, D, H, W) bool, false where not valid.
        valid: (N, 1, D, H, W) bool, or None for everywhere.
        over_batch: count the batch as one volume.
    """
    over = (*((0,) if over_batch else ()), *range(2, probabilities.dim()))
    if valid is not None:
        probabilities = probabilities * valid
    overlap = (probabilities * target).sum(over)
    size = probabilities.sum(over) + target.sum(over)
    return (1 - (2 * overlap + SMOOTH) / (size + SMOOTH)).mean()


def head_weights(num_heads: int) -> list[float]:
    """1, 1/2, 1/4, ... divided by their sum: weights of the full-size output and the heads below it."""
    raw = [0.5**level for level in range(num_heads)]
    return [weight / sum(raw) for weight in raw]


def shrink_label(label: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest class index on a coarser grid: the first of each block of voxels, where strided convolutions sit.

    Args:
        label: (N, 1, D, H, W).
        size: D, H, W of the result; each must divide the label's.
    """
    steps = [full // small for full, small in zip(label.shape[2:], size)]
    assert [small * step for small, step in zip(size, steps)] == list(label.shape[2:]), (label.shape, size)
    return label[(slice(None), slice(None), *(slice(None, None, step) for step in steps))]


def output_classes(labels: LabelScheme) -> tuple[tuple[int, ...], ...]:
    """The classes that make up each network output; an ignored class makes up none."""
    return tuple(region.classes for region in labels.regions) or tuple((k,) for k in range(labels.num_classes))


def _is_one_of(label: Tensor, classes: Sequence[int]) -> Tensor:
    found = label == classes[0]
    for other in classes[1:]:
        found = found | (label == other)
    return found
