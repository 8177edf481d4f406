"""Made-up data sets of different kinds, which nnU-Net v2's planners and ours plan from; needs the standard library."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

PLANNERS = {
    "default": ("default_experiment_planner", "ExperimentPlanner"),
    "resenc_m": ("residual_unets.residual_encoder_unet_planners", "nnUNetPlannerResEncM"),
    "resenc_l": ("residual_unets.residual_encoder_unet_planners", "nnUNetPlannerResEncL"),
    "resenc_xl": ("residual_unets.residual_encoder_unet_planners", "nnUNetPlannerResEncXL"),
}
"""Our names of nnU-Net's planners: module and class."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scans:
    """Groups of equal scans: how many, spacing in mm, shape; how many classes they have and what their channels are."""

    groups: tuple[tuple[int, tuple[float, ...], tuple[int, ...]], ...]
    num_classes: int
    gpu_memory_gb: float | None = None
    """None: the planner's own."""
    channels: tuple[str, ...] = ("MRI",)
    relative_size: float = 1.0
    """Of the scans after cropping, as a share of what they were."""

    @property
    def spacings(self) -> list[tuple[float, ...]]:
        """One of each scan."""
        return [spacing for count, spacing, _ in self.groups for _ in range(count)]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """One of each scan, after cropping."""
        return [shape for count, _, shape in self.groups for _ in range(count)]


SCANS = {
    "brain tumours": Scans(
        groups=((484, (1.0, 1.0, 1.0), (140, 171, 137)),), num_classes=4, channels=("FLAIR", "T1w", "T1gd", "T2w"),
        relative_size=0.37,
    ),
    "liver": Scans(groups=((131, (1.0, 0.7676, 0.7676), (482, 512, 512)),), num_classes=3, channels=("CT",)),
    "prostate": Scans(
        groups=((24, (3.6, 0.625, 0.625), (20, 320, 320)), (8, (3.0, 0.6, 0.6), (24, 320, 320))), num_classes=3,
        channels=("T2", "ADC"),
    ),
    "percentile": Scans(
        groups=tuple((1, (4 + 0.5 * i, 0.7, 0.7), (24, 250, 230)) for i in range(21)), num_classes=2,
        channels=("noNorm", "rescale_to_0_1"), relative_size=0.5,
    ),
    "heart cine": Scans(
        groups=((150, (10.0, 1.5625, 1.5625), (9, 256, 216)), (50, (5.0, 1.5, 1.5), (18, 256, 216))), num_classes=4,
        relative_size=0.75,
    ),
    "coronal": Scans(groups=((30, (0.8, 4.0, 0.8), (300, 40, 280)),), num_classes=2, relative_size=0.7499),
    "sagittal": Scans(
        groups=((60, (0.9, 0.9, 2.0), (256, 256, 110)),), num_classes=5, channels=("rgb_to_0_1",) * 3, relative_size=0.1
    ),
    "few small scans": Scans(groups=((12, (1.0, 1.0, 1.0), (36, 50, 35)),), num_classes=3),
    "many small scans": Scans(groups=((3000, (1.0, 1.0, 1.0), (36, 50, 35)),), num_classes=3),
    "mixed": Scans(
        groups=(
            (20, (2.0, 0.9, 0.9), (90, 400, 400)),
            (20, (1.0, 0.7, 0.7), (200, 512, 512)),
            (20, (1.5, 0.8, 0.8), (120, 450, 440)),
        ),
        num_classes=6, channels=("CT", "PET"), relative_size=0.6,
    ),
    "104 organs": Scans(groups=((1000, (1.5, 1.5, 1.5), (250, 200, 200)),), num_classes=105, channels=("CT",)),
    "spleen, 24 GB": Scans(groups=((41, (1.6, 0.79, 0.79), (187, 512, 512)),), num_classes=2, gpu_memory_gb=24.0),
    "thick and many": Scans(groups=((40, (3.2, 1.0, 1.0), (90, 256, 256)),), num_classes=2),
    "twice as coarse": Scans(groups=((40, (2.0, 1.0, 1.0), (64, 128, 128)),), num_classes=2),
}  # fmt: skip


def describe_stage(
    *, spacing_mm: Sequence[float], patch: Sequence[int], batch: int, batch_dice: bool, network: str,
    strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]], filters: Sequence[int], encoder: Sequence[int],
    decoder: Sequence[int],
) -> str:  # fmt: skip
    """All planned numbers of a stage as a line of text; convolutions of the decoder deepest first."""
    return "; ".join(
        [
            f"{network} " + "x".join(map(str, patch)) + f" at {'x'.join(f'{mm:.4f}' for mm in spacing_mm)} mm",
            f"batch {batch}{' as one' if batch_dice else ''}",
            f"strides {_digits(strides)}",
            f"kernels {_digits(kernels)}",
            "features " + " ".join(map(str, filters)),
            "encoder " + "".join(map(str, encoder)),
            "decoder " + "".join(map(str, decoder)),
        ]
    )


def _digits(levels: Sequence[Sequence[int]]) -> str:
    """Such as "111 122"."""
    return " ".join("".join(map(str, level)) for level in levels)
