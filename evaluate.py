"""Score predictions against labels: Dice per target, and HD95, NSD and single lesions on request.

python evaluate.py --preds results/preds_task_04_dim_3_fold_0 --lbls data/Task04_Hippocampus/labelsTr
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from report.finishing import finish_evaluation, outdate_scores
from utils.args import parse
from utils.errors import UserError, list_problems, run_cli
from utils.json_text import parse_json

if TYPE_CHECKING:
    from utils.predictions import Pair
    from utils.schema import LabelScheme
    from utils.scores import CaseScores, ScoreSummary


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score predictions against labels: Dice per target, and surface distances and single lesions on request."""

    preds: Path
    """Folder of predictions: masks <case>.nii.gz (or .nrrd, .mha, ...) on the grid of their label, or arrays <case>.npy
    in its voxel order: probabilities (K, z, y, x) or masks (z, y, x)."""
    lbls: Path
    """Folder of labels: <case>.nii.gz, or in another format."""
    labels: Path | None = None
    """dataset.json or plan.json that names the label values (default: dataset.json in or above --lbls, if any)."""
    brats: bool = False
    """Score the BraTS regions (whole tumour, tumour core, enhancing tumour)."""
    hd95: bool = False
    """Also the 95th percentile of the surface distances, in mm."""
    nsd: bool = False
    """Also the normalised surface Dice."""
    nsd_tolerance_mm: float = 1.0
    """Distance up to which surfaces agree, in mm."""
    lesions: bool = False
    """Also single lesions: how many connected parts of the label share a voxel with the mask, and how many parts of the
    mask share none with the label."""
    csv: Path | None = None
    """File for the scores of each case (default: scores.csv in --preds)."""
    json: Path | None = None
    """File for the summary (default: summary.json in --preds)."""
    report: bool = True
    """Write a page about the scores: report.html in --preds, or beside the file of --csv and named like it."""

    def __post_init__(self) -> None:
        if not self.nsd_tolerance_mm >= 0:
            raise ValueError(f"--nsd_tolerance_mm must not be negative, got {self.nsd_tolerance_mm}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    config = parse(EvaluateConfig, argv, prog="evaluate.py")

    from data_preprocessing.dataset.description_file import DESCRIPTION
    from inference.soft_output import soft_names
    from utils.files import require_not_read
    from utils.predictions import find_pairs
    from utils.scan_names import left_out
    from utils.scores import summarise

    pairs, num_labels = find_pairs(config.preds, config.lbls)
    csv_path, json_path = config.csv or config.preds / "scores.csv", config.json or config.preds / "summary.json"
    named = [config.lbls / DESCRIPTION, config.lbls.parent / DESCRIPTION, *([config.labels] if config.labels else [])]
    read = [*named, *(path for pair in pairs for path in (pair.prediction, pair.label))]
    for flag, path in (("--csv", csv_path), ("--json", json_path)):
        require_not_read(path, flag, read)
        if not path.parent.is_dir():
            raise UserError(f"{path} cannot be written: {path.parent} is not a folder")
    # Maps of --save_soft belong to a prediction.
    for flag, folder, known in (("--preds", config.preds, soft_names(config.preds)), ("--lbls", config.lbls, ())):
        for line in left_out(folder, known):
            print(f"warning: left out of {flag} {folder}: {line}", file=sys.stderr)
    labels = find_labels(config, pairs)
    scores, problems = [], []
    for pair in pairs:
        try:
            scores.append(score_pair(pair, labels, config))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise list_problems(
            f"{len(problems)} of {len(pairs)} predictions cannot be scored:", problems,
            advice="Correct or remove them; nothing was written.",
        )  # fmt: skip
    summary = summarise(scores, labels.target_names)
    scored_before = csv_path.is_file()
    write_results(config, csv_path, json_path, scores, summary, labels)
    print(table(summary))
    print(f"{len(pairs)} predictions of {num_labels} labelled cases; {csv_path}, {json_path}")
    if config.report:
        from inference.page_scans import scans_again

        with scans_again(config.preds) as readers:
            finish_evaluation(config.preds, csv_path, json_path, readers)
    elif scored_before:
        outdate_scores(config.preds, csv_path)
    return 0


def find_labels(config: EvaluateConfig, pairs: Sequence[Pair]) -> LabelScheme:
    """The label scheme of `--labels`, of the dataset.json of `--lbls`, or else of the values that the files hold."""
    from data_preprocessing.dataset.description_file import DESCRIPTION
    from data_preprocessing.dataset.label_schemes import parse_labels, with_brats_regions
    from utils.files import from_dict
    from utils.predictions import labels_from_files
    from utils.schema import Plan

    nearby = (config.lbls / DESCRIPTION, config.lbls.parent / DESCRIPTION)
    source = config.labels or next((path for path in nearby if path.is_file()), None)
    labels: LabelScheme | None
    if source is None:
        labels = labels_from_files(pairs)
    else:
        try:
            content = parse_json(source.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{source} cannot be read as JSON: {error}") from None
        if not isinstance(content, dict):
            raise UserError(f"{source} must be a dataset.json or plan.json")
        problems: list[str] = []
        is_plan = "stage" in content
        named = from_dict(Plan, content, source=str(source)).labels if is_plan else parse_labels(content, problems)
        if named is None:
            raise list_problems(f"{source} does not name the labels:", problems, advice="Correct it or use --labels.")
        labels = named
    return with_brats_regions(labels) if config.brats and not labels.regions else labels


def score_pair(pair: Pair, labels: LabelScheme, config: EvaluateConfig) -> CaseScores:
    """Scores of one case.

    Raises:
        UserError: a file cannot be read, holds unknown values, or lies on another grid than its label.
    """

    from utils.lesions import count_lesions
    from utils.nifti import read_label
    from utils.predictions import read_prediction
    from utils.scores import CaseScores, dice_from_counts, label_counts, surface_scores, target_masks
    from utils.scoring import class_indices

    volume = read_label(pair.label)
    label = class_indices(volume.array, labels, pair.label)
    prediction = read_prediction(pair, volume, labels)
    counts = label_counts(prediction, label, labels)
    ignored = None if labels.ignore_index is None else label == labels.ignore_index
    surfaces, lesions = [], []
    for found, true in zip(target_masks(prediction, labels), target_masks(label, labels)):
        if config.lesions:
            lesions.append(count_lesions(found, true, ignored))
        if config.hd95 or config.nsd:
            known = found if ignored is None else found & ~ignored
            surfaces.append(surface_scores(known, true, volume.spacing_mm, tolerance_mm=config.nsd_tolerance_mm))
    return CaseScores(
        case=pair.case,
        counts=tuple(map(tuple, counts.tolist())),
        dice=tuple(dice_from_counts(counts).tolist()),
        hd95_mm=tuple(s.hd95_mm for s in surfaces) if config.hd95 else (),
        nsd=tuple(s.nsd for s in surfaces) if config.nsd else (),
        lesions=tuple(lesions),
    )


def write_results(
    config: EvaluateConfig, csv_path: Path, json_path: Path, scores: Sequence[CaseScores], summary: ScoreSummary,
    labels: LabelScheme,
) -> None:  # fmt: skip
    """One CSV row per case and target, and the summary as JSON (undefined and infinite values are null there)."""
    from utils.files import to_dict, write_atomically, write_json
    from utils.lesions import COLUMNS

    counted = COLUMNS if config.lesions else {}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    kinds = [kind for kind in ("hd95_mm", "nsd") if getattr(scores[0], kind)]
    writer.writerow(("case", "target", "dice", "tp", "fp", "fn", *kinds, *counted.values()))
    for case in scores:
        for target, name in enumerate(summary.targets):
            surface = (getattr(case, kind)[target] for kind in kinds)
            lesions = (getattr(case.lesions[target], field) for field in counted)
            writer.writerow((case.case, name, case.dice[target], *case.counts[target], *surface, *lesions))
    record = {"version": 1, "preds": str(config.preds), "lbls": str(config.lbls)} | to_dict(summary)
    record["labels"] = to_dict(labels)
    if config.nsd:
        record["nsd_tolerance_mm"] = config.nsd_tolerance_mm
    try:
        write_atomically(csv_path, lambda file: file.write(text.getvalue().encode("utf-8", "surrogateescape")))
        write_json(_finite(record), json_path)
    except OSError as error:
        raise UserError(f"{error.filename or csv_path.parent} cannot be written: {error.strerror}") from None


def table(summary: ScoreSummary) -> str:
    """The means as text: Dice and NSD in 0..1, HD95 in mm with the cases in which one mask is empty beside it.

    Of lesions the sums over all cases, and their F1.
    """
    from utils.lesions import together
    from utils.scores import finite_mean

    columns: dict[str, list[float] | list[int]] = {"Dice": [*summary.dice, summary.mean_dice]}
    if summary.mean_hd95_mm is not None:
        columns["HD95 mm"] = [*summary.hd95_mm, summary.mean_hd95_mm]
        columns["missed"] = [*summary.unbounded, sum(summary.unbounded)]
    if summary.mean_nsd is not None:
        columns["NSD"] = [*summary.nsd, summary.mean_nsd]
    if summary.lesions:
        totals = together(summary.lesions)
        columns["lesions"] = [*(each.true for each in summary.lesions), totals.true]
        columns["found"] = [*(each.found for each in summary.lesions), totals.found]
        columns["false"] = [*(each.false for each in summary.lesions), totals.false]
        columns["F1"] = [*summary.lesion_f1, float(finite_mean(summary.lesion_f1))]
    names = [*summary.targets, "mean"]
    width = max(len(name) for name in ("target", *names))
    lines = ["  ".join([f"{'target':{width}}", *(f"{title:>8}" for title in columns)])]
    for row, name in enumerate(names):
        cells = (column[row] for column in columns.values())
        lines.append("  ".join([f"{name:{width}}", *(f"{c:8d}" if isinstance(c, int) else f"{c:8.4f}" for c in cells)]))
    return "\n".join(lines)


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(run_cli(main))
