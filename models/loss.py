"""Dice plus cross-entropy (or focal) loss for classes and for overlapping regions, with deep supervision.

Shapes: N batch, K classes or regions, D H W space (2D has no D).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.schema import LabelScheme

SMOOTH = 1e-5
"""Added to numerator and denominator of the soft Dice, so that a class that is nowhere costs nothing."""
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
        # Row per output, column per class index (the ignored one last): is the class part of the output?
        self.register_buffer("membership", membership(labels), persistent=False)

    def forward(self, outputs: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        """Scalar loss.

        Args:
            outputs: logits (N, K, D, H, W), or several at decreasing resolution, full size first.
            label: (N, 1, D, H, W) class indices at full size.
        """
        heads = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        with torch.autocast(heads[0].device.type, enabled=False):
            losses = [self._head_loss(head.float(), shrink_label(label, head.shape[2:])) for head in heads]
        return sum(weight * loss for weight, loss in zip(head_weights(len(heads)), losses))

    def _head_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        index = label[:, 0].long()
        # Logits of a large volume may have been put together on the host.
        target = self.membership.to(index.device)[:, index].transpose(0, 1)
        valid = None if self.ignore_index is None else (index != self.ignore_index)[:, None]
        probabilities = logits.sigmoid() if self.has_regions else logits.softmax(dim=1)
        first = 0 if self.has_regions else 1
        dice_loss = soft_dice_loss(probabilities[:, first:], target[:, first:], valid, over_batch=self.batch_dice)
        if self.focal or self.has_regions:
            return dice_loss + self._binary_term(logits[:, first:], target[:, first:], valid)
        ignore = -100 if self.ignore_index is None else self.ignore_index
        entropy = F.cross_entropy(logits, index, ignore_index=ignore, reduction="sum")
        return dice_loss + entropy / _num_valid(valid, index.numel())

    def _binary_term(self, logits: Tensor, target: Tensor, valid: Tensor | None) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
        if self.focal:
            # exp(-entropy) is the probability given to the truth.
            entropy = entropy * (-torch.expm1(-entropy)) ** FOCAL_GAMMA
        if valid is not None:
            entropy = entropy * valid
        num_voxels = logits.numel() // logits.shape[1]
        return entropy.sum() / (_num_valid(valid, num_voxels) * logits.shape[1])


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
    return label[(..., *(slice(None, None, step) for step in steps))]


def membership(labels: LabelScheme) -> Tensor:
    """(outputs, classes) bool: which classes make up each network output; an ignored class makes up none."""
    num_columns = labels.num_classes + (labels.ignore_index is not None)
    parts = [region.classes for region in labels.regions] or [(k,) for k in range(labels.num_classes)]
    table = torch.zeros(len(parts), num_columns, dtype=torch.bool)
    for row, classes in enumerate(parts):
        table[row, list(classes)] = True
    return table


def _num_valid(valid: Tensor | None, num_voxels: int) -> Tensor | int:
    return num_voxels if valid is None else valid.sum().clamp(min=1)
