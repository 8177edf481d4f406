"""Dice and cross-entropy of logits together, with a gradient by formula instead of by a chain of operators.

Softmax or sigmoid are taken once, in float32, and one tensor of the logits' size (the probabilities) is kept for the
gradient beside the target, which is bool.

Shapes: N batch, K classes or regions, D H W space (2D has no D).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

SMOOTH = 1e-5
"""Added to numerator and denominator of the soft Dice, so that a class that is nowhere costs nothing."""


class DiceEntropy(Function):
    """(1 - Dice) + cross-entropy, as a scalar.

    With softmax (classes) the Dice leaves out channel 0, and the entropy is the categorical one; with sigmoid
    (regions) every channel counts in both, and the entropy is the mean of the binary ones.

    With p the probabilities, t the target, M valid voxels, s the smoothing and C Dice values
    n_k / d_k = (2 sum(p t) + s) / (sum(p) + sum(t) + s), the Dice term has the derivative e - o t by p, where
    e = n_k / (d_k^2 C) and o = 2 / (d_k C). By the logits, with the entropy's (p - t) / M, this makes for softmax
    p (e - sum_k(p e) + sum_k(u)) - u, u = t (o p + 1 / M), and for sigmoid
    p (1 - p) e + p / (M K) - u, u = t (o p (1 - p) + 1 / (M K)).

    Source: Isensee et al., nnU-Net (2021), Methods, for the loss.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, valid: Tensor | None, exclusive: bool, over_batch: bool
    ) -> Tensor:
        """Value of the loss.

        Args:
            ctx: what the gradient will need.
            logits: (N, K, D, H, W).
            target: (N, K, D, H, W) bool, false where not valid.
            valid: (N, 1, D, H, W) bool, or None for everywhere.
            exclusive: softmax over classes, else sigmoid of regions.
            over_batch: count the batch as one volume.
        """
        values = logits if logits.dtype == torch.float64 else logits.float()
        # Multiplied, not selected: torch's `where`, and products with bool, are several times slower on a CPU.
        truth = target.to(values.dtype)
        over = (*((0,) if over_batch else ()), *range(2, logits.dim()))
        if exclusive:
            logarithms = log_softmax(values)
            del values
            entropy, probabilities = -(logarithms * truth).sum(), logarithms.exp_()
        else:
            losses = F.softplus(values).sub_(values * truth)
            entropy, probabilities = (losses if valid is None else losses.mul_(valid)).sum(), values.sigmoid()
        num_terms = num_valid(valid, logits) * (1 if exclusive else logits.shape[1])
        # The background is no part of the Dice of classes.
        first = 1 if exclusive else 0
        overlap = truth.mul_(probabilities).sum(over, keepdim=True)[:, first:]
        inside = probabilities if valid is None else probabilities * valid
        size = (inside.sum(over, keepdim=True) + target.sum(over, keepdim=True))[:, first:] + SMOOTH
        dice = (2 * overlap + SMOOTH) / size
        ctx.save_for_backward(probabilities, target, valid, dice / size / dice.numel(), 2 / size / dice.numel())
        ctx.exclusive, ctx.num_terms, ctx.dtype = exclusive, num_terms, logits.dtype
        return 1 - dice.mean() + entropy / num_terms

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient by the logits, in their type and order of memory."""
        probabilities, target, valid, everywhere, on_target = ctx.saved_tensors
        everywhere, on_target = everywhere * grad_output, on_target * grad_output
        share = grad_output / ctx.num_terms
        if ctx.exclusive:
            everywhere, on_target = _with_background(everywhere), _with_background(on_target)
            at_target = torch.addcmul(share, probabilities, on_target).mul_(target)
            rest = at_target.sum(1, keepdim=True) - (probabilities * everywhere).sum(1, keepdim=True)
            gradient = (everywhere + rest).mul_(probabilities).sub_(at_target)
        else:
            slope = torch.addcmul(probabilities, probabilities, probabilities, value=-1)
            at_target = torch.addcmul(share, slope, on_target).mul_(target)
            gradient = slope.mul_(everywhere).add_(probabilities * share).sub_(at_target)
        if valid is not None:
            gradient *= valid
        return gradient.to(ctx.dtype), None, None, None, None


def log_softmax(logits: Tensor) -> Tensor:
    """Logarithm of the softmax over axis 1, in the order of memory of its argument.

    torch's own gives up channels-last order for any axis but the last.
    """
    channels_last = logits.movedim(1, -1)
    if channels_last.is_contiguous() and not logits.is_contiguous():
        return channels_last.log_softmax(-1).movedim(-1, 1)
    return logits.log_softmax(1)


def num_valid(valid: Tensor | None, logits: Tensor) -> Tensor | int:
    """Voxels of a batch (N, K, D, H, W) that count, at least 1."""
    return logits.numel() // logits.shape[1] if valid is None else valid.sum().clamp(min=1)


def _with_background(sums: Tensor) -> Tensor:
    """A zero for channel 0 in front of (N or 1, K - 1, ...)."""
    return torch.cat([torch.zeros_like(sums[:, :1]), sums], dim=1)
