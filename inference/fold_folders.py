"""The folders `fold_0`, `fold_1`, ... of a cross-validation: which are there, how many, what was scored."""

from __future__ import annotations

import re
from pathlib import Path

from inference.decision import Checkpoint
from utils.errors import UserError
from utils.json_text import parse_json
from utils.runs import LAST_CHECKPOINT, find_checkpoint

REQUEST, DONE = "options.json", "done.json"
"""What a fold was asked for, and what came out of it; scripts/cross_validate.py writes both."""


def fold_folders(folder: Path) -> dict[int, Path]:
    """Number -> folder of the folds in a folder, in order; none where it is no folder."""
    if not folder.is_dir():
        return {}
    matches = {entry: re.fullmatch(r"fold_(\d+)", entry.name) for entry in folder.iterdir() if entry.is_dir()}
    return dict(sorted((int(match.group(1)), entry) for entry, match in matches.items() if match))


def missing_folds(folder: Path) -> list[int]:
    """Folds that belong to the cross-validation of a folder and are not there, or have no checkpoint.

    How many there are is known where scripts/cross_validate.py made them; else only what is there counts.
    """
    there = fold_folders(folder)
    known = [_value(path / name, "num_folds") for path in there.values() for name in (REQUEST, DONE)]
    number = max((n for n in known if type(n) is int), default=0)
    return [fold for fold in sorted({*range(number), *there}) if fold not in there or not holds_checkpoint(there[fold])]


def skipped_folds(folder: Path) -> list[int]:
    """Numbers below the highest fold of a folder that no fold has."""
    there = fold_folders(folder)
    return [fold for fold in range(max(there, default=0)) if fold not in there]


def holds_checkpoint(fold: Path) -> bool:
    """Whether a fold's folder has a checkpoint, in itself or in `checkpoints`."""
    return any(any(path.glob("epoch=*.ckpt")) or (path / LAST_CHECKPOINT).is_file() for path in _places(fold))


def recorded_checkpoint(fold: Path) -> Checkpoint | None:
    """Which checkpoint of a fold was scored; None where nothing says."""
    found = _value(fold / DONE, "checkpoint")
    return found if found in ("last", "best") else None


def choose_checkpoint(folder: Path, which: Checkpoint | None, flag: str) -> Path:
    """The last checkpoint of a folder of checkpoints, or its best; None means the best. A file means itself.

    Raises:
        UserError: there is none.
    """
    if which != "last" or not folder.is_dir():
        return find_checkpoint(folder, flag)
    last = folder / LAST_CHECKPOINT
    if not last.is_file():
        raise UserError(
            f"{flag} {folder} holds no {LAST_CHECKPOINT}, the checkpoint whose predictions were scored; copy it back, "
            "or choose a checkpoint by its file name"
        )
    return last


def _places(fold: Path) -> tuple[Path, Path]:
    return fold, fold / "checkpoints"


def _value(path: Path, key: str) -> object:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get(key) if isinstance(content, dict) else None
