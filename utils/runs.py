"""Where a run reads and writes: the shard folder, the results folder, checkpoints, predictions, `run.json`."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from utils.config import RunConfig
from utils.errors import UserError
from utils.files import write_json
from utils.schema import Plan
from utils.temporary import PREFIX, sweep

LAST_CHECKPOINT = "last.ckpt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFolder:
    """A preprocessed data set: `root` holds plan.json and splits.json, `cases` the shards to work on.

    `cases` is `root` for the training shards, or its `val` or `test` sub-folder.
    """

    root: Path
    cases: Path

    @property
    def is_test(self) -> bool:
        """Whether the shards are the data set's test scans, which belong to no fold."""
        return self.cases != self.root and self.cases.name == "test"


def find_shards(run: RunConfig) -> ShardFolder:
    """The folder that `--data`, `--task` and `--dim` mean.

    `--data` may be the folder above `<task>_<dim>d`, that folder itself, or its `val` or `test`.

    Raises:
        UserError: there is none, or `--task` is needed to tell several apart.
    """
    require_utf8(run.data, "--data")
    data = run.data.absolute()
    if not data.is_dir():
        raise UserError(f"--data {run.data} is not a folder; give the folder that preprocess.py wrote to")
    if (data / "plan.json").is_file():
        return ShardFolder(root=data, cases=data)
    if data.name in ("val", "test") and (data.parent / "plan.json").is_file():
        return ShardFolder(root=data.parent, cases=data)
    names = [f"{run.task}_{run.dim}d"] if run.task else sorted(
        path.parent.name for path in data.glob(f"*_{run.dim}d/plan.json")
    )  # fmt: skip
    found = [data / name for name in names if (data / name / "plan.json").is_file()]
    if len(found) == 1:
        return ShardFolder(root=found[0], cases=found[0])
    if found:
        raise UserError(f"--data {run.data} holds several data sets ({', '.join(names)}); choose one with --task")
    wanted = names[0] if run.task else f"<task>_{run.dim}d"
    raise UserError(
        f"no preprocessed data at {data / wanted} (plan.json is missing); "
        f"run: python preprocess.py --task {run.task or 'NN'} --dim {run.dim} --results {run.data}"
    )


def prepare_folder(folder: Path, flag: str) -> Path:
    """Make a folder to write to, and find out now rather than after hours that nothing can be written there."""
    require_utf8(folder, flag)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{flag} {folder} cannot be written to: {error.strerror}; choose another folder") from None
    return folder


def require_utf8(path: Path, flag: str) -> None:
    """Refuse a path whose bytes are no UTF-8: TensorBoard, DALI and torch cannot open it.

    Raises:
        UserError: it has such bytes; the message shows them as codes.
    """
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        shown = str(path.absolute()).encode(errors="backslashreplace").decode()
        raise UserError(f"{flag} {shown} has bytes that are not UTF-8 text; rename that folder") from None


def require_writable(folder: Path, source: Path) -> None:
    """Find out before hours of work that nothing could be written, without making any folder.

    Raises:
        UserError: the folder lies inside the data set `source`, or cannot be made.
    """
    require_utf8(folder, "--results")
    if folder.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{folder} lies inside the data set, which is only read; choose another folder with --results")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"--results: cannot write to {there}: {error.strerror}; choose another folder") from None


def checkpoint_folder(run: RunConfig) -> Path:
    """`checkpoints` inside `--ckpt_store_dir`, by default inside `--results`."""
    return (run.ckpt_store_dir or run.results) / "checkpoints"


def last_checkpoint(run: RunConfig) -> Path:
    """The checkpoint that `--resume_training` continues from.

    Raises:
        UserError: there is none.
    """
    path = checkpoint_folder(run) / LAST_CHECKPOINT
    if not path.is_file():
        raise UserError(f"--resume_training: {path} does not exist; check --results, or train without this flag")
    return path


def find_checkpoint(path: Path | None, flag: str = "--ckpt_path") -> Path:
    """The file that `--ckpt_path` means: a file, or a folder of checkpoints of which the best Dice is taken.

    Raises:
        UserError: no path, no such file, or a folder without checkpoints; `flag` is what the message calls it.
    """
    if path is None:
        raise UserError(f"{flag} is needed: the checkpoint (or checkpoints folder) of a training run")
    if path.is_dir():
        best = sorted(path.glob("epoch=*.ckpt"), key=lambda file: file.stat().st_mtime)
        candidates = best[-1:] or [file for file in [path / LAST_CHECKPOINT] if file.is_file()]
        if not candidates:
            raise UserError(f"{flag} {path} holds no checkpoint (epoch=*.ckpt or {LAST_CHECKPOINT})")
        return candidates[0]
    if not path.is_file():
        raise UserError(f"{flag} {path} does not exist")
    return path


def set_aside(folder: Path) -> Path | None:
    """Rename the checkpoints of an earlier run, so that a new run neither overwrites nor mixes with them.

    Returns:
        The new name, or None when there was nothing to keep.
    """
    sweep(folder)
    if not folder.is_dir() or not any(path for path in folder.glob("*.ckpt") if not path.name.startswith(PREFIX)):
        return None
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}_{n}").exists())
    return folder.rename(folder.with_name(f"{folder.name}_{number}"))


def prediction_folder(run: RunConfig, plan: Plan, *, tta: bool) -> Path:
    """Where masks go: `<results>/preds_task_<task>_dim_<dim>_fold_<fold>[_tta]`."""
    return run.results / f"preds_task_{plan.task}_dim_{plan.stage.dim}_fold_{run.fold}{'_tta' if tta else ''}"


def write_run_record(path: Path, *, options: Any, environment: dict, outcome: dict) -> None:
    """`run.json`: what was asked, on which machine and versions, and what came out."""
    write_json(
        {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "working_folder": os.getcwd(),
            "options": options,
            "environment": environment,
            "outcome": outcome,
        },
        path,
    )
