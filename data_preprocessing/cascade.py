"""The shards of a cascade's second stage: those of full resolution, and what the first stage predicted.

For each case `<case>_p.npy`: class indices (1, D, H, W) uint8 of the first stage's out-of-fold mask on the grid of the
shard. The other files are those of the full-resolution folder, linked where the file system allows it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.case_memory import mask_bytes
from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.nearest_ties import resample_to_nearest
from data_preprocessing.planning.plan_file import PLAN, read_plan
from data_preprocessing.preprocessor import classes_on_grid, native_label_classes
from data_preprocessing.readiness import drop_metas, gone_cases, remove_gone
from data_preprocessing.resampling import resample_label
from data_preprocessing.runner import CaseStatus
from data_preprocessing.shards import (
    PREVIOUS_STAMP,
    list_cases,
    read_meta,
    shard_paths,
    stamp_sources,
    write_array,
)
from utils.configurations import FIRST_STAGE
from utils.errors import UserError, describe_error, list_problems
from utils.files import link_or_copy, write_json
from utils.nifti import Volume, allowed_mm, grid_difference_mm, read_header, read_label
from utils.schema import CaseMeta, Plan
from utils.workers import Workers

SPLITS = "splits.json"
REASON = f"the network also sees the mask of {FIRST_STAGE}, one channel for each foreground class"


def prepare_second_stage(
    fullres: Path, masks: Path, folder: Path, workers: Workers, *, overwrite: bool = False
) -> list[CaseStatus]:
    """Make the shards of the second stage; those of the same masks and shards are kept unless `overwrite`.

    plan.json comes last: a folder that has one is ready for use.

    Args:
        fullres: folder of the full-resolution shards; it is only read.
        masks: folder with `<case>.nii.gz` of every case, predicted by a network that has not seen it.
        folder: where to; it exists.
        workers: who does it.
        overwrite: make all anew.

    Raises:
        UserError: no shards, or masks are missing or of another grid (all are listed); nothing is written then.
    """
    plan = second_stage_plan(read_plan(fullres))
    cases = list_cases(fullres)
    require_masks(masks, {case: read_meta(fullres, case) for case in cases})
    files = [CaseFiles(case=case, images=(masks / f"{case}.nii.gz",), label=None) for case in cases]
    stale = [each for each in files if overwrite or not _is_current(fullres, folder, each)]
    gone = gone_cases(folder, cases)
    if stale or gone:
        (folder / PLAN).unlink(missing_ok=True)
    remove_gone(folder, gone)
    for each in stale:
        _stamp_path(folder, each.case).unlink(missing_ok=True)
    drop_metas(folder, [each.case for each in stale])
    write = functools.partial(_write, plan=plan, fullres=fullres, folder=folder)
    done = {status.case: status for status in workers.map(write, stale, title="cascade", size=mask_bytes)}
    statuses = [done.get(case, CaseStatus(case=case, status="kept")) for case in cases]
    for case in set(cases) - set(done):
        # It says where the scans are, which may have been moved.
        link_or_copy(shard_paths(fullres, case).meta, shard_paths(folder, case).meta)
    if not any(status.status == "failed" for status in statuses):
        link_or_copy(fullres / SPLITS, folder / SPLITS)
        write_json(plan, folder / PLAN)
    return statuses


def second_stage_plan(plan: Plan) -> Plan:
    """The full-resolution plan for a network that sees the first stage's mask as well.

    Patch and batch stay: the few channels more weigh little against the feature maps.
    """
    return dataclasses.replace(
        plan, previous_stage=FIRST_STAGE, reasons={**plan.reasons, "previous_stage": REASON}
    )  # fmt: skip


def previous_classes(
    mask: Volume, meta: CaseMeta, plan: Plan, *, outside: np.ndarray | None = None, source: str = "mask"
) -> np.ndarray:
    """Class indices (1, D, H, W) uint8 of a mask (S, A, R) of file values, on the grid of the preprocessed scan.

    Background where `outside` (S, A, R) bool holds counts as a class of its own, of the lowest index, until the shares
    have been compared.

    Raises:
        UserError: values that are none of the plan's classes; `source` is how the message calls the mask.
    """
    known = dataclasses.replace(plan, labels=dataclasses.replace(plan.labels, ignore_value=None))
    classes = native_label_classes(mask, known, source=source)
    resample = resample_label if plan.rules.previous_mask == "highest" else resample_to_nearest
    if outside is None:
        return classes_on_grid(classes, meta, plan.stage, resample=resample)
    classes += 1
    classes[outside & (classes == 1)] = 0
    apart = classes_on_grid(classes, meta, plan.stage, resample=resample)
    # Around the scan, where the shard is padded, there is 0 as well.
    return np.maximum(apart, 1, out=apart) - 1


def require_masks(folder: Path, metas: dict[str, CaseMeta]) -> None:
    """Refuse masks that are missing or do not lie on their scans.

    Raises:
        UserError: all of them.
    """
    problems = []
    for case, meta in metas.items():
        path = folder / f"{case}.nii.gz"
        try:
            shape, affine = read_header(path)
        except UserError as error:
            problems.append(f"{case}: {error}" if path.is_file() else f"{path.name} is missing")
            continue
        grid = meta.geometry
        if tuple(shape) != grid.shape_xyz:
            problems.append(f"{path.name} has shape {tuple(shape)}, its scan {grid.shape_xyz}")
        elif (distance_mm := grid_difference_mm(affine, grid.affine, grid.shape_xyz)) > allowed_mm(grid.affine):
            problems.append(f"{path.name} lies {distance_mm:.3g} mm off its scan")
    if problems or not metas:
        raise list_problems(
            f"{folder} does not hold the first stage's masks of all training cases:",
            problems or ["there are no cases"],
            advice="Train all folds of 3d_lowres and predict their validation cases first "
            "(scripts/cross_validate.py does both).",
        )


def _write(files: CaseFiles, *, plan: Plan, fullres: Path, folder: Path) -> CaseStatus:
    try:
        for source in _shard_files(fullres, files.case):
            target = folder / source.name
            if not _is_same(source, target):
                link_or_copy(source, target)
        [mask] = files.images
        # The stamp comes before the voxels: a mask that changes in between makes the file stale, not wrong.
        source_stamp = stamp_sources([mask])
        meta = read_meta(fullres, files.case)
        classes = previous_classes(read_label(mask, meta.geometry), meta, plan, source=str(mask))
        write_array(folder / f"{files.case}_p.npy", classes)
        write_json({"mask": source_stamp}, _stamp_path(folder, files.case))
    except Exception as error:  # As in runner.py: the other cases go on.
        return CaseStatus(case=files.case, status="failed", detail=describe_error(error))
    return CaseStatus(case=files.case, status="written", detail=f"{mask.name} -> {files.case}_p.npy")


def _is_current(fullres: Path, folder: Path, files: CaseFiles) -> bool:
    stamp = _stamp_path(folder, files.case)
    if not stamp.is_file() or not (folder / f"{files.case}_p.npy").is_file():
        return False
    if stamp_sources(files.images) not in stamp.read_text(encoding="utf-8"):
        return False
    *arrays, _ = _shard_files(fullres, files.case)
    try:
        here, there = (dataclasses.replace(read_meta(f, files.case), image="", label="") for f in (fullres, folder))
    except UserError:
        return False
    return here == there and all(_is_same(source, folder / source.name) for source in arrays)


def _stamp_path(folder: Path, case: str) -> Path:
    return folder / f"{case}{PREVIOUS_STAMP}"


def _shard_files(folder: Path, case: str) -> Sequence[Path]:
    """The files of a case, the meta file last."""
    paths = shard_paths(folder, case)
    return [path for path in (paths.image, paths.label, paths.foreground, paths.meta) if path.is_file()]


def _is_same(source: Path, target: Path) -> bool:
    """Whether the target is the source itself, or a copy that has not been outdated."""
    if not target.is_file():
        return False
    here, there = source.stat(), target.stat()
    return here.st_ino == there.st_ino or (here.st_size, here.st_mtime_ns) == (there.st_size, there.st_mtime_ns)
