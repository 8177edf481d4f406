"""Scores of models, alone and together, on the cases that none of their networks was trained on.

Shapes: T scored targets (regions, or the foreground classes), K classes or regions, z y x the voxels of a file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.case_files import CaseFiles
from data_preprocessing.runner import Workers
from data_preprocessing.shards import list_cases, read_meta
from models.ensemble import saved_classes, saved_member
from utils.decision import PostProcessing
from utils.errors import UserError, list_problems
from utils.files import read_json
from utils.nifti import read_label, to_working
from utils.postprocessing import keep_largest
from utils.predictions import class_indices
from utils.schema import LabelScheme, Plan
from utils.scores import dice_from_counts, finite_mean, label_counts

Candidate = tuple[str, ...]
"""Configurations whose probabilities are averaged."""
NOTHING = PostProcessing()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Out-of-fold predictions of several configurations of one task, and where the labels are."""

    folders: dict[str, Path]
    """Folder of each configuration: `<case>.nii.gz`, `<case>.npy` and plan.json."""
    label_files: dict[str, Path]
    """Label of each case."""
    labels: LabelScheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Dice of each target, its mean over the cases that have it, and the mean of those; NaN where nothing counts."""

    dice: tuple[float, ...]
    mean: float


def find_predictions(folders: dict[str, Path], label_files: dict[str, Path]) -> OutOfFold:
    """The predictions of all cases by all configurations, looked at but not read.

    Raises:
        UserError: predictions are missing, or the configurations have different label schemes; all are listed.
    """
    problems, schemes = [], {}
    for name, folder in folders.items():
        missing = [
            case for case in label_files if not all((folder / f"{case}{end}").is_file() for end in (".nii.gz", ".npy"))
        ]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            problems.append(f"{name}: {len(missing)} of {len(label_files)} cases are not in {folder}: {shown}")
        else:
            schemes[name] = read_json(Plan, folder / "plan.json").labels
    first = next(iter(schemes), None)
    problems += [
        f"{name} and {first} have different label schemes: they make no ensemble"
        for name, labels in schemes.items()
        if labels != schemes[first]
    ]
    if problems:
        raise list_problems(
            "the out-of-fold predictions are not complete:", problems,
            advice="Run scripts/cross_validate.py for all folds of these configurations.",
        )  # fmt: skip
    return OutOfFold(folders=folders, label_files=label_files, labels=schemes[first])


def find_labels(shards: Sequence[Path], labels: Path | None) -> dict[str, Path]:
    """The label file of each training case, as the shards remember them or in the folder `labels`.

    Raises:
        UserError: there are no shards, or files are not where they were.
    """
    folder = next((each for each in shards if list_cases(each)), None)
    if folder is None:
        raise UserError(f"no shards in {', '.join(map(str, shards))}; give the folder of preprocess.py as --data")
    paths = {}
    for case in list_cases(folder):
        stored = read_meta(folder, case).label
        paths[case] = Path(stored or "") if labels is None else labels / f"{case}.nii.gz"
    missing = [f"{case}: {path}" for case, path in paths.items() if not path.is_file()]
    if missing:
        raise list_problems("label files are missing:", missing, advice="Give the folder that has them: --labels.")
    return paths


def score_candidates(data: OutOfFold, candidates: Sequence[Candidate], workers: Workers) -> dict[Candidate, Scores]:
    """Dice of each candidate over all cases, before any post-processing."""
    counts = _count(data, functools.partial(_candidate_counts, data=data, candidates=candidates), workers)
    return {candidate: _scores(counts[:, index]) for index, candidate in enumerate(candidates)}


def choose_postprocessing(
    data: OutOfFold, candidate: Candidate, workers: Workers
) -> tuple[PostProcessing, Scores, Scores]:
    """Whether keeping the largest component helps: first of all foreground, then class by class.

    All foreground counts as helped when the mean Dice rises, a class when its own Dice does (with regions: the mean).

    Returns:
        The choice, and the scores without and with it.

    Source: Isensee et al., nnU-Net (2021), Methods, empirical parameters.
    """
    whole = PostProcessing(foreground=True)
    before, after = _with_each(data, candidate, (NOTHING, whole), workers)
    base, best = (whole, after) if after.mean > before.mean else (NOTHING, before)
    names = data.labels.names[1:]
    trials = [dataclasses.replace(base, classes=(name,)) for name in names]
    helped = tuple(
        name
        for index, (name, scores) in enumerate(zip(names, _with_each(data, candidate, trials, workers)))
        if (scores.mean > best.mean if data.labels.regions else scores.dice[index] > best.dice[index])
    )
    chosen = dataclasses.replace(base, classes=helped)
    [scores] = _with_each(data, candidate, (chosen,), workers) if helped else [best]
    return chosen, before, scores


def _with_each(
    data: OutOfFold, candidate: Candidate, choices: Sequence[PostProcessing], workers: Workers
) -> list[Scores]:
    count = functools.partial(_processed_counts, data=data, candidate=candidate, choices=choices)
    counts = _count(data, count, workers)
    return [_scores(counts[:, index]) for index in range(len(choices))]


def _count(data: OutOfFold, function: Callable[[CaseFiles], np.ndarray | str], workers: Workers) -> np.ndarray:
    """(cases, what is compared, T, 3) counts of all cases."""
    cases = [CaseFiles(case=case, images=(), label=path) for case, path in data.label_files.items()]
    results = workers.map(function, cases, title="score")
    problems = [result for result in results if isinstance(result, str)]
    if problems:
        raise list_problems("out-of-fold predictions cannot be scored:", problems, advice="Predict these cases again.")
    return np.stack(results)


def _candidate_counts(files: CaseFiles, *, data: OutOfFold, candidates: Sequence[Candidate]) -> np.ndarray | str:
    try:
        label = _read_label(files, data.labels)
        return np.stack([label_counts(_predicted(files, data, names), label, data.labels) for names in candidates])
    except UserError as error:
        return str(error)


def _processed_counts(
    files: CaseFiles, *, data: OutOfFold, candidate: Candidate, choices: Sequence[PostProcessing]
) -> np.ndarray | str:
    try:
        label, classes = _read_label(files, data.labels), _predicted(files, data, candidate)
        mask = np.array(data.labels.values, dtype=np.uint8)[classes]
        masks = (keep_largest(mask, data.labels, choice) for choice in choices)
        source = Path(files.case)
        return np.stack([label_counts(class_indices(m, data.labels, source), label, data.labels) for m in masks])
    except UserError as error:
        return str(error)


def _predicted(files: CaseFiles, data: OutOfFold, names: Candidate) -> np.ndarray:
    """Class indices (S, A, R) of the mean of some configurations."""
    members = [saved_member(data.folders[name], files.case) for name in names]
    return to_working(saved_classes(members).swapaxes(-1, -3), members[0].affine)


def _read_label(files: CaseFiles, labels: LabelScheme) -> np.ndarray:
    return class_indices(read_label(files.label).array, labels, files.label)


def _scores(counts: np.ndarray) -> Scores:
    """Of counts (cases, T, 3)."""
    dice = finite_mean(dice_from_counts(counts), axis=0)
    return Scores(dice=tuple(dice.tolist()), mean=float(finite_mean(dice)))
