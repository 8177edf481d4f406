"""Dice against the number of steps, by setting: trainings of fixed length through main.py, from which budgets follow.

python -m benchmarks.quality --prepared data/04_3d --results results/quality --trials base@250:1,2 mirror@250:1
python -m benchmarks.quality --prepared data/04_3d --results results/quality --table benchmarks/results/quality_x.json

A trial is SETTING@STEPS:SEEDS. Its Dice does not depend on what else the machine does; the time that it stands for is
steps times the seconds of a step on an idle machine. What has been tried is not tried again, a failure neither
(remove its folder); the table is written after each new trial, and keeps what it had from other folders. Each trial
says on which machine it ran; those of older tables, which do not, ran on the one that the table names.
"""

from __future__ import annotations

import dataclasses
import json
import re
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.args import parse
from utils.errors import UserError, run_cli
from utils.files import write_atomically, write_json
from utils.json_text import parse_json
from utils.throughput import environment

PROJECT = Path(__file__).resolve().parents[1]
STEPS_PER_EPOCH = 25
BASE = (
    "--filters 8 16 32 64 --augment none --deep_supervision --amp --learning_rate 0.002 --scheduler cosine "
    "--schedule_by step"
)
SETTINGS: Mapping[str, str] = {
    "base": "",
    "rate1": "--learning_rate 0.001",
    "rate4": "--learning_rate 0.004",
    "rate8": "--learning_rate 0.008",
    "byepoch": "--schedule_by epoch",
    "constant": "--scheduler none",
    "poly": "--scheduler poly",
    "wsd": "--scheduler wsd",
    "wsd50": "--scheduler wsd --decay_share 0.5",
    "warm": "--warmup_steps 25",
    "warm_rate4": "--warmup_steps 25 --learning_rate 0.004",
    "onecycle": "--warmup_steps 75 --learning_rate 0.004",
    "ema": "--ema 0.99",
    "ema_constant": "--ema 0.99 --scheduler none",
    "reference": "--augment reference",
    "reference_rate4": "--augment reference --learning_rate 0.004",
    "unmirrored": "--augment reference --mirror_axes none",
    "nnunet": "--augment nnunet",
    "one_head": "--no_deep_supervision",
    "wide": "--filters 16 32 64 128",
    "wide_rate4": "--filters 16 32 64 128 --learning_rate 0.004",
    "planned": "--filters 32 64 128 256",
    "batch1": "--batch_size 1",
    "batch4": "--batch_size 4",
    "batch4_rate4": "--batch_size 4 --learning_rate 0.004",
    "decay0": "--weight_decay 0",
    "decay10": "--weight_decay 0.01",
    "sgd": "--optimizer sgd --learning_rate 0.01",
    "focal": "--focal",
    "patches": "--oversampling 0",
}
"""Name of a setting -> the flags in which it differs from `BASE`; a later flag wins over an earlier one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Try settings by trainings of fixed numbers of steps; a table of what has been tried."""

    prepared: Path
    """Folder of preprocessed data, TT_Dd."""
    results: Path
    """Folder in which every trial keeps its own."""
    trials: tuple[str, ...] = ()
    """SETTING@STEPS:SEED,SEED ..., from the most important on. SETTING may be NAME=FLAGS with flags of its own."""
    base: str = BASE
    """Flags of main.py that all settings begin with, as one text."""
    fold: int = 0
    """Fold whose validation cases are scored."""
    table: Path | None = None
    """File of the table, .json; its .md beside it (default: quality.json in the results folder)."""
    idle_step_s: float | None = None
    """Seconds of a step of the base on the idle machine, to be written into the table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One training: the setting by its name, its flags, its length, its seed."""

    name: str
    flags: str
    steps: int
    seed: int

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.name}_{self.steps}_{self.seed}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    options = parse(Options, argv, prog="benchmarks.quality")
    trials = [trial for text in options.trials for trial in parse_trials(text)]
    table = options.table or options.results / "quality.json"
    write_table(table, known(table, options), options)
    for trial in trials:
        record = options.results / trial.folder / "trial.json"
        for other in sorted(options.results.glob(f"{trial.name}_*/trial.json")):
            _require_same(other, trial, options)
        if not record.is_file():
            tried = _run(trial, options)
            # A command line that main.py refuses leaves no folder.
            record.parent.mkdir(parents=True, exist_ok=True)
            write_json(tried, record)
            write_table(table, known(table, options), options)
        print(summary_line(json.loads(record.read_text(encoding="utf-8"))), flush=True)
    return 0


def parse_trials(text: str) -> list[Trial]:
    """The trials of SETTING@STEPS:SEEDS.

    Raises:
        UserError: it is not written so, or there is no such setting.
    """
    match = re.fullmatch(r"(\w+)(?:=(.*))?@(\d+)(?::([\d,]+))?", text, re.DOTALL)
    if match is None or not int(match[3]):
        raise UserError(f"--trials {text!r} is not SETTING@STEPS:SEED,SEED")
    if int(match[3]) > STEPS_PER_EPOCH and int(match[3]) % STEPS_PER_EPOCH:
        raise UserError(f"--trials {text!r}: more than {STEPS_PER_EPOCH} steps must be a multiple of {STEPS_PER_EPOCH}")
    name, flags, steps, seeds = match[1], match[2], int(match[3]), match[4] or "1"
    if flags is None:
        if name not in SETTINGS:
            raise UserError(f"--trials {text!r}: there is no setting {name!r}; choose from {', '.join(SETTINGS)}")
        flags = SETTINGS[name]
    return [Trial(name=name, flags=flags, steps=steps, seed=int(seed)) for seed in seeds.split(",") if seed]


def command(trial: Trial, options: Options) -> list[str]:
    """Words of main.py for a trial: validated once, at its end."""
    match = re.fullmatch(r"(\d\d)_([23])d", options.prepared.name)
    if match is None:
        raise UserError(f"--prepared {options.prepared} is not a folder TT_Dd that preprocess.py made")
    epochs = max(round(trial.steps / STEPS_PER_EPOCH), 1)
    length = ["--max_epochs", str(epochs), "--batches_per_epoch", str(-(-trial.steps // epochs))]
    return [
        *("--exec_mode", "train", "--task", match[1], "--dim", match[2], "--fold", str(options.fold)),
        *("--data", str(options.prepared), "--results", str(options.results / trial.folder / "run")),
        *("--seed", str(trial.seed), "--no_report", "--patience", "0", "--batch_size", "2"),
        *shlex.split(options.base), *shlex.split(trial.flags), *length, "--skip_first_n_eval", str(epochs - 1),
    ]  # fmt: skip


def _run(trial: Trial, options: Options) -> dict[str, Any]:
    words = command(trial, options)
    start_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = subprocess.run([sys.executable, str(PROJECT / "main.py"), *words], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    record = (
        dataclasses.asdict(trial)
        | _identity(trial, options)
        | {
            "wall_s": round(time.monotonic() - start_s, 1),
            "cpu_s": round(cpu_s, 1),
            "cpu_s_per_step": round(cpu_s / trial.steps, 3),
            "environment": {key: value for key, value in environment().items() if key != "commit"},
        }
    )
    if answer.returncode:
        return record | {"error": answer.stderr.strip()[-300:]}
    run = json.loads((options.results / trial.folder / "run" / "run.json").read_text(encoding="utf-8"))
    scores = {key: value for key, value in run["outcome"].items() if key.startswith("best_dice")}
    return record | {name.removeprefix("best_"): round(value, 4) for name, value in scores.items()}


def _require_same(record: Path, trial: Trial, options: Options) -> None:
    """A trial of the same name that is there has to be of this setting."""
    there = json.loads(record.read_text(encoding="utf-8"))
    # wsd_50_1 is a name, too.
    wanted = _identity(trial, options) if there["name"] == trial.name else {}
    for name in wanted.keys() & there.keys():
        if there[name] != wanted[name]:
            raise UserError(
                f"{record} is of a trial with {name} {there[name]!r}, not {wanted[name]!r}; give the setting another "
                "name, or --results another folder"
            )


def _identity(trial: Trial, options: Options) -> dict[str, Any]:
    """What a trial is of; its machine may be any."""
    flags = f"{options.base} {trial.flags}".strip()
    return {"flags": flags, "fold": options.fold, "prepared": options.prepared.name}


def found(results: Path) -> list[dict[str, Any]]:
    """The records of all trials of a folder."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*/trial.json"))]


def known(table: Path, options: Options) -> list[dict[str, Any]]:
    """The records of all trials: of the folder, and those of other folders that the table has already.

    Raises:
        UserError: the table is of other settings.
    """
    here = {_key(each): each for each in found(options.results)}
    stored = _stored(table) or {**_facts(options), "trials": []}
    for name, value in _facts(options).items():
        if stored[name] != value:
            raise UserError(
                f"{table} is of trials with {name} {stored[name]!r}, not {value!r}; give --table another file"
            )
    for each in here.values():
        is_same = all(each.get(name, value) == value for name, value in _facts(options).items() if name != "base")
        if not is_same or not f"{each['flags']} ".startswith(f"{options.base} "):
            raise UserError(
                f"--results {options.results} has trials of fold {each.get('fold')} of {each.get('prepared')} with "
                f"{each['flags']!r}: not of this fold, data and base; give another folder"
            )
    # In the order of the table, so that it is another one only where something is new.
    return list(({_key(each): each for each in stored["trials"]} | here).values())


def _key(record: Mapping[str, Any]) -> tuple[str, int, int]:
    """What no two trials of a table have in common."""
    return record["name"], record["steps"], record["seed"]


def _stored(table: Path) -> dict[str, Any] | None:
    """What a table says; None where there is none."""
    return parse_json(table.read_bytes()) if table.is_file() else None


def _facts(options: Options) -> dict[str, Any]:
    """What all trials of a table have in common."""
    return {"base": options.base, "fold": options.fold, "prepared": options.prepared.name}


def write_table(path: Path, records: Sequence[Mapping[str, Any]], options: Options) -> None:
    """Write all records as JSON, and beside it the table of their means as Markdown, where they say something new.

    What the table says of the idle machine, and of the one on which trials without a machine of their own ran, stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = _stored(path)
    kept = {key: value for key, value in (stored or {}).items() if key in ("idle_step_s", "environment")}
    if options.idle_step_s is not None:
        kept["idle_step_s"] = options.idle_step_s
    content = {"version": 1, **_facts(options), **kept, "trials": list(records)}
    if content != stored:
        write_json(content, path)
    text, beside = as_markdown(records, options).encode(), path.with_suffix(".md")
    if not beside.is_file() or beside.read_bytes() != text:
        write_atomically(beside, lambda file: file.write(text))


def as_markdown(records: Sequence[Mapping[str, Any]], options: Options) -> str:
    """Mean Dice by setting and steps, the best of the same length first; failures at the end."""
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["steps"], record["name"]), []).append(record)
    rows, failures = [], []
    for (steps, name), trials in groups.items():
        scores = [trial["dice"] for trial in trials if "dice" in trial]
        failures += [f"- {name}, {steps} steps, seed {t['seed']}: {t['error']}" for t in trials if "error" in t]
        if scores:
            spread = f"{min(scores):.4f} to {max(scores):.4f}" if len(scores) > 1 else ""
            cost = statistics.mean(trial["cpu_s_per_step"] for trial in trials if "dice" in trial)
            flags = trials[0]["flags"].removeprefix(options.base).strip()
            rows.append((steps, -statistics.mean(scores), f"{name} | `{flags}`", len(scores), spread, cost))
    lines = [
        f"Fold {options.fold} of {options.prepared.name}; all settings begin with `--batch_size 2 {options.base}`.",
        "",
        "| steps | setting | differs by | seeds | mean Dice | lowest to highest | CPU s a step, all told |",
        "|---|---|---|---|---|---|---|",
    ]
    for steps, minus_dice, label, seeds, spread, cost in sorted(rows):
        lines.append(f"| {steps} | {label} | {seeds} | {-minus_dice:.4f} | {spread} | {cost:.2f} |".replace("``", ""))
    return "\n".join([*lines, *([""] if failures else []), *failures]) + "\n"


def summary_line(record: Mapping[str, Any]) -> str:
    """One line about a trial."""
    result = f"Dice {record['dice']:.4f}" if "dice" in record else f"failed: {record.get('error', 'no score')}"
    return f"{record['name']}, {record['steps']} steps, seed {record['seed']}: {result}, {record['cpu_s']} CPU s"


if __name__ == "__main__":
    sys.exit(run_cli(main))
