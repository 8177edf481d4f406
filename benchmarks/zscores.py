"""Which voxels z-scores are best computed from: Dice of trainings with either rule, on the same data, by seed.

python -m benchmarks.zscores --task 04 --data data --results results/zscores --train_flags="--max_epochs 20 --amp"

Each rule is preprocessed once, `--plan auto` so that both have one plan but for it, and trained once with each seed;
the last weights are scored on the validation cases of the fold. What is there already is not done again.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.args import parse
from utils.errors import UserError, run_cli
from utils.files import write_json
from utils.task_number import checked_task

PROJECT = Path(__file__).resolve().parents[1]
RULES = ("nonzero", "nnunet")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compare the rules of --zscore by trainings of equal length."""

    task: str
    """Task number."""
    data: Path
    """Folder above the data set TaskNN_Name, or that folder itself."""
    results: Path
    """Folder for shards, trainings and zscores.json."""
    dim: int = 3
    """Dimension of the U-Net."""
    fold: int = 0
    """Fold whose validation cases are scored."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of the trainings of each rule."""
    preprocess_flags: str = ""
    """Further flags of preprocess.py, as one text."""
    train_flags: str = "--max_epochs 30"
    """Flags of main.py that make the budget of a training, as one text."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    options = parse(Options, argv, prog="benchmarks.zscores")
    scores = {rule: _measure(options, rule) for rule in RULES}
    for rule in RULES:
        dice = [run["dice"] for run in scores[rule]]
        deviation = statistics.stdev(dice) if len(dice) > 1 else 0.0
        print(f"{rule:<8} mean Dice {statistics.mean(dice):.4f}, deviation {deviation:.4f}: {dice}")
    differences = [b["dice"] - a["dice"] for a, b in zip(scores["nonzero"], scores["nnunet"])]
    print(f"nnunet - nonzero, seed by seed: {[round(each, 4) for each in differences]}")
    shown = {"train_flags": options.train_flags, "preprocess_flags": options.preprocess_flags}
    write_json({"version": 1, "task": options.task, **shown, "scores": scores}, options.results / "zscores.json")
    return 0


def _measure(options: Options, rule: str) -> list[dict[str, Any]]:
    shards = options.results / rule
    words = ["--task", options.task, "--dim", str(options.dim)]
    planned = [*words, "--plan", "auto", "--zscore", rule, *shlex.split(options.preprocess_flags)]
    _run("preprocess.py", [*planned, "--data", str(options.data), "--results", str(shards)])
    folder = shards / f"{checked_task(options.task)}_{options.dim}d"
    scheme = [channel["scheme"] for channel in json.loads((folder / "plan.json").read_text())["channels"]]
    runs = []
    for seed in options.seeds:
        trained = options.results / f"{rule}_seed{seed}"
        common = [*words, "--fold", str(options.fold), "--data", str(folder)]
        last = trained / "checkpoints" / "last.ckpt"
        if not (trained / "score" / "run.json").is_file():
            train = [*common, "--results", str(trained), "--seed", str(seed), *shlex.split(options.train_flags)]
            _run("main.py", ["--exec_mode", "train", *train])
            _run(
                "main.py",
                ["--exec_mode", "evaluate", *common, "--results", str(trained / "score"), "--ckpt_path", str(last)],
            )
        outcome = json.loads((trained / "score" / "run.json").read_text())["outcome"]
        runs.append({"seed": seed, "schemes": scheme, "dice": outcome["dice"], "outcome": outcome})
        print(f"{rule}, seed {seed}: {outcome}", flush=True)
    return runs


def _run(program: str, words: Sequence[str]) -> None:
    answer = subprocess.run([sys.executable, str(PROJECT / program), *words], capture_output=True, text=True)
    if answer.returncode:
        raise UserError(f"{program} {shlex.join(words)} failed: {answer.stderr.strip()[-2000:]}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
