"""The files behind a folder of masks: who predicted them, from which scans, against which labels they were scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from report.notices import newer_than, note
from report.numbers import listed, plural
from report.records import RunFacts, read_run
from report.sources import (
    FILES_ALONE,
    CaseFiles,
    Readers,
    case_places,
    files_of_shard,
    plan_of_model,
    plan_of_run,
    read_plan,
    scans_of_folder,
)
from utils.schema import Plan


def predicting_run(folder: Path) -> RunFacts | None:
    """The record of what predicted a folder of masks: in it, or in the results folder around it."""
    own = read_run(folder / "run.json")
    if own is not None:
        return own
    records = [read_run(folder.parent / name) for name in ("run_predict.json", "run.json")]
    return next((run for run in records if run is not None and run.option("run", "exec_mode") == "predict"), None)


def find_files(
    case: str, run: RunFacts | None, mask: Path | None, label: Path | None, readers: Readers = FILES_ALONE
) -> CaseFiles:
    """The files of a case; its scan is found by the record of what predicted the mask, or beside the label."""
    found = CaseFiles(case=case, image=None)
    if run is not None:
        found = files_of_shard(case_places(run), case)
        scans = scans_of_folder(run.resolve(run.options.get("input")))
        found = dataclasses.replace(found, image=found.image or scans.get(case))
    if found.image is None and label is not None:
        beside = label.parent.with_name(label.parent.name.replace("labels", "images", 1))
        found = dataclasses.replace(found, image=scans_of_folder(beside if beside != label.parent else None).get(case))
    return dataclasses.replace(found, mask=mask, label=label or found.label, read=readers.get(case))


def label_folder(summary: Mapping[str, object], folder: Path, run: RunFacts | None) -> Path | None:
    """The folder of the labels, which may be relative to a working folder that only the records name."""
    name = summary.get("lbls")
    if not isinstance(name, str):
        return None
    preds = summary.get("preds")
    bases = [Path(), *([Path(run.working_folder)] if run is not None else [])]
    if isinstance(preds, str) and not Path(preds).is_absolute():
        # What --preds was relative to.
        bases += [up for up in folder.absolute().parents if (up / preds).absolute() == folder.absolute()]
    return next((base / name for base in bases if (base / name).is_dir()), None)


def note_changed_masks(masks: Mapping[str, Path], table: Path) -> None:
    """Note masks that are newer than their scores, by the times of the files."""
    later = [path.name for path in newer_than(list(masks.values()), table)]
    if later:
        note(f"{plural(len(later), 'mask')} changed after {table.name} was written ({listed(later)}): the scores are "
             "those of earlier masks; run evaluate again")  # fmt: skip


def plan_behind(folder: Path, run: RunFacts | None) -> Plan | None:
    """The plan by which a folder's masks were predicted: names of their values and of the scans' channels."""
    plan = read_plan(folder / "plan.json") or plan_of_run(run)
    if plan is None and run is not None:
        plan = plan_of_model(run.resolve(run.options.get("model")))
    return plan
