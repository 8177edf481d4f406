"""Errors as people make them, planted in a copy of a data set: what an audit of labels must find.

Arrays: labels (S, A, R) of file values, 0 is background.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from utils.errors import UserError
from utils.files import link_or_copy, new_folder, write_json
from utils.nifti import read_label, write_volume

KINDS = ("shift", "swap", "missing class", "dilation", "missing slices", "other case")
SHIFT_VOXELS, DILATION_VOXELS = 3, 2
PLANTED = "planted.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planting:
    """How many cases are taken of a data set, and how many of them get a wrong label.

    Attributes:
        cases: to take, drawn by the seed; 0: all.
        share: of them that get an error; the kinds take turns.
        seed: draws cases, kinds and errors.
    """

    cases: int
    share: float
    seed: int


def plant_errors(source: Path, target: Path, planting: Planting) -> dict[str, str]:
    """Write a copy of a data set (`dataset.json`, training cases only) with wrong labels, and `planted.json`.

    Returns:
        Case -> kind of its error, for the cases that have one.

    Raises:
        UserError: the data set cannot be read or has too few cases.
    """
    content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    rng = random.Random(planting.seed)  # noqa: S311 (no secret)
    listed = sorted(content["training"], key=lambda entry: entry["label"])
    if planting.cases > len(listed):
        raise UserError(f"{source} has {len(listed)} training cases, {planting.cases} are asked for")
    chosen = sorted(rng.sample(listed, planting.cases or len(listed)), key=lambda entry: entry["label"])
    wrong = rng.sample(range(len(chosen)), round(planting.share * len(chosen)))
    with new_folder(target) as folder:
        return _write(source, folder, content | {"training": chosen}, wrong, rng)


def _write(
    source: Path, target: Path, content: dict[str, Any], wrong: Sequence[int], rng: random.Random
) -> dict[str, str]:
    chosen = content["training"]
    planted: dict[str, str] = {}
    for number, index in enumerate(wrong):
        entry, kind = chosen[index], KINDS[number % len(KINDS)]
        label = read_label(source / entry["label"])
        others = [each for each in range(len(chosen)) if each != index]
        other = read_label(source / chosen[rng.choice(others)]["label"]).array
        place = target / entry["label"]
        place.parent.mkdir(parents=True, exist_ok=True)
        changed = make_wrong(label.array, kind, other, rng, label.spacing_mm)
        write_volume(place, changed.astype(np.uint8), label.geometry)
        planted[place.name.removesuffix(".nii.gz")] = kind
    for entry in chosen:
        for name in (entry["image"], entry["label"]):
            if not (target / name).exists():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source / name, target / name)
    write_json(content | {"numTraining": len(chosen), "test": [], "numTest": 0},
               target / "dataset.json")  # fmt: skip
    write_json(planted, target / PLANTED)
    return planted


def make_wrong(
    label: np.ndarray, kind: str, other: np.ndarray, rng: random.Random, spacing_mm: Sequence[float] = (1, 1, 1)
) -> np.ndarray:
    """A label with an error of a kind that changes it; `other` is the label of another case."""
    if kind == "shift":
        return shifted(label, axis=rng.randrange(3), voxels=rng.choice((-SHIFT_VOXELS, SHIFT_VOXELS)))
    if kind == "swap":
        return swapped(label, rng)
    if kind == "missing class":
        return np.where(label == rng.choice(_values(label)), 0, label)
    if kind == "dilation":
        return dilated(label, DILATION_VOXELS, spacing_mm)
    if kind == "missing slices":
        return half_missing(label, last=rng.random() < 0.5)
    return on_shape(other, label.shape)


def shifted(label: np.ndarray, *, axis: int, voxels: int) -> np.ndarray:
    """Moved along an axis; what leaves the volume is lost."""
    moved = np.roll(label, voxels, axis)
    edge = slice(0, voxels) if voxels > 0 else slice(voxels, None)
    np.moveaxis(moved, axis, 0)[edge] = 0
    return moved


def swapped(label: np.ndarray, rng: random.Random) -> np.ndarray:
    """Two classes have each other's value; a single one becomes what is around it, within its box."""
    values = _values(label)
    first, second = rng.sample(values, 2) if len(values) > 1 else (values[0], 0)
    found = label.copy()
    box = ndimage.find_objects((label > 0).astype(np.uint8))[0]
    inside, part = label[box], found[box]
    part[inside == first], part[inside == second] = second, first
    return found


def dilated(label: np.ndarray, voxels: int, spacing_mm: Sequence[float] = (1, 1, 1)) -> np.ndarray:
    """The foreground grown by a ball of so many of the finest voxels, each new voxel with the class that is nearest."""
    unit = [each / min(spacing_mm) for each in spacing_mm]
    distance, nearest = ndimage.distance_transform_edt(label == 0, unit, return_indices=True)
    return np.where(distance <= voxels, label[tuple(nearest)], 0)


def half_missing(label: np.ndarray, *, last: bool) -> np.ndarray:
    """Without the foreground of the lower or of the upper half of its slices."""
    slices = np.flatnonzero(label.any(axis=(1, 2)))
    middle = (slices[0] + slices[-1] + 1) // 2
    found = label.copy()
    found[middle:] = 0 if last else found[middle:]
    found[:middle] = found[:middle] if last else 0
    return found


def on_shape(label: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Cut or filled up with background about its middle."""
    found = np.zeros(shape, label.dtype)
    into, out_of = [], []
    for have, want in zip(label.shape, shape):
        low = (want - have) // 2
        into.append(slice(max(0, low), max(0, low) + min(have, want)))
        out_of.append(slice(max(0, -low), max(0, -low) + min(have, want)))
    found[tuple(into)] = label[tuple(out_of)]
    return found


def _values(label: np.ndarray) -> list[int]:
    return [int(value) for value in np.unique(label) if value]
