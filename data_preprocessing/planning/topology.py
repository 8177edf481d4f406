"""From a patch and its spacing to the levels of a U-Net: strides, kernels and features.

Two rules. The NVIDIA reference's (nnunet/nn_unet.py, get_unet_params): halve every axis that is at most twice as coarse
as the finest one and that stays at least `min_fmap` voxels long; convolve only across axes that are at most twice as
coarse. nnU-Net v2's (experiment_planners/network_topology.py): halve every axis that stays long enough and is less
than twice as coarse as the finest of those; an axis that was convolved across once is so on all deeper levels. Both
repeat until nothing can be halved or there are `max_depth` strided levels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

from utils.errors import UserError

DEFAULT_DEPTH = 5
"""Largest number of strided levels of the reference's rule; nnU-Net v2's has no limit but the patch."""
DEFAULT_MIN_FMAP = 4
"""Voxels that an axis keeps at least when it is halved."""
FIRST_FILTERS = 32
MAX_FILTERS = {2: 512, 3: 320}
SAME_SCALE_RATIO = 2.0
"""An axis coarser than this many times the finest one is neither halved nor convolved across."""
LONE_AXIS_FMAPS = 3
"""nnU-Net v2: when only one axis is left to halve, it must be this many times `min_fmap` long."""

Axes = tuple[int, ...]
Rule = Literal["reference", "nnunet"]
Levels = tuple[list[Axes], list[Axes]]
"""Strides and kernels of the strided levels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """Strides, kernels, features and convolutions per level, as `StagePlan` holds them: level 0 is not strided."""

    strides: tuple[Axes, ...]
    kernels: tuple[Axes, ...]
    filters: tuple[int, ...]
    decoder_kernels: tuple[Axes, ...] = ()
    encoder_convs: tuple[int, ...] = ()
    decoder_convs: tuple[int, ...] = ()
    block: str = "plain"

    @property
    def total_strides(self) -> Axes:
        """Product of the strides per axis."""
        return tuple(math.prod(axis) for axis in zip(*self.strides))


def plan_topology(
    patch_size: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    *,
    max_depth: int | None = None,
    min_fmap: int = DEFAULT_MIN_FMAP,
    filters: tuple[int, ...] | None = None,
    rule: Rule = "reference",
) -> Topology:
    """Levels of the U-Net that works on patches of this size.

    There is one level more than there are strided ones (at most `max_depth`), and `patch_size` is divisible
    by the product of the strides along every axis.

    Args:
        patch_size: (D, H, W) or (H, W) voxels.
        spacing_mm: voxel size along the same axes.
        max_depth: largest number of strided levels (default: the rule's own).
        min_fmap: voxels that an axis keeps at least when it is halved.
        filters: features of the levels; more than there are levels are ignored. Default: 32, doubled from
            level to level, at most 320 in 3D and 512 in 2D.
        rule: how strides and kernels are found, see above.

    Raises:
        UserError: the patch is too small to be halved at all, is not divisible by the strides, or has more
            levels than `filters` has entries.
    """
    strided, kernels = _strided_levels(patch_size, spacing_mm, rule, max_depth, min_fmap)
    dim = len(patch_size)
    if not strided:
        raise UserError(
            f"patch size {patch_size} at {spacing_mm} mm is too small for a U-Net: no axis of the finest "
            f"spacing has {2 * min_fmap} voxels. Use a larger patch or a smaller --min_fmap."
        )
    strides = ((1,) * dim, *strided)
    total = tuple(math.prod(axis) for axis in zip(*strides))
    if any(size % stride for size, stride in zip(patch_size, total)):
        asked = f"--depth {len(strided)} --min_fmap {min_fmap}"
        raise UserError(
            f"patch size {patch_size} is not divisible by {total}, the product of the strides of "
            f"{len(strided)} strided levels ({asked}). Use a smaller --depth or a larger --min_fmap."
        )
    return Topology(strides=strides, kernels=(*kernels, (3,) * dim), filters=level_filters(filters, len(strides), dim))


def level_filters(filters: tuple[int, ...] | None, num_levels: int, dim: int) -> tuple[int, ...]:
    """Features of each level: the first `num_levels` of those given, or the default.

    Raises:
        UserError: fewer are given than there are levels.
    """
    if filters is None:
        return tuple(min(FIRST_FILTERS * 2**level, MAX_FILTERS[dim]) for level in range(num_levels))
    if len(filters) < num_levels:
        raise UserError(
            f"--filters has {len(filters)} numbers, but the U-Net has {num_levels} levels. "
            "Give one number for each level, or a smaller --depth."
        )
    return tuple(filters[:num_levels])


def divisible_patch(
    patch_size: tuple[int, ...],
    spacing_mm: tuple[float, ...],
    *,
    max_depth: int | None = None,
    min_fmap: int = DEFAULT_MIN_FMAP,
    rule: Rule = "reference",
) -> tuple[int, ...]:
    """Round a patch up to the smallest size that its own strides divide; a divisible patch stays as it is.

    Growing an axis may add a stride, so this repeats until nothing changes; it ends because no axis passes
    the next power of two.
    """
    while True:
        strided, _ = _strided_levels(patch_size, spacing_mm, rule, max_depth, min_fmap)
        total = [math.prod(axis) for axis in zip(*strided)] or [1] * len(patch_size)
        rounded = tuple(-(-size // stride) * stride for size, stride in zip(patch_size, total))
        if rounded == tuple(patch_size):
            return rounded
        patch_size = rounded


def _strided_levels(
    patch_size: tuple[int, ...], spacing_mm: tuple[float, ...], rule: Rule, max_depth: int | None, min_fmap: int
) -> Levels:
    """Levels until nothing can be halved; the rule says for each level which axes are halved and convolved across."""
    next_level, own_depth = _RULES[rule]
    depth = own_depth if max_depth is None else max_depth
    sizes, spacing = [float(s) for s in patch_size], [float(s) for s in spacing_mm]
    strides: list[Axes] = []
    kernels: list[Axes] = []
    while depth is None or len(strides) < depth:
        halved, wide = next_level(sizes, spacing, min_fmap)
        if not any(halved):
            break
        if kernels and rule == "nnunet":
            wide = [w or k == 3 for w, k in zip(wide, kernels[-1])]
        strides.append(tuple(2 if h else 1 for h in halved))
        kernels.append(tuple(3 if w else 1 for w in wide))
        sizes = [size / 2 if h else size for size, h in zip(sizes, halved)]
        spacing = [value * 2 if h else value for value, h in zip(spacing, halved)]
    return strides, kernels


def _reference_level(sizes: list[float], spacing: list[float], min_fmap: int) -> tuple[list[bool], list[bool]]:
    """Sizes are halved as real numbers, as the reference does."""
    same_scale = [s / min(spacing) <= SAME_SCALE_RATIO for s in spacing]
    return [same and size >= 2 * min_fmap for same, size in zip(same_scale, sizes)], same_scale


def _nnunet_level(sizes: list[float], spacing: list[float], min_fmap: int) -> tuple[list[bool], list[bool]]:
    """Half a voxel counts as one: ceil(ceil(n / 2) / 2) is ceil(n / 4)."""
    sizes = [math.ceil(size) for size in sizes]
    wide = [s / min(spacing) < SAME_SCALE_RATIO for s in spacing]
    finest = min((s for s, size in zip(spacing, sizes) if size >= 2 * min_fmap), default=math.inf)
    halved = [size >= 2 * min_fmap and s / finest < SAME_SCALE_RATIO for s, size in zip(spacing, sizes)]
    if sum(halved) == 1 and sizes[halved.index(True)] < LONE_AXIS_FMAPS * min_fmap:
        halved = [False] * len(sizes)
    return halved, wide


LevelRule = Callable[[list[float], list[float], int], tuple[list[bool], list[bool]]]
_RULES: dict[str, tuple[LevelRule, int | None]] = {
    "reference": (_reference_level, DEFAULT_DEPTH),
    "nnunet": (_nnunet_level, None),
}
