"""The page of a training: curves, plan, data, validation cases, record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from report.cases import ScoredCases, read_scored
from report.charts import Axis, Series, line_chart
from report.layers import Structure, structures_of
from report.markup import Content, Markup, element, join
from report.numbers import decimal, duration, noun, plural
from report.page import build_page, section
from report.records import (
    RunFacts,
    is_number,
    read_epochs,
    read_log_options,
    read_mapping,
    read_run,
)
from report.score_tables import absence_list, refusals, score_table, spread_charts, titles, worst_first
from report.sources import (
    case_places,
    read_object,
    read_plan,
    shard_folder,
)
from report.views import Room, Views, make_views
from report.words import data_at_a_glance, plan_in_words, run_record, tiles
from utils.schema import Fingerprint, Plan

COUNTED = element("p", "Epochs are counted from 1, as on the terminal; names of checkpoints count from 0 (epoch=0 is "
                  "the first one).", class_="note")  # fmt: skip


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
        state=read_mapping(checkpoint_place(folder, run) / "training.json"), plan=plan, fingerprint=fingerprint,
        scored=read_scored(folder, places, plan, ended),
    )  # fmt: skip


def checkpoint_place(folder: Path, run: RunFacts | None) -> Path:
    """Where the checkpoints of a training are, which `--ckpt_store_dir` may have led elsewhere."""
    elsewhere = None if run is None else run.resolve(run.option("run", "ckpt_store_dir"))
    return (elsewhere or folder) / "checkpoints"


def training_page(facts: TrainingFacts, views: Views, structures: Sequence[Structure]) -> str:
    """The text of the page."""
    outcome = facts.run.outcome if facts.run is not None else {}
    most, finished, best_epoch = facts.state.get("max_epochs"), facts.state.get("finished"), outcome.get("best_epoch")
    state = facts.state.get("epochs")
    done = state if isinstance(state, int) else len(facts.epochs)
    scored = len(facts.scored.scores.cases) if facts.scored else 0
    numbers: dict[str, Content] = {
        "best mean Dice": decimal(outcome["best_dice"]) if is_number(outcome.get("best_dice")) else None,
        "best epoch": best_epoch + 1 if isinstance(best_epoch, int) else None,
        noun(done, "epoch"): done,
        "of training": duration(outcome["train_s"]) if is_number(outcome.get("train_s")) else None,
        noun(scored, "scored case"): scored or None,
    }
    unfinished = finished is False or ((facts.run is None or not facts.run.outcome) and not finished)
    notice = element("p", f"This training has not come to its end: {done} of "
                     f"{f'at most {most}' if most else 'an unknown number of'} epochs {'is' if done == 1 else 'are'} "
                     "done. Continue it with --resume_training.", class_="warning")  # fmt: skip
    name = facts.plan.dataset if facts.plan else facts.folder.name
    fold = facts.run.option("run", "fold") if facts.run else None
    sections = [
        section("Result", notice if unfinished else None, tiles(numbers)),
        section("Curves", element("div", curves(facts.epochs, facts.targets), class_="charts"), COUNTED),
        section("Cases", case_scores(facts, views)),
        section("Plan", plan_in_words(facts.plan, facts.run)),
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
    names = room.choose([case.case for case in cases])
    files = [facts.scored.files[case] for case in names if case in facts.scored.files]
    return make_views(files, structures, room, titles=titles(cases), plan=facts.plan), structures


def curves(epochs: Mapping[int, Mapping[str, float]], targets: Sequence[str]) -> list[Markup]:
    """Loss, Dice by target, learning rate and seconds over the epochs."""

    def series(name: str, key: str, number: int | None) -> Series:
        points = tuple(
            (float(epoch + 1), row[key]) for epoch, row in epochs.items() if math.isfinite(row.get(key, math.nan))
        )
        return Series(name=name, points=points, number=number)

    # All charts show the same epochs, those without a validation too.
    x = Axis(title="epoch", low=min(epochs, default=0) + 1.0, high=max(epochs, default=0) + 1.0, whole=True)
    # Of one target the mean is the same curve.
    mean = [series("mean", "dice", None)] if len(targets) != 1 else []
    dice = [series(target, f"dice_{target}", number) for number, target in enumerate(targets)]
    return [
        line_chart([series("training", "train_loss", 5), series("validation", "val_loss", 0)],
                   x=x, y=Axis(title="loss"), title="Loss"),
        line_chart([*dice, *mean], x=x, y=Axis(title="Dice", low=0.0, high=1.0),
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


def _targets(epochs: Mapping[int, Mapping[str, float]], run: RunFacts | None, plan: Plan | None) -> tuple[str, ...]:
    if plan is not None:
        return plan.labels.target_names
    if run is not None and any(name.startswith("best_dice_") for name in run.outcome):
        return tuple(name.removeprefix("best_dice_") for name in run.outcome if name.startswith("best_dice_"))
    names = dict.fromkeys(name for row in epochs.values() for name in row if name.startswith("dice_"))
    return tuple(name.removeprefix("dice_") for name in names)
