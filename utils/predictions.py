"""Predictions and their labels: paired by case name, checked against each other, read as class indices.

Axes: z y x as stored, S A R as worked on (see utils/nifti.py). K classes or regions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from utils.errors import UserError, list_problems
from utils.nifti import Volume, read_label, to_working
from utils.scan_formats import require_package
from utils.scan_names import (
    PICTURE_ENDINGS,
    VOLUME_ENDINGS,
    is_picture,
    left_out,
    scan_ending,
    scan_files,
    scan_stem,
)
from utils.schema import LabelScheme
from utils.scoring import class_indices, read_label_on

ARRAY = ".npy"
REGION_THRESHOLD = 0.5
SUFFIXES = (*VOLUME_ENDINGS, ARRAY)
"""Where a case has a mask and an array, the mask counts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A prediction and its label."""

    case: str
    prediction: Path
    label: Path


def find_pairs(preds: Path, lbls: Path) -> tuple[list[Pair], int]:
    """Every prediction with its label, by case name, and the number of labels.

    Raises:
        UserError: a folder is missing, there is no prediction, or predictions lack their label.
    """
    for flag, folder in (("--preds", preds), ("--lbls", lbls)):
        if not folder.is_dir():
            raise UserError(f"{flag} {folder} is not a folder")
    problems: list[str] = []
    labels = _cases(scan_files(lbls), problems)
    # Of a folder of predictions pictures are masks only where labels are.
    endings = VOLUME_ENDINGS if not all(map(is_picture, labels.values())) else (*VOLUME_ENDINGS, *PICTURE_ENDINGS)
    found = _cases(scan_files(preds, *endings), problems)
    for path in sorted(preds.iterdir()):
        if path.suffix.lower() == ARRAY and not path.name.startswith(".") and not path.is_dir():
            found.setdefault(path.stem, path)
    found = dict(sorted(found.items()))
    if problems:
        raise list_problems("several files for one case:", problems, advice="Remove or move all but one of each.")
    if not found:
        unread = "".join(f"\n  - left out: {line}" for line in left_out(preds))
        kinds = ", ".join(SUFFIXES)
        raise UserError(f"--preds {preds} holds no predictions ({kinds}); run main.py with --save_preds{unread}")
    require_package((*found.values(), *labels.values()))
    missing = [f"{path.name}: no label of {case} in {lbls}" for case, path in found.items() if case not in labels]
    if missing:
        raise list_problems("predictions without a label:", missing, advice="Give the folder that has all of them.")
    return [Pair(case=case, prediction=path, label=labels[case]) for case, path in found.items()], len(labels)


def read_prediction(pair: Pair, label: Volume, labels: LabelScheme) -> np.ndarray:
    """Class indices (S, A, R) uint8 of a mask or of probabilities, checked against the label's grid.

    Raises:
        UserError: the file cannot be read, holds unknown values, or lies on another grid.
    """
    path, grid = pair.prediction, label.geometry
    if not scan_ending(path):
        stored = _load_array(path)
        if stored.shape[-3:] != grid.shape_xyz[::-1] or stored.ndim not in (3, 4):
            raise UserError(f"{path} has shape {stored.shape}, its label {grid.shape_xyz[::-1]} (z, y, x)")
        array = working_view(stored, grid.affine)
        if stored.ndim == 3:
            return class_indices(array, labels, path)
        if len(stored) != labels.num_outputs:
            raise UserError(f"{path} has {len(stored)} channels, the labels ask for {labels.num_outputs}")
        return most_probable(array, labels)
    return read_label_on(grid, path, labels, of="its label")


def _cases(files: Iterable[Path], problems: list[str]) -> dict[str, Path]:
    """Case -> file; two masks of one case are a problem."""
    cases: dict[str, Path] = {}
    for path in files:
        if cases.setdefault(scan_stem(path), path) != path:
            problems.append(f"{scan_stem(path)}: {cases[scan_stem(path)].name} and {path.name} in {path.parent}")
    return cases


def labels_from_files(pairs: Sequence[Pair]) -> LabelScheme:
    """One class per value that the predictions or labels hold, named by the value."""
    found: set[int] = set()
    for path in (path for pair in pairs for path in (pair.label, pair.prediction)):
        if scan_ending(path):
            found |= set(np.unique(read_label(path).array).tolist())
        elif (array := _load_array(path)).ndim == 3:
            found |= {int(value) for value in np.unique(array)}
        else:
            found |= set(range(len(array)))
    values = (0, *sorted(found - {0})) if found - {0} else (0, 1)
    if values[-1] > 255 or min(values) < 0:
        raise UserError(f"label values must lie in 0..255, found {min(values)}..{max(values)}; name them with --labels")
    return LabelScheme(names=("background", *map(str, values[1:])), values=values)


def _load_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as an array: {error}") from None
    if array.dtype.kind not in "buif" or array.ndim not in (3, 4):
        raise UserError(
            f"{path} holds {array.dtype} of shape {array.shape}: neither a mask (z, y, x) nor probabilities "
            "(K, z, y, x); predict it again"
        )
    # One class or slice at a time.
    if array.dtype.kind == "f" and not all(np.isfinite(part).all() for part in array):
        raise UserError(f"{path} holds values that are not finite (NaN or infinite); predict it again")
    return array


def most_probable(
    shares: Iterable[np.ndarray], labels: LabelScheme, *, threshold: float = REGION_THRESHOLD
) -> np.ndarray:
    """Class indices (...) uint8 of probabilities: one array (...) after the other, or an array (K, ...).

    The largest wins, of equals the lowest class; regions hold where p > 0.5 (`threshold`, 0 for logits) and are written
    one over the other. One class or region is in memory at a time.
    """
    return _regions(shares, labels, threshold) if labels.regions else _largest(shares)


def _largest(shares: Iterable[np.ndarray]) -> np.ndarray:
    remaining = iter(shares)
    best = np.array(next(remaining))
    winner = np.zeros(best.shape, dtype=np.uint8)
    for k, share in enumerate(remaining, start=1):
        np.copyto(winner, k, where=share > best)
        np.maximum(best, share, out=best)
    return winner


def _regions(shares: Iterable[np.ndarray], labels: LabelScheme, threshold: float) -> np.ndarray:
    winner: np.ndarray | None = None
    for region, share in zip(labels.regions, shares):
        winner = np.zeros(share.shape, dtype=np.uint8) if winner is None else winner
        np.copyto(winner, region.write_class, where=share > threshold)
    assert winner is not None, "no regions"
    return winner


def working_view(stored: np.ndarray, affine: np.ndarray | Sequence[Sequence[float]]) -> np.ndarray:
    """View of an array (..., z, y, x) as it is saved as (..., S, A, R); `affine` is its file's, voxel to world."""
    return to_working(stored.swapaxes(-1, -3), affine)
