"""What nnU-Net v2's planners differ in: the memory that they plan for, what fills it, and how levels convolve.

All choose axes, spacing, patch, strides, kernels and features alike. The three for residual encoders have budgets of
their own, since such an encoder has more feature maps, and let a batch hold the whole data set.

Source: nnU-Net v2, experiment_planners/default_experiment_planner.py and residual_encoder_unet_planners.py; Isensee et
al., nnU-Net Revisited (2024).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from data_preprocessing.planning.topology import Topology

RESIDUAL_BLOCKS = (1, 3, 4, 6)
"""Blocks of the levels; all deeper ones have as many as the last."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planner:
    """One of nnU-Net v2's planners; per-dimension numbers are those of 2D and 3D networks."""

    name: str
    """As `--planner` and `Plan.planner` have it; empty for the default one."""
    memory_gb: float
    """The GPU memory that it plans for unless told otherwise, and that `values` belong to."""
    values: Mapping[int, float]
    """Feature map values of one patch, with which `memory.REFERENCE_BATCH` patches fill that memory."""
    must_fit: Mapping[int, int]
    """Patches that must fit the memory, or the patch is cut."""
    data_share: float
    """A batch sees at most this share of the data set's voxels."""
    residual: bool = False
    """Residual blocks in the encoder, and one convolution in each decoder step."""

    def equip(self, topology: Topology) -> Topology:
        """The topology with the decoder's kernels, which are those of its own levels, and this planner's blocks."""
        num_levels = len(topology.strides)
        equipped = dataclasses.replace(topology, decoder_kernels=topology.kernels[:-1])
        if not self.residual:
            return equipped
        return dataclasses.replace(
            equipped,
            encoder_convs=fit_levels(RESIDUAL_BLOCKS, num_levels),
            decoder_convs=(1,) * (num_levels - 1),
            block="residual",
        )

    def reasons(self) -> dict[str, str]:
        """Why the levels are made so, where that is not the default."""
        if not self.residual:
            return {}
        counts = ", ".join(map(str, RESIDUAL_BLOCKS))
        return {
            "encoder_convs": f"{self.name}: {counts} blocks, and as many as the last on all deeper levels, after a "
            "convolution at full resolution",
            "decoder_convs": f"{self.name}: the encoder does most of the work",
        }


def fit_levels(counts: tuple[int, ...], num_levels: int) -> tuple[int, ...]:
    """Numbers for as many levels: those that are given, the last one again where there are more levels.

    No numbers stay none: the default of a `StagePlan`.
    """
    return (*counts, *counts[-1:] * num_levels)[:num_levels]


DEFAULT = Planner(
    name="", memory_gb=8.0, values={2: 85e6, 3: 560e6}, must_fit={2: 2, 3: 2}, data_share=0.05
)  # fmt: skip


def _residual(name: str, memory_gb: float, values: Mapping[int, float]) -> Planner:
    # In 2D a whole batch of the reference must fit before the patch is no longer cut, not two patches as by default.
    return Planner(
        name=name, memory_gb=memory_gb, values=values, must_fit={2: 12, 3: 2}, data_share=1.0, residual=True
    )  # fmt: skip


PLANNERS = {
    "default": DEFAULT,
    "resenc_m": _residual("resenc_m", 8.0, {2: 135e6, 3: 680e6}),
    "resenc_l": _residual("resenc_l", 24.0, {2: 380e6, 3: 2100e6}),
    "resenc_xl": _residual("resenc_xl", 40.0, {2: 560e6, 3: 3600e6}),
}
