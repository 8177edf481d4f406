"""What a cross-validation writes about its folds, and what follows from it: is a fold finished, is it the same run.

`<results>/<task>_<configuration>/fold_<k>/` holds `options.json` (what was asked for) and, at the end, `done.json`;
`<results>/<task>_<configuration>/out_of_fold/` the predictions of all folds, each case by the one that has not seen it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inference.decision import Checkpoint
from inference.fold_folders import DONE, REQUEST, fold_folders
from inference.model import Model
from utils.certainty import Certainty
from utils.errors import UserError
from utils.files import read_json, to_dict
from utils.schema import Fold, Plan, check_version
from utils.scores import finite_mean
from utils.stage_plan import UNSAID

OUT_OF_FOLD = "out_of_fold"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What makes a fold the run that it is. Written to `options.json` before anything else."""

    version: int
    configuration: str
    fold: int
    num_folds: int
    cases: Fold
    plan: str
    """Digest of the plan that the network is built from."""
    options: dict[str, Any]
    """Options of main.py that change what comes out."""
    previous: str | None = None
    """Second stage of a cascade: digest of the first stage's masks."""
    data: dict[str, str] | None = None
    """Case -> digest of the stamps of its shard; None in a file of an earlier version, which does not say."""

    def __post_init__(self) -> None:
        check_version(self.version, "options.json")

    @property
    def digest(self) -> str:
        """Changes when anything does."""
        return digest(to_dict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """An out-of-fold prediction: a digest of its mask, and the Dice of each target.

    `dice` is empty where the case has no label file; an entry is None where neither mask has the target. `certainty` is
    what the network said of it, and `sides` where the classes of its mask lay (`inference.input_check.side_values`);
    None and empty in files of an earlier version.
    """

    case: str
    mask: str
    dice: tuple[float | None, ...]
    certainty: Certainty | None = dataclasses.field(default=None, metadata=UNSAID)
    sides: dict[str, tuple[float, float, float]] = dataclasses.field(default_factory=dict, metadata=UNSAID)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldRecord:
    """What came out of a fold. Written to `done.json` when everything else is there."""

    version: int
    request: str
    """Digest of the request that was fulfilled."""
    configuration: str
    fold: int
    num_folds: int
    targets: tuple[str, ...]
    epochs: int
    train_s: float
    seconds: float
    """Time of the last attempt, training and prediction."""
    cases: tuple[CaseRecord, ...]
    checkpoint: Checkpoint | None = None
    """Which checkpoint of the training predicted the cases; None in a file of an earlier version: the best."""

    def __post_init__(self) -> None:
        check_version(self.version, "done.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiceSummary:
    """Mean Dice over cases for each target, and over targets; NaN where no case has the target."""

    dice: tuple[float, ...]
    mean_dice: float


def digest(value: Any) -> str:
    """Digest of a JSON-ready value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def plan_digest(plan: Plan) -> str:
    """Digest of all in a plan that a network follows from; the reasons for it may be told in other words."""
    return digest({name: value for name, value in to_dict(plan).items() if name != "reasons"})


def mask_digest(classes: np.ndarray) -> str:
    """Digest of the class indices of a mask."""
    return hashlib.sha256(classes.tobytes()).hexdigest()[:16]


def read_record(folder: Path, request: str | None = None) -> FoldRecord | None:
    """The record of a fold's folder, or None unless that fold is finished and fulfils the request.

    Args:
        folder: `fold_<k>`.
        request: digest of what is asked for now; None takes what was asked for then.
    """
    try:
        record = read_json(FoldRecord, folder / DONE)
        wanted = request or read_json(RunRequest, folder / REQUEST).digest
    except UserError:
        # Absent, or not whole: the fold's last step is done again.
        return None
    whole = all(path.is_file() for case in record.cases for path in prediction_files(folder.parent, case.case))
    return record if record.request == wanted and whole else None


def prediction_files(folder: Path, case: str) -> tuple[Path, Path]:
    """Probabilities and mask of a case in a configuration's folder; the mask is written last."""
    return folder / OUT_OF_FOLD / f"{case}.npy", folder / OUT_OF_FOLD / f"{case}.nii.gz"


def finished_records(folder: Path) -> list[FoldRecord]:
    """The folds of a configuration that are finished, in order."""
    found = (read_record(path) for path in fold_folders(folder).values())
    return [record for record in found if record is not None]


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def differences(stored: RunRequest, wanted: RunRequest, *, same_fold: bool = True) -> list[str]:
    """In what an earlier run differs from what is asked for now; with `same_fold` its cases are compared, too."""
    # An option that a later version of the program has brought has its default in both.
    found = [
        f"--{name} was {_shown(stored.options[name])}, now it is {_shown(value)}"
        for name, value in wanted.options.items()
        if name in stored.options and stored.options[name] != value
    ]
    if stored.num_folds != wanted.num_folds:
        found.append(f"there were {stored.num_folds} folds, now there are {wanted.num_folds}")
    elif same_fold and stored.cases != wanted.cases:
        found.append("the fold had other cases")
    if stored.plan != wanted.plan:
        found.append("the plan of the preprocessed data was another one")
    if stored.previous != wanted.previous:
        found.append("the first stage of the cascade predicted other masks")
    if stored.data is not None and wanted.data is not None:
        changed = [case for case, stamp in wanted.data.items() if stored.data.get(case, stamp) != stamp]
        if changed:
            names = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
            found.append(f"the preprocessed data of {len(changed)} cases have changed since: {names}")
    return found


def mean_dice(cases: Iterable[CaseRecord], targets: Sequence[str]) -> DiceSummary | None:
    """Means over the cases that have a label; None if none has."""
    rows = [[float("nan") if value is None else value for value in case.dice] for case in cases if case.dice]
    if not rows:
        return None
    means = finite_mean(np.array(rows), axis=0)
    assert len(means) == len(targets), (len(means), targets)
    return DiceSummary(dice=tuple(means.tolist()), mean_dice=float(finite_mean(means)))


def summary(configuration: str, records: Sequence[FoldRecord]) -> dict[str, Any]:
    """The finished folds of a configuration (at least one) as they are written to the summary, JSON-ready."""
    targets, cases = records[0].targets, [case for record in records for case in record.cases]
    there = {record.fold for record in records}
    return {
        "configuration": configuration,
        **_scores(cases, targets),
        "folds": [
            {
                "fold": r.fold,
                "checkpoint": r.checkpoint or "best",
                **_scores(r.cases, targets),
                "epochs": r.epochs,
                "train_s": r.train_s,
            }
            for r in records
        ],
        "missing_folds": [fold for fold in range(records[0].num_folds) if fold not in there],
        "without_label": [case.case for case in cases if not case.dice],
    }


def _scores(cases: Sequence[CaseRecord], targets: Sequence[str]) -> dict[str, Any]:
    scores = mean_dice(cases, targets)
    dice = dict.fromkeys(targets) if scores is None else dict(zip(targets, scores.dice))
    return {"cases": len(cases), "mean_dice": None if scores is None else scores.mean_dice, "dice": dice}


def scores_of_model(model: Model) -> dict[str, float]:
    """Mean Dice of each of a model's configurations on cases that the network had not seen, where the records of its
    cross-validation lie beside it."""
    found = {}
    for name, configuration in zip(model.names, model.configurations):
        records = finished_records(configuration.source) if configuration.source.is_dir() else []
        scores = (
            mean_dice((case for record in records for case in record.cases), records[0].targets) if records else None
        )
        if scores is not None and np.isfinite(scores.mean_dice):
            found[name] = scores.mean_dice
    return found
