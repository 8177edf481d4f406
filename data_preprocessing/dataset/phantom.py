"""A procedural data set in the layout of the Medical Segmentation Decathlon: `Task00_Phantom`.

Each case is an MRI-like scan of a body with an organ, a lesion inside the organ and a vessel beside it, on a
textured background, with a bias field, noise, and a voxel size and orientation of its own. The bias field makes
intensities of different structures overlap, so that a threshold does not separate them and a small network does.
Shapes are drawn in millimetres, so the voxel size changes their sampling and nothing else.

Axes are (S, A, R); points are in mm from the centre of the body.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from utils.axes import triple
from utils.errors import UserError
from utils.nifti import write_volume
from utils.schema import Geometry
from utils.temporary import temporary_folder

FOLDER = "Task00_Phantom"
LABELS = ("background", "organ", "lesion", "vessel")
ORIENTATIONS = ("RAS", "LPS", "LAS", "PSR")
FIELD_OF_VIEW_MM = (42.0, 58.0, 42.0)

_INTENSITIES = np.array([100.0, 165.0, 250.0, 40.0])
_NOISE_STD = 7.0
_SCANNER_UNITS = 1, 1, 2  # qform and sform: scanner space; millimetres


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhantomCase:
    """One scan in (S, A, R) order: image int16, label uint8, and the grid that it is stored on."""

    image: np.ndarray
    label: np.ndarray
    geometry: Geometry


def write_phantom(folder: Path, *, num_train: int = 16, num_test: int = 4, seed: int = 0) -> Path:
    """Write the phantom task into `folder`; the same numbers and seed give the same bytes.

    The labels of the test cases are in `labelsTs`, which dataset.json does not mention, so that predictions can be
    scored on scans that no training saw.

    Returns:
        `folder`/Task00_Phantom.

    Raises:
        UserError: the task is there already, or the folder cannot be written to.
    """
    task = Path(folder) / FOLDER
    if task.exists():
        raise UserError(f"{task} is there already; it is left as it is")
    names = [f"phantom_{number:03d}" for number in range(num_train + num_test)]
    try:
        task.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when complete: a run that is killed leaves no half-written task behind.
        with temporary_folder(task) as temporary:
            draft = temporary / FOLDER
            draft.mkdir()
            _write_cases(draft, "Tr", names[:num_train], first=0, seed=seed)
            _write_cases(draft, "Ts", names[num_train:], first=num_train, seed=seed)
            (draft / "dataset.json").write_text(_description(names[:num_train], names[num_train:], seed))
            draft.rename(task)
    except OSError as error:
        raise UserError(f"{task} cannot be written: {error.strerror}") from None
    return task


def _write_cases(task: Path, section: str, names: list[str], *, first: int, seed: int) -> None:
    for kind in ("images", "labels"):
        (task / f"{kind}{section}").mkdir()
    for number, name in enumerate(names, start=first):
        case = make_case(seed, number)
        write_volume(task / f"images{section}" / f"{name}.nii.gz", case.image, case.geometry)
        write_volume(task / f"labels{section}" / f"{name}.nii.gz", case.label, case.geometry)


def make_case(seed: int, number: int) -> PhantomCase:
    """The case `number` of the series `seed`; it does not depend on the other cases."""
    rng = np.random.default_rng([seed, number])
    spacing_mm = rng.uniform(0.8, 1.25, 3)
    spacing_mm[rng.integers(3)] *= rng.uniform(1.0, 1.28)
    shape = np.rint(np.array(FIELD_OF_VIEW_MM) * rng.uniform(0.95, 1.05, 3) / spacing_mm).astype(int)
    points = _points(shape, spacing_mm)
    label, body = _structures(points, rng)
    image = _intensities(points, label, rng)
    # Magnitude images hold no negative numbers, and nothing but zero where there is no body.
    image = np.where(body, np.maximum(np.rint(image * rng.uniform(2.0, 6.0)), 1), 0).astype(np.int16)
    orientation = ORIENTATIONS[number % len(ORIENTATIONS)]
    geometry = _geometry(shape, spacing_mm, orientation, origin_mm=rng.uniform(-60, 60, 3))
    return PhantomCase(image=image, label=label, geometry=geometry)


def _structures(points: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Label (S, A, R) uint8 and the mask of the body; points (3, S, A, R)."""
    wobble = _waves(rng, count=6, wavelength_mm=(18.0, 40.0))(points)
    body = _ellipsoid(points, np.zeros(3), np.array(FIELD_OF_VIEW_MM) * 0.56) < 1 + 0.04 * wobble
    centre = np.array([0.0, -4.0, -2.0]) + rng.uniform(-2.5, 2.5, 3)
    radii = rng.uniform((9.5, 12.0, 8.0), (12.5, 16.0, 10.5))
    organ = _ellipsoid(points, centre, radii) < 1 + 0.10 * wobble
    direction = rng.normal(size=3)
    lesion_centre = centre + 0.4 * radii * direction / np.linalg.norm(direction)
    lesion = _ellipsoid(points, lesion_centre, rng.uniform(4.8, 6.4, 3)) < 1 + 0.06 * wobble
    # The vessel runs from bottom to top, right and front of the organ, in a slow curve.
    phase, radius_mm = rng.uniform(0, 2 * np.pi), rng.uniform(3.6, 4.6)
    swing = rng.uniform(1.0, 2.5) * np.sin(points[0] / 7.0 + phase)
    start = np.array([15.5, 8.5]) + rng.uniform(-1.5, 1.5, 2)
    vessel = np.hypot(points[1] - start[0] - swing, points[2] - start[1] + swing) < radius_mm
    label = np.zeros(points.shape[1:], np.uint8)
    for value, mask in ((3, vessel), (1, organ), (2, lesion & organ)):
        label[mask & body] = value
    return label, body


def _intensities(points: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast, texture (strongest in the background), bias field and noise."""
    texture = _waves(rng, count=16, wavelength_mm=(5.0, 14.0))(points)
    bias = _waves(rng, count=4, wavelength_mm=(60.0, 120.0))(points)
    strength = np.array([12.0, 6.0, 7.0, 4.0])
    tissue = _INTENSITIES[label] + strength[label] * texture
    return tissue * np.exp(0.12 * bias) + rng.normal(0.0, _NOISE_STD, label.shape)


def _points(shape: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Positions of the voxel centres, (3, S, A, R) in mm from the centre of the grid."""
    indices = np.indices(tuple(shape), dtype=np.float64)
    return (indices - (shape[:, None, None, None] - 1) / 2) * spacing_mm[:, None, None, None]


def _ellipsoid(points: np.ndarray, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Distance from the centre in units of the radius; 1 on the surface."""
    scaled = (points - centre[:, None, None, None]) / radii[:, None, None, None]
    return np.sqrt((scaled**2).sum(axis=0))


def _waves(
    rng: np.random.Generator, *, count: int, wavelength_mm: tuple[float, float]
) -> Callable[[np.ndarray], np.ndarray]:
    """A smooth random field of unit variance: the sum of plane waves of random direction, length and phase."""
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = directions * 2 * np.pi / rng.uniform(*wavelength_mm, size=(count, 1))
    phases = rng.uniform(0, 2 * np.pi, count)

    def field(points: np.ndarray) -> np.ndarray:
        total = np.zeros(points.shape[1:])
        for vector, phase in zip(vectors, phases):
            total += np.cos(np.tensordot(vector, points, axes=1) + phase)
        return total * np.sqrt(2 / count)

    return field


def _geometry(shape: np.ndarray, spacing_mm: np.ndarray, orientation: str, *, origin_mm: np.ndarray) -> Geometry:
    """The grid of an (S, A, R) array when it is stored in another orientation."""
    ras = np.diag([*spacing_mm[::-1], 1.0])
    ras[:3, 3] = origin_mm
    # RAS+ array -> stored array: which axis goes where and which is flipped.
    change = nib.orientations.ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
    shape_ras = tuple(int(n) for n in shape[::-1])
    stored = [0, 0, 0]
    for axis, target in enumerate(change[:, 0].astype(int)):
        stored[target] = shape_ras[axis]
    # Single precision is what a NIfTI header holds.
    affine = (ras @ inv_ornt_aff(change, shape_ras)).astype(np.float32)
    qform_code, sform_code, units = _SCANNER_UNITS
    return Geometry(
        shape_xyz=triple(stored),
        affine=tuple(tuple(float(v) for v in row) for row in affine),
        qform_code=qform_code,
        sform_code=sform_code,
        xyzt_units=units,
    )


def _description(training: list[str], test: list[str], seed: int) -> str:
    content = {
        "name": "Phantom",
        "description": f"Procedurally generated scans (seed {seed}): an organ, a lesion in it, a vessel beside it",
        "licence": "public domain",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {str(value): name for value, name in enumerate(LABELS)},
        "numTraining": len(training),
        "numTest": len(test),
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in training],
        "test": [f"./imagesTs/{name}.nii.gz" for name in test],
    }
    return json.dumps(content, indent=2) + "\n"
