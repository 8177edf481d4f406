"""Scans of noise as NIfTI files with a dataset.json: what the benchmarks of preprocessing and inference read.

A scan shows a noisy ellipsoid that touches its borders, in air. Its voxels are somewhat smaller than the plan's, so
that it is resampled; the plan's grid of it is as large as a shard of synthetic.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from data_preprocessing.dataset.synthetic import boxes, volume_shape
from data_preprocessing.normalization import RGB_MAXIMUM
from utils.axes import triple
from utils.nifti import write_volume
from utils.schema import Geometry, Plan

VOXEL_RATIO = 0.8
"""Voxel size of a scan, in units of the plan's."""
SLICE_MM = 3.0
"""Distance of the slices of scans for a 2D plan, which says nothing of it."""
CT_INTENSITIES, OTHER_INTENSITIES = (100, -1000), (300, 0)
"""Mean of the tissue, and air, by the channel's normalisation."""
DEVIATION = 60


def write_benchmark_scans(folder: Path, plan: Plan, *, num_scans: int, scale: int = 1, seed: int = 0) -> Path:
    """Write a task of `num_scans` labelled scans; the same seed writes the same bytes.

    Args:
        folder: in which the task's folder is made.
        plan: channels, labels, and the grid that the scans are near to.
        num_scans: training cases.
        scale: as in `synthetic.NoiseShape`; scans have exactly so many times the voxels.
        seed: of intensities and labels.

    Returns:
        The folder of the task.
    """
    task = folder / plan.dataset
    names = [f"noise_{index}" for index in range(num_scans)]
    geometry = _geometry(scan_shape(plan, scale), plan)
    for kind in ("images", "labels"):
        (task / f"{kind}Tr").mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        rng = np.random.default_rng((seed, index))
        shape = geometry.shape_xyz[::-1]
        write_volume(task / "imagesTr" / f"{name}.nii.gz", _image(plan, shape, rng), geometry)
        write_volume(task / "labelsTr" / f"{name}.nii.gz", boxes(shape, plan.labels.num_classes, rng), geometry)
    content = {
        "modality": {str(index): channel.name for index, channel in enumerate(plan.channels)},
        "labels": {str(value): name for value, name in zip(plan.labels.values, plan.labels.names)},
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names],
        "test": [],
    }
    (task / "dataset.json").write_text(json.dumps(content, indent=2) + "\n")
    return task


def scan_shape(plan: Plan, scale: int = 1) -> tuple[int, int, int]:
    """(S, A, R) of a scan, of which the plan's grid is about `synthetic.volume_shape` and no larger.

    So windows that overlap by half are as many times more as the voxels are, and no row of them is begun for a voxel.
    """
    ratios = [VOXEL_RATIO] * 3 if plan.stage.dim == 3 else [1.0, VOXEL_RATIO, VOXEL_RATIO]
    small, large = volume_shape(plan), volume_shape(plan, scale)
    return triple(math.floor(n / ratio) * (grown // n) for n, grown, ratio in zip(small, large, ratios))


def _image(plan: Plan, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """(S, A, R) int16, or (C, S, A, R) for several channels; made plane by plane, in little more memory than that."""
    image = np.empty((len(plan.channels), *shape), np.int16)
    axes = [(2 * np.arange(n) + 1) / n - 1 for n in shape]
    in_plane = axes[1][:, None] ** 2 + axes[2][None] ** 2
    for channel, described in zip(image, plan.channels):
        mean, air = CT_INTENSITIES if described.scheme == "ct" else OTHER_INTENSITIES
        for plane, height in zip(channel, axes[0]):
            tissue = mean + DEVIATION * rng.standard_normal(in_plane.shape, dtype=np.float32)
            plane[:] = np.where(in_plane + height**2 < 1, np.rint(tissue), air)
            if described.scheme == "rgb_to_0_1":
                np.clip(plane, 0, RGB_MAXIMUM, out=plane)
    return image if len(image) > 1 else image[0]


def _geometry(shape: tuple[int, int, int], plan: Plan) -> Geometry:
    stage = plan.stage
    spacing = tuple(VOXEL_RATIO * size for size in stage.spacing_mm)
    spacing = spacing if stage.dim == 3 else (SLICE_MM, *spacing)
    return Geometry(
        shape_xyz=shape[::-1], affine=tuple(map(tuple, np.diag([*spacing[::-1], 1.0]).tolist())),
        qform_code=1, sform_code=1, xyzt_units=2,
    )  # fmt: skip
