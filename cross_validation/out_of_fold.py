"""Predictions of a fold's validation cases: scored against the scans' labels, gathered with those of other folds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from cross_validation.records import OUT_OF_FOLD, CaseRecord, mask_digest, prediction_files
from data_preprocessing.shards import label_changes, read_meta
from inference.input_check import side_values
from utils.certainty import CERTAINTY_ENDING, Certainty
from utils.errors import UserError, list_problems
from utils.files import link_or_copy, read_json, write_json
from utils.nifti import read_label
from utils.schema import Plan
from utils.scores import dice_from_counts
from utils.scoring import class_indices, score_mask


def score_cases(shards: Path, predictions: Path, cases: Sequence[str], plan: Plan) -> tuple[CaseRecord, ...]:
    """Dice of the masks of a folder against the label files that the shards were made from.

    Raises:
        UserError: a mask or label is damaged or does not fit, or a label has changed since the shards were made; all
            are listed.
    """
    changed = [problem for case in cases for problem in label_changes(read_meta(shards, case))]
    if changed:
        raise list_problems(
            "predictions cannot be scored against other labels than those that the networks learned from:", changed,
            advice="Put the labels back, or run preprocess.py again and train anew.",
        )  # fmt: skip
    records, problems = [], []
    for case in cases:
        try:
            records.append(_score(shards, predictions / f"{case}.nii.gz", case, plan))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise list_problems(
            "predictions cannot be scored:", problems, advice=f"Fix the labels; of damaged masks remove {predictions}."
        )
    return tuple(records)


def _score(shards: Path, mask: Path, case: str, plan: Plan) -> CaseRecord:
    volume, source = read_label(mask), read_meta(shards, case).label
    found = class_indices(volume.array, plan.labels, mask)
    digest = mask_digest(found)
    noted = mask.with_name(f"{case}{CERTAINTY_ENDING}")
    certainty = read_json(Certainty, noted) if noted.is_file() else None
    sides = side_values(found, volume.spacing_mm, plan.labels)
    if source is None or not Path(source).is_file():
        return CaseRecord(case=case, mask=digest, dice=(), certainty=certainty, sides=sides)
    counts = score_mask(found, volume.geometry, Path(source), plan.labels, of=f"its mask {mask}")
    dice = dice_from_counts(counts).tolist()
    known = tuple(None if math.isnan(value) else value for value in dice)
    return CaseRecord(case=case, mask=digest, dice=known, certainty=certainty, sides=sides)


def gather(folder: Path, predictions: Path, cases: Sequence[str], plan: Plan) -> None:
    """Put the masks and probabilities of a fold into the configuration's `out_of_fold`, with the plan beside them.

    They become hard links where the file system has them, else copies; each appears whole.
    """
    (folder / OUT_OF_FOLD).mkdir(parents=True, exist_ok=True)
    write_json(plan, folder / OUT_OF_FOLD / "plan.json")
    for case in cases:
        for path in prediction_files(folder, case):
            link_or_copy(predictions / path.name, path)


def discard(folder: Path, cases: Sequence[str]) -> None:
    """Take the cases of a fold that is trained anew out of `out_of_fold`; masks first, as they say what is there."""
    for case in cases:
        for path in reversed(prediction_files(folder, case)):
            path.unlink(missing_ok=True)
