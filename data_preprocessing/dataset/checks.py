"""The integrity of one case: can its files be read, and do image and label fit each other and dataset.json?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from nibabel.orientations import aff2axcodes, inv_ornt_aff, io_orientation

from data_preprocessing.dataset.case_files import CaseFiles, missing_files
from data_preprocessing.dataset.description_file import DESCRIPTION, Dataset
from data_preprocessing.dataset.findings import Finding
from data_preprocessing.normalization import intensity_fault, scheme_of
from utils.errors import UserError
from utils.nifti import GRID_TOLERANCE_MM, Volume, allowed_mm, grid_difference_mm, is_same_grid, read_image, read_label
from utils.schema import Geometry
from utils.values import distinct_values

R = TypeVar("R")


def read_case(
    files: CaseFiles, *, tolerance_mm: float = GRID_TOLERANCE_MM
) -> tuple[Volume | None, Volume | None, list[Finding]]:
    """Image, label, and what kept either from being read (None then; the label is also None where there is none)."""
    missing = missing_files([files])
    findings = [_finding(files, "file", f"{path} does not exist") for path in missing]

    def attempt(read: Callable[[], R], paths: set[Path]) -> R | None:
        if paths.intersection(missing):
            return None
        try:
            return read()
        except UserError as error:
            findings.append(_finding(files, "file", str(error)))
        except MemoryError as error:
            findings.append(_finding(files, "file", f"{min(paths)}: not enough memory ({error})"))
        except Exception as error:  # One broken file must not hide the faults of the others.
            findings.append(_finding(files, "file", f"{min(paths)}: {type(error).__name__}: {error}"))
        return None

    image = attempt(lambda: read_image(files.images, tolerance_mm=tolerance_mm), set(files.images))
    label = None
    path = files.label
    if path is not None:
        like = None if image is None else image.geometry
        label = attempt(lambda: read_label(path, like, tolerance_mm=tolerance_mm), {path})
    return image, label, findings


def check_case(
    files: CaseFiles,
    image: Volume | None,
    label: Volume | None,
    dataset: Dataset,
    *,
    tolerance_mm: float = GRID_TOLERANCE_MM,
) -> list[Finding]:
    """Everything that makes a case unfit for training or prediction; empty if it is sound.

    Args:
        files: their names are in the messages.
        image: (C, S, A, R); None if it could not be read: the label is checked all the same.
        label: (S, A, R) values, or None.
        dataset: channels and label values.
        tolerance_mm: distance that corners of the label's grid may have from those of the image's.
    """
    messages = []
    if image is not None:
        messages += [(kind, f"{files.images[0]} {text}") for kind, text in _image_faults(image.array, dataset)]
    if image is not None and label is not None:
        messages += [("grid", f"{files.label} {text}") for text in _grid_faults(image, label, tolerance_mm)]
    if label is not None:
        ignored = dataset.labels.ignore_value
        known = sorted({*dataset.labels.values, *(() if ignored is None else (ignored,))})
        unknown = np.setdiff1d(distinct_values(label.array), known)
        if unknown.size:
            shown = ", ".join(map(str, unknown[:10]))
            messages.append(("labels", f"{files.label} has label values that {DESCRIPTION} does not name: {shown}"))
    return [_finding(files, kind, message) for kind, message in messages]


def orientation(geometry: Geometry) -> str:
    """Directions of the stored axes, such as RAS: x to the right, y to the front, z to the top."""
    return "".join(aff2axcodes(np.asarray(geometry.affine)))


def is_reoriented(label: Volume, image: Volume, tolerance_mm: float = GRID_TOLERANCE_MM) -> bool:
    """Whether two scans cover the same voxel positions, perhaps with their axes stored in another order."""
    if label.array.shape[-3:] != image.array.shape[-3:]:
        return False
    here, there = (_ras_affine(volume.geometry) for volume in (label, image))
    return grid_difference_mm(here, there, label.array.shape[:-4:-1]) <= allowed_mm(there, tolerance_mm)


def _ras_affine(geometry: Geometry) -> np.ndarray:
    affine = np.asarray(geometry.affine)
    return affine @ inv_ornt_aff(io_orientation(affine), geometry.shape_xyz)


def _image_faults(array: np.ndarray, dataset: Dataset) -> list[tuple[str, str]]:
    faults = []
    if len(array) != len(dataset.channels):
        expected = f"{len(dataset.channels)} ({', '.join(dataset.channels)})"
        faults.append(("channels", f"has {len(array)} channels, {DESCRIPTION} names {expected}"))
    for index, (name, channel) in enumerate(zip(dataset.channels, array)):
        fault = intensity_fault(channel, scheme_of(name))
        faults += [] if fault is None else [("intensities", f"channel {index} ({name}) {fault}")]
    num_odd = int(array.size - np.count_nonzero(np.isfinite(array)))
    if num_odd:
        faults.append(("intensities", f"has {num_odd} NaN or infinite intensities"))
    if not array.any():
        faults.append(("intensities", "is empty: all intensities are zero"))
    return faults


def _grid_faults(image: Volume, label: Volume, tolerance_mm: float) -> list[str]:
    grid, label_grid = image.geometry, label.geometry
    same_shape = grid.shape_xyz == label_grid.shape_xyz
    if is_same_grid(label_grid, grid, tolerance_mm):
        return []
    if is_reoriented(label, image, tolerance_mm):
        return [f"is stored as {orientation(label_grid)}, its image as {orientation(grid)}, on the same positions"]
    if not same_shape:
        return [f"has shape {label_grid.shape_xyz}, its image {grid.shape_xyz}"]
    distance_mm = grid_difference_mm(grid.affine, label_grid.affine, grid.shape_xyz)
    spacings = [tuple(round(s, 4) for s in volume.spacing_mm) for volume in (label, image)]
    if spacings[0] != spacings[1]:
        return [
            f"has voxels of {_times(spacings[0])} mm (S, A, R), its image of {_times(spacings[1])}: "
            f"{distance_mm:.3g} mm away at the far corner"
        ]
    return [f"lies {distance_mm:.3g} mm away from its image (orientation or origin)"]


def _times(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _finding(files: CaseFiles, kind: str, message: str) -> Finding:
    return Finding(kind=kind, message=message, case=files.case)
