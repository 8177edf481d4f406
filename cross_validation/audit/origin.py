"""Whether out-of-fold probabilities are of the data as they are now, each by a network that has not seen the case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from cross_validation.records import OUT_OF_FOLD, FoldRecord, RunRequest, mask_digest, plan_digest, read_record
from cross_validation.scored_folds import changed_shards
from inference.fold_folders import REQUEST, fold_folders
from inference.saved import SavedProbabilities
from utils.errors import UserError, list_problems
from utils.files import read_json
from utils.nifti import read_label
from utils.schema import Plan
from utils.scoring import class_indices
from utils.training_record import named


def require_origin(folder: Path, shards: Path, cases: Iterable[str]) -> dict[str, str]:
    """Case -> digest of the mask that its fold's network predicted.

    Args:
        folder: of a configuration, with its folds and `out_of_fold`.
        shards: that it was trained on.
        cases: whose labels are audited.

    Raises:
        UserError: folds are not finished or do not go together, or data or plan are not theirs any more; all are
            listed.
    """
    requests = {path: read_json(RunRequest, path / REQUEST) for path in fold_folders(folder).values()
                if (path / REQUEST).is_file()}  # fmt: skip
    records = {path: read_record(path, request.digest) for path, request in requests.items()}
    folds = {path: record for path, record in records.items() if record is not None}
    masks = {case.case: case.mask for record in folds.values() for case in record.cases}
    unknown = sorted(set(cases) - set(masks))
    problems = [f"{path.name} is not finished, or predictions of it are missing" for path in requests
                if path not in folds]  # fmt: skip
    problems += [] if not unknown else [f"nothing says which network predicted {named(unknown)}"]
    problems += _mixed(folds, requests)
    problems += _other_plans(folder / OUT_OF_FOLD / "plan.json", requests) + changed_shards(folder, shards)
    if problems:
        raise list_problems(
            f"the predictions in {folder / OUT_OF_FOLD} say nothing about these labels:", problems,
            advice="Run scripts/cross_validate.py again, with the flags that trained it.",
        )  # fmt: skip
    return masks


def _mixed(folds: Mapping[Path, FoldRecord], requests: Mapping[Path, RunRequest]) -> list[str]:
    """Cases that a network predicted which learned from them, or several networks."""
    times = Counter(case.case for record in folds.values() for case in record.cases)
    twice = sorted(case for case, number in times.items() if number > 1)
    problems = [f"several folds predicted {named(twice)}: they are of different splits"] if twice else []
    for path, record in folds.items():
        learned = set(requests[path].cases.train)
        seen = sorted(case.case for case in record.cases if case.case in learned)
        problems += [f"the network of {path.name} learned from {named(seen)}, which it predicted"] if seen else []
    return problems


def _other_plans(gathered: Path, requests: Mapping[Path, RunRequest]) -> list[str]:
    plan = plan_digest(read_json(Plan, gathered))
    return [f"{gathered} is not the plan of {path.name}" for path, request in requests.items() if request.plan != plan]


def require_mask(saved: SavedProbabilities, mask: Path, predicted: np.ndarray, noted: str) -> None:
    """Refuse probabilities or a mask that a fold's record does not know.

    Args:
        saved: the probabilities.
        mask: file beside them.
        predicted: (S, A, R) class indices, the most probable ones.
        noted: digest in the record.

    Raises:
        UserError: they are of another prediction.
    """
    found = class_indices(read_label(mask).array, saved.labels, mask)
    if mask_digest(found) != noted:
        raise UserError(f"{mask} is not the mask that its fold predicted and scored")
    if not np.array_equal(found, predicted):
        raise UserError(f"{saved.name} are not the probabilities of {mask.name} beside them")
