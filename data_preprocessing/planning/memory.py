"""How much memory training a U-Net takes, as a pure function of its levels and its patch; no GPU is asked.

Two counts per patch. `feature_map_values` is the number that nnU-Net v2 plans with: the outputs of all convolutions.
`saved_values` is what automatic differentiation really keeps for the backward pass: about twice as much, as each
convolution's output is kept once before and once after its normalisation.

Source: nnU-Net v2, compute_conv_feature_map_size of its networks and the experiment planners.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from data_preprocessing.planning.planners import DEFAULT, Planner
from utils.stage_plan import DEFAULT_CONVOLUTIONS

CONVOLUTIONS_PER_BLOCK = 2
"""Of a residual block, its skip connection aside."""
REFERENCE_BATCH = {2: 12, 3: 2}
"""Patches, per dimension, with which a planner's `values` fill its memory."""
MIN_BATCH = 2
BYTES_PER_VALUE = 4
"""fp32; mixed precision keeps most values in half of that."""


class Levels(Protocol):
    """Strides, features and convolutions of the levels, level 0 first: a `Topology` or a `StagePlan`."""

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    def filters(self) -> tuple[int, ...]: ...

    @property
    def encoder_convs(self) -> tuple[int, ...]: ...

    @property
    def decoder_convs(self) -> tuple[int, ...]: ...

    @property
    def block(self) -> str: ...


def feature_map_values(levels: Levels, patch_size: Sequence[int], *, num_outputs: int, num_heads: int = 0) -> int:
    """Values in the outputs of all convolutions, of one patch.

    Args:
        levels: of the U-Net; a decoder step has a transposed convolution besides the others.
        patch_size: divisible by the strides.
        num_outputs: K of the logits at full resolution.
        num_heads: number of lower levels with logits of their own (deep supervision).
    """
    sizes = _level_sizes(levels, patch_size)
    # nnU-Net counts a pooled skip connection like one with a convolution.
    skips = sum(features * size for features, size, stride, projects in _skips(levels, sizes) if projects or stride)
    return _convolved_values(levels, sizes) + skips + num_outputs * sum(sizes[: 1 + num_heads])


def saved_values(
    levels: Levels, patch_size: Sequence[int], *, in_channels: int, num_outputs: int, num_heads: int = 0
) -> int:
    """Values that are kept from the forward to the backward pass, of one patch: image, feature maps and logits.

    A convolution's output is kept as it is, for the normalisation, and normalised, for the next convolution. That of
    a transposed convolution is kept beside a copy of the skip connection that it is joined with. A residual block's
    1x1x1 convolution has its output kept once, for the normalisation, and its input too where that was pooled.
    """
    sizes = _level_sizes(levels, patch_size)
    values = in_channels * math.prod(patch_size) + 2 * _convolved_values(levels, sizes)
    inputs = (levels.filters[0], *levels.filters[:-1])
    for before, (features, size, strided, projects) in zip(inputs, _skips(levels, sizes)):
        values += projects * (features + strided * before) * size
    return values + num_outputs * sum(sizes[: 1 + num_heads])


def _convolved_values(levels: Levels, sizes: list[int]) -> int:
    """Outputs of all convolutions but those of skip connections and heads."""
    residual = levels.block == "residual"
    encoder_convs = levels.encoder_convs or (DEFAULT_CONVOLUTIONS,) * len(sizes)
    decoder_convs = levels.decoder_convs or (DEFAULT_CONVOLUTIONS,) * (len(sizes) - 1)
    in_block = CONVOLUTIONS_PER_BLOCK if residual else 1
    encoder = sum(count * in_block * f * size for count, f, size in zip(encoder_convs, levels.filters, sizes))
    decoder = sum((count + 1) * f * size for count, f, size in zip(decoder_convs, levels.filters, sizes))
    return encoder + decoder + residual * levels.filters[0] * sizes[0]


def _skips(levels: Levels, sizes: list[int]) -> list[tuple[int, int, bool, bool]]:
    """Of the first residual block of each level: features, voxels, whether it strides, whether its channels change."""
    if levels.block != "residual":
        return []
    inputs = (levels.filters[0], *levels.filters[:-1])
    return [
        (features, size, any(step > 1 for step in stride), features != before)
        for before, features, size, stride in zip(inputs, levels.filters, sizes, levels.strides)
    ]


def fits(values: int, dim: int, gpu_memory_gb: float, planner: Planner = DEFAULT) -> bool:
    """Whether as many patches with that many feature map values as must fit the memory do."""
    return values * planner.must_fit[dim] / REFERENCE_BATCH[dim] <= _budget(dim, gpu_memory_gb, planner)


def memory_batch(values: int, dim: int, gpu_memory_gb: float, planner: Planner = DEFAULT) -> int:
    """How many patches with that many feature map values fit the memory."""
    return round(_budget(dim, gpu_memory_gb, planner) / values * REFERENCE_BATCH[dim])


def data_batch(num_voxels: float, patch_size: Sequence[int], planner: Planner = DEFAULT) -> int:
    """How many patches hold the largest share of a data set's voxels that a batch may see."""
    return round(num_voxels * planner.data_share / math.prod(patch_size))


def _budget(dim: int, gpu_memory_gb: float, planner: Planner) -> float:
    return planner.values[dim] * gpu_memory_gb / planner.memory_gb


def _level_sizes(levels: Levels, patch_size: Sequence[int]) -> list[int]:
    """Voxels of each level's feature maps."""
    sizes, current = [], tuple(patch_size)
    for stride in levels.strides:
        current = tuple(size // step for size, step in zip(current, stride))
        sizes.append(math.prod(current))
    return sizes
