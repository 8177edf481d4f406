"""Which configuration, or pair of them, predicts unseen cases best: compared, decided and written down.

Shapes and scores: see `cross_validation.candidates`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cross_validation.candidates import (
    Candidate,
    OutOfFold,
    Scores,
    choose_postprocessing,
    find_labels,
    find_predictions,
    score_candidates,
)
from cross_validation.records import OUT_OF_FOLD
from cross_validation.scored_folds import ScoredWith, scored_checkpoints, scored_with
from inference.decision import DECISION_FILE, Checkpoint, Decision, DecisionMember, PostProcessing
from utils.config import default_root
from utils.configurations import CASCADE, CONFIGURATIONS, FIRST_STAGE
from utils.errors import UserError
from utils.files import read_json, to_dict, write_json
from utils.locks import folder_lock
from utils.program import predict_command
from utils.runs import prepare_folder, write_run_record
from utils.schema import FORMAT_VERSION, Plan
from utils.throughput import environment, num_cores
from utils.workers import Workers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, and where it lies.

    Attributes:
        task: two digits.
        configurations: None takes all that have out-of-fold predictions.
        ensembles: compare pairs as well.
        data: folder of the preprocessed data.
        labels: folder of the label files; None: where they were when the data were preprocessed.
        results: folder of the models.
        output: folder of the decision; None: `<results>/<task>_best`.
        n_jobs: processes; None: one for each core.
        allow_unfinished: compare what is there where folds are missing.
    """

    task: str
    configurations: tuple[str, ...] | None
    ensembles: bool
    data: Path
    labels: Path | None
    results: Path
    output: Path | None
    n_jobs: int | None
    allow_unfinished: bool

    @property
    def folder(self) -> Path:
        """Where the decision is written."""
        return self.output or self.results / f"{self.task}_best"

    def model_folder(self, configuration: str) -> Path:
        """Folder of a configuration's folds."""
        return self.results / f"{self.task}_{configuration}"

    def shards(self) -> dict[str, Path]:
        """Preprocessed data of each configuration; any of them may be missing."""
        return {name: self.data / f"{self.task}_{folder}" for name, folder in CONFIGURATIONS.items()}

    def candidates(self, names: Sequence[str]) -> list[Candidate]:
        """Each configuration alone, and in pairs."""
        alone: list[Candidate] = [(name,) for name in names]
        return [*alone, *itertools.combinations(names, 2)] if self.ensembles else alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and the scores that it rests on."""

    best: Candidate
    scores: dict[Candidate, Scores]
    post: PostProcessing
    before: Scores
    after: Scores


def find_best(asked: Comparison) -> Decision:
    """Compare, and write decision.json, scores.json and run.json; prints what was compared and what came out.

    Raises:
        UserError: predictions, labels or folds are missing or do not belong together.
    """
    folders = find_configurations(asked)
    models = {name: asked.model_folder(name) for name in (*folders, *([FIRST_STAGE] if CASCADE in folders else []))}
    checkpoints = scored_checkpoints(models, asked.shards(), allow_unfinished=asked.allow_unfinished)
    data = find_predictions(folders, find_labels(list(asked.shards().values()), asked.labels))
    prepare_folder(asked.folder, "--output")
    if not asked.ensembles and len(folders) == 1:
        print("warning: --no-ensembles has no effect: there is one configuration", file=sys.stderr)
    candidates = asked.candidates(list(folders))
    print(announcement(asked, data, candidates), flush=True)
    choice = compare(data, candidates, n_jobs=asked.n_jobs)
    print(score_table(choice.scores, choice.best, data.labels.target_names))
    print(postprocessing_text(choice.post, choice.before, choice.after))
    decision = make_decision(asked, data, choice, checkpoints, scored_with([models[name] for name in choice.best]))
    outcome = {"best": " + ".join(choice.best), "mean_dice": choice.after.mean, "cases": len(data.label_files)}
    with folder_lock(asked.folder):
        write_json(decision, asked.folder / DECISION_FILE)
        write_scores(asked.folder, data, choice)
        record = asked.folder / "run.json"
        write_run_record(record, options=to_dict(asked), environment=environment(), outcome=outcome)
    print(f"{asked.folder / DECISION_FILE}; predict new scans with:\n{decision.command}")
    return decision


def find_configurations(asked: Comparison) -> dict[str, Path]:
    """Folder of the out-of-fold predictions of each configuration, in a fixed order.

    Raises:
        UserError: there are none, or one of those asked for has none.
    """
    folders = {name: asked.model_folder(name) / OUT_OF_FOLD for name in CONFIGURATIONS}
    there = {name: folder for name, folder in folders.items() if (folder / "plan.json").is_file()}
    missing = [name for name in asked.configurations or () if name not in there]
    if missing or not there:
        raise UserError(
            f"no out-of-fold predictions of {', '.join(missing) or 'any configuration'} in {asked.results}; run: "
            f"python scripts/cross_validate.py --task {asked.task} --configurations {' '.join(missing or ['2d'])}"
            f"{places(asked)}"
        )
    return {name: folder for name, folder in there.items() if name in (asked.configurations or there)}


def places(asked: Comparison) -> str:
    """The folders as flags for another command, where they are not the usual ones."""
    given = [("data", asked.data, default_root("data")), ("results", asked.results, default_root("results"))]
    return "".join(f" --{name} {shlex.quote(str(path))}" for name, path, usual in given if path != usual)


def announcement(asked: Comparison, data: OutOfFold, candidates: Sequence[Candidate]) -> str:
    """What is about to be scored, in a line."""
    pairs = sum(len(candidate) > 1 for candidate in candidates)
    also = f" and {pairs} ensemble{'s' if pairs > 1 else ''} of two" if pairs else ""
    return (
        f"out-of-fold predictions of {len(data.label_files)} cases in {asked.results}, by {', '.join(data.folders)}"
        f"{also}: mean Dice of each target over the cases"
    )


def compare(data: OutOfFold, candidates: Sequence[Candidate], *, n_jobs: int | None) -> Choice:
    """Score all candidates, choose the best, and then its post-processing.

    Raises:
        UserError: files cannot be scored, or there is nothing to compare.
    """
    with Workers(min(n_jobs or num_cores(), len(data.label_files))) as workers:
        scores = score_candidates(data, candidates, workers)
        best = choose(scores)
        post, before, after = choose_postprocessing(data, best, workers)
    return Choice(best=best, scores=scores, post=post, before=before, after=after)


def choose(scores: dict[Candidate, Scores]) -> Candidate:
    """The candidate with the highest mean Dice; of equal ones the one with fewer models, then the first.

    Raises:
        UserError: no label has any foreground, so that nothing can be compared.
    """
    if any(math.isnan(each.mean) for each in scores.values()):
        raise UserError("neither labels nor predictions have any foreground; there is nothing to compare")
    return max(scores, key=lambda candidate: (scores[candidate].mean, -len(candidate)))


def make_decision(
    asked: Comparison, data: OutOfFold, choice: Choice, checkpoints: dict[str, Checkpoint | None], settings: ScoredWith
) -> Decision:
    """The decision, with folders relative to its file, so that the results folder can be moved as a whole."""

    def relative(configuration: str) -> str:
        return os.path.relpath(asked.model_folder(configuration), asked.folder)

    plan = read_json(Plan, data.folders[choice.best[0]] / "plan.json")
    return Decision(
        version=FORMAT_VERSION, task=plan.task, dataset=plan.dataset,
        members=tuple(
            DecisionMember(
                configuration=name, folder=relative(name), previous=relative(FIRST_STAGE) if name == CASCADE else None,
                checkpoint=checkpoints[name],
            )
            for name in choice.best
        ),
        post_processing=choice.post,
        scores={" + ".join(candidate): round(each.mean, 6) for candidate, each in choice.scores.items()},
        command=f"{predict_command()} --input FOLDER --output FOLDER --model {shlex.quote(str(asked.folder))}"
        + (" --allow_unfinished" if asked.allow_unfinished else ""),
        tta=settings.tta, overlap=settings.overlap,
    )  # fmt: skip


def write_scores(output: Path, data: OutOfFold, choice: Choice) -> None:
    """Write scores.json: Dice of every candidate and target, and of the best with its post-processing."""

    def named(each: Scores) -> dict[str, float]:
        return {"mean": each.mean, **dict(zip(data.labels.target_names, each.dice))}

    record = {
        "cases": len(data.label_files),
        "dice": {" + ".join(candidate): named(each) for candidate, each in choice.scores.items()},
        "best": " + ".join(choice.best),
        "post_processing": to_dict(choice.post),
        "dice_after_post_processing": named(choice.after),
    }
    write_json(record, output / "scores.json")


def score_table(scores: dict[Candidate, Scores], best: Candidate, targets: Sequence[str]) -> str:
    """Dice of each candidate as text, the best one marked."""
    names = {candidate: " + ".join(candidate) for candidate in scores}
    width = max(map(len, names.values()))
    lines = [f"  {'Dice':{width}}  {'mean':>7}  " + "  ".join(f"{target:>9.9}" for target in targets)]
    for candidate, each in sorted(scores.items(), key=lambda item: -item[1].mean):
        mark = "*" if candidate == best else " "
        cells = "  ".join(f"{value:9.4f}" for value in each.dice)
        lines.append(f"{mark} {names[candidate]:{width}}  {each.mean:7.4f}  {cells}")
    return "\n".join(lines)


def postprocessing_text(post: PostProcessing, before: Scores, after: Scores) -> str:
    """The decision on post-processing as a sentence."""
    if post.does_nothing:
        return "post-processing: none; keeping the largest component only does not raise the Dice"
    where = [*(["all foreground together"] if post.foreground else []), *post.classes]
    return f"post-processing: largest component of {', '.join(where)}; mean Dice {before.mean:.4f} -> {after.mean:.4f}"
