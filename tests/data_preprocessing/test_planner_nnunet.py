"""Whole plans of different data sets, number by number those of nnU-Net v2.

Expected values were computed by nnU-Net v2's own planner (nnunetv2 2.8.1, ExperimentPlanner with 8 GB) from these very
fingerprints. One rule differs on purpose: 2D batches are even, as the loader fills one from two volumes.
"""

from __future__ import annotations

import dataclasses

import pytest

from data_preprocessing.dataset.description_file import Dataset
from data_preprocessing.planning.planner import PlanOptions, make_plan
from tests.data_preprocessing.planning.builders import dataset
from utils.errors import UserError
from utils.schema import FORMAT_VERSION, Fingerprint, LabelScheme, Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scans:
    """Groups of equal scans: how many, spacing in mm, shape; and how many classes they have."""

    groups: tuple[tuple[int, tuple[float, ...], tuple[int, ...]], ...]
    num_classes: int
    gpu_memory_gb: float = 8.0

    def plan(self, configuration: str) -> Plan:
        spacings = [spacing for count, spacing, _ in self.groups for _ in range(count)]
        shapes = [shape for count, _, shape in self.groups for _ in range(count)]
        numbers = Fingerprint(
            version=FORMAT_VERSION, cases=tuple(map(str, range(len(spacings)))), spacings_mm=tuple(spacings),
            shapes_after_crop=tuple(shapes), foreground=(),
        )  # fmt: skip
        options = PlanOptions(
            source="auto", gpu_memory_gb=self.gpu_memory_gb, lowres=configuration == "3d_lowres"
        )  # fmt: skip
        return make_plan(
            self._dataset(), numbers, dim=2 if configuration == "2d" else 3, mask_channel=False, options=options
        )  # fmt: skip

    def _dataset(self) -> Dataset:
        values = tuple(range(self.num_classes))
        return dataclasses.replace(dataset(), labels=LabelScheme(names=tuple(map(str, values)), values=values))


SCANS = {
    "brain tumours": Scans(groups=((484, (1.0, 1.0, 1.0), (140, 171, 137)),), num_classes=4),
    "liver": Scans(groups=((131, (1.0, 0.7676, 0.7676), (482, 512, 512)),), num_classes=3),
    "prostate": Scans(
        groups=((24, (3.6, 0.625, 0.625), (20, 320, 320)), (8, (3.0, 0.6, 0.6), (24, 320, 320))), num_classes=3
    ),
    "percentile": Scans(groups=tuple((1, (4 + 0.5 * i, 0.7, 0.7), (24, 250, 230)) for i in range(21)), num_classes=2),
    "heart cine": Scans(
        groups=((150, (10.0, 1.5625, 1.5625), (9, 256, 216)), (50, (5.0, 1.5, 1.5), (18, 256, 216))), num_classes=4
    ),
    "coronal": Scans(groups=((30, (0.8, 4.0, 0.8), (300, 40, 280)),), num_classes=2),
    "sagittal": Scans(groups=((60, (0.9, 0.9, 2.0), (256, 256, 110)),), num_classes=5),
    "few small scans": Scans(groups=((12, (1.0, 1.0, 1.0), (36, 50, 35)),), num_classes=3),
    "many small scans": Scans(groups=((3000, (1.0, 1.0, 1.0), (36, 50, 35)),), num_classes=3),
    "mixed": Scans(
        groups=(
            (20, (2.0, 0.9, 0.9), (90, 400, 400)),
            (20, (1.0, 0.7, 0.7), (200, 512, 512)),
            (20, (1.5, 0.8, 0.8), (120, 450, 440)),
        ),
        num_classes=6,
    ),
    "104 organs": Scans(groups=((1000, (1.5, 1.5, 1.5), (250, 200, 200)),), num_classes=105),
    "spleen, 24 GB": Scans(groups=((41, (1.6, 0.79, 0.79), (187, 512, 512)),), num_classes=2, gpu_memory_gb=24.0),
    "thick and many": Scans(groups=((40, (3.2, 1.0, 1.0), (90, 256, 256)),), num_classes=2),
    "twice as coarse": Scans(groups=((40, (2.0, 1.0, 1.0), (64, 128, 128)),), num_classes=2),
}

PLANNED = {
    ("brain tumours", "3d"): (
        (0, 1, 2), (1.0, 1.0, 1.0), (128, 128, 128), 2, (32, 64, 128, 256, 320, 320), False,
        "111 222 222 222 222 222",
        "333 333 333 333 333 333",
    ),
    ("brain tumours", "2d"): (
        (0, 1, 2), (1.0, 1.0), (192, 160), 104, (32, 64, 128, 256, 512, 512), True,
        "11 22 22 22 22 22",
        "33 33 33 33 33 33",
    ),
    ("liver", "3d"): (
        (0, 1, 2), (1.0, 0.7676, 0.7676), (128, 128, 128), 2, (32, 64, 128, 256, 320, 320), True,
        "111 222 222 222 222 222",
        "333 333 333 333 333 333",
    ),
    ("liver", "3d_lowres"): (
        (0, 1, 2), (2.5001, 1.9191, 1.9191), (128, 128, 128), 2, (32, 64, 128, 256, 320, 320), False,
        "111 222 222 222 222 222",
        "333 333 333 333 333 333",
    ),
    ("liver", "2d"): (
        (0, 1, 2), (0.7676, 0.7676), (512, 512), 12, (32, 64, 128, 256, 512, 512, 512, 512), True,
        "11 22 22 22 22 22 22 22",
        "33 33 33 33 33 33 33 33",
    ),
    ("prostate", "3d"): (
        (0, 1, 2), (3.0, 0.625, 0.625), (24, 256, 256), 2, (32, 64, 128, 256, 320, 320, 320), False,
        "111 122 122 222 222 122 122",
        "133 133 333 333 333 333 333",
    ),
    ("prostate", "2d"): (
        (0, 1, 2), (0.625, 0.625), (320, 320), 32, (32, 64, 128, 256, 512, 512, 512), True,
        "11 22 22 22 22 22 22",
        "33 33 33 33 33 33 33",
    ),
    ("percentile", "3d"): (
        (0, 1, 2), (5.0, 0.7, 0.7), (40, 224, 192), 2, (32, 64, 128, 256, 320, 320), False,
        "111 122 122 222 222 222",
        "133 133 333 333 333 333",
    ),
    ("percentile", "2d"): (
        (0, 1, 2), (0.7, 0.7), (256, 256), 40, (32, 64, 128, 256, 512, 512, 512), True,
        "11 22 22 22 22 22 22",
        "33 33 33 33 33 33 33",
    ),
    ("heart cine", "3d"): (
        (0, 1, 2), (5.0, 1.5625, 1.5625), (20, 256, 224), 4, (32, 64, 128, 256, 320, 320), False,
        "111 122 222 222 122 122",
        "133 333 333 333 333 333",
    ),
    ("heart cine", "2d"): (
        (0, 1, 2), (1.5625, 1.5625), (256, 224), 56, (32, 64, 128, 256, 512, 512), True,
        "11 22 22 22 22 22",
        "33 33 33 33 33 33",
    ),
    ("coronal", "3d"): (
        (1, 0, 2), (4.0, 0.8, 0.8), (32, 256, 224), 2, (32, 64, 128, 256, 320, 320), False,
        "111 122 122 222 222 222",
        "133 133 333 333 333 333",
    ),
    ("coronal", "2d"): (
        (1, 0, 2), (0.8, 0.8), (320, 320), 32, (32, 64, 128, 256, 512, 512, 512), True,
        "11 22 22 22 22 22 22",
        "33 33 33 33 33 33 33",
    ),
    ("sagittal", "3d"): (
        (2, 0, 1), (2.0, 0.9, 0.9), (80, 160, 160), 2, (32, 64, 128, 256, 320, 320), False,
        "111 122 222 222 222 222",
        "133 333 333 333 333 333",
    ),
    ("sagittal", "2d"): (
        (2, 0, 1), (0.9, 0.9), (256, 256), 48, (32, 64, 128, 256, 512, 512, 512), True,
        "11 22 22 22 22 22 22",
        "33 33 33 33 33 33 33",
    ),
    ("few small scans", "3d"): (
        (0, 1, 2), (1.0, 1.0, 1.0), (40, 56, 40), 2, (32, 64, 128, 256), False,
        "111 222 222 222",
        "333 333 333 333",
    ),
    ("few small scans", "2d"): (
        (0, 1, 2), (1.0, 1.0), (56, 40), 16, (32, 64, 128, 256), True,
        "11 22 22 22",
        "33 33 33 33",
    ),
    ("many small scans", "3d"): (
        (0, 1, 2), (1.0, 1.0, 1.0), (40, 56, 40), 58, (32, 64, 128, 256), False,
        "111 222 222 222",
        "333 333 333 333",
    ),
    ("many small scans", "2d"): (
        (0, 1, 2), (1.0, 1.0), (56, 40), 1564, (32, 64, 128, 256), True,
        "11 22 22 22",
        "33 33 33 33",
    ),
    ("mixed", "3d"): (
        (0, 1, 2), (1.5, 0.8, 0.8), (56, 224, 192), 2, (32, 64, 128, 256, 320, 320), True,
        "111 222 222 222 122 122",
        "333 333 333 333 333 333",
    ),
    ("mixed", "3d_lowres"): (
        (0, 1, 2), (2.0764, 1.1074, 1.1074), (56, 224, 192), 2, (32, 64, 128, 256, 320, 320), False,
        "111 222 222 222 122 122",
        "333 333 333 333 333 333",
    ),
    ("mixed", "2d"): (
        (0, 1, 2), (0.8, 0.8), (512, 448), 14, (32, 64, 128, 256, 512, 512, 512), True,
        "11 22 22 22 22 22 22",
        "33 33 33 33 33 33 33",
    ),
    ("104 organs", "3d"): (
        (0, 1, 2), (1.5, 1.5, 1.5), (128, 112, 112), 2, (32, 64, 128, 256, 320), False,
        "111 222 222 222 222",
        "333 333 333 333 333",
    ),
    ("104 organs", "2d"): (
        (0, 1, 2), (1.5, 1.5), (224, 224), 48, (32, 64, 128, 256, 512, 512), True,
        "11 22 22 22 22 22",
        "33 33 33 33 33 33",
    ),
    ("spleen, 24 GB", "3d"): (
        (0, 1, 2), (1.6, 0.79, 0.79), (80, 256, 256), 2, (32, 64, 128, 256, 320, 320, 320), False,
        "111 122 222 222 222 222 122",
        "133 333 333 333 333 333 333",
    ),
    ("spleen, 24 GB", "2d"): (
        (0, 1, 2), (0.79, 0.79), (512, 512), 36, (32, 64, 128, 256, 512, 512, 512, 512), True,
        "11 22 22 22 22 22 22 22",
        "33 33 33 33 33 33 33 33",
    ),
    ("thick and many", "3d"): (
        (0, 1, 2), (3.2, 1.0, 1.0), (64, 192, 160), 2, (32, 64, 128, 256, 320, 320), False,
        "111 122 222 222 222 222",
        "133 333 333 333 333 333",
    ),
    ("thick and many", "2d"): (
        (0, 1, 2), (1.0, 1.0), (256, 256), 48, (32, 64, 128, 256, 512, 512, 512), True,
        "11 22 22 22 22 22 22",
        "33 33 33 33 33 33 33",
    ),
    ("twice as coarse", "3d"): (
        (0, 1, 2), (2.0, 1.0, 1.0), (64, 128, 128), 2, (32, 64, 128, 256, 320, 320), False,
        "111 122 222 222 222 222",
        "133 333 333 333 333 333",
    ),
    ("twice as coarse", "2d"): (
        (0, 1, 2), (1.0, 1.0), (128, 128), 128, (32, 64, 128, 256, 512, 512), True,
        "11 22 22 22 22 22",
        "33 33 33 33 33 33",
    ),
}  # fmt: skip
"""(data set, configuration) -> axes, spacing, patch, batch, features, Dice over the batch, strides, kernels."""

NO_LOWRES = (
    "brain tumours",
    "prostate",
    "percentile",
    "heart cine",
    "coronal",
    "sagittal",
    "few small scans",
    "many small scans",
    "104 organs",
    "spleen, 24 GB",
    "thick and many",
    "twice as coarse",
)
"""Patches cover a quarter of the median scan, or a coarser stage would save less than half of it."""


@pytest.mark.parametrize(("name", "configuration"), sorted(PLANNED))
def test_plan_is_that_of_nnunet(name, configuration):
    plan = SCANS[name].plan(configuration)
    axes, spacing_mm, patch, batch, filters, batch_dice, strides, kernels = PLANNED[name, configuration]
    stage = plan.stage
    assert plan.axes == axes and stage.spacing_mm == pytest.approx(spacing_mm, abs=1e-4)
    assert (stage.patch_size, stage.batch_size) == (patch, batch)
    assert (digits(stage.strides), digits(stage.kernels)) == (strides, kernels)
    assert stage.filters == filters
    # 2D stages leave it to --batch_dice auto.
    assert stage.batch_dice == (batch_dice and configuration != "2d")


@pytest.mark.parametrize("name", NO_LOWRES)
def test_low_resolution_stage_is_refused_where_nnunet_makes_none(name):
    with pytest.raises(UserError, match="needs no low-resolution stage"):
        SCANS[name].plan("3d_lowres")


def digits(levels: tuple[tuple[int, ...], ...]) -> str:
    """Such as "111 122"."""
    return " ".join("".join(map(str, level)) for level in levels)
