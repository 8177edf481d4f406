"""Shards: the files of one preprocessed case, whole or absent, and how to tell whether they are still good.

`<case>_x.npy` image (C, D, H, W) float32; `<case>_y.npy` class indices (1, D, H, W) uint8; `<case>_fg.npy` voxel
positions (n, 3) int32, at most MOST_FOREGROUND; `<case>.json` the `CaseMeta`, written last: where it is, the arrays
are complete. A case without a label has neither `_y` nor `_fg`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.normalization import chunks
from data_preprocessing.preprocessor import PreprocessedCase
from utils.errors import UserError
from utils.files import file_digest, file_stat, read_json, to_dict, write_atomically, write_json
from utils.json_text import parse_json
from utils.schema import CaseMeta, Plan

FORMAT = 2
"""Of the files; shards of another one are made anew."""
FOREGROUND_PER_CLASS = 10_000
"""Rows of a class in `<case>_fg.npy` at most (nnU-Net v2)."""
MOST_FOREGROUND = 120_000
"""Rows of all classes together at most: 1.4 MB."""
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
    """Voxel positions (n, 3) int32 in D, H, W order, on which patches can be centred.

    Class by class, in ascending order, each that is present has the same number of rows: as many as the largest has
    voxels, at most FOREGROUND_PER_CLASS and an equal share of MOST_FOREGROUND. So a uniform row is a uniform class,
    then a uniform voxel. The rows of a class are different voxels, drawn without replacement; where it has fewer, all
    of them come equally often (give or take one row). Without foreground FOREGROUND_PER_CLASS rows are uniform over the
    volume. The same case and label give the same rows.

    Args:
        label: (D, H, W) uint8 class indices.
        case: name, the seed.
        ignore: class index that counts as no foreground.
    """
    rng = np.random.default_rng(zlib.crc32(case.encode()))
    counts = np.stack([np.bincount(part.ravel(), minlength=256) for part in chunks(label)])
    totals = counts.sum(axis=0)
    present = [int(k) for k in np.flatnonzero(totals) if k not in (0, ignore)]
    if not present:
        return rng.integers(0, label.shape, size=(FOREGROUND_PER_CLASS, 3)).astype(np.int32)
    number = min(FOREGROUND_PER_CLASS, MOST_FOREGROUND // len(present), int(totals[present].max()))
    # A rank counts a class's voxels in the order of the array.
    ranks = [np.resize(rng.choice(n, min(n, number), replace=False), number) for n in totals[present]]
    flat = _find_voxels(label, counts, np.repeat(present, number), np.concatenate(ranks))
    return np.stack(np.unravel_index(flat, label.shape), axis=1).astype(np.int32)


def _find_voxels(label: np.ndarray, counts: np.ndarray, classes: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Flat positions (n,) of foreground voxels that are given by class and rank; `counts` has the classes of each chunk
    of the label (chunks, 256)."""
    ends = np.cumsum(counts, axis=0)
    places = np.empty(len(ranks), dtype=np.int64)
    for k in np.unique(classes):
        places[classes == k] = np.searchsorted(ends[:, k], ranks[classes == k], side="right")
    within = ranks - (ends - counts)[places, classes]
    order = np.argsort(places, kind="stable")
    starts = np.searchsorted(places[order], np.arange(len(counts) + 1))
    flat = np.empty(len(ranks), dtype=np.int64)
    first = 0
    for part, count, start, stop in zip(chunks(label), counts, starts, starts[1:]):
        wanted = order[start:stop]
        if len(wanted):
            # All classes of a chunk at once: its foreground voxels, sorted by class.
            values = part.ravel()
            voxels = np.flatnonzero(values != 0)
            voxels = voxels[np.argsort(values[voxels], kind="stable")]
            before = np.cumsum(count) - count - count[0]
            flat[wanted] = first + voxels[before[classes[wanted]] + within[wanted]]
        first += part.size
    return flat


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
        and _is_foreground(_header(paths.foreground))
    )


def _is_foreground(header: tuple[tuple[int, ...], np.dtype] | None) -> bool:
    if header is None or len(header[0]) != 2:
        return False
    (rows, axes), dtype = header
    return 0 < rows <= MOST_FOREGROUND and axes == 3 and dtype == np.int32


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
    grid = [plan.axes, plan.stage.spacing_mm, plan.stage.patch_size]
    facts = [FORMAT, channels, label_values, grid, plan.mask_channel, plan.normalize_first]
    # Only what differs from earlier plans, whose shards are kept.
    later = [plan.orientation, plan.rules.grid_shape]
    return _digest(facts if later == ["ras", "extent"] else [*facts, later])


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


def label_changes(meta: CaseMeta) -> list[str]:
    """What to say of a label file that is there and is not the one that a shard was made from any more.

    A copy or a file that was only touched is the same one. Shards of an earlier version do not say.
    """
    path = Path(meta.label or "")
    if meta.label_digest is None or not path.is_file() or file_digest(path) == meta.label_digest:
        return []
    return [f"{meta.case}: {path} has changed since its shard was made from it"]


def corrected_labels(folder: Path, cases: Iterable[str]) -> list[str]:
    """`label_changes` of cases; a file is read only where its size or time is another one than when it was read.

    Of a label that is not there, or that this user may not read, nothing is said.

    Raises:
        UserError: a shard is missing or damaged.
    """
    found = []
    for case in cases:
        meta = read_meta(folder, case)
        with contextlib.suppress(OSError):
            if meta.label is not None and _may_have_changed(meta, shard_paths(folder, case).meta):
                found += label_changes(meta)
    return found


def _may_have_changed(meta: CaseMeta, path: Path) -> bool:
    size, changed_ns = file_stat(Path(meta.label or ""))
    if meta.label_stat is None:
        # Shards of an earlier version do not say how their label looked.
        return changed_ns > path.stat().st_mtime_ns
    return meta.label_stat != (size, changed_ns)


def shard_stamps(folder: Path, cases: Iterable[str], *, previous: bool = False) -> dict[str, str]:
    """Case -> digest of what its shard was made from and by which plan.

    Args:
        folder: of the shards.
        cases: which of them.
        previous: count the masks of a cascade's first stage, too, where there are any.

    Raises:
        UserError: a shard is missing or damaged.
    """
    stamps = {}
    for case in sorted(cases):
        try:
            # Without the checks of a schema: there are many, and they are looked at often.
            meta = parse_json(shard_paths(folder, case).meta.read_text(encoding="utf-8"))
            facts = [meta["source_stamp"], meta["plan_stamp"]]
        except (OSError, ValueError, TypeError, KeyError):
            meta = read_meta(folder, case)
            facts = [meta.source_stamp, meta.plan_stamp]
        mask = folder / f"{case}{PREVIOUS_STAMP}"
        if previous and mask.is_file():
            facts.append(mask.read_text(encoding="utf-8"))
        stamps[case] = _digest(facts)
    return stamps
