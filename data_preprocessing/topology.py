"""From a patch and its spacing to the levels of a U-Net: strides, kernels and features.

The rule is the NVIDIA reference's (nnunet/nn_unet.py, get_unet_params): halve every axis that is at most
twice as coarse as the finest one and that stays at least `min_fmap` voxels long; convolve only across axes
that are at most twice as coarse; repeat until nothing can be halved or there are `max_depth` strided levels.
"""

from __future__ import annotations

import dataclasses
import math

from utils.errors import UserError

DEFAULT_DEPTH = 5
"""Largest number of strided levels."""
DEFAULT_MIN_FMAP = 4
"""Voxels that an axis keeps at least when it is halved."""
FIRST_FILTERS = 32
MAX_FILTERS = {2: 512, 3: 320}
SAME_SCALE_RATIO = 2.0
"""An axis coarser than this many times the finest one is neither halved nor convolved across."""

Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Strides, kernels and features per level, as `StagePlan` holds them: level 0 is not strided."""

    strides: tuple[Axes, ...]
    kernels: tuple[Axes, ...]
    filters: tuple[int, ...]

    @property
    def total_strides(self) -> Axes:
        """Product of the strides per axis."""
        return tuple(math.prod(axis) for axis in zip(*self.strides))


def plan_topology(
    patch_size: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    *,
    max_depth: int,
    min_fmap: int,
    filters: tuple[int, ...] | None = None,
) -> Topology:
    """Levels of the U-Net that works on patches of this size.

    There is one level more than there are strided ones (at most `max_depth`), and `patch_size` is divisible
    by the product of the strides along every axis.

    Args:
        patch_size: (D, H, W) or (H, W) voxels.
        spacing_mm: voxel size along the same axes.
        max_depth: largest number of strided levels.
        min_fmap: voxels that an axis keeps at least when it is halved.
        filters: features of the levels; more than there are levels are ignored. Default: 32, doubled from
            level to level, at most 320 in 3D and 512 in 2D.

    Raises:
        UserError: the patch is too small to be halved at all, is not divisible by the strides, or has more
            levels than `filters` has entries.
    """
    strided, kernels = _strided_levels(patch_size, spacing_mm, max_depth=max_depth, min_fmap=min_fmap)
    dim = len(patch_size)
    if not strided:
        raise UserError(
            f"patch size {patch_size} at {spacing_mm} mm is too small for a U-Net: no axis of the finest "
            f"spacing has {2 * min_fmap} voxels. Use a larger patch or a smaller --min_fmap."
        )
    strides = ((1,) * dim, *strided)
    total = tuple(math.prod(axis) for axis in zip(*strides))
    if any(size % stride for size, stride in zip(patch_size, total)):
        raise UserError(
            f"patch size {patch_size} is not divisible by {total}, the product of the strides of "
            f"{len(strided)} strided levels (--depth {max_depth} --min_fmap {min_fmap}). "
            "Use a smaller --depth or a larger --min_fmap."
        )
    if filters is not None and len(filters) < len(strides):
        raise UserError(
            f"--filters has {len(filters)} numbers, but the U-Net has {len(strides)} levels. "
            "Give one number for each level, or a smaller --depth."
        )
    if filters is None:
        filters = tuple(min(FIRST_FILTERS * 2**level, MAX_FILTERS[dim]) for level in range(len(strides)))
    return Topology(strides=strides, kernels=(*kernels, (3,) * dim), filters=tuple(filters[: len(strides)]))


def divisible_patch(
    patch_size: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    *,
    max_depth: int = DEFAULT_DEPTH,
    min_fmap: int = DEFAULT_MIN_FMAP,
) -> tuple[int, ...]:
    """Round a patch up to the smallest size that its own strides divide; a divisible patch stays as it is.

    Growing an axis may add a stride, so this repeats until nothing changes; it ends because no axis passes
    the next multiple of `2**max_depth`.
    """
    while True:
        strided, _ = _strided_levels(patch_size, spacing_mm, max_depth=max_depth, min_fmap=min_fmap)
        total = [math.prod(axis) for axis in zip(*strided)] or [1] * len(patch_size)
        rounded = tuple(-(-size // stride) * stride for size, stride in zip(patch_size, total))
        if rounded == tuple(patch_size):
            return rounded
        patch_size = rounded


def _strided_levels(
    patch_size: tuple[int, ...], spacing_mm: tuple[float, ...], *, max_depth: int, min_fmap: int
) -> tuple[list[Axes], list[Axes]]:
    """Strides and kernels of the strided levels; sizes are halved as real numbers, as in the reference."""
    sizes, spacing = [float(s) for s in patch_size], [float(s) for s in spacing_mm]
    strides, kernels = [], []
    while len(strides) < max_depth:
        same_scale = [s / min(spacing) <= SAME_SCALE_RATIO for s in spacing]
        stride = tuple(2 if same and size >= 2 * min_fmap else 1 for same, size in zip(same_scale, sizes))
        if max(stride) == 1:
            break
        strides.append(stride)
        kernels.append(tuple(3 if same else 1 for same in same_scale))
        sizes = [size / step for size, step in zip(sizes, stride)]
        spacing = [value * step for value, step in zip(spacing, stride)]
    return strides, kernels
