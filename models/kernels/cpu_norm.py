"""Instance normalisation and LeakyReLU in one step for channels-last feature maps on a CPU.

torch's own instance normalisation first copies a channels-last tensor into the other order and back. One sample's batch
normalisation is the same formula and reads channels-last maps as they lie, so it is called sample by sample.

Shapes: N batch, C channels, D H W space (2D has no D).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(features: Tensor) -> bool:
    """Whether the channels of each voxel lie side by side in memory, and in no other order as well."""
    layout = _LAYOUTS.get(features.dim())
    return layout is not None and features.is_contiguous(memory_format=layout) and not features.is_contiguous()


def normalise_and_activate(features: Tensor, weight: Tensor, bias: Tensor, *, eps: float, slope: float) -> Tensor:
    """LeakyReLU of (features - mean) / sqrt(variance + eps) * weight + bias, over space for each sample and channel.

    Args:
        features: (N, C, D, H, W), channels-last.
        weight: (C,) float32.
        bias: (C,) float32.
        eps: added to the variance.
        slope: of LeakyReLU for negative values; it must not be negative.

    Returns:
        (N, C, D, H, W), channels-last.

    Source: Ulyanov et al., Instance Normalization (2016).
    """
    assert slope >= 0 and is_channels_last(features)
    return _NormActivation.apply(features, weight, bias, eps, slope)


class _NormActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        out = torch.empty_like(features)
        statistics = []
        for sample, target in zip(features.split(1), out.split(1)):
            normal, mean, rstd = torch.native_batch_norm(sample, weight, bias, None, None, True, 0.0, eps)
            torch.ops.aten.leaky_relu.out(normal, slope, out=target)
            statistics += [mean, rstd]
        # Without an activation the result is not needed, and a residual block adds to it in place.
        ctx.save_for_backward(features, weight, features if slope == 1 else out, *statistics)
        ctx.eps, ctx.slope = eps, slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, out, *statistics = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=_LAYOUTS[gradient.dim()])
        result = torch.empty_like(features)
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        samples = zip(*(tensor.split(1) for tensor in (features, out, gradient, result)))
        for index, (sample, activated, upper, target) in enumerate(samples):
            mean, rstd = statistics[2 * index : 2 * index + 2]
            # The sign of the activation is that of what went into it, so the result is enough.
            if ctx.slope != 1:
                upper = torch.ops.aten.leaky_relu_backward(upper, activated, ctx.slope, True)
            lower, for_weight, for_bias = torch.ops.aten.native_batch_norm_backward(
                upper, sample, weight, None, None, mean, rstd, True, ctx.eps, [True, True, True]
            )
            target.copy_(lower)
            by_weight += for_weight
            by_bias += for_bias
        return result, by_weight, by_bias, None, None
