"""Scores of models, alone and together, on the cases that none of their networks was trained on.

Shapes: T scored targets (regions, or the foreground classes), K classes or regions, z y x the voxels of a file.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.planning.adapt import read_folds
from data_preprocessing.runner import Workers
from data_preprocessing.shards import label_changes, list_cases, read_meta
from inference.decision import PostProcessing
from inference.postprocessing import keep_largest
from inference.saved import SavedProbabilities, mean_classes, planes_of, read_probabilities
from models.averaging import mean_of
from utils.errors import UserError, list_problems
from utils.files import read_json
from utils.nifti import from_working
from utils.predictions import most_probable, working_view
from utils.schema import Geometry, LabelScheme, Plan
from utils.scores import dice_from_counts, finite_mean, label_counts
from utils.scoring import class_indices, read_label_on

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
    first = next(iter(schemes), "")
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
    """The label file of each case that a fold of splits.json validates on: where the shards say, or in `labels`.

    Raises:
        UserError: there are no shards, a case has none, or files are not where they were, or not what they were.
    """
    folder = next((each for each in shards if list_cases(each)), None)
    if folder is None:
        raise UserError(f"no shards in {', '.join(map(str, shards))}; give the folder of preprocess.py as --data")
    paths, changed = {}, []
    for case in sorted({case for fold in read_folds(folder) for case in fold.val}):
        meta = read_meta(folder, case)
        paths[case] = Path(meta.label or "") if labels is None else labels / f"{case}.nii.gz"
        changed += label_changes(meta) if labels is None else []
    missing = [f"{case}: {path}" for case, path in paths.items() if not path.is_file()]
    if missing:
        raise list_problems("label files are missing:", missing, advice="Give the folder that has them: --labels.")
    if changed:
        raise list_problems(
            "labels are not those that the networks learned from:", changed,
            advice="Put them back, run preprocess.py and cross_validate.py again, or give the folder of the labels to "
            "score against: --labels.",
        )  # fmt: skip
    return paths


def score_candidates(data: OutOfFold, candidates: Sequence[Candidate], workers: Workers) -> dict[Candidate, Scores]:
    """Dice of each candidate over all cases, before any post-processing."""
    counts = _count(data, functools.partial(_candidate_counts, data=data, candidates=candidates), workers)
    return {candidate: _scores(counts[:, index]) for index, candidate in enumerate(candidates)}


def choose_postprocessing(
    data: OutOfFold, candidate: Candidate, workers: Workers
) -> tuple[PostProcessing, Scores, Scores]:
    """Whether keeping the largest component helps: first of all foreground, then class by class.

    All foreground counts as helped when the mean Dice rises and that of no target falls, a class when its own Dice
    rises. With regions, which share classes, a class is held to the rule of all foreground.

    Returns:
        The choice, and the scores without and with it.

    Source: Isensee et al., nnU-Net (2021), Methods, empirical parameters; nnU-Net v2 for what must not fall.
    """
    whole = PostProcessing(foreground=True)
    before, after = _with_each(data, candidate, (NOTHING, whole), workers)
    base, best = (whole, after) if _improves(after, before) else (NOTHING, before)
    if data.labels.regions:
        return _choose_in_turn(data, candidate, (base, before, best), workers)
    names = data.labels.names[1:]
    trials = [dataclasses.replace(base, classes=(name,)) for name in names]
    # Plain classes leave each other's counts alone, so that what helps alone helps together.
    dice = [scores.dice[index] for index, scores in enumerate(_with_each(data, candidate, trials, workers))]
    helped = tuple(name for name, new, old in zip(names, dice, best.dice) if new > old)
    together = tuple(new if new > old else old for new, old in zip(dice, best.dice))
    chosen = dataclasses.replace(base, classes=helped)
    return chosen, before, Scores(dice=together, mean=float(finite_mean(together)))


def _choose_in_turn(
    data: OutOfFold, candidate: Candidate, start: tuple[PostProcessing, Scores, Scores], workers: Workers
) -> tuple[PostProcessing, Scores, Scores]:
    """Class after class, each on top of those that helped: two that help alone may not do so together."""
    chosen, before, best = start
    for name in data.labels.names[1:]:
        trial = dataclasses.replace(chosen, classes=(*chosen.classes, name))
        [after] = _with_each(data, candidate, (trial,), workers)
        if _improves(after, best):
            chosen, best = trial, after
    return chosen, before, best


def _improves(after: Scores, before: Scores) -> bool:
    return after.mean > before.mean and not any(new < old for new, old in zip(after.dice, before.dice))


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
        saved = {name: read_probabilities(folder, files.case) for name, folder in data.folders.items()}
        label, grid = _read_label(files.case, data, next(iter(saved.values())))
        stored = from_working(label, grid).swapaxes(-1, -3)
        counts, first = np.zeros((len(candidates), len(data.labels.target_names), 3), dtype=np.int64), 0
        for planes in planes_of(list(saved.values())):
            named = dict(zip(saved, planes))
            part = stored[first : first + planes[0].shape[1]]
            for index, names in enumerate(candidates):
                classes = most_probable(mean_of(named[name] for name in names), data.labels)
                counts[index] += label_counts(classes, part, data.labels)
            first += len(part)
        return counts
    except UserError as error:
        return str(error)


def _processed_counts(
    files: CaseFiles, *, data: OutOfFold, candidate: Candidate, choices: Sequence[PostProcessing]
) -> np.ndarray | str:
    try:
        saved = [read_probabilities(data.folders[name], files.case) for name in candidate]
        label, _ = _read_label(files.case, data, saved[0])
        classes = working_view(mean_classes(saved), saved[0].affine)
        mask = np.array(data.labels.values, dtype=np.uint8)[classes]
        masks = (keep_largest(mask, data.labels, choice) for choice in choices)
        source = Path(files.case)
        return np.stack([label_counts(class_indices(m, data.labels, source), label, data.labels) for m in masks])
    except UserError as error:
        return str(error)


def _read_label(case: str, data: OutOfFold, saved: SavedProbabilities) -> tuple[np.ndarray, Geometry]:
    """Class indices (S, A, R) of the label of a case, on the grid of its predictions; and that grid."""
    # The label is turned as the prediction is, whose probabilities are compared with it.
    columns, rows, slices = (int(size) for size in saved.values.shape[:0:-1])
    grid = Geometry(
        shape_xyz=(columns, rows, slices), affine=tuple(map(tuple, np.asarray(saved.affine, float).tolist())),
        qform_code=0, sform_code=0, xyzt_units=2,
    )  # fmt: skip
    label = read_label_on(grid, data.label_files[case], data.labels, of=f"its prediction {saved.name}")
    return label, grid


def _scores(counts: np.ndarray) -> Scores:
    """Of counts (cases, T, 3)."""
    dice = finite_mean(dice_from_counts(counts), axis=0)
    return Scores(dice=tuple(dice.tolist()), mean=float(finite_mean(dice)))
