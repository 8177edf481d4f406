"""Whether the shards that a run reads are those that it began with: preprocess.py may make them anew meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from data_preprocessing.planning.plan_file import PLAN
from data_preprocessing.readiness import READY
from data_preprocessing.shards import shard_stamps
from models.callbacks import as_ours
from utils.errors import SaidElsewhere, UserError, list_problems
from utils.files import file_state
from utils.runs import ShardFolder


class ShardWatch(Callback):
    """Ends a training whose shards were replaced, after its epoch or validation and before a checkpoint is made of it.

    The folder's mark of being ready goes before the first shard is replaced, so that one look at it says whether
    there is anything to compare. The first process looks, and all end together.

    Args:
        shards: what the run reads.
        stamps: case -> digest of what its shard was made from (`shard_stamps`, with the masks of a first stage), taken
            before anything was read.

    Raises:
        UserError: in every process, where shards are missing or are of other files or another plan now.
    """

    def __init__(self, shards: ShardFolder, stamps: dict[str, str]) -> None:
        self._folder, self._stamps = shards.cases, stamps
        self._mark = shards.cases / (PLAN if shards.cases == shards.root else READY)
        # None until it was looked at: shards may have been replaced since the stamps were taken.
        self._seen: tuple[int, int, int] | None = None

    def changes(self) -> list[str]:
        """What is said of each case that is not what it was; none in nearly all cases, which costs one look."""
        now = file_state(self._mark)
        if now is not None and now == self._seen:
            return []
        found = []
        for case, stamp in self._stamps.items():
            try:
                same = shard_stamps(self._folder, [case], previous=True)[case] == stamp
            except (UserError, OSError):
                same = False
            found += [] if same else [f"{case}: its shard is missing or another one now"]
        if not found:
            self._seen = now
        return found

    def require_same(self, what: str) -> None:
        """Refuse what was made while shards were replaced; `what` begins the message.

        Raises:
            UserError: some were.
        """
        if found := self.changes():
            raise _error(what, self._folder, found)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Look after the last batch of an epoch, before it is validated."""
        if trainer.is_last_batch:
            self._end_together(trainer, module)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Look before a checkpoint is chosen by what was scored."""
        if not trainer.sanity_checking:
            self._end_together(trainer, module)

    def _end_together(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        found = self.changes() if trainer.is_global_zero else []
        if as_ours(module).reduce_sum(torch.tensor(float(len(found)), device=module.device)).item():
            epoch = f"training ended in epoch {trainer.current_epoch + 1}, of which no checkpoint was made"
            found = trainer.strategy.broadcast(found)
            # Once on each machine, as they may have screens of their own.
            raise _error(epoch, self._folder, found) if trainer.local_rank == 0 else SaidElsewhere


def _error(what: str, folder: Path, found: list[str]) -> UserError:
    return list_problems(
        f"{what}: another run of preprocess.py has replaced shards in {folder} meanwhile:",
        found,
        advice="Wait until it has ended and begin anew, or let it make the earlier shards again from the same files.",
    )
