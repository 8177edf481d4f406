"""The page of a folder of masks: what predicted them, and their scores where somebody scored them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from report.doubt import doubt_table
from report.evaluation import (
    EvaluationFacts,
    ScoreFiles,
    evaluation_numbers,
    means_table,
    read_evaluation,
    values_of,
)
from report.layers import Structure, structures_of
from report.markup import Content, Markup, element, join
from report.numbers import decimal, plural
from report.page import Section, build_page, section
from report.prediction import (
    PredictionFacts,
    doubtful_first,
    failures,
    in_turn,
    prediction_numbers,
    read_prediction,
    scan_table,
    volume_charts,
)
from report.records import RunFacts
from report.score_tables import (
    absence_list,
    case_mean,
    not_in_viewer,
    refusals,
    score_table,
    spread_charts,
    worst_first,
)
from report.scored import predicting_run
from report.sources import FILES_ALONE, CaseFiles, Readers
from report.views import Room, Views, make_views
from report.words import run_record, tiles
from utils.certainty import DOUBT_ENDING
from utils.errors import UserError
from utils.schema import LabelScheme, Plan

LONG = 20
"""Rows of a table above which the viewer stands before it and not below."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFacts:
    """What is known of a folder of masks; of one that nobody has scored, or that something else predicted, a half."""

    folder: Path
    prediction: PredictionFacts | None
    evaluation: EvaluationFacts | None

    @property
    def plan(self) -> Plan | None:
        """By which they were predicted."""
        each = self.prediction or self.evaluation
        return None if each is None else each.plan

    @property
    def labels(self) -> LabelScheme | None:
        """What the values of masks and labels mean."""
        return self.plan.labels if self.plan else self.evaluation.labels if self.evaluation else None

    @property
    def run(self) -> RunFacts | None:
        """Of whoever predicted them."""
        each = self.prediction or self.evaluation
        return None if each is None else each.run

    @property
    def files(self) -> Mapping[str, CaseFiles]:
        """Of all cases; those with a score have a label."""
        predicted = self.prediction.files if self.prediction else {}
        return {**predicted, **(self.evaluation.files if self.evaluation else {})}

    @property
    def dice(self) -> Mapping[str, float]:
        """Mean Dice of the cases that were scored."""
        return {case.case: case_mean(case) for case in self.evaluation.scores.cases} if self.evaluation else {}


def read_masks(
    folder: Path, *, scores: ScoreFiles | None = None, readers: Readers = FILES_ALONE, scored: bool = False
) -> MaskFacts:
    """Gather what lies in a folder of masks.

    Args:
        folder: of the masks.
        scores: where evaluate.py wrote; by default beside the masks.
        readers: of scans that are more than files.
        scored: whether there must be scores.

    Raises:
        UserError: there are no scores although there must be some, or there is nothing at all.
    """
    evaluation = None
    if scored or (scores or ScoreFiles.beside(folder)).table.is_file():
        try:
            evaluation = read_evaluation(folder, scores, readers)
        except UserError:
            # Damaged scores are noted, and no reason to say nothing of the masks.
            if scored:
                raise
    predicted = predicting_run(folder) is not None or any(folder.glob(f"*{DOUBT_ENDING}"))
    prediction = read_prediction(folder, readers) if predicted or evaluation is None else None
    return MaskFacts(folder=folder, prediction=prediction, evaluation=evaluation)


def mask_page(facts: MaskFacts, views: Views, structures: Sequence[Structure]) -> str:
    """The text of the page."""
    scored, predicted = facts.evaluation, facts.prediction
    names = [*(["Prediction"] if predicted else []), *(["Evaluation"] if scored else [])]
    numbers: dict[str, Content] = {**(prediction_numbers(predicted) if predicted else {}),
                                   **(evaluation_numbers(scored) if scored else {})}  # fmt: skip
    sections = [
        section("Scores" if scored else "Result", tiles(numbers), means_table(scored) if scored else None),
        section("Failed scans", failures(predicted.failed) if predicted else None),
        section("Doubt", _doubt(predicted, views, facts.dice) if predicted else None),
        *(score_sections(scored, views) if scored else []),
        *(scan_sections(predicted, views, alone=not scored) if predicted else []),
        section("Run that predicted" if scored else "Run", run_record(facts.run) if facts.run or not scored else None),
    ]
    where = str(facts.folder)
    if scored:
        where = f"{scored.summary.get('preds', facts.folder)} against {scored.summary.get('lbls', 'its labels')}"
    cases = len(scored.scores.cases) if scored else len(facts.files)
    table = "Cases" if scored else "Scans"
    shown = [each.title for each in sections if each.content]
    place = shown.index(table) if table in shown else 1
    return build_page(
        " and ".join([names[0], *(name.lower() for name in names[1:])]), subtitle=where, sections=sections,
        views=views.shown, structures=structures, viewer_after=table if cases <= LONG else shown[place - 1],
    )  # fmt: skip


def _doubt(facts: PredictionFacts, views: Views, dice: Mapping[str, float]) -> Markup | None:
    known = doubt_table(facts.doubts, views, dice)
    return None if known is None else join(known, not_in_viewer(facts.doubtful, "doubtful scan", views))


def score_sections(facts: EvaluationFacts, views: Views) -> list[Section]:
    """Missed and invented structures, the scores of each case, and their spread."""
    cases, targets = worst_first(facts.scores.cases), facts.scores.targets
    hint = element("p", "A click on a case shows it in the viewer.", class_="note hint") if views.shown else None
    listed = score_table(cases, targets, views, caption=f"{plural(len(cases), 'case')}, worst first")
    return [
        section("Missed and invented", absence_list(cases, targets)),
        section("Cases", join(hint, listed, refusals(views))),
        section("Spread", spread_charts(cases, targets)),
    ]


def scan_sections(facts: PredictionFacts, views: Views, *, alone: bool) -> list[Section]:
    """Volumes and a picture of each scan, and their spread; `alone`: nothing else says which are not in the viewer."""
    return [
        section("Scans", join(scan_table(facts, views, alone=alone), refusals(views) if alone else None)),
        section("Volumes", volume_charts(facts)),
    ]


def write_mask_views(facts: MaskFacts, room: Room) -> tuple[Views, tuple[Structure, ...]]:
    """The cases that a person should see for the viewer, and a picture of each predicted scan."""
    predicted = facts.prediction
    orders = _orders(facts)
    chosen = room.choose(in_turn(*orders), predicted.doubtful if predicted else ())
    files = [facts.files[case] for case in chosen]
    labels = facts.labels
    structures = structures_of(labels, () if labels and not predicted else _values(facts, files))
    pictured = [facts.files[case] for case in predicted.volumes] if predicted else []
    views = make_views(files, structures, room, titles=_titles(facts), pictured=pictured, plan=facts.plan,
                       labels=labels)  # fmt: skip
    return views, structures


def _orders(facts: MaskFacts) -> list[list[str]]:
    """Cases in the orders in which they should be seen: the worst scores first, the most doubtful first."""
    worst = [case.case for case in worst_first(facts.evaluation.scores.cases)] if facts.evaluation else []
    return [each for each in (worst, doubtful_first(facts.prediction) if facts.prediction else []) if each]


def _values(facts: MaskFacts, chosen: Sequence[CaseFiles]) -> list[int]:
    found = {each.value for each in facts.prediction.structures} if facts.prediction else set()
    return sorted(found | set(values_of(chosen) if facts.evaluation else ()))


def _titles(facts: MaskFacts) -> dict[str, str]:
    """Case -> its name with what is special about it."""
    dice, records = facts.dice, facts.prediction.doubts if facts.prediction else ()
    words: dict[str, list[str]] = {case: [f"Dice {decimal(value)}"] for case, value in dice.items()}
    for record in records:
        if record.doubtful is not None or not dice:
            mark = "doubtful, " if record.doubtful else "doubt "
            words.setdefault(record.case, []).append(f"{mark}{decimal(record.score, 2)}")
    return {case: f"{case} ({'; '.join(said)})" for case, said in words.items()}
