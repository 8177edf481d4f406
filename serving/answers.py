"""What a request is answered with: the mask as a file, and a record of what it shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inference.predictor import Predictor
from report.layers import Structure, structures_of
from utils.nifti import Volume, write_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """Content of a `.nii.gz`, and a record that JSON can hold."""

    mask: bytes
    record: dict[str, Any]


def structures(predictor: Predictor) -> tuple[Structure, ...]:
    """What the values of a mask mean."""
    if predictor.merge is not None:
        return tuple(Structure(name=name, value=value) for name, value in predictor.merge.labels.items())
    return structures_of(predictor.plan.labels)


def make_answer(
    mask: np.ndarray, volume: Volume, predictor: Predictor, seconds: Mapping[str, float], path: Path
) -> Answer:
    """The answer for a mask (S, A, R) of a scan; it is written to `path` as any other mask is."""
    write_mask(path, mask, volume.geometry)
    counts = np.bincount(mask.ravel(), minlength=256)
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    found = [
        {"name": each.name, "value": each.value, "voxels": int(counts[each.value]),
         "volume_ml": round(int(counts[each.value]) * voxel_ml, 6)}
        for each in structures(predictor)
    ]  # fmt: skip
    record: dict[str, Any] = {
        "structures": found, "shape_xyz": list(volume.geometry.shape_xyz),
        "spacing_mm_sar": [round(size, 6) for size in volume.spacing_mm],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        # How sure the model is; null: this version does not say.
        "doubt": None,
    }  # fmt: skip
    return Answer(mask=path.read_bytes(), record=record)
