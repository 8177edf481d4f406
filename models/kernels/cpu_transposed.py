"""Transposed convolutions on a CPU whose bias gets its gradient by a sum.

oneDNN makes the gradient by the bias of a transposed convolution beside the one by its weight, in a loop over single
numbers that takes several times as long as everything else (torch 2.13, channels-last maps of 2 x 16 x 40 x 56 x 40 in
bf16, one thread: 10 ms; the sum 0.2 ms, the gradient by the weight 1.4 ms).

Shapes: N batch, I and O channels that go in and out, D H W space (2D has no D).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Layer = nn.ConvTranspose2d | nn.ConvTranspose3d


class SummedBiasConvTranspose2d(nn.ConvTranspose2d):
    """torch's layer with a faster gradient by its bias, (N, I, H, W) to (N, O, H', W')."""

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As torch's layer."""
        if output_size is None and gains(features, self):
            return _apply(features, self)
        return super().forward(features, output_size)


class SummedBiasConvTranspose3d(nn.ConvTranspose3d):
    """torch's layer with a faster gradient by its bias, (N, I, D, H, W) to (N, O, D', H', W')."""

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        """As torch's layer."""
        if output_size is None and gains(features, self):
            return _apply(features, self)
        return super().forward(features, output_size)


def gains(features: Tensor, layer: Layer) -> bool:
    """Whether a CPU is to train the layer's bias here and now, by operators that need not be recorded."""
    if torch.compiler.is_compiling() or features.device.type != "cpu" or type(features) is not Tensor:
        return False
    if not torch.is_grad_enabled() or layer.bias is None or not layer.bias.requires_grad:
        return False
    return features.dim() == layer.weight.dim() and not any(layer.output_padding)


def _apply(features: Tensor, layer: Layer) -> Tensor:
    assert layer.bias is not None
    tensors: tuple[Tensor, ...] = (features, layer.weight, layer.bias)
    if torch.is_autocast_enabled("cpu"):
        half = torch.get_autocast_dtype("cpu")
        tensors = tuple(each if each.dtype == torch.float64 else each.to(half) for each in tensors)
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return _TransposedConvolution.apply(*tensors, geometry)


class _TransposedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, geometry: tuple) -> Tensor:
        stride, padding, dilation, groups = geometry
        ctx.save_for_backward(features, weight)
        ctx.arguments = (stride, padding, dilation, True, (0,) * len(stride), groups)
        return torch.ops.aten.convolution(features, weight, bias, *ctx.arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], False]
        by_features, by_weight, _ = torch.ops.aten.convolution_backward(
            gradient, features, weight, None, *ctx.arguments, wanted
        )
        by_bias = gradient.sum((0, *range(2, gradient.dim()))) if ctx.needs_input_grad[2] else None
        return by_features, by_weight, by_bias, None
