"""What the ways of a CPU to compute 3x3x3 convolutions have in common.

Shapes: N batch, I and O channels that go in and out, D H W space, M planes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def is_cube(layer: nn.Conv3d) -> bool:
    """Whether a convolution is 3x3x3 at stride 1 and padding 1, of all channels together and without a bias."""
    geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
    return layer.bias is None and geometry == ((3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1, "zeros")


def is_at_hand(features: Tensor, layer: nn.Conv3d) -> bool:
    """Whether a CPU is to convolve maps (N, I, D, H, W) in float32, here and now, and has oneDNN for it.

    A graph that is recorded is to have operators that everybody knows.
    """
    if torch.compiler.is_compiling() or features.device.type != "cpu" or type(features) is not Tensor:
        return False
    if not features.dtype == layer.weight.dtype == torch.float32 or features.dim() != layer.weight.dim():
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def gradients(
    ctx: Any, gradient: Tensor, by_features: Callable[[Tensor, Tensor, Tensor], Tensor],
    by_weight: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Gradients by features (N, I, D, H, W) and weight (O, I, 3, 3, 3), as far as they are asked for.

    Args:
        ctx: that has saved features, channels-last, and weight.
        gradient: of the output, (N, O, D, H, W) in any order.
        by_features: of gradient, features and weight.
        by_weight: of features and gradient.
    """
    features, weight = ctx.saved_tensors
    gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
    return (
        by_features(gradient, features, weight) if ctx.needs_input_grad[0] else None,
        by_weight(features, gradient) if ctx.needs_input_grad[1] else None,
    )


def weight_gradient_of_planes(planes: Tensor, gradient: Tensor) -> Tensor:
    """(O, I, 3, 3) of a 3x3 convolution, padding 1, of planes (M, I, H, W) and its output's gradient (M, O, H, W)."""
    like = planes.new_empty((gradient.shape[1], planes.shape[1], 3, 3)).contiguous(memory_format=torch.channels_last)
    return torch.ops.aten.convolution_backward(
        gradient, planes, like, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
    )[1]
