"""Whether the folds of a configuration are all trained to their end and scored, and with which checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from cross_validation.records import RunRequest, read_record
from data_preprocessing.shards import shard_paths, shard_stamps
from inference.decision import Checkpoint
from inference.fold_folders import REQUEST, fold_folders, missing_folds
from utils.errors import UserError, list_problems
from utils.files import read_json
from utils.training_record import named
from utils.training_state import require_finished


def scored_checkpoints(
    folders: Mapping[str, Path], shards: Mapping[str, Path], *, allow_unfinished: bool
) -> dict[str, Checkpoint | None]:
    """Configuration -> which checkpoint of each of its trainings was scored; None where nothing says, or folds differ.

    Args:
        folders: of each configuration, with its folds.
        shards: of each configuration.
        allow_unfinished: take what is there.

    Raises:
        UserError: folds are missing, interrupted, not scored, scored with different checkpoints, or of other data than
            the shards are made of now; all are listed.
    """
    problems, found = [], {}
    for name, folder in folders.items():
        records = {fold: read_record(path) for fold, path in fold_folders(folder).items()}
        kinds = {fold: record.checkpoint or "best" for fold, record in records.items() if record is not None}
        found[name] = next(iter(kinds.values())) if len(set(kinds.values())) == 1 else None
        found_in = _problems(folder, kinds) + changed_shards(folder, shards[name])
        problems += [f"{name}: {problem}" for problem in found_in]
    if problems and not allow_unfinished:
        raise list_problems(
            "the cross-validation is not finished:", problems,
            advice="Give the command of scripts/cross_validate.py again, or add --allow_unfinished to compare what is "
            "there.",
        )  # fmt: skip
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredWith:
    """How scored predictions were made; None where nothing says, or folds differ."""

    tta: bool | None
    overlap: float | None


def scored_with(folders: Sequence[Path]) -> ScoredWith:
    """The settings with which the folds of some configurations predicted their unseen cases."""
    requests = [path / REQUEST for folder in folders for path in fold_folders(folder).values()]
    options = [read_json(RunRequest, path).options for path in requests if path.is_file()]
    tta, overlap = ({each.get(name) for each in options} for name in ("tta", "overlap"))
    return ScoredWith(tta=tta.pop() if len(tta) == 1 else None, overlap=overlap.pop() if len(overlap) == 1 else None)


def changed_shards(folder: Path, shards: Path) -> list[str]:
    """Cases whose shards were made anew after a fold learned from them or predicted them; shards may be elsewhere."""
    changed = set()
    for path in fold_folders(folder).values():
        if (path / REQUEST).is_file():
            stored = read_json(RunRequest, path / REQUEST).data or {}
            there = shard_stamps(shards, (case for case in stored if shard_paths(shards, case).meta.is_file()))
            changed |= {case for case, stamp in there.items() if stamp != stored[case]}
    return [f"the preprocessed data of {named(sorted(changed))} have changed since"] if changed else []


def _problems(folder: Path, kinds: Mapping[int, Checkpoint]) -> list[str]:
    missing = missing_folds(folder)
    problems = [f"fold {fold} is missing, or has no checkpoint" for fold in missing]
    for fold, path in fold_folders(folder).items():
        try:
            for place in (path, path / "checkpoints"):
                require_finished(place, allow_unfinished=False)
        except UserError as error:
            problems.append(str(error))
        else:
            if fold not in kinds and fold not in missing and (path / REQUEST).is_file():
                problems.append(f"fold {fold} is trained, but its cases are not predicted or not scored")
    if len(set(kinds.values())) > 1:
        each = ", ".join(f"fold {fold} {kind}" for fold, kind in kinds.items())
        problems.append(f"its folds were predicted by different checkpoints ({each}); see --checkpoint")
    return problems
