"""Convolutions on a CPU that torch leaves to its own slow loops although oneDNN is faster.

torch gives a float32 convolution of a single sample to oneDNN only where batch, channels and the first two axes of
space have more than 20,480 numbers together; what is smaller is unfolded and multiplied by a single thread. That rule
is made for photographs. A window of a volume with 8 features is below it at full resolution (8 x 40 x 56), and so are
the deeper levels of every network. The same convolution by oneDNN takes a third of the time or less. Kernels that are
points (heads) torch keeps to itself where it has one thread: of large channels-last maps at a fifth of oneDNN's speed.
In two dimensions torch's own way is no slower.

Source: `use_mkldnn` in aten/src/ATen/native/Convolution.cpp of torch 2.13; test_cpu_small.py notices a torch that has
another rule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.kernels import cpu_narrow
from models.kernels.cpu_cubes import is_at_hand

LARGEST = 20_480
"""Numbers along batch, channels and the first two axes of space up to which torch does not ask oneDNN."""
LAST = torch.channels_last_3d
FEW_SAMPLES = 16
"""As many a single thread gives to oneDNN also where the kernel is a point."""


class OneDnnConv3d(nn.Conv3d):
    """torch's layer, which oneDNN computes on a CPU also where torch would not ask it."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, I, D, H, W) to (N, O, D', H', W')."""
        if cpu_narrow.gains(features, self):
            return cpu_narrow.NarrowConvolution.apply(features, self.weight)
        return _convolve(features, self) if is_left_out(features, self) else super().forward(features)


def is_left_out(features: Tensor, layer: nn.Conv3d) -> bool:
    """Whether torch computes the layer by itself for these maps (N, I, D, H, W), and oneDNN is faster."""
    if not is_at_hand(features, layer) or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    is_small = features.shape[0] == 1 and math.prod(features.shape[:4]) <= LARGEST
    if set(layer.kernel_size) != {1}:
        return is_small
    # Of maps in the other order a point is a matrix product as they lie, and oneDNN would turn them twice.
    return (is_small or _is_pointwise(features, layer)) and features.is_contiguous(memory_format=LAST)


def _is_pointwise(features: Tensor, layer: nn.Conv3d) -> bool:
    """Whether torch takes it for a matrix product that a single thread computes best by itself."""
    moves = (*layer.stride, *layer.dilation)
    return features.shape[0] < FEW_SAMPLES and set(moves) == {1} and torch.get_num_threads() == 1


def _convolve(features: Tensor, layer: nn.Conv3d) -> Tensor:
    return torch.ops.aten.mkldnn_convolution(
        features, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups
    )
