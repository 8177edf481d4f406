"""The loss of a whole volume, a few planes at a time: no copy of its logits is made.

Shapes: N batch, K classes or regions, D H W space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.dice_entropy import SMOOTH, log_softmax
from models.inferer import plane_blocks
from models.loss import FOCAL_GAMMA, SegmentationLoss


@torch.no_grad()
def volume_loss(loss: SegmentationLoss, logits: Tensor, label: Tensor) -> Tensor:
    """What `loss(logits, label)` gives, as a scalar without gradient, from sums over planes.

    Args:
        loss: which one.
        logits: (N, K, D, H, W).
        label: (N, 1, D, H, W) class indices.
    """
    total: list[Tensor] | None = None
    with torch.autocast(logits.device.type, enabled=False):
        for part in plane_blocks(logits):
            sums = _sums(loss, logits[:, :, part], label[:, :, part].to(logits.device))
            total = sums if total is None else [before + now for before, now in zip(total, sums)]
    assert total is not None, logits.shape
    overlap, size, entropy, valid = total
    if loss.batch_dice:
        overlap, size = overlap.sum(0), size.sum(0)
    dice = (2 * overlap + SMOOTH) / (size + SMOOTH)
    # The binary entropies are a mean over channels, the categorical one is a single term.
    terms = overlap.shape[-1] if loss.has_regions or loss.focal else 1
    return (1 - dice.mean() + entropy / (valid.clamp(min=1) * terms)).float()


def _sums(loss: SegmentationLoss, logits: Tensor, label: Tensor) -> list[Tensor]:
    """Of a few planes, in double precision: overlaps and sizes (N, C) of the Dice's channels; entropy; valid voxels."""
    values = logits if logits.dtype == torch.float64 else logits.float()
    first = 0 if loss.has_regions else 1
    truth = torch.cat([torch.isin(label, torch.tensor(part, device=label.device)) for part in loss.parts], dim=1)
    target = truth.to(values.dtype)
    valid = None if loss.ignore_index is None else label != loss.ignore_index
    if loss.has_regions:
        probabilities = values.sigmoid()
    else:
        logarithms = log_softmax(values)
        probabilities = logarithms.exp()
    if loss.focal:
        entropy = F.binary_cross_entropy_with_logits(values[:, first:], target[:, first:], reduction="none")
        entropy = entropy * (-torch.expm1(-entropy)) ** FOCAL_GAMMA
    elif loss.has_regions:
        entropy = F.softplus(values).sub_(values * target)
    else:
        # The truth is nowhere where a voxel does not count.
        entropy = logarithms.mul_(target).neg_()
    if valid is not None:
        entropy, probabilities = entropy * valid, probabilities * valid
    over = tuple(range(2, logits.dim()))
    overlap = (probabilities * target).sum(over, dtype=torch.float64)
    size = (probabilities + target).sum(over, dtype=torch.float64)
    count = label.numel() if valid is None else valid.sum()
    return [
        overlap[:, first:],
        size[:, first:],
        entropy.sum(dtype=torch.float64),
        torch.as_tensor(count, dtype=torch.float64, device=logits.device),
    ]
