"""The page of an evaluation: scores of each case, their spread, missed and invented structures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from report.layers import Structure, structures_of
from report.markup import Content, element, join
from report.numbers import decimal, noun, plural
from report.page import build_page, section
from report.records import RunFacts, ScoreTable, optional, read_mapping, read_score_table
from report.score_tables import absence_list, refusals, score_table, spread_charts, titles, worst_first
from report.scored import find_files, label_folder, note_changed_masks, plan_behind, predicting_run
from report.sources import CaseFiles, by_case
from report.tables import Row, number_cell, table
from report.views import Room, Views, make_views
from report.words import run_record, tiles
from utils.errors import UserError
from utils.nifti import read_label
from utils.schema import Plan
from utils.values import distinct_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreFiles:
    """Where evaluate.py wrote the scores of a folder of masks."""

    table: Path
    summary: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationFacts:
    """What `summary.json` and `scores.csv` say of a folder of masks."""

    folder: Path
    summary: Mapping[str, object]
    scores: ScoreTable
    run: RunFacts | None
    """Of whoever predicted the masks."""
    plan: Plan | None
    files: Mapping[str, CaseFiles]


def read_evaluation(folder: Path, written: ScoreFiles | None = None) -> EvaluationFacts:
    """Gather what an evaluation wrote, by default beside the masks.

    Raises:
        UserError: there are no scores.
    """
    written = written or ScoreFiles(table=folder / "scores.csv", summary=folder / "summary.json")
    scores = read_score_table(written.table)
    if scores is None:
        raise UserError(f"{written.table} holds no scores; run evaluate.py --preds {folder} --lbls LABELS first")
    summary, run = read_mapping(written.summary), predicting_run(folder)
    masks = by_case(folder)
    note_changed_masks(masks, written.table)
    labels = by_case(label_folder(summary, folder, run))
    files = {case.case: find_files(case.case, run, masks.get(case.case), labels.get(case.case))
             for case in scores.cases}  # fmt: skip
    return EvaluationFacts(folder=folder, summary=summary, scores=scores, run=run, plan=plan_behind(folder, run),
                           files=files)  # fmt: skip


def evaluation_page(facts: EvaluationFacts, views: Views, structures: Sequence[Structure]) -> str:
    """The text of the page."""
    cases, targets = worst_first(facts.scores.cases), facts.scores.targets
    summary = facts.summary
    numbers: dict[str, Content] = {
        "mean Dice": decimal(optional(summary.get("mean_dice"))),
        "mean HD95, mm": decimal(optional(summary.get("mean_hd95_mm")), 1),
        "mean surface Dice": decimal(optional(summary.get("mean_nsd"))),
        noun(len(cases), "case"): len(cases),
    }
    hint = element("p", "A click on a case shows it in the viewer.", class_="note hint") if views.shown else None
    listed = score_table(cases, targets, views, caption=f"{plural(len(cases), 'case')}, worst first")
    sections = [
        section("Scores", tiles(numbers), means_table(facts)),
        section("Spread", spread_charts(cases, targets)),
        section("Missed and invented", absence_list(cases, targets)),
        section("Cases", join(hint, listed, refusals(views))),
        section("Run that predicted", run_record(facts.run) if facts.run else None),
    ]
    where = f"{summary.get('preds', facts.folder)} against {summary.get('lbls', 'its labels')}"
    return build_page("Evaluation", subtitle=where, sections=sections, views=views.shown, structures=structures,
                      viewer_after="Cases")  # fmt: skip


def write_evaluation_views(facts: EvaluationFacts, room: Room) -> tuple[Views, tuple[Structure, ...]]:
    """The worst cases for the viewer."""
    cases = worst_first(facts.scores.cases)
    files = [facts.files[case] for case in room.choose([case.case for case in cases])]
    labels = facts.plan.labels if facts.plan else None
    structures = structures_of(labels, () if labels else values_of(files))
    return make_views(files, structures, room, titles=titles(cases), plan=facts.plan), structures


def means_table(facts: EvaluationFacts) -> object:
    """Means over the cases, a row for each target."""
    columns = {"Dice": ("dice", 4), "HD95 mm": ("hd95_mm", 2), "one mask empty": ("unbounded", 0), "NSD": ("nsd", 4)}
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
    return table(["target", *shown], rows, caption="means over the cases")


def values_of(files: Sequence[CaseFiles]) -> list[int]:
    """Values that the masks and labels of some cases hold."""
    values: set[int] = set()
    for path in (path for each in files for path in (each.mask, each.label)):
        try:
            values |= set() if path is None else set(map(int, distinct_values(read_label(path).array)))
        except UserError:
            continue
    return sorted(values)
