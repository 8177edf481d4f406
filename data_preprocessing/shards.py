"""Shards: the files of one preprocessed case, whole or absent, and how to tell whether they are still good.

`<case>_x.npy` image (C, D, H, W) float32; `<case>_y.npy` class indices (1, D, H, W) uint8; `<case>_fg.npy` voxel
positions (1024, 3) int32; `<case>.json` the `CaseMeta`, written last: where it is, the arrays are complete.
A case without a label has neither `_y` nor `_fg`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.preprocessor import PreprocessedCase
from utils.errors import UserError
from utils.files import read_json, to_dict, write_atomically, write_json
from utils.schema import CaseMeta, Plan

NUM_FOREGROUND = 1024
"""Rows of `<case>_fg.npy`; the same for all cases, as batches need arrays of one shape."""
ARRAYS = ("_x.npy", "_y.npy", "_fg.npy", "_p.npy")
"""What the array files of a case end in; `_p` is there in a cascade's second stage only."""
PREVIOUS_STAMP = "_p.stamp.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardPaths:
    """Where the files of one case are, or would be."""

    image: Path
    label: Path
    foreground: Path
    meta: Path


def shard_paths(folder: Path, case: str) -> ShardPaths:
    """The four file names of a case."""
    return ShardPaths(
        image=folder / f"{case}_x.npy",
        label=folder / f"{case}_y.npy",
        foreground=folder / f"{case}_fg.npy",
        meta=folder / f"{case}.json",
    )


def write_shard(folder: Path, case: PreprocessedCase) -> None:
    """Write the files of a case into an existing folder, replacing older ones.

    Each file is whole or absent, and the meta file comes last: a killed process leaves a case that `is_current` denies.
    """
    paths = shard_paths(folder, case.meta.case)
    paths.meta.unlink(missing_ok=True)
    write_array(paths.image, case.image)
    if case.label is None:
        paths.label.unlink(missing_ok=True)
        paths.foreground.unlink(missing_ok=True)
    else:
        write_array(paths.label, case.label)
        write_array(paths.foreground, sample_foreground(case.label[0], case.meta.case, ignore=case.ignore_index))
    write_json(case.meta, paths.meta)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file as DALI reads it, whole or not at all."""
    # DALI's numpy reader takes version 1 and C-order.
    array = np.ascontiguousarray(array)
    write_atomically(path, lambda file: np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False))


def sample_foreground(label: np.ndarray, case: str, *, ignore: int | None) -> np.ndarray:
    """Voxel positions (NUM_FOREGROUND, 3) int32 in D, H, W order, on which patches can be centred.

    Each class that is present has the same number of rows (give or take one), its voxels drawn uniformly and with
    replacement; rows are shuffled, so a uniform row is a uniform class, then a uniform voxel. Without foreground they
    are uniform over the volume. The same case and label give the same rows.

    Args:
        label: (D, H, W) uint8 class indices.
        case: name, the seed.
        ignore: class index that counts as no foreground.
    """
    rng = np.random.default_rng(zlib.crc32(case.encode()))
    counts = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in label])
    present = [int(k) for k in np.flatnonzero(counts.sum(axis=0)) if k not in (0, ignore)]
    if not present:
        return rng.integers(0, label.shape, size=(NUM_FOREGROUND, 3)).astype(np.int32)
    # Which classes get the odd row is random too, so that no class is favoured over many cases.
    shares = np.array_split(np.arange(NUM_FOREGROUND), len(present))
    rows = [_draw_voxels(label, k, counts[:, k], len(share), rng) for k, share in zip(rng.permutation(present), shares)]
    return rng.permutation(np.concatenate(rows)).astype(np.int32)


def _draw_voxels(label: np.ndarray, k: int, per_slice: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Positions (number, 3) of voxels of class k, found slice by slice from their drawn ranks."""
    ends = np.cumsum(per_slice)
    ranks = np.sort(rng.integers(0, ends[-1], size=number))
    slices = np.searchsorted(ends, ranks, side="right")
    flat = np.empty(number, dtype=np.int64)
    for d in np.unique(slices):
        chosen = slices == d
        voxels = np.flatnonzero(label[d] == k)
        flat[chosen] = d * label[d].size + voxels[ranks[chosen] - (ends[d] - per_slice[d])]
    return np.stack(np.unravel_index(flat, label.shape), axis=1)


def is_current(folder: Path, case: str, source_stamp: str, plan_stamp: str) -> bool:
    """Whether a case has been written completely, from these sources and by this plan."""
    paths = shard_paths(folder, case)
    if not paths.meta.is_file():
        return False
    try:
        meta = read_json(CaseMeta, paths.meta)
    except UserError:
        # Left by another version of the program: made anew.
        return False
    if (meta.source_stamp, meta.plan_stamp) != (source_stamp, plan_stamp):
        return False
    image = _header(paths.image)
    good = image is not None and len(image[0]) == 4 and image[0][1:] == meta.padded_shape and image[1] == np.float32
    if meta.label is None:
        return good
    return (
        good
        and _header(paths.label) == ((1, *meta.padded_shape), np.dtype(np.uint8))
        and _header(paths.foreground) == ((NUM_FOREGROUND, 3), np.dtype(np.int32))
    )


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype] | None:
    """Shape and type of a whole .npy file; None where there is none or it is cut short."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            whole = path.stat().st_size == file.tell() + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    except (OSError, ValueError):
        return None
    return (shape, dtype) if whole else None


def stamp_sources(paths: Sequence[Path]) -> str:
    """Digest of name, size and modification time of a case's files: changes when one is replaced, renamed or edited.

    Names count from the folder that holds them all, so a data set that was moved or mounted elsewhere is the same one.

    Raises:
        UserError: a file is missing.
    """
    folder = os.path.commonpath([path.absolute().parent for path in paths])
    try:
        facts = [(path, path.stat()) for path in paths]
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
    return _digest([(os.path.relpath(path, folder), file.st_size, file.st_mtime_ns) for path, file in facts])


def stamp_plan(plan: Plan) -> str:
    """Digest of what a shard depends on: a plan that differs in batch size, filters or regions keeps its shards."""
    channels = [to_dict(channel) for channel in plan.channels]
    label_values = [plan.labels.values, plan.labels.ignore_value]
    return _digest([channels, label_values, plan.axes, plan.mask_channel, plan.stage.spacing_mm, plan.stage.patch_size])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def list_cases(folder: Path) -> tuple[str, ...]:
    """Names of the complete cases of a folder, sorted."""
    names = (path.name.removesuffix("_x.npy") for path in folder.glob("*_x.npy"))
    return tuple(sorted(name for name in names if shard_paths(folder, name).meta.is_file()))


def read_meta(folder: Path, case: str) -> CaseMeta:
    """How a case was preprocessed.

    Raises:
        UserError: the folder has no such case, or its file is damaged.
    """
    return read_json(CaseMeta, shard_paths(folder, case).meta)


def remove_strays(folder: Path) -> None:
    """Delete temporary files that a killed run left; call it only while no other run writes into the folder."""
    for path in folder.glob(".tmp-*"):
        path.unlink(missing_ok=True)
