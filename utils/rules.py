"""Numerical rules in which programs differ, from the scan to its mask; a part of `plan.json` (utils/schema.py)."""

from __future__ import annotations

import dataclasses

_CHOICES = {
    "grid_shape": ("extent", "ratio"),
    "windows": ("fixed", "even"),
    "importance": ("floor", "sampled"),
    "sums": ("float32", "float16"),
    "average": ("probabilities", "logits"),
    "coarse_first": ("scan", "plan"),
    "previous_mask": ("highest", "nearest"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """The first choice of each is this program's, the second one nnU-Net v2's."""

    grid_shape: str = "extent"
    """Voxels at the target spacing are rounded from `extent`, (n * mm) / target, or `ratio`, (mm / target) * n, which
    differ where the true number lies halfway."""
    windows: str = "fixed"
    """`fixed`: windows follow each other at one step, the last one ends with the volume; `even`: they are spread out
    evenly, at whole voxels."""
    importance: str = "floor"
    """Gaussian weights of a window. `floor`: around its middle, at least 0.001; `sampled`: around voxel n // 2, ten
    times as large, in half precision, and where that makes them 0 the smallest other one."""
    sums: str = "float32"
    """Type of the sums over windows and of the logits that come from them."""
    average: str = "probabilities"
    """What is averaged over folds and resampled to the scan."""
    coarse_first: str = "scan"
    """On the way back to the scan: whose spacing is asked first for an axis across which nothing is interpolated."""
    previous_mask: str = "highest"
    """Which class a voxel of the second stage's grid gets in a cascade, where several have the largest share of it in
    the first stage's mask: the `highest` one, or that of the `nearest` voxel. With that, two things hold at prediction:
    background outside of what is not zero in the scan (holes filled) counts as a class of its own, and what the first
    stage found out there belongs to the mask of `zscore_mask`."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"rules: {name} must be {' or '.join(choices)}, got {getattr(self, name)!r}")


NNUNET_V2 = Rules(**{name: second for name, (_, second) in _CHOICES.items()})
"""The rules of nnU-Net v2."""
