"""What a cross-validation says of its runs: a line for each that has ended, and the table of all that is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cross_validation.fold_run import FoldRun
from cross_validation.records import finished_records, mean_dice, summary
from cross_validation.scheduler import Outcome
from utils.configurations import CONFIGURATIONS
from utils.files import write_json


def describe(outcome: Outcome) -> str:
    """One job as a line: configuration, fold, state, Dice, seconds."""
    parts = [f"{outcome.job.name}: {outcome.state}"]
    record = outcome.job.record() if isinstance(outcome.job, FoldRun) and not outcome.error else None
    if record is not None:
        scores = mean_dice(record.cases, record.targets)
        parts += [f"Dice {scores.mean_dice:.4f}"] if scores else []
        parts.append(f"{record.epochs} epoch{'' if record.epochs == 1 else 's'}")
    parts.append(f"{outcome.seconds:.0f} s")
    return ", ".join([*parts, *(outcome.error.splitlines()[:1])])


def write_summary(task: str, results: Path) -> bool:
    """The table and its JSON file, of everything that is finished in a results folder, earlier runs included.

    Returns whether anything is.
    """
    found = {name: finished_records(results / f"{task}_{name}") for name in CONFIGURATIONS}
    records = [summary(name, folds) for name, folds in found.items() if folds]
    if not records:
        return False
    path = results / f"{task}_cross_validation.json"
    write_json({"version": 1, "task": task, "configurations": records}, path)
    for record in records:
        print(_row(record))
        if record["without_label"]:
            print(f"{record['configuration']}: cases without a label file: {', '.join(record['without_label'])}")
    print(f"mean Dice over out-of-fold cases; Dice of each fold: {path}")
    return True


def _row(record: dict[str, Any]) -> str:
    number = len(record["folds"])
    numbers = {"mean": record["mean_dice"], **record["dice"]}
    scores = "  ".join(f"{name} {'-' if value is None else format(value, '.4f')}" for name, value in numbers.items())
    folds = f"{number}/{number + len(record['missing_folds'])} folds, {record['cases']} cases"
    return f"{record['configuration']:<20}{folds:<24}{scores}"
