"""The gradient by the weight of 3x3x3 convolutions with few channels, plane by plane.

For a gradient by the weight in three dimensions oneDNN has no kernel of its own on CPUs whose vector units are AVX2: it
unfolds the maps and multiplies, which runs at a third of the speed of the forward pass where 8 channels come out. In
two dimensions it has one. The planes kd of the gradient are those of 2D convolutions of the features' planes, moved by
kd - 1, and channels-last maps are such planes as they lie.

Shapes: N batch, I and O channels that go in and out, D H W space.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from models.kernels.cpu_cubes import gradients, is_at_hand, is_cube, weight_gradient_of_planes

FEWEST_INPUTS, MOST_OUTPUTS = 8, 16
"""Channels of the layers that gain: 8 -> 8 2.0 times, 16 -> 8 1.9, 16 -> 16 1.1 to 1.4, 32 -> 16 1.1, 32 -> 32 0.9."""


class NarrowConvolution(torch.autograd.Function):
    """A 3x3x3 convolution with zero padding whose gradient by the weight is made of planes."""

    @staticmethod
    def forward(ctx: FunctionCtx, features: Tensor, weight: Tensor) -> Tensor:
        """Features (N, I, D, H, W), channels-last, and weight (O, I, 3, 3, 3) to (N, O, D, H, W)."""
        ctx.save_for_backward(features, weight)
        return torch.ops.aten.mkldnn_convolution(features, weight, None, (1,) * 3, (1,) * 3, (1,) * 3, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients by features and weight."""
        return gradients(ctx, gradient, _feature_gradient, weight_gradient)


def gains(features: Tensor, layer: nn.Conv3d) -> bool:
    """Whether the layer is trained with these maps (N, I, D, H, W) on a CPU where planes are known to be faster."""
    if not torch.is_grad_enabled() or not layer.weight.requires_grad or not is_at_hand(features, layer):
        return False
    is_narrow = layer.in_channels >= FEWEST_INPUTS and layer.out_channels <= MOST_OUTPUTS
    if not is_narrow or not is_cube(layer) or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return False
    return features.is_contiguous(memory_format=torch.channels_last_3d)


def weight_gradient(features: Tensor, gradient: Tensor) -> Tensor:
    """Gradient by the weight, (O, I, 3, 3, 3), of features (N, I, D, H, W) and the output's gradient (N, O, D, H, W).

    Both channels-last.
    """
    depth = features.shape[2]
    maps, uppers = features.transpose(1, 2), gradient.transpose(1, 2)
    kernel = features.new_zeros((3, gradient.shape[1], features.shape[1], 3, 3))
    # The middle plane needs no neighbours, so that all samples are one row of planes.
    kernel[1] = weight_gradient_of_planes(maps.flatten(0, 1), uppers.flatten(0, 1))
    for sample_maps, sample_uppers in zip(maps, uppers):
        if depth > 1:
            kernel[0] += weight_gradient_of_planes(sample_maps[:-1], sample_uppers[1:])
            kernel[2] += weight_gradient_of_planes(sample_maps[1:], sample_uppers[:-1])
    return kernel.permute(1, 2, 0, 3, 4)


def _feature_gradient(gradient: Tensor, features: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.aten.convolution_backward(
        gradient, features, weight, None, [1] * 3, [1] * 3, [1] * 3, False, [0] * 3, 1, [True, False, False]
    )[0]
