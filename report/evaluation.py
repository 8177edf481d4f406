"""What an evaluation says of a folder of masks: scores of each case, means, missed and invented structures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from report.markup import Content, Markup
from report.notices import note, note_damage
from report.numbers import decimal, listed, noun, plural
from report.records import RunFacts, ScoreTable, optional, read_mapping, read_score_table
from report.scored import find_files, label_folder, note_changed_masks, plan_behind, predicting_run
from report.sources import FILES_ALONE, CaseFiles, Readers, by_case
from report.tables import Row, number_cell, table
from utils.errors import UserError
from utils.files import from_dict
from utils.nifti import read_label
from utils.schema import LabelScheme, Plan
from utils.values import distinct_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreFiles:
    """Where evaluate.py wrote the scores of a folder of masks."""

    table: Path
    summary: Path

    @classmethod
    def beside(cls, masks: Path) -> ScoreFiles:
        """Where they are unless somebody has said otherwise."""
        return cls(table=masks / "scores.csv", summary=masks / "summary.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationFacts:
    """What `summary.json` and `scores.csv` say of a folder of masks."""

    folder: Path
    summary: Mapping[str, object]
    scores: ScoreTable
    run: RunFacts | None
    """Of whoever predicted the masks."""
    plan: Plan | None
    labels: LabelScheme | None
    """By which they were scored; None where an earlier version has not said."""
    files: Mapping[str, CaseFiles]


def read_evaluation(folder: Path, written: ScoreFiles | None = None, readers: Readers = FILES_ALONE) -> EvaluationFacts:
    """Gather what an evaluation wrote, by default beside the masks.

    Args:
        folder: of the masks.
        written: where the scores are.
        readers: of scans that are more than files.

    Raises:
        UserError: there are no scores.
    """
    written = written or ScoreFiles.beside(folder)
    scores = read_score_table(written.table)
    if scores is None:
        raise UserError(f"{written.table} holds no scores; run evaluate.py --preds {folder} --lbls LABELS first")
    summary, run = read_mapping(written.summary), predicting_run(folder)
    masks = by_case(folder)
    note_changed_masks(masks, written.table)
    if unscored := sorted(masks.keys() - {case.case for case in scores.cases}):
        note(f"{plural(len(unscored), 'mask')} without a score in {written.table.name} ({listed(unscored)}): run "
             "evaluate again")  # fmt: skip
    labels = by_case(label_folder(summary, folder, run))
    files = {case.case: find_files(case.case, run, masks.get(case.case), labels.get(case.case), readers)
             for case in scores.cases}  # fmt: skip
    return EvaluationFacts(folder=folder, summary=summary, scores=scores, run=run, plan=plan_behind(folder, run),
                           labels=labels_of(summary, written.summary), files=files)  # fmt: skip


def labels_of(summary: Mapping[str, object], path: Path) -> LabelScheme | None:
    """The label scheme that evaluate.py has written down."""
    try:
        return from_dict(LabelScheme, summary["labels"], source=str(path)) if "labels" in summary else None
    except UserError as error:
        note_damage(path, error)
        return None


def evaluation_numbers(facts: EvaluationFacts) -> dict[str, Content]:
    """The means over all cases and targets."""
    summary, number = facts.summary, len(facts.scores.cases)
    return {
        "mean Dice": decimal(optional(summary.get("mean_dice"))),
        "mean HD95, mm": decimal(optional(summary.get("mean_hd95_mm")), 1),
        "mean surface Dice": decimal(optional(summary.get("mean_nsd"))),
        noun(number, "scored case"): number,
    }


def means_table(facts: EvaluationFacts) -> Markup | None:
    """Means over the cases, a row for each target."""
    columns = {
        "Dice": ("dice", 4), "HD95 mm": ("hd95_mm", 2), "one mask empty": ("unbounded", 0), "NSD": ("nsd", 4),
        "lesion F1": ("lesion_f1", 4), "lesion sensitivity": ("lesion_sensitivity", 4),
        "lesion precision": ("lesion_precision", 4),
    }  # fmt: skip
    found = {title: (facts.summary.get(key), digits) for title, (key, digits) in columns.items()}
    targets = facts.scores.targets
    shown = {title: (values, digits) for title, (values, digits) in found.items()
             if isinstance(values, list) and len(values) == len(targets)}  # fmt: skip
    if not shown:
        return None
    rows = [
        Row(cells=(target, *(number_cell(optional(values[number]), digits) for values, digits in shown.values())))
        for number, target in enumerate(targets)
    ]
    return table(["target", *shown], rows, caption="means over the cases; lesions of all cases together")


def values_of(files: Sequence[CaseFiles]) -> list[int]:
    """Values that the masks and labels of some cases hold."""
    values: set[int] = set()
    for path in (path for each in files for path in (each.mask, each.label)):
        try:
            values |= set() if path is None else set(map(int, distinct_values(read_label(path).array)))
        except UserError:
            continue
    return sorted(values)
