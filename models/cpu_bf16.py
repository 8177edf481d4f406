"""Convolutions that a CPU computes in float32 although the run is in bf16, because its bf16 gradient is wrong.

torch 2.13 (oneDNN) on CPUs with AVX512-BF16 never writes the weight gradient of a 3x3x3 convolution, padding 1,
stride 1 along D, of a map that is exactly two planes deep, in either order of memory: what lay in memory before is
taken for the gradient, NaN included. Forward pass, input gradient, other depths, 1x3x3 kernels and strides of 2 along
D are right. Whether this machine and this torch do so is tried out once per process and not assumed, so that a torch
that is right keeps its speed. The maps concerned are the smallest of a network, so float32 costs next to nothing there.

Shapes: N batch, C channels, D H W space.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SUSPECT_DEPTH = 2
"""Planes of the map whose weight gradient may be wrong."""
LARGEST_ERROR = 0.1
"""Of a bf16 gradient, as a share of its norm; rounding makes about 0.003, memory that was not written 1 or more."""

_PROBED: dict[str, bool] = {}


def needs_float32(features: Tensor, layer: nn.Module) -> bool:
    """Whether the layer's gradient for these maps (N, C, D, H, W) would be wrong in the precision at hand."""
    if features.device.type != "cpu" or features.dim() != 5 or features.shape[2] != SUSPECT_DEPTH:
        return False
    if not torch.is_grad_enabled() or not _computes_in_bf16(features) or not is_suspect(layer):
        return False
    return gradient_is_wrong()


def is_suspect(layer: nn.Module) -> bool:
    """Whether a convolution mixes three planes with padding and without stride: wrong at depth 2, if at all."""
    if not isinstance(layer, nn.Conv3d):
        return False
    return (layer.kernel_size[0], layer.padding[0], layer.stride[0]) == (3, 1, 1)


def convolve_in_float32(features: Tensor, layer: nn.Conv3d) -> Tensor:
    """The layer's output in bf16, computed, and differentiated, in float32."""
    with torch.autocast("cpu", enabled=False):
        bias = None if layer.bias is None else layer.bias.float()
        out = F.conv3d(features.float(), layer.weight.float(), bias, layer.stride, layer.padding)
    return out.to(torch.bfloat16)


def gradient_is_wrong() -> bool:
    """Whether this machine gets the suspected gradients wrong; tried out in milliseconds, once per process."""
    if "wrong" not in _PROBED:
        _PROBED["wrong"] = probe()
    return _PROBED["wrong"]


# As torch.compiler.assume_constant_result marks it. That imports the compiler: 70 MB, and a third of the time that a
# prediction takes to start.
vars(gradient_is_wrong)["_dynamo_marked_constant"] = True


def probe() -> bool:
    """Try the suspected gradients out on small maps, after filling the memory that they will get with NaN."""
    sizes, strides = ((2, 16), (4, 32)), ((1, 1, 1), (1, 2, 2))
    orders = (torch.contiguous_format, torch.channels_last_3d)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        return any(
            not gradient_error(size, channels, stride, order) <= LARGEST_ERROR
            for (size, channels), stride, order in itertools.product(sizes, strides, orders)
        )


def gradient_error(size: int, channels: int, stride: tuple[int, int, int], order: torch.memory_format) -> float:
    """Distance of the bf16 weight gradient from the float32 one, as a share of its norm; NaN where it is not finite."""
    # A stream of its own: the run's random numbers must not depend on whether something was tried out.
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, channels, SUSPECT_DEPTH, size, size, generator=generator)
    weight = torch.randn(channels, channels, 3, 3, 3, generator=generator) * 0.1
    upper = torch.randn(F.conv3d(features, weight, stride=stride, padding=1).shape, generator=generator)

    def gradient(*tensors: Tensor) -> Tensor:
        maps, kernel, above = tensors
        kernel = kernel.clone().requires_grad_()
        F.conv3d(maps, kernel, stride=stride, padding=1).backward(above)
        assert kernel.grad is not None
        return kernel.grad.float()

    exact = gradient(features, weight, upper)
    narrow = [tensor.bfloat16().to(memory_format=order) for tensor in (features, weight, upper)]
    # What a gradient that nobody writes will hold.
    poison = [torch.full((weight.numel(),), torch.nan, dtype=torch.bfloat16) for _ in range(20)]
    del poison
    return ((gradient(*narrow) - exact).norm() / exact.norm()).item()


def _computes_in_bf16(features: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return features.dtype == torch.bfloat16
