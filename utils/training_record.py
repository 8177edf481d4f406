"""What a network was trained on and how: noted in every checkpoint, so that no result is flattered and none is mixed.

Cases are those of the data set of the checkpoint's plan.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.args import GROUPS, Config
from utils.config import FoldChoice
from utils.duration import seconds_of
from utils.files import json_ready, to_dict
from utils.flag_roles import CHANGEABLE_FLAGS, pointless_options
from utils.runs import LAST_CHECKPOINT
from utils.schema import Fold


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Attributes:
    fold: number, counted from 0, or `all`.
    cases: trained on and validated on.
    earlier: other cases on which weights that this training began from (`--ckpt_path`) were trained.
    options: those that change what is trained, by name, as plain values.
    processes: data-parallel ones; each takes a batch of its own.
    data: case -> digest of what its shard was made from and by which plan; empty in a checkpoint of an earlier version.
    """

    fold: FoldChoice
    cases: Fold
    earlier: tuple[str, ...] = ()
    options: dict[str, Any]
    processes: int
    data: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def seen(self) -> set[str]:
        """All cases from which the weights have learned."""
        return {*self.cases.train, *self.earlier}


def training_options(config: Config, *, batch_size: int) -> dict[str, Any]:
    """The options of a training that change what comes out, without those that do nothing in this run.

    Args:
        config: of the run.
        batch_size: of the adapted plan, which an option may leave to it.
    """
    idle = pointless_options(config)
    groups = {group: to_dict(getattr(config, group)) for group in GROUPS if group != "model"}
    flat = {name: value for group in groups.values() for name, value in group.items()}
    chosen = {name: json_ready(value) for name, value in flat.items() if name not in CHANGEABLE_FLAGS | idle}
    return chosen | {"batch_size": batch_size}


def option_changes(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What a resumed training must not change; `max_epochs` may grow. Options of one side only say nothing."""
    changed = [
        f"--{name} was {_shown(stored[name])}, now it is {_shown(value)}"
        for name, value in wanted.items()
        if name in stored and name != "max_epochs" and not _is_same(name, stored[name], value)
    ]
    before, now = stored.get("max_epochs"), wanted.get("max_epochs")
    if before is not None and now is not None and now < before:
        changed.append(f"--max_epochs was {before}, now it is {now}; it may only grow")
    return changed


def _is_same(name: str, before: Any, now: Any) -> bool:
    if name == "budget" and before is not None and now is not None:
        return seconds_of(before, "--budget") == seconds_of(now, "--budget")
    return bool(before == now)


def fold_changes(stored: TrainingRecord, fold: FoldChoice, cases: Fold) -> list[str]:
    """In what the fold of a resumed training differs from that of the checkpoint."""
    changed = [f"--fold was {stored.fold}, now it is {fold}"] if stored.fold != fold else []
    leaked = sorted(set(stored.cases.train) & set(cases.val))
    if leaked and fold != "all":
        changed.append(f"it was trained on {named(leaked)}, which are validation cases now")
    for part in ("train", "val"):
        before, now = set(getattr(stored.cases, part)), set(getattr(cases, part))
        purpose = {"train": "training", "val": "validation"}[part]
        if now - before:
            changed.append(f"{named(sorted(now - before))} are new among its {purpose} cases")
        if before - now:
            changed.append(f"{named(sorted(before - now))} are no {purpose} cases any more")
    return changed


def data_changes(stored: TrainingRecord, data: dict[str, str]) -> list[str]:
    """Of which cases the preprocessed data are others than those that a resumed training has learned from."""
    changed = sorted(case for case, stamp in data.items() if stored.data.get(case, stamp) != stamp)
    return [f"the preprocessed data of {named(changed)} have changed since"] if changed else []


def how_to_continue(checkpoints: Path) -> str:
    """What goes on with an interrupted training whose checkpoints lie in a folder."""
    if not (checkpoints / LAST_CHECKPOINT).is_file():
        return "no checkpoint was written yet; the same command begins anew"
    return f"the same command with --resume_training continues after the last finished epoch ({checkpoints})"


def named(cases: Iterable[str], shown: int = 10) -> str:
    """Number and names of cases, for a message."""
    cases = list(cases)
    more = f" and {len(cases) - shown} more" if len(cases) > shown else ""
    return f"{len(cases)} {'case' if len(cases) == 1 else 'cases'} ({', '.join(cases[:shown])}{more})"


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
