"""The scored cases of a training: where their scores come from, and the files behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from report.notices import note
from report.records import RunFacts, ScoreTable, read_fold, read_mapping, read_score_table, read_validation
from report.scored import find_files, label_folder, note_changed_masks, predicting_run
from report.sources import CaseFiles, by_case, files_of_shard
from utils.errors import UserError
from utils.nifti import read_label
from utils.predictions import class_indices
from utils.schema import LabelScheme, Plan
from utils.scores import CaseScores, dice_from_counts, label_counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredCases:
    """Cases that this training's network predicted, with their scores, and where those come from."""

    scores: ScoreTable
    source: str
    files: Mapping[str, CaseFiles]


def read_scored(folder: Path, places: Sequence[Path], plan: Plan | None, ended: RunFacts | None) -> ScoredCases | None:
    """The scores of a training's cases: as evaluate.py wrote them, or of its masks, or of the fold's record.

    Masks that were there before this training ended, by its record `ended`, are noted as those of another network.
    """
    for preds in sorted(folder.glob("preds_*")):
        note_earlier_masks(preds, ended)
    for preds in sorted(folder.glob("preds_*")):
        written = read_score_table(preds / "scores.csv")
        if written is not None:
            run, masks = predicting_run(preds), by_case(preds)
            note_changed_masks(masks, preds / "scores.csv")
            labels = by_case(label_folder(read_mapping(preds / "summary.json"), preds, run))
            names = [case.case for case in written.cases]
            files = {case: find_files(case, run, masks.get(case), labels.get(case)) for case in names}
            return ScoredCases(scores=written, source=f"Masks in {preds.name}, as evaluate.py scored them", files=files)
    record, masks = read_fold(folder), _masks(folder)
    files = {case: files_of_shard(places, case, mask) for case, mask in masks.items()}
    found = None if plan is None else score_masks(files, plan.labels)
    if found is not None:
        return ScoredCases(scores=found, source="Masks of this training against the labels of its data", files=files)
    if record is not None and record.cases:
        scores = ScoreTable(targets=record.targets, cases=record.cases)
        files = {case.case: files.get(case.case) or files_of_shard(places, case.case) for case in record.cases}
        return ScoredCases(scores=scores, source="Cases that this fold has not seen", files=files)
    return validation_scores(folder)


def validation_scores(folder: Path) -> ScoredCases | None:
    """The single cases of the best validation, which a training writes itself; there are no masks of it."""
    found = read_validation(folder / "validation.json")
    if found is None or not found[1].cases:
        return None
    epoch, scores = found
    source = (
        f"Validation after epoch {epoch + 1}, the best one, on preprocessed data. The viewer is there once the fold "
        "has been predicted into this folder (--exec_mode predict --save_preds)"
    )
    return ScoredCases(scores=scores, source=source, files={})


def note_earlier_masks(preds: Path, ended: RunFacts | None) -> None:
    """Note a folder of masks that were predicted before the training ended."""
    made = predicting_run(preds)
    if ended is not None and made is not None and made.time and made.time < ended.time:
        note(f"The masks in {preds.name} were predicted before this training ended, by other weights than it has now: "
             "predict them again")  # fmt: skip


def score_masks(files: Mapping[str, CaseFiles], labels: LabelScheme) -> ScoreTable | None:
    """Voxel counts and Dice of masks whose labels are at hand; others are left out."""
    found = []
    for case, each in files.items():
        mask, label_path = each.mask, each.label
        if mask is None or label_path is None:
            continue
        try:
            label = read_label(label_path)
            truth = class_indices(label.array, labels, label_path)
            counts = label_counts(class_indices(read_label(mask, label.geometry).array, labels, mask), truth, labels)
        except (UserError, AssertionError):
            continue
        dice = np.asarray(dice_from_counts(counts)).tolist()
        rows = tuple((int(both), int(only_mask), int(only_label)) for both, only_mask, only_label in counts.tolist())
        found.append(CaseScores(case=case, counts=rows, dice=tuple(dice)))
    return ScoreTable(targets=labels.target_names, cases=tuple(found)) if found else None


def _masks(folder: Path) -> dict[str, Path]:
    """Case -> mask of the predictions in a training's folder, or in that of its fold of a cross-validation."""
    places = sorted([*folder.glob("preds_*"), *folder.glob("prediction/preds_*")])
    return {case: path for place in places for case, path in by_case(place).items()}
