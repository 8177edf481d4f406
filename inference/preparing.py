"""Scans on their way to a network: read, or taken from memory, and preprocessed as the training cases were.

Shapes: C channels, D H W the preprocessed grid; S A R (superior, anterior, right: z, y, x of a scan in RAS+).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.preprocessor import CaseInput, preprocess_case
from inference.scans import find_input
from utils.errors import UserError
from utils.nifti import Volume, read_image
from utils.schema import CaseMeta, Geometry, Plan


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PreparedScan:
    """A scan as the network sees it: image (C, D, H, W) float32, and the way back.

    `previous` is the same scan as the first stage of a cascade sees it. `file_geometry` is the grid of its file where
    the scan was brought to the common grid of a set of models, which is that of `meta` then. `scan` is the scan itself,
    for a cascade's second stage that looks at it once more (see `looks_again`).
    """

    image: np.ndarray
    meta: CaseMeta
    previous: PreparedScan | None = None
    file_geometry: Geometry | None = None
    scan: Volume | None = None

    @property
    def geometry(self) -> Geometry:
        """The grid on which the mask is wanted."""
        return self.file_geometry or self.meta.geometry


def read_scan(paths: Path | str | Sequence[Path | str]) -> tuple[Volume, str]:
    """The scan of one file, one file per channel, or a folder with one DICOM series, and what messages call it.

    Raises:
        UserError: a file is missing, damaged, or on another grid than the first; a folder holds no or several scans.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not files:
        raise UserError("no file was given: a scan is one file, or one file for each channel")
    if len(files) == 1 and files[0].is_dir():
        scans = find_input(files[0], 1).scans
        if len(scans) != 1:
            raise UserError(f"{files[0]} holds {len(scans)} scans, not one; give its files")
        return scans[0].read(), scans[0].title
    return read_image(files), str(files[0])


def as_volume(image: np.ndarray, spacing_mm: Sequence[float]) -> Volume:
    """An array (C, S, A, R) or (S, A, R) in memory as if it had been read from a file in RAS+ orientation.

    Raises:
        UserError: another shape, or voxel sizes that are not positive.
    """
    wrong = UserError(
        f"an image is (S, A, R) or (C, S, A, R) of real numbers with three positive voxel sizes in mm, "
        f"got shape {np.shape(image)} of {np.asarray(image).dtype} and spacing {spacing_mm}"
    )
    if np.asarray(image).dtype.kind not in "biuf" or np.shape(spacing_mm) != (3,):
        raise wrong
    array = np.ascontiguousarray(image, dtype=np.float32)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or not array.size or not all(0 < size < math.inf for size in spacing_mm):
        raise wrong
    slices, rows, columns = (float(size) for size in spacing_mm)
    spacing = (slices, rows, columns)
    affine = np.diag([*reversed(spacing), 1.0])
    geometry = Geometry(
        shape_xyz=array.shape[:0:-1], affine=tuple(map(tuple, affine.tolist())), qform_code=1, sform_code=1,
        xyzt_units=2,
    )  # fmt: skip
    return Volume(array=array, spacing_mm=spacing, geometry=geometry)


def finite_scan(volume: Volume, name: str) -> Volume:
    """The scan with 0 for NaN and infinite intensities, which lie outside of the body; the error output says so.

    Raises:
        UserError: there is no other intensity.
    """
    odd = odd_voxels(volume)
    if not odd:
        return volume
    if odd == volume.array.size:
        raise UserError(f"{name} has NaN or infinite intensities only; replace the file")
    print(f"warning: {name}: {odd_remark(odd)}", file=sys.stderr)
    finite = np.isfinite(volume.array)
    return dataclasses.replace(volume, array=np.where(finite, volume.array, np.float32(0)))


def odd_voxels(volume: Volume) -> int:
    """How many NaN and infinite intensities a scan has."""
    if all(math.isfinite(bound) for bound in (volume.array.min(), volume.array.max())):
        return 0
    return int(np.count_nonzero(~np.isfinite(volume.array)))


def odd_remark(odd: int) -> str:
    """What is said of a scan with so many of them; empty where there are none."""
    return f"{odd} NaN or infinite intensities are taken as 0" if odd else ""


def looks_again(plan: Plan) -> bool:
    """Whether the mask of a cascade's first stage is put beside what is not zero in the scan itself."""
    return plan.previous_stage is not None and plan.rules.previous_mask == "nearest"


def prepare_scan(volume: Volume, plan: Plan, name: str, *, also_inside: np.ndarray | None = None) -> PreparedScan:
    """Preprocess a scan that has no label; see `ConfigurationPredictor.prepare` and `preprocess_case`."""
    case = CaseInput(
        case=name, image=volume, label=None, image_path=name, label_path=None, source_stamp="", plan_stamp=""
    )
    done = preprocess_case(case, plan, also_inside=also_inside)
    return PreparedScan(image=done.image, meta=done.meta, scan=volume if looks_again(plan) else None)
