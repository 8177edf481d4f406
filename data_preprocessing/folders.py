"""Filling a folder with shards: one run at a time, not ready until all of them are there and none is left over."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

from data_preprocessing import runner
from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.planning import plan_file, resume
from data_preprocessing.planning.plan_table import plan_table
from data_preprocessing.readiness import gone_cases, mark_ready, remove_gone, update_sources, withdraw_mark
from data_preprocessing.runner import CaseStatus, current_cases
from data_preprocessing.shard_room import require_shard_room
from utils.locks import folder_lock
from utils.schema import Fingerprint, Plan, Splits
from utils.temporary import sweep
from utils.workers import Workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingFolder:
    """What a folder of training shards is to hold.

    Attributes:
        cases: all training cases.
        automatic: the plan that was made for them; one that was edited by hand goes before it.
        fingerprint: what it was made from.
        inspection: of which files.
        splits: the folds.
        splits_asked_for: whether they replace folds that were edited by hand.
    """

    cases: Sequence[CaseFiles]
    automatic: Plan
    fingerprint: Fingerprint
    inspection: resume.Inspection
    splits: Splits
    splits_asked_for: bool


def fill_training(folder: Path, content: TrainingFolder, workers: Workers, *, overwrite: bool) -> list[CaseStatus]:
    """Write plan, folds and training shards into a folder that exists; plan.json comes last: with it, all is there.

    Raises:
        UserError: an edited plan.json is malformed or does not fit, or the shards surely need more room than the disk
            has; nothing is changed then.
    """
    with folder_lock(folder):
        chosen = plan_file.choose_plan(folder, content.automatic, overwrite=overwrite)
        print(plan_table(chosen.plan))
        require_shard_room(folder, content.fingerprint, chosen.plan)
        sweep(folder, alone=True)
        gone = gone_cases(folder, (case.case for case in content.cases))
        current = set() if overwrite else current_cases(content.cases, chosen.plan, folder)
        if gone or len(current) < len(content.cases):
            plan_file.withdraw_plan(folder, chosen)
        remove_gone(folder, gone)
        resume.store_fingerprint(folder, content.fingerprint, content.inspection)
        statuses = _write(content.cases, chosen.plan, folder, workers, current)
        if not any(status.status == "failed" for status in statuses):
            resume.write_splits(folder, content.splits, asked_for=content.splits_asked_for)
            plan_file.store_plan(folder, chosen)
    return statuses


def fill_inference(
    folder: Path, cases: Sequence[CaseFiles], plan: Plan, workers: Workers, *, overwrite: bool
) -> list[CaseStatus]:
    """Write the shards of a `val` or `test` folder that exists; cases.json comes last: with it, all is there."""
    with folder_lock(folder):
        sweep(folder, alone=True)
        gone = gone_cases(folder, (case.case for case in cases))
        current = set() if overwrite else current_cases(cases, plan, folder)
        if gone or len(current) < len(cases):
            withdraw_mark(folder)
        remove_gone(folder, gone)
        statuses = _write(cases, plan, folder, workers, current)
        if not any(status.status == "failed" for status in statuses):
            mark_ready(folder, (case.case for case in cases))
    return statuses


def _write(
    cases: Sequence[CaseFiles], plan: Plan, folder: Path, workers: Workers, current: Collection[str]
) -> list[CaseStatus]:
    statuses = runner.write_cases(cases, plan, folder, workers, current=current)
    update_sources(folder, [case for case, status in zip(cases, statuses) if status.status == "kept"])
    return statuses
