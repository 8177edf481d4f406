"""How much memory training a U-Net takes, as a pure function of its levels and its patch; no GPU is asked.

Two counts per patch. `feature_map_values` is the number that nnU-Net v2 plans with: the outputs of all convolutions.
`saved_values` is what automatic differentiation really keeps for the backward pass: about twice as much, as each
convolution's output is kept once before and once after its normalisation.

Source: nnU-Net v2, compute_conv_feature_map_size of the plain U-Net and the default experiment planner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

CONVOLUTIONS_PER_LEVEL = 2
"""In the encoder and again in the decoder, which has no step at the deepest level."""
REFERENCE_GB = 8.0
"""The GPU memory that the reference counts belong to."""
REFERENCE_VALUES = {2: 85e6, 3: 560e6}
"""Feature map values of one patch, per dimension, with which a batch of REFERENCE_BATCH fills that memory."""
REFERENCE_BATCH = {2: 12, 3: 2}
MIN_BATCH = 2
MAX_DATA_SHARE = 0.05
"""A batch sees at most this share of the data set's voxels, or networks learn small data sets by heart."""
BYTES_PER_VALUE = 4
"""fp32; mixed precision keeps most values in half of that."""


class Levels(Protocol):
    """Strides and features of the levels, level 0 first: a `Topology` or a `StagePlan`."""

    @property
    def strides(self) -> tuple[tuple[int, ...], ...]:
        """By how much each level is smaller than the one above it, axis by axis; 1 at level 0."""
        ...

    @property
    def filters(self) -> tuple[int, ...]:
        """Channels of each level's feature maps."""
        ...


def feature_map_values(levels: Levels, patch_size: Sequence[int], *, num_outputs: int, num_heads: int = 0) -> int:
    """Values in the outputs of all convolutions, of one patch.

    Args:
        levels: of the U-Net; a decoder step has one transposed convolution and CONVOLUTIONS_PER_LEVEL others.
        patch_size: divisible by the strides.
        num_outputs: K of the logits at full resolution.
        num_heads: number of lower levels with logits of their own (deep supervision).
    """
    sizes = _level_sizes(levels, patch_size)
    encoder = sum(CONVOLUTIONS_PER_LEVEL * f * size for f, size in zip(levels.filters, sizes))
    decoder = sum((CONVOLUTIONS_PER_LEVEL + 1) * f * size for f, size in zip(levels.filters[:-1], sizes))
    return encoder + decoder + num_outputs * sum(sizes[: 1 + num_heads])


def saved_values(
    levels: Levels, patch_size: Sequence[int], *, in_channels: int, num_outputs: int, num_heads: int = 0
) -> int:
    """Values that are kept from the forward to the backward pass, of one patch: image, feature maps and logits.

    A convolution's output is kept as it is, for the normalisation, and normalised, for the next convolution. That of
    a transposed convolution is kept beside a copy of the skip connection that it is joined with.
    """
    logits = num_outputs * sum(_level_sizes(levels, patch_size)[: 1 + num_heads])
    maps = feature_map_values(levels, patch_size, num_outputs=num_outputs, num_heads=num_heads) - logits
    return in_channels * math.prod(patch_size) + 2 * maps + logits


def fits(values: int, dim: int, gpu_memory_gb: float) -> bool:
    """Whether the smallest batch of patches with that many feature map values fits the memory."""
    return values * MIN_BATCH / REFERENCE_BATCH[dim] <= _budget(dim, gpu_memory_gb)


def memory_batch(values: int, dim: int, gpu_memory_gb: float) -> int:
    """How many patches with that many feature map values fit the memory."""
    return round(_budget(dim, gpu_memory_gb) / values * REFERENCE_BATCH[dim])


def data_batch(num_voxels: float, patch_size: Sequence[int]) -> int:
    """How many patches hold MAX_DATA_SHARE of a data set's voxels."""
    return round(num_voxels * MAX_DATA_SHARE / math.prod(patch_size))


def _budget(dim: int, gpu_memory_gb: float) -> float:
    return REFERENCE_VALUES[dim] * gpu_memory_gb / REFERENCE_GB


def _level_sizes(levels: Levels, patch_size: Sequence[int]) -> list[int]:
    """Voxels of each level's feature maps."""
    sizes, current = [], tuple(patch_size)
    for stride in levels.strides:
        current = tuple(size // step for size, step in zip(current, stride))
        sizes.append(math.prod(current))
    return sizes
