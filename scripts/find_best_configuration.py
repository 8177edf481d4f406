"""Choose the configuration, or the pair of them, that predicts unseen cases best, and its post-processing.

python scripts/find_best_configuration.py --task 04
python scripts/inference.py --input scans --output masks --model results/04_best

It compares what scripts/cross_validate.py predicted of each case with the network that had not seen it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inference.decision import DECISION_FILE, Checkpoint, Decision, DecisionMember, PostProcessing
from utils.args import parse, task_name
from utils.config import default_root
from utils.configurations import CASCADE, CONFIGURATIONS, FIRST_STAGE
from utils.errors import EXIT_OK, UserError, run_cli

if TYPE_CHECKING:
    from cross_validation.candidates import Candidate, OutOfFold, Scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOptions:
    """Compare cross-validated configurations and their pairs, and write what new scans are predicted with."""

    task: str
    """Task number."""
    configurations: tuple[Literal["2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres"], ...] | None = None
    """Configurations to compare (default: all that have out-of-fold predictions)."""
    ensembles: bool = True
    """Compare the ensembles of two configurations as well."""
    data: Path = dataclasses.field(default_factory=lambda: default_root("data"))
    """Folder of the preprocessed data, which know where the labels are."""
    labels: Path | None = None
    """Folder of the label files <case>.nii.gz (default: where they were when the data were preprocessed)."""
    results: Path = dataclasses.field(default_factory=lambda: default_root("results"))
    """Folder of the models, as cross_validate.py made it."""
    output: Path | None = None
    """Folder for decision.json and scores.json (default: <results>/<task>_best)."""
    n_jobs: int | None = None
    """Processes that work at the same time, each on one case (default: one for each CPU core)."""
    allow_unfinished: bool = False
    """Compare what is there where trainings were interrupted or folds are missing."""

    def __post_init__(self) -> None:
        if not (self.task.isdecimal() and len(self.task) <= 3):
            raise UserError(f"--task must be a number such as 04, got {self.task!r}")
        if self.n_jobs is not None and self.n_jobs < 1:
            raise UserError(f"--n_jobs must be at least 1, got {self.n_jobs}")

    def model_folder(self, configuration: str) -> Path:
        """Folder of a configuration's folds."""
        return self.results / f"{task_name(self.task)}_{configuration}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    options = parse(BestOptions, argv, prog="find_best_configuration.py")
    output = options.output or options.results / f"{task_name(options.task)}_best"
    folders = find_configurations(options)

    from cross_validation.candidates import choose_postprocessing, find_labels, find_predictions, score_candidates
    from cross_validation.scored_folds import scored_checkpoints
    from utils.files import to_dict, write_json
    from utils.locks import folder_lock
    from utils.runs import prepare_folder, write_run_record
    from utils.throughput import environment, num_cores
    from utils.workers import Workers

    shards = {name: options.data / f"{task_name(options.task)}_{CONFIGURATIONS[name]}" for name in CONFIGURATIONS}
    models = {name: options.model_folder(name) for name in (*folders, *([FIRST_STAGE] if CASCADE in folders else []))}
    checkpoints = scored_checkpoints(models, shards, allow_unfinished=options.allow_unfinished)
    data = find_predictions(folders, find_labels(list(shards.values()), options.labels))
    prepare_folder(output, "--output")
    candidates = [(name,) for name in folders]
    if options.ensembles:
        candidates += itertools.combinations(folders, 2)
    elif len(folders) == 1:
        print("warning: --no-ensembles has no effect: there is one configuration", file=sys.stderr)
    with Workers(min(options.n_jobs or num_cores(), len(data.label_files))) as workers:
        scores = score_candidates(data, candidates, workers)
        best = choose(scores)
        post, before, after = choose_postprocessing(data, best, workers)
    print(table(scores, best, data.labels.target_names))
    print(describe(post, before, after))
    decision = make_decision(options, output, data, scores, best, post, checkpoints)
    outcome = {"best": " + ".join(best), "mean_dice": after.mean, "cases": len(data.label_files)}
    with folder_lock(output):
        write_json(decision, output / DECISION_FILE)
        write_scores(output, data, scores, best, post, after)
        write_run_record(output / "run.json", options=to_dict(options), environment=environment(), outcome=outcome)
    print(f"{output / DECISION_FILE}; predict new scans with:\n{decision.command}")
    return EXIT_OK


def find_configurations(options: BestOptions) -> dict[str, Path]:
    """Folder of the out-of-fold predictions of each configuration, in a fixed order.

    Raises:
        UserError: there are none, or one of those asked for has none.
    """
    folders = {name: options.model_folder(name) / "out_of_fold" for name in CONFIGURATIONS}
    there = {name: folder for name, folder in folders.items() if (folder / "plan.json").is_file()}
    missing = [name for name in options.configurations or () if name not in there]
    if missing or not there:
        raise UserError(
            f"no out-of-fold predictions of {', '.join(missing) or 'any configuration'} in {options.results}; run: "
            f"python scripts/cross_validate.py --task {options.task} --configurations {' '.join(missing or ['2d'])}"
        )
    return {name: folder for name, folder in there.items() if name in (options.configurations or there)}


def choose(scores: dict[Candidate, Scores]) -> Candidate:
    """The candidate with the highest mean Dice; of equal ones the one with fewer models, then the first.

    Raises:
        UserError: no label has any foreground, so that nothing can be compared.
    """
    if any(math.isnan(each.mean) for each in scores.values()):
        raise UserError("neither labels nor predictions have any foreground; there is nothing to compare")
    return max(scores, key=lambda candidate: (scores[candidate].mean, -len(candidate)))


def make_decision(
    options: BestOptions, output: Path, data: OutOfFold, scores: dict[Candidate, Scores], best: Candidate,
    post: PostProcessing, checkpoints: Mapping[str, Checkpoint | None],
) -> Decision:  # fmt: skip
    """The decision, with folders relative to its file, so that the results folder can be moved as a whole."""
    from utils.files import read_json
    from utils.schema import FORMAT_VERSION, Plan

    def relative(configuration: str) -> str:
        return os.path.relpath(options.model_folder(configuration), output)

    plan = read_json(Plan, data.folders[best[0]] / "plan.json")
    return Decision(
        version=FORMAT_VERSION, task=plan.task, dataset=plan.dataset,
        members=tuple(
            DecisionMember(
                configuration=name, folder=relative(name), previous=relative(FIRST_STAGE) if name == CASCADE else None,
                checkpoint=checkpoints[name],
            )
            for name in best
        ),
        post_processing=post,
        scores={" + ".join(candidate): round(each.mean, 6) for candidate, each in scores.items()},
        command=f"python scripts/inference.py --input FOLDER --output FOLDER --model {shlex.quote(str(output))}"
        + (" --allow_unfinished" if options.allow_unfinished else ""),
    )  # fmt: skip


def write_scores(
    output: Path, data: OutOfFold, scores: dict[Candidate, Scores], best: Candidate, post: PostProcessing, after: Scores
) -> None:
    """Write scores.json: Dice of every candidate and target, and of the best with its post-processing."""
    from utils.files import to_dict, write_json

    def named(each: Scores) -> dict[str, float]:
        return {"mean": each.mean, **dict(zip(data.labels.target_names, each.dice))}

    record = {
        "cases": len(data.label_files),
        "dice": {" + ".join(candidate): named(each) for candidate, each in scores.items()},
        "best": " + ".join(best),
        "post_processing": to_dict(post),
        "dice_after_post_processing": named(after),
    }
    write_json(record, output / "scores.json")


def table(scores: dict[Candidate, Scores], best: Candidate, targets: Sequence[str]) -> str:
    """Dice of each candidate as text, the best one marked."""
    names = {candidate: " + ".join(candidate) for candidate in scores}
    width = max(map(len, names.values()))
    lines = [f"  {'Dice':{width}}  {'mean':>7}  " + "  ".join(f"{target:>9.9}" for target in targets)]
    for candidate, each in sorted(scores.items(), key=lambda item: -item[1].mean):
        mark = "*" if candidate == best else " "
        cells = "  ".join(f"{value:9.4f}" for value in each.dice)
        lines.append(f"{mark} {names[candidate]:{width}}  {each.mean:7.4f}  {cells}")
    return "\n".join(lines)


def describe(post: PostProcessing, before: Scores, after: Scores) -> str:
    """The decision on post-processing as a sentence."""
    if post.does_nothing:
        return "post-processing: none; keeping the largest component only does not raise the Dice"
    where = [*(["all foreground together"] if post.foreground else []), *post.classes]
    return f"post-processing: largest component of {', '.join(where)}; mean Dice {before.mean:.4f} -> {after.mean:.4f}"


if __name__ == "__main__":
    sys.exit(run_cli(main))
