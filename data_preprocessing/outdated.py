"""A folder of shards whose sources have changed is not ready, from the moment at which a run finds that out.

A run may yet fail before it writes anything, at a faulty scan for instance. A training after it must not take the old
shards for the data set as it is now. Nothing is lost: shards and an edited plan stay.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.dataset.description_file import Dataset, load_dataset, read_description
from data_preprocessing.planning.plan_file import PLAN, set_plan_aside
from data_preprocessing.readiness import READY, gone_cases, withdraw_mark
from data_preprocessing.runner import source_files
from data_preprocessing.shards import read_meta, shard_paths, stamp_sources
from utils.errors import UserError
from utils.files import read_json
from utils.locks import folder_lock
from utils.outdated import note_outdated
from utils.schema import Plan

CHANGED, NEW = "its files have changed since its shards were made", "it has no shards yet"
GONE, MISSING = "dataset.json has it no longer", "its files are missing"


def load_current(folder: Path, data: Path, task: str, *, brats: bool) -> Dataset:
    """`load_dataset`; a folder of shards that are not of its cases and files as they are now is not ready any more.

    Args:
        folder: of training shards, or its `val` or `test`; it need not exist.
        data: see `load_dataset`, as `task` and `brats`.

    Raises:
        UserError: the data set cannot be used.
    """
    try:
        dataset = load_dataset(data, task, brats=brats)
    except UserError:
        # Files may be missing: what else dataset.json says counts.
        with contextlib.suppress(UserError):
            _withdraw(folder, read_description(data, task).dataset)
        raise
    _withdraw(folder, dataset)
    return dataset


def _withdraw(folder: Path, dataset: Dataset) -> None:
    is_training = folder.name not in ("val", "test")
    mark = folder / (PLAN if is_training else READY)
    if not mark.is_file():
        return
    with folder_lock(folder):
        reasons = outdated_reasons(folder, dataset.test if folder.name == "test" else dataset.training)
        if is_training and mark.is_file():
            reasons |= _other_description(mark, dataset)
        if reasons and mark.is_file():
            note_outdated(folder, reasons)
            set_plan_aside(folder) if is_training else withdraw_mark(folder)


def outdated_reasons(folder: Path, cases: Sequence[CaseFiles]) -> dict[str, str]:
    """Case -> why its shards in a folder are not those of the data set; by which plan they were made is left aside."""
    reasons = {case.case: reason for case in cases if (reason := _reason(folder, case)) is not None}
    return reasons | dict.fromkeys(gone_cases(folder, (case.case for case in cases)), GONE)


def _reason(folder: Path, files: CaseFiles) -> str | None:
    if not shard_paths(folder, files.case).meta.is_file():
        return NEW
    try:
        now = stamp_sources(source_files(files))
    except UserError:
        return MISSING
    try:
        return None if read_meta(folder, files.case).source_stamp == now else CHANGED
    except UserError:
        return NEW


def _other_description(path: Path, dataset: Dataset) -> dict[str, str]:
    """What dataset.json says otherwise than the plan; regions are left aside, as flags choose them."""
    try:
        plan = read_json(Plan, path)
    except UserError:
        # Nobody can train by it, and whoever edited it reads why.
        return {}
    facts = {
        "channels": (tuple(channel.name for channel in plan.channels), dataset.channels),
        "labels": tuple((each.names, each.values, each.ignore_value) for each in (plan.labels, dataset.labels)),
    }
    return {name: "dataset.json has other ones now" for name, (before, now) in facts.items() if before != now}
