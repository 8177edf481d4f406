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
from data_preprocessing.runner import CaseStatus, current_cases, lacking_parts
from data_preprocessing.shard_room import require_shard_room
from utils.parts import Part, Place
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


def fill_training(
    folder: Path, content: TrainingFolder, workers: Workers, *, overwrite: bool, part: Part | None = None
) -> list[CaseStatus]:
    """Write plan, folds and training shards into a folder that exists; plan.json comes last: with it, all is there.

    A `part` writes the shards of its own cases; plan and folds are written by whichever part ends last.

    Raises:
        UserError: an edited plan.json is malformed or does not fit, or the shards surely need more room than the disk
            has; nothing is changed then.
    """
    place, cases = Place(output=folder, part=part), content.cases
    own = cases if part is None else part.own(cases)
    with place.held():
        with place.exclusive():
            chosen = plan_file.choose_plan(folder, content.automatic, overwrite=overwrite)
            print(plan_table(chosen.plan))
            require_shard_room(folder, content.fingerprint, chosen.plan)
            _sweep(place)
            gone = gone_cases(folder, (case.case for case in cases))
            current = set() if overwrite else current_cases(own, chosen.plan, folder)
            if gone or len(current) < len(own):
                plan_file.withdraw_plan(folder, chosen)
            remove_gone(folder, gone)
            resume.store_fingerprint(folder, content.fingerprint, content.inspection)
        statuses = _write(own, chosen.plan, folder, workers, current)
        with place.exclusive():
            if _all_there(place, cases, chosen.plan, statuses):
                resume.write_splits(folder, content.splits, asked_for=content.splits_asked_for)
                plan_file.store_plan(folder, chosen)
    place.discard()
    return statuses


def fill_inference(
    folder: Path, cases: Sequence[CaseFiles], plan: Plan, workers: Workers, *, overwrite: bool, part: Part | None = None
) -> list[CaseStatus]:
    """Write the shards of a `val` or `test` folder that exists; cases.json comes last: with it, all is there.

    A `part` writes those of its own cases, and the mark if it ends last.
    """
    place = Place(output=folder, part=part)
    own = cases if part is None else part.own(cases)
    with place.held():
        with place.exclusive():
            _sweep(place)
            gone = gone_cases(folder, (case.case for case in cases))
            current = set() if overwrite else current_cases(own, plan, folder)
            if gone or len(current) < len(own):
                withdraw_mark(folder)
            remove_gone(folder, gone)
        statuses = _write(own, plan, folder, workers, current)
        with place.exclusive():
            if _all_there(place, cases, plan, statuses):
                mark_ready(folder, (case.case for case in cases))
    place.discard()
    return statuses


def _sweep(place: Place) -> None:
    """Remove what killed runs left; beside other parts, what nobody holds."""
    sweep(place.output, alone=place.part is None)


def _all_there(place: Place, cases: Sequence[CaseFiles], plan: Plan, statuses: Sequence[CaseStatus]) -> bool:
    """Whether the shards of all cases are there; what the parts that are missing are is said."""
    if any(status.status == "failed" for status in statuses):
        return False
    if place.part is None:
        return True
    missing = [str(part) for part in lacking_parts(cases, plan, place.output, place.part.count)]
    if missing:
        print(f"part {place.part} is done; cases of {len(missing)} parts are missing: {', '.join(missing[:20])}")
    return not missing


def _write(
    cases: Sequence[CaseFiles], plan: Plan, folder: Path, workers: Workers, current: Collection[str]
) -> list[CaseStatus]:
    statuses = runner.write_cases(cases, plan, folder, workers, current=current)
    update_sources(folder, [case for case, status in zip(cases, statuses) if status.status == "kept"])
    return statuses
