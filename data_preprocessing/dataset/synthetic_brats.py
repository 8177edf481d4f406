"""Small made-up scans in the layout that the BraTS challenge of 2021 is downloaded in.

A folder for each patient, with one file for each of four MR sequences and, for training, a segmentation with the values
of the challenge: 1 necrotic core, 2 oedema, 4 enhancing tumour. Grids are as the challenge has them, only smaller: 1 mm
voxels, stored right to left and front to back, the skull taken off, so that everything outside of the brain is 0.

Each tumour is a core of dead tissue within an enhancing shell within an oedema. No sequence shows all three: FLAIR and
T2 show the oedema, T1 with contrast agent (`t1ce`) the shell, and the core is dark in T1.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import new_folder
from utils.nifti import write_volume
from utils.schema import Geometry

SEQUENCES = ("flair", "t1", "t1ce", "t2")
TRAINING, VALIDATION = "BraTS2021_train", "BraTS2021_val"
SHAPE_XYZ = (30, 36, 28)
"""Voxels of 1 mm; the challenge has 240 x 240 x 155."""
NECROTIC, OEDEMA, ENHANCING = 1, 2, 4
WITHOUT_ENHANCEMENT = 5
"""Every so-many-th patient has a tumour in which nothing takes up the contrast agent."""

_VALUES = {
    # Background, white matter, grey matter, then the necrotic core, the oedema and the enhancing shell.
    "flair": (0, 200, 240, 220, 390, 300),
    "t1": (0, 330, 260, 130, 220, 230),
    "t1ce": (0, 330, 260, 150, 230, 520),
    "t2": (0, 180, 240, 420, 380, 260),
}
_KINDS = {0: 0, NECROTIC: 3, OEDEMA: 4, ENHANCING: 5}
_NOISE = 14.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patient:
    """The sequences by their names, int16, and the segmentation, uint8; all (S, A, R)."""

    scans: dict[str, np.ndarray]
    label: np.ndarray


def write_brats(folder: Path, *, num_train: int = 10, num_val: int = 2, seed: int = 0) -> Path:
    """Write `BraTS2021_train` and `BraTS2021_val` into a new folder; the same numbers and seed give the same voxels.

    The segmentations of the validation cases are kept by the challenge's organisers. Here they lie in
    `BraTS2021_val_labels`, one file for each patient, so that masks can be scored.

    Returns:
        `folder`.

    Raises:
        UserError: the folder is there and holds something, or cannot be written to.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there already and is no empty folder; it is left as it is")
    try:
        with new_folder(folder) as draft:
            for number in range(num_train + num_val):
                section = TRAINING if number < num_train else VALIDATION
                name = f"BraTS2021_{number:05d}"
                patient = make_patient(seed, number)
                place = draft / section / name
                place.mkdir(parents=True)
                for sequence, scan in patient.scans.items():
                    write_volume(place / f"{name}_{sequence}.nii.gz", scan, _GEOMETRY)
                label = place / f"{name}_seg.nii.gz"
                if section == VALIDATION:
                    label = draft / f"{VALIDATION}_labels" / f"{name}.nii.gz"
                    label.parent.mkdir(exist_ok=True)
                write_volume(label, patient.label, _GEOMETRY)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    return folder


def make_patient(seed: int, number: int) -> Patient:
    """The patient `number` of the series `seed`, whatever other patients there are."""
    rng = np.random.default_rng([seed, number])
    shape = np.array(SHAPE_XYZ[::-1])
    points = np.moveaxis(np.indices(tuple(shape)), 0, -1) - (shape - 1) / 2
    brain = _distance(points, np.zeros(3), shape * rng.uniform(0.43, 0.46, 3)) < 1
    # Grey matter lies in folds along the surface.
    depth = _distance(points, np.zeros(3), shape * 0.36)
    folds = np.sin(points @ rng.normal(size=3) * 0.9) > 0.3
    tissue = np.where(brain, 1 + ((depth > 1) | folds), 0)
    label = np.where(brain, _tumour(points, rng, enhances=number % WITHOUT_ENHANCEMENT != WITHOUT_ENHANCEMENT - 1), 0)
    for value, kind in _KINDS.items():
        if value:
            tissue[label == value] = kind
    # Scanners differ in gain, and the gain within a scan changes slowly.
    bias = np.exp(0.08 * np.sin(points @ rng.normal(size=3) * 0.06))
    scans = {}
    for sequence in SEQUENCES:
        clean = np.array(_VALUES[sequence], float)[tissue] * bias * rng.uniform(0.8, 1.25)
        noisy = np.maximum(np.rint(clean + rng.normal(0, _NOISE, clean.shape)), 1)
        scans[sequence] = np.where(brain, noisy, 0).astype(np.int16)
    return Patient(scans=scans, label=label.astype(np.uint8))


def _tumour(points: np.ndarray, rng: np.random.Generator, *, enhances: bool) -> np.ndarray:
    """Values (S, A, R) of the challenge, one ellipsoid within the other."""
    centre = rng.uniform(-1, 1, 3) * (3, 5, 3.5)
    radii = rng.uniform(6.5, 8.0, 3)
    distance = _distance(points, centre, radii)
    core = _distance(points, centre + rng.uniform(-0.8, 0.8, 3), radii * 0.7)
    label = np.where(distance < 1, OEDEMA, 0)
    label[core < 1] = ENHANCING if enhances else NECROTIC
    label[core < 0.55] = NECROTIC
    return label


def _distance(points: np.ndarray, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """From the centre of an ellipsoid, in units of its radii; points are (S, A, R, 3)."""
    return np.sqrt((((points - centre) / radii) ** 2).sum(axis=-1))


_GEOMETRY = Geometry(
    shape_xyz=SHAPE_XYZ,
    affine=((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, SHAPE_XYZ[1] - 1.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)),
    qform_code=1, sform_code=1, xyzt_units=2,
)  # fmt: skip
