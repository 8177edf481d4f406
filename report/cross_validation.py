"""The page of a cross-validation: configurations and folds, best and worst cases, the decision and why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report.audit import audit_in_words, read_suspicions, suspect_titles, with_suspects
from report.layers import Structure, structures_of
from report.markup import Content, Markup, element, join
from report.notices import newer_than, note
from report.numbers import decimal, duration, mean, noun, plural
from report.page import build_page, section
from report.records import FoldFacts, RunFacts, fold_folders, optional, read_fold, read_mapping, read_run
from report.score_tables import case_mean, refusals, score_table, spread_charts, titles, worst_first
from report.sources import by_case, case_places, files_of_shard, plan_of_run, read_plan
from report.tables import Cell, Row, number_cell, table
from report.views import Room, Views, make_views
from report.words import plan_in_words, run_record, tiles
from utils.configurations import CONFIGURATIONS
from utils.errors import UserError
from utils.label_audit import AuditRow
from utils.schema import Plan
from utils.scores import CaseScores

LOG, LOG_TAIL = "output.log", 4000
"""What a fold prints goes there; the bytes at its end that are read."""
SHOWN = 10
"""How many of the best and of the worst cases have a table of their own."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigurationFacts:
    """The folds of one configuration that are finished."""

    name: str
    folder: Path
    folds: tuple[FoldFacts, ...]
    unfinished: tuple[str, ...]
    """Names of the folders of folds that are not."""
    run: RunFacts | None
    """Record of the first fold's training."""
    plan: Plan | None

    @property
    def cases(self) -> tuple[CaseScores, ...]:
        """Of all folds; each case once."""
        return tuple(case for fold in self.folds for case in fold.cases)

    @property
    def mean_dice(self) -> float:
        """Mean over cases, then over targets, as the cross-validation's own."""
        return mean(target_means(self.cases))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossValidationFacts:
    """All configurations of a task in a results folder, and what was decided."""

    folder: Path
    task: str
    configurations: tuple[ConfigurationFacts, ...]
    decision: Mapping[str, Any]
    scores: Mapping[str, Any]
    """`scores.json` of the decision."""
    decision_run: RunFacts | None
    suspicions: tuple[AuditRow, ...] = ()
    """Lines of the audit of the labels."""
    begun: tuple[ConfigurationFacts, ...] = ()
    """Configurations of which no fold is finished."""

    @property
    def chosen(self) -> ConfigurationFacts:
        """The configuration whose cases are shown: the decision's first member, else the one with the best Dice."""
        members = self.decision.get("members")
        first = members[0].get("configuration") if isinstance(members, list) and members else None
        ranked = sorted(self.configurations, key=lambda each: -_or_zero(each.mean_dice))
        return next((each for each in self.configurations if each.name == first), ranked[0])


def target_means(cases: Sequence[CaseScores]) -> list[float]:
    """Mean Dice of each target over the cases that have it."""
    scored = [case.dice for case in cases if case.dice]
    return [mean(list(column)) for column in zip(*scored)]


def find_tasks(folder: Path) -> list[str]:
    """Tasks that were cross-validated in a results folder."""
    suffix = "_cross_validation.json"
    written = {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")}
    there = {path.name.removesuffix(f"_{name}") for name in CONFIGURATIONS for path in folder.glob(f"*_{name}")
             if any(read_fold(fold) for fold in fold_folders(path))}  # fmt: skip
    return sorted(written | there)


def read_cross_validation(folder: Path, task: str) -> CrossValidationFacts:
    """Gather the folds of a task.

    Raises:
        UserError: no fold is finished.
    """
    found = [read_configuration(name, folder / f"{task}_{name}") for name in CONFIGURATIONS]
    configurations = tuple(each for each in found if each.folds)
    if not configurations:
        raise UserError(f"{folder} holds no finished fold of task {task} (done.json)")
    best = folder / f"{task}_best"
    records = [fold.folder / "done.json" for each in configurations for fold in each.folds]
    if newer_than(records, best / "decision.json"):
        note(f"Folds ended after the decision ({task}_best) was made, which does not know them: run find-best again")
    return CrossValidationFacts(
        folder=folder, task=task, configurations=configurations, decision=read_mapping(best / "decision.json"),
        scores=read_mapping(best / "scores.json"), decision_run=read_run(best / "run.json"),
        suspicions=read_suspicions(folder, task), begun=tuple(each for each in found if not each.folds),
    )  # fmt: skip


def read_configuration(name: str, folder: Path) -> ConfigurationFacts:
    """The folds of a configuration."""
    there = {fold: read_fold(fold) for fold in fold_folders(folder)}
    done = tuple(facts for facts in there.values() if facts is not None)
    run = next((run for fold in there if (run := read_run(fold / "run.json")) is not None), None)
    return ConfigurationFacts(
        name=name, folder=folder, folds=done, unfinished=tuple(fold.name for fold, facts in there.items() if not facts),
        run=run, plan=read_plan(folder / "out_of_fold" / "plan.json") or plan_of_run(run),
    )  # fmt: skip


def cross_validation_page(facts: CrossValidationFacts, views: Views, structures: Sequence[Structure]) -> str:
    """The text of the page."""
    chosen = facts.chosen
    cases, targets = worst_first(chosen.cases), chosen.folds[0].targets
    best = [case for case in reversed(cases) if not math.isnan(case_mean(case))][:SHOWN]
    num_folds = sum(len(each.folds) for each in facts.configurations)
    numbers: dict[str, Content] = {
        f"mean Dice, {chosen.name}": decimal(chosen.mean_dice),
        noun(len(facts.configurations), "configuration"): len(facts.configurations),
        noun(num_folds, "fold"): num_folds, noun(len(cases), "case"): len(cases),
        "of training": duration(sum(fold.train_s for each in facts.configurations for fold in each.folds)),
    }  # fmt: skip
    name = chosen.plan.dataset if chosen.plan else f"task {facts.task}"
    few = len(cases) <= 2 * SHOWN
    sections = [
        section("Result", unfinished_folds(facts), tiles(numbers), fold_table(facts)),
        section("Decision", decision_in_words(facts)),
        section("Worst cases", None if few else score_table(cases[:SHOWN], targets, views, search=False,
                caption=f"the {SHOWN} worst of {chosen.name}; a click shows a case in the viewer")),
        section("Best cases", None if few else score_table(best, targets, views, search=False,
                caption=f"the {SHOWN} best of {chosen.name}")),
        section("All cases", join(score_table(cases, targets, views,
                caption=f"{plural(len(cases), 'case')} of {chosen.name}, each by the fold that has not seen it, "
                "worst first"), refusals(views))),
        section("Label audit", audit_in_words(facts.suspicions, views)),
        section("Spread", spread_charts(cases, targets)),
        section("Plan", plan_in_words(chosen.plan)),
        section("Run", run_record(chosen.run)),
    ]  # fmt: skip
    return build_page(f"Cross-validation of {name}", subtitle=str(facts.folder), sections=sections, views=views.shown,
                      structures=structures, viewer_after="All cases" if few else "Best cases")  # fmt: skip


def unfinished_folds(facts: CrossValidationFacts) -> Markup | None:
    """The folds that are not finished, and the last that each has said: an error, or how far it is."""
    late = [(each, fold) for each in (*facts.configurations, *facts.begun) for fold in each.unfinished]
    if not late:
        return None
    items = [
        element("li", element("b", f"{each.name} {fold}"), *([": ", element("code", said)] if said else []))
        for each, fold in late for said in [last_line(each.folder / fold / LOG)]
    ]  # fmt: skip
    return element("div", element("p", f"Not finished: {plural(len(late), 'fold')}. The last that they said:"),
                   element("ul", items), class_="warning")  # fmt: skip


def last_line(path: Path) -> str:
    """The last line with text in what a run printed; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_TAIL))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def write_cross_validation_views(facts: CrossValidationFacts, room: Room) -> tuple[Views, tuple[Structure, ...]]:
    """The worst cases of the chosen configuration for the viewer; the last of the places are for the best."""
    chosen = facts.chosen
    structures = structures_of(chosen.plan.labels if chosen.plan else None)
    cases = [case.case for case in worst_first(chosen.cases)]
    names = room.choose(cases)
    if chosen.run is None:
        return Views(), structures
    places, masks = case_places(chosen.run), by_case(chosen.folder / "out_of_fold")
    if not room.cases:
        both = list(dict.fromkeys([*cases[:SHOWN], *cases[: -SHOWN - 1 : -1]]))
        if len(names) < len(both) and room.fits([files_of_shard(places, case, masks.get(case)) for case in both]):
            # Every row of the two tables opens the viewer.
            names = both
        elif len(names) > 6:
            best = [case for case in cases[::-1] if case not in names][:2]
            names = [*names[: len(names) - len(best)], *best]
        names = with_suspects(names, facts.suspicions, cases, room)
    files = [files_of_shard(places, case, masks.get(case)) for case in names]
    titled = suspect_titles(facts.suspicions, titles(chosen.cases))
    return make_views(files, structures, room, titles=titled, plan=chosen.plan), structures


def fold_table(facts: CrossValidationFacts) -> Markup:
    """Configurations in rows, folds in columns."""
    numbers = sorted({fold.fold for each in facts.configurations for fold in each.folds})
    targets = facts.chosen.folds[0].targets
    rows = []
    for each in facts.configurations:
        by_fold = {fold.fold: mean(target_means(fold.cases)) for fold in each.folds}
        means = target_means(each.cases) or [math.nan] * len(targets)
        cells = [number_cell(value, 4) for value in (each.mean_dice, *(by_fold.get(n) for n in numbers), *means)]
        seconds = sum(fold.train_s for fold in each.folds)
        rows.append(Row(cells=(each.name, *cells, Cell(content=duration(seconds), sort=seconds, class_="number")),
                        class_="best" if each is facts.chosen else None))  # fmt: skip
    headers = ["configuration", "mean Dice", *(f"fold {number}" for number in numbers), *targets, "training"]
    return table(headers, rows, caption="mean Dice of the cases that a fold has not seen")


def decision_in_words(facts: CrossValidationFacts) -> Markup:
    """What predicts new scans, on which scores that rests, and what is done to its masks."""
    members, scores = facts.decision.get("members"), facts.scores
    if not isinstance(members, list) or not members:
        command = element("code", f"find_best_configuration.py --task {facts.task}")
        ends = " compares the configurations and their ensembles."
        return element("p", "Nothing was decided yet: ", command, ends, class_="none")
    names = [str(member.get("configuration")) for member in members if isinstance(member, dict)]
    candidates = facts.decision.get("scores")
    ranked = (
        sorted(candidates.items(), key=lambda item: -_or_zero(optional(item[1])))
        if isinstance(candidates, dict)
        else []
    )
    kind = f"the ensemble of {' and '.join(names)}" if len(names) > 1 else names[0]
    why = ""
    if len(ranked) > 1:
        (_, first), (second_name, second) = ranked[:2]
        why = (
            f": of {len(ranked)} candidates it has the highest mean Dice, {decimal(optional(first), 4)} against "
            f"{decimal(optional(second), 4)} of {second_name}, the next"
        )
    by_target = scores.get("dice") if isinstance(scores.get("dice"), dict) else {}
    targets = facts.chosen.folds[0].targets
    rows = [
        Row(cells=(name, number_cell(optional(value), 4),
                   *(number_cell(optional(_inside(by_target, name, target)), 4) for target in targets)),
            class_="best" if number == 0 else None)
        for number, (name, value) in enumerate(ranked)
    ]  # fmt: skip
    prediction = facts.decision.get("command")
    return join(
        element("p", f"New scans are predicted with {kind}{why}."),
        table(["candidate", "mean Dice", *targets], rows, caption="Dice of the candidates, best first")
        if rows
        else None,
        element("p", post_processing_in_words(facts)),
        element("p", element("code", prediction)) if isinstance(prediction, str) else None,
    )


def post_processing_in_words(facts: CrossValidationFacts) -> str:
    """Where only the largest component is kept, and what that changed."""
    found = facts.decision.get("post_processing")
    found = found if isinstance(found, dict) else {}
    where = ["all foreground together"] if found.get("foreground") else []
    where += [str(name) for name in found.get("classes") or ()]
    if not where:
        return "Post-processing: none; keeping the largest component only does not raise the Dice."
    after = optional(_inside(facts.scores, "dice_after_post_processing", "mean"))
    before = optional(_inside(facts.scores.get("dice"), str(facts.scores.get("best")), "mean"))
    change = f"; it changes the mean Dice from {decimal(before, 4)} to {decimal(after, 4)}" if after == after else ""
    return f"Post-processing: only the largest component is kept of {', '.join(where)}{change}."


def _inside(mapping: object, *keys: str) -> object:
    for key in keys:
        mapping = mapping.get(key) if isinstance(mapping, dict) else None
    return mapping


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
