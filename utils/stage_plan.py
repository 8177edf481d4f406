"""One network of a plan and the grid that it works on; a part of `plan.json` (utils/schema.py)."""

from __future__ import annotations

import dataclasses
import math

UNSAID = {"omit_default": True}
"""Metadata of a field that came later: JSON leaves its default out, so files and digests of earlier plans stay."""
BLOCKS = ("plain", "residual")
DEFAULT_CONVOLUTIONS = 2

Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One network and the grid that it works on.

    `patch_size` has 3 entries (D, H, W) or 2 (H, W); every other per-axis tuple has as many. `spacing_mm` is the
    target spacing; a 2D stage keeps each case's own spacing across slices. `strides[0]` is all ones; level i of the
    U-Net has `filters[i]` features, is entered with `strides[i]` and convolves with `kernels[i]`. The decoder has a
    step for each level but the deepest.
    """

    name: str
    patch_size: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    batch_size: int
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    filters: tuple[int, ...]
    batch_dice: bool = False
    """3D: whether a patch shows so little of a scan that the data have a coarser stage too (for --batch_dice auto)."""
    decoder_kernels: tuple[tuple[int, ...], ...] = dataclasses.field(default=(), metadata=UNSAID)
    """Kernel of each decoder step, level 0 first; empty: that of the level below, as in the NVIDIA reference."""
    encoder_convs: tuple[int, ...] = dataclasses.field(default=(), metadata=UNSAID)
    """Convolutions, or residual blocks, of each encoder level; empty: 2 each."""
    decoder_convs: tuple[int, ...] = dataclasses.field(default=(), metadata=UNSAID)
    """Convolutions of each decoder step, level 0 first; empty: 2 each."""
    block: str = dataclasses.field(default="plain", metadata=UNSAID)
    """`plain`: convolutions; `residual`: nnU-Net v2's residual encoder, a convolution and then residual blocks."""

    def __post_init__(self) -> None:
        dim = len(self.patch_size)
        per_axis = self.strides + self.kernels + self.decoder_kernels
        if dim not in (2, 3) or len(self.spacing_mm) != dim or any(len(t) != dim for t in per_axis):
            raise ValueError(f"stage {self.name!r}: patch, spacing, strides and kernels must all have 2 or 3 axes")
        if not len(self.strides) == len(self.kernels) == len(self.filters) >= 2:
            raise ValueError(f"stage {self.name!r}: strides, kernels and filters must have one entry per level (>= 2)")
        if any(s != 1 for s in self.strides[0]):
            raise ValueError(f"stage {self.name!r}: the first level is not strided, got {self.strides[0]}")
        numbers = (*self.patch_size, *self.spacing_mm, *self.total_strides, *self.filters, self.batch_size)
        if not all(number > 0 for number in (*numbers, *self.encoder_convs, *self.decoder_convs)):
            raise ValueError(f"stage {self.name!r}: sizes must be positive")
        for kernels in (self.kernels, self.decoder_kernels):
            if not all(size > 0 and size % 2 for kernel in kernels for size in kernel):
                raise ValueError(f"stage {self.name!r}: kernel sizes must be odd, got {kernels}")
        if any(size % total for size, total in zip(self.patch_size, self.total_strides)):
            raise ValueError(
                f"stage {self.name!r}: patch {self.patch_size} is not divisible by its strides {self.total_strides}"
            )
        self._check_levels()

    def _check_levels(self) -> None:
        num_levels = len(self.strides)
        for name, most in (
            ("encoder_convs", num_levels), ("decoder_convs", num_levels - 1), ("decoder_kernels", num_levels - 1)
        ):  # fmt: skip
            if len(getattr(self, name)) not in (0, most):
                raise ValueError(
                    f"stage {self.name!r}: {name} must have {most} entries, one per level, or none, "
                    f"got {len(getattr(self, name))}"
                )
        if self.block not in BLOCKS:
            raise ValueError(f"stage {self.name!r}: block must be one of {', '.join(BLOCKS)}, got {self.block!r}")

    @property
    def dim(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    @property
    def total_strides(self) -> tuple[int, ...]:
        """Product of the strides per axis: input sizes must be divisible by it."""
        return tuple(math.prod(axis) for axis in zip(*self.strides))

    @property
    def step_kernels(self) -> tuple[Axes, ...]:
        """Kernel of each decoder step, level 0 first."""
        return self.decoder_kernels or self.kernels[1:]

    @property
    def level_convs(self) -> tuple[int, ...]:
        """Convolutions, or residual blocks, of each encoder level."""
        return self.encoder_convs or (DEFAULT_CONVOLUTIONS,) * len(self.strides)

    @property
    def step_convs(self) -> tuple[int, ...]:
        """Convolutions of each decoder step, level 0 first."""
        return self.decoder_convs or (DEFAULT_CONVOLUTIONS,) * (len(self.strides) - 1)
