"""The page of a training: curves, plan, data, validation cases, record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from report.charts import Axis, Series, line_chart
from report.layers import Structure, ignored, structures_of
from report.markup import Content, Markup, element, join
from report.numbers import decimal, duration, plural
from report.page import build_page, section
from report.records import (
    RunFacts,
    ScoreTable,
    is_number,
    read_epochs,
    read_fold,
    read_log_options,
    read_mapping,
    read_run,
    read_score_table,
)
from report.score_tables import absence_list, refusals, score_table, spread_charts, titles, worst_first
from report.scored import find_files, label_folder, predicting_run
from report.sources import CaseFiles, by_case, case_places, files_of_shard, read_object, read_plan, shard_folder
from report.views import Room, Views, make_views
from report.words import data_at_a_glance, plan_in_words, run_record, tiles
from utils.errors import UserError
from utils.nifti import read_label
from utils.predictions import class_indices
from utils.schema import Fingerprint, LabelScheme, Plan
from utils.scores import CaseScores, dice_from_counts, label_counts


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredCases:
    """Cases that this training's network predicted, with their scores, and where those come from."""

    scores: ScoreTable
    source: str
    files: Mapping[str, CaseFiles]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """What a training's folder says."""

    folder: Path
    run: RunFacts | None
    epochs: Mapping[int, Mapping[str, float]]
    targets: tuple[str, ...]
    state: Mapping[str, object]
    """`training.json`; empty where there is none."""
    plan: Plan | None
    fingerprint: Fingerprint | None
    scored: ScoredCases | None


def read_training(folder: Path) -> TrainingFacts:
    """Gather what a training left behind; what is missing is empty."""
    ended = read_run(folder / "run.json")
    log = ended.option("run", "logname") if ended is not None else None
    log_path = folder / (log if isinstance(log, str) else "logs.json")
    epochs = read_epochs(log_path)
    # A training that has not come to its end has said what it was asked for, and no more.
    run = ended or read_log_options(log_path)
    shards = None if run is None else shard_folder(run)
    plan = None if shards is None else read_plan(shards / "plan.json")
    fingerprint = None if shards is None else read_object(Fingerprint, shards / "fingerprint.json")
    places = () if run is None else tuple(case_places(run))
    return TrainingFacts(
        folder=folder, run=run, epochs=epochs, targets=_targets(epochs, run, plan),
        state=read_mapping(folder / "checkpoints" / "training.json"), plan=plan, fingerprint=fingerprint,
        scored=read_scored(folder, places, plan),
    )  # fmt: skip


def training_page(facts: TrainingFacts, views: Views, structures: Sequence[Structure]) -> str:
    """The text of the page."""
    outcome = facts.run.outcome if facts.run is not None else {}
    done, most, finished = facts.state.get("epochs"), facts.state.get("max_epochs"), facts.state.get("finished")
    numbers: dict[str, Content] = {
        "best mean Dice": decimal(outcome["best_dice"]) if is_number(outcome.get("best_dice")) else None,
        "in epoch (from 0)": outcome.get("best_epoch"),
        "epochs": done if isinstance(done, int) else len(facts.epochs),
        "of training": duration(outcome["train_s"]) if is_number(outcome.get("train_s")) else None,
        "scored cases": len(facts.scored.scores.cases) if facts.scored else None,
    }
    unfinished = finished is False or ((facts.run is None or not facts.run.outcome) and not finished)
    notice = element("p", f"This training has not come to its end: {done or len(facts.epochs)} of {most or 'unknown'} "
                     "epochs are done. Continue it with --resume_training.", class_="warning")  # fmt: skip
    name = facts.plan.dataset if facts.plan else facts.folder.name
    fold = facts.run.option("run", "fold") if facts.run else None
    sections = [
        section("Result", notice if unfinished else None, tiles(numbers)),
        section("Curves", element("div", curves(facts.epochs, facts.targets), class_="charts")),
        section("Cases", case_scores(facts, views)),
        section("Plan", plan_in_words(facts.plan)),
        section("Data", data_at_a_glance(facts.fingerprint)),
        section("Run", run_record(facts.run)),
    ]
    return build_page(
        f"Training of {name}" + (f", fold {fold}" if fold is not None else ""), subtitle=str(facts.folder),
        sections=sections, views=views.shown, structures=structures, viewer_after="Cases",
    )  # fmt: skip


def write_training_views(facts: TrainingFacts, room: Room) -> tuple[Views, tuple[Structure, ...]]:
    """The worst cases for the viewer."""
    structures = structures_of(facts.plan.labels if facts.plan else None)
    if facts.scored is None:
        return Views(), structures
    cases = worst_first(facts.scored.scores.cases)
    files = [facts.scored.files[case] for case in room.choose([case.case for case in cases])]
    ignore = ignored(facts.plan.labels if facts.plan else None)
    return make_views(files, structures, room, titles=titles(cases), ignore_value=ignore), structures


def curves(epochs: Mapping[int, Mapping[str, float]], targets: Sequence[str]) -> list[Markup]:
    """Loss, Dice by target, learning rate and seconds over the epochs."""

    def series(name: str, key: str, number: int | None) -> Series:
        points = tuple(
            (float(epoch), row[key]) for epoch, row in epochs.items() if math.isfinite(row.get(key, math.nan))
        )
        return Series(name=name, points=points, number=number)

    # All charts show the same epochs, those without a validation too.
    x = Axis(title="epoch", low=float(min(epochs, default=0)), high=float(max(epochs, default=1)), whole=True)
    dice = [series(target, f"dice_{target}", number) for number, target in enumerate(targets)]
    return [
        line_chart([series("training", "train_loss", 5), series("validation", "val_loss", 0)],
                   x=x, y=Axis(title="loss"), title="Loss"),
        line_chart([*dice, series("mean", "dice", None)], x=x, y=Axis(title="Dice", low=0.0, high=1.0),
                   title="Dice of the validation cases"),
        line_chart([series("learning rate", "learning_rate", 5)], x=x, y=Axis(title="learning rate", low=0.0),
                   title="Learning rate"),
        line_chart([series("seconds", "epoch_s", 5)], x=x, y=Axis(title="seconds", low=0.0),
                   title="Seconds of an epoch"),
    ]  # fmt: skip


def case_scores(facts: TrainingFacts, views: Views) -> Markup:
    """Scores of single cases, worst first; how to get them where there are none."""
    if facts.scored is None:
        flags = element("code", "--exec_mode predict --save_preds")
        return element("p", "Scores of single cases are there once the fold has been predicted into this folder: ",
                       flags, class_="none")  # fmt: skip
    scores = facts.scored.scores
    cases = worst_first(scores.cases)
    hint = element("p", "A click on a case shows it in the viewer.", class_="note hint") if views.shown else None
    return join(
        element("p", f"{facts.scored.source}.", class_="note"), absence_list(cases, scores.targets), hint,
        score_table(cases, scores.targets, views, caption=f"{plural(len(cases), 'case')}, worst first"),
        refusals(views), spread_charts(cases, scores.targets),
    )  # fmt: skip


def read_scored(folder: Path, places: Sequence[Path], plan: Plan | None) -> ScoredCases | None:
    """The scores of a training's cases: as evaluate.py wrote them, or of its masks, or of the fold's record."""
    for preds in sorted(folder.glob("preds_*")):
        written = read_score_table(preds / "scores.csv")
        if written is not None:
            run, masks = predicting_run(preds), by_case(preds)
            labels = by_case(label_folder(read_mapping(preds / "summary.json"), preds, run))
            names = [case.case for case in written.cases]
            files = {case: find_files(case, run, masks.get(case), labels.get(case)) for case in names}
            return ScoredCases(scores=written, source=f"Masks in {preds.name}, as evaluate.py scored them", files=files)
    record, masks = read_fold(folder), _masks(folder)
    files = {case: files_of_shard(places, case, mask) for case, mask in masks.items()}
    found = None if plan is None else score_masks(files, plan.labels)
    if found is not None:
        return ScoredCases(scores=found, source="Masks of this training against the labels of its data", files=files)
    if record is None or not record.cases:
        return None
    scores = ScoreTable(targets=record.targets, cases=record.cases)
    files = {case.case: files.get(case.case) or files_of_shard(places, case.case) for case in record.cases}
    return ScoredCases(scores=scores, source="Cases that this fold has not seen", files=files)


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


def _targets(epochs: Mapping[int, Mapping[str, float]], run: RunFacts | None, plan: Plan | None) -> tuple[str, ...]:
    if plan is not None:
        return plan.labels.target_names
    if run is not None and any(name.startswith("best_dice_") for name in run.outcome):
        return tuple(name.removeprefix("best_dice_") for name in run.outcome if name.startswith("best_dice_"))
    names = dict.fromkeys(name for row in epochs.values() for name in row if name.startswith("dice_"))
    return tuple(name.removeprefix("dice_") for name in names)
