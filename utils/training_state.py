"""Whether a training is over: `training.json` beside its checkpoints, so that an interrupted one is not taken for one.

Written when a training begins and after each epoch; `finished` is true once it has come to its end.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from utils.config import FoldChoice
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.schema import FORMAT_VERSION, check_version

TRAINING = "training.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingState:
    """How far a training is. Epochs are counted from 1: `epochs` of them are done, `max_epochs` is the most."""

    version: int = FORMAT_VERSION
    fold: FoldChoice
    epochs: int
    max_epochs: int
    finished: bool

    def __post_init__(self) -> None:
        check_version(self.version, TRAINING)


def write_training_state(folder: Path, state: TrainingState) -> None:
    """Write the state into a folder of checkpoints."""
    write_json(state, folder / TRAINING)


def read_training_state(folder: Path) -> TrainingState | None:
    """The state of the training whose checkpoints a folder holds; None where nothing says.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / TRAINING
    return read_json(TrainingState, path) if path.is_file() else None


def require_finished(folder: Path, *, allow_unfinished: bool) -> None:
    """Refuse the checkpoints of a training that was interrupted.

    Raises:
        UserError: it was, and `allow_unfinished` is not given.
    """
    state = read_training_state(folder)
    if state is None or state.finished or allow_unfinished:
        return
    raise UserError(
        f"{folder}: the training of fold {state.fold} was interrupted after epoch {state.epochs} of "
        f"{state.max_epochs}; "
        "continue it with --resume_training, or add --allow_unfinished to use it as it is"
    )
