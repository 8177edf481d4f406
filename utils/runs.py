"""Where a run reads and writes: the shard folder, the results folder, checkpoints, predictions, `run.json`."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, list_problems
from utils.files import read_json, real_path, write_json
from utils.json_text import parse_json
from utils.outdated import outdated_cases
from utils.schema import Fingerprint, Plan, Splits
from utils.temporary import PREFIX, sweep

if TYPE_CHECKING:
    from utils.config import RunConfig

LAST_CHECKPOINT, RECORD, PAGE = "last.ckpt", "run.json", "report.html"
STAMPS = "masks.json"
"""What each mask of a folder was made from; where it is, the masks were predicted here."""


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
    for root in (*([data.parent] if data.name in ("val", "test") else []), data):
        if _is_prepared(root):
            return ShardFolder(root=_require_ready(root), cases=data)
    names = [f"{run.task}_{run.dim}d"] if run.task else sorted(path.name for path in data.glob(f"*_{run.dim}d"))
    # One that is not ready is not passed over for another data set.
    found = [data / name for name in names if _is_prepared(data / name)]
    if len(found) == 1:
        return ShardFolder(root=_require_ready(found[0]), cases=found[0])
    if found:
        there = ", ".join(path.name for path in found)
        raise UserError(f"--data {run.data} holds several data sets ({there}); choose one with --task")
    wanted = names[0] if run.task else f"<task>_{run.dim}d"
    raise UserError(
        f"no preprocessed data at {data / wanted} (plan.json is missing); "
        f"run: python preprocess.py --task {run.task or 'NN'} --dim {run.dim} --results {shlex.quote(str(run.data))}"
    )


def _is_prepared(folder: Path) -> bool:
    """Whether preprocess.py has written there, to its end or not."""
    return any((folder / name).is_file() for name in ("plan.json", "fingerprint.json")) or any(folder.glob("*_x.npy"))


def _require_ready(folder: Path) -> Path:
    """The folder, if preprocess.py came to its end there.

    Raises:
        UserError: it did not; the cases that are missing are named.
    """
    if (folder / "plan.json").is_file():
        return folder
    outdated = outdated_cases(folder)
    cases: set[str] = set()
    with contextlib.suppress(UserError):
        cases |= set(read_json(Fingerprint, folder / "fingerprint.json").cases)
    with contextlib.suppress(UserError):
        cases |= {case for fold in read_json(Splits, folder / "splits.json").folds for case in (*fold.train, *fold.val)}
    missing = [f"{case}: {reason}" for case, reason in outdated.items()]
    missing += [
        f"the shards of {case} are missing"
        for case in sorted(cases - set(outdated))
        if not (folder / f"{case}.json").is_file()
    ]
    raise list_problems(
        f"{folder} is not ready: preprocess.py did not come to its end there (plan.json is missing):",
        missing or ["the shards are all there, the plan is not"],
        advice=f"Run it again with the same flags as before; what is finished is kept: {_command(folder)}",
    )


def _command(folder: Path) -> str:
    """What prepares a folder, as far as its name says; it may have been given more flags."""
    found = re.fullmatch(r"(\d+)_([23])d(_lowres|_cascade_fullres)?", folder.name)
    if found is None:
        return "python preprocess.py"
    more = {"_lowres": " --lowres", "_cascade_fullres": " --cascade MASKS"}.get(found[3], "")
    return f"python preprocess.py --task {found[1]} --dim {found[2]}{more} --results {shlex.quote(str(folder.parent))}"


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
    if real_path(folder).is_relative_to(real_path(source)):
        raise UserError(f"{folder} lies inside the data set, which is only read; choose another folder with --results")
    require_creatable(folder, "--results")


def require_creatable(folder: Path, flag: str) -> None:
    """Find out that a folder cannot be made or written to, without making it.

    Raises:
        UserError: it cannot.
    """
    require_utf8(folder, flag)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{flag}: cannot write to {there}: {error.strerror}; choose another folder") from None


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
        candidates = sorted(path.glob("epoch=*.ckpt"), key=_rank)[-1:]
        candidates = candidates or [file for file in [path / LAST_CHECKPOINT] if file.is_file()]
        if not candidates:
            raise UserError(f"{flag} {path} holds no checkpoint (epoch=*.ckpt or {LAST_CHECKPOINT})")
        return candidates[0]
    if not path.is_file():
        raise UserError(f"{flag} {path} does not exist")
    return path


def _rank(path: Path) -> tuple[float, int, str]:
    """Dice and epoch in the name of a checkpoint; the times of files say nothing, as copies have new ones.

    A training keeps a later checkpoint only if it is better than those before, so of equal Dice the later one is.
    """
    match = re.match(r"epoch=(\d+)(?:-dice=(\d*\.?\d+))?", path.stem)
    dice = float(match[2]) if match and match[2] else -1.0
    return dice, int(match[1]) if match else -1, path.name


def set_aside(folder: Path, record: Path | None = None, *, keep_folder: bool = False) -> Path | None:
    """Rename the checkpoints and the record of an earlier run; a new one neither overwrites nor mixes with them.

    Args:
        folder: of the checkpoints.
        record: `run.json`; it goes first, since it says that there is a whole training.
        keep_folder: leave the checkpoints, as the new run writes none.

    Returns:
        The new name of the checkpoints, or None when there was nothing to keep.
    """
    sweep(folder)
    found = [] if record is None or not record.is_file() else [record]
    there = (path for path in folder.glob("*.ckpt") if not path.name.startswith(PREFIX))
    if not keep_folder and folder.is_dir() and any(there):
        found.append(folder)
    names = (tuple(_numbered(path, number) for path in (*found, folder)) for number in range(1, 10_000))
    kept = next(paths for paths in names if not any(path.exists() for path in paths))
    for path, new in zip(found, kept):
        path.rename(new)
    return kept[-1] if folder in found else None


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}_{number}{path.suffix}")


def holds_training(results: Path) -> bool:
    """Whether a results folder is that of a training, whose records a prediction or evaluation must leave alone."""
    if any((results / "checkpoints").glob("*.ckpt")):
        return True
    try:
        options = parse_json((results / RECORD).read_text(encoding="utf-8"))["options"]["run"]
        return options["exec_mode"] == "train" and not options["benchmark"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def record_path(run: RunConfig) -> Path:
    """Where the record of a run goes: `run.json`, or `run_<mode>.json` where a training has that name."""
    if (run.exec_mode == "train" and not run.benchmark) or not holds_training(run.results):
        return run.results / RECORD
    return run.results / f"run_{'benchmark' if run.benchmark else run.exec_mode}.json"


def prediction_folder(run: RunConfig, plan: Plan, *, tta: bool) -> Path:
    """Where masks go: `<results>/preds_task_<task>_dim_<dim>_fold_<fold>[_tta]`."""
    return run.results / f"preds_task_{plan.task}_dim_{plan.stage.dim}_fold_{run.fold}{'_tta' if tta else ''}"


def outdate_page(folder: Path, name: str = PAGE) -> None:
    """Remove the page about an earlier result, before that begins to change: it would show what is no longer there."""
    (folder / name).unlink(missing_ok=True)


def prepare_predictions(folder: Path) -> Path:
    """Make the folder of a run's masks; pages that show earlier ones, that of their training too, are gone then."""
    for each in (prepare_folder(folder, "--results"), folder.parent):
        outdate_page(each)
    return folder


def write_run_record(
    path: Path, *, options: Any, environment: dict, outcome: dict, command: Sequence[str] | None = None,
    named: bool = True,
) -> None:  # fmt: skip
    """`run.json`: what was asked (`command`: this process's), on which machine and versions, and what came out.

    Without `named`, whatever tells where the command was typed is left out.
    """
    write_json(
        {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": list(command or [Path(sys.argv[0]).name, *sys.argv[1:]]),
            "working_folder": os.getcwd() if named else "",
            "options": options,
            "environment": environment,
            "outcome": outcome,
        },
        path,
    )
