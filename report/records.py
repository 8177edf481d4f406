"""What earlier commands wrote about themselves, read with tolerance: a page is made of what is there.

Files that are missing or damaged count as absent. Damaged ones are noted for the page (report/notices.py).
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from report.notices import note, note_damage
from report.numbers import plural
from utils.json_text import parse_json
from utils.lesions import COLUMNS, LesionCounts
from utils.scores import CaseScores, dice_from_counts

LOG_PREFIX = "DLLL "


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A `run.json`: what was asked, where, on which machine, and what came out."""

    path: Path
    time: str = ""
    command: tuple[str, ...] = ()
    working_folder: str = ""
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    outcome: dict[str, Any] = dataclasses.field(default_factory=dict)

    def option(self, group: str, name: str) -> Any:
        """An option of main.py, which come in groups; None where it is not there."""
        found = self.options.get(group)
        return found.get(name) if isinstance(found, dict) else None

    def resolve(self, path: object) -> Path | None:
        """A path of its options, which may be relative to where the command was typed."""
        if not isinstance(path, str) or not path:
            return None
        return Path(self.working_folder, path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores of cases: those of `scores.csv`, or of a fold's record."""

    targets: tuple[str, ...]
    cases: tuple[CaseScores, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldFacts:
    """A fold of a cross-validation: its `done.json`."""

    folder: Path
    fold: int
    targets: tuple[str, ...]
    cases: tuple[CaseScores, ...]
    epochs: int
    train_s: float


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds a mapping; an empty one where there is no such file, or a damaged one."""
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        note_damage(path, error)
        return {}
    if not isinstance(content, dict):
        note_damage(path, "it holds no mapping of names to values")
        return {}
    return content


def read_run(path: Path) -> RunFacts | None:
    """A run's record; None where there is none."""
    content = read_mapping(path)
    if not content:
        return None
    kinds = {"time": str, "working_folder": str, "options": dict, "environment": dict, "outcome": dict}
    found = {name: content[name] for name, kind in kinds.items() if isinstance(content.get(name), kind)}
    words = content.get("command")
    return RunFacts(path=path, command=tuple(map(str, words)) if isinstance(words, list) else (), **found)


def read_epochs(path: Path) -> dict[int, dict[str, float]]:
    """Epoch -> its numbers, of a log of DLLogger lines; of an epoch that was trained twice the later ones count."""
    epochs: dict[int, dict[str, float]] = {}
    for step, data in _log_records(path):
        if type(step) is int:
            epochs.setdefault(step, {}).update({name: float(value) for name, value in data.items() if is_number(value)})
    return dict(sorted(epochs.items()))


def read_log_options(path: Path) -> RunFacts | None:
    """What the last training of a log was asked for; for one without a `run.json`, which is written at the end.

    Its working folder is the one from which `--results` leads to the folder of the log.
    """
    asked = [data for step, data in _log_records(path) if step == "PARAMETER"]
    trained = [run for run in (RunFacts(path=path, options=options) for options in asked)
               if run.option("run", "exec_mode") == "train"]  # fmt: skip
    if not trained:
        return None
    results, folder = trained[-1].option("run", "results"), path.parent.absolute()
    if not isinstance(results, str):
        return trained[-1]
    bases = (base for base in folder.parents if (base / results).absolute() == folder)
    return dataclasses.replace(trained[-1], working_folder=str(next(bases, "")))


def _log_records(path: Path) -> list[tuple[object, dict[str, Any]]]:
    """Step and data of the LOG lines; a step of one number is that number."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        note_damage(path, error)
        return []
    found, unread = [], 0
    for line in filter(str.strip, lines):
        try:
            record = parse_json(line.removeprefix(LOG_PREFIX))
        except ValueError:
            unread += 1
            continue
        step, data = (record.get(name) if isinstance(record, dict) else None for name in ("step", "data"))
        if isinstance(data, dict):
            found.append((step[0] if isinstance(step, list) and len(step) == 1 else step, data))
    if unread:
        note(f"Damaged: {path}: left out {plural(unread, 'line')} of {len(lines)} that cannot be read")
    return found


def read_score_table(path: Path) -> ScoreTable | None:
    """The scores of a `scores.csv`; None where there is none that can be read."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = list(csv.DictReader(file))
        targets = tuple(dict.fromkeys(row["target"] for row in rows))
        by_case: dict[str, dict[str, dict[str, str]]] = {}
        for row in rows:
            by_case.setdefault(row["case"], {})[row["target"]] = row
        cases = [_scores(case, [found[target] for target in targets]) for case, found in by_case.items()]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        note_damage(path, error if isinstance(error, OSError) else f"it is no table of scores ({error!r})")
        return None
    return ScoreTable(targets=targets, cases=tuple(cases)) if cases else None


def read_fold(folder: Path) -> FoldFacts | None:
    """The record of a finished fold; None where it is not finished."""
    content = read_mapping(folder / "done.json")
    if not content:
        return None
    try:
        return FoldFacts(
            folder=folder, fold=int(content["fold"]), targets=tuple(map(str, content["targets"])),
            cases=tuple(
                CaseScores(case=str(case["case"]), counts=(), dice=tuple(map(optional, case["dice"])))
                for case in content["cases"]
            ),
            epochs=int(content["epochs"]), train_s=float(content["train_s"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        note_damage(folder / "done.json", f"it is no record of a fold ({error!r})")
        return None


def read_validation(path: Path) -> tuple[int, ScoreTable] | None:
    """Epoch, counted from 0, and scores of the single cases of a training's best validation."""
    content = read_mapping(path)
    if not content:
        return None
    try:
        targets = tuple(map(str, content["targets"]))
        cases = []
        for case, rows in content["cases"].items():
            counts = tuple((int(both), int(only_mask), int(only_label)) for both, only_mask, only_label in rows)
            cases.append(CaseScores(case=case, counts=counts, dice=tuple(dice_from_counts(np.array(counts)).tolist())))
        return int(content["epoch"]), ScoreTable(targets=targets, cases=tuple(cases))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        note_damage(path, f"it holds no scores of a validation ({error!r})")
        return None


def fold_folders(folder: Path) -> list[Path]:
    """`fold_0`, `fold_1`, ... of a configuration, in order."""
    numbered = {entry: re.fullmatch(r"fold_(\d+)", entry.name) for entry in folder.glob("fold_*") if entry.is_dir()}
    return sorted((entry for entry, match in numbered.items() if match), key=lambda entry: int(entry.name[5:]))


def is_number(value: object) -> bool:
    """Whether a value of JSON is a number that can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def optional(value: object) -> float:
    """A number of JSON, NaN where there is none (null)."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _scores(case: str, rows: list[dict[str, str]]) -> CaseScores:
    def column(name: str) -> tuple[float, ...]:
        return tuple(float(row[name]) for row in rows) if name in rows[0] else ()

    def lesions() -> tuple[LesionCounts, ...]:
        return tuple(LesionCounts(**{field: int(row[name]) for field, name in COLUMNS.items()}) for row in rows)

    return CaseScores(
        case=case, counts=tuple((int(row["tp"]), int(row["fp"]), int(row["fn"])) for row in rows),
        dice=column("dice"), hd95_mm=column("hd95_mm"), nsd=column("nsd"),
        lesions=lesions() if COLUMNS["true"] in rows[0] else (),
    )  # fmt: skip
