"""What cross-validation decided: which configurations predict, together or alone, and what is done to their masks.

Written to `decision.json` by scripts/find_best_configuration.py, read by scripts/inference.py and
scripts/export_model.py; may be edited by hand.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from utils.configurations import CONFIGURATIONS
from utils.schema import check_version

DECISION_FILE = "decision.json"
Checkpoint = Literal["last", "best"]
"""Of a training: the weights at its end, or those of the epoch with the best Dice on its validation cases."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PostProcessing:
    """Where only the largest connected component is kept; everything else becomes background.

    First of all foreground taken together, then of each class named.
    """

    foreground: bool = False
    classes: tuple[str, ...] = ()

    @property
    def does_nothing(self) -> bool:
        """Whether masks stay as they are."""
        return not self.foreground and not self.classes

    def describe(self) -> str:
        """Of what the largest component is kept, in a few words; `none` where nothing is done."""
        kept = [*(["all foreground"] if self.foreground else []), *self.classes]
        return f"largest component of {', '.join(kept)}" if kept else "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecisionMember:
    """A configuration that predicts, with the mean of its folds.

    Folders are relative to decision.json and hold `fold_<k>`; `previous` is that of the first stage of a cascade.
    `checkpoint` is which checkpoint of each training was scored and predicts: its last, or that of the best epoch;
    None takes what each fold says of itself, else the best.
    """

    configuration: str
    folder: str
    previous: str | None = None
    checkpoint: Checkpoint | None = None

    def __post_init__(self) -> None:
        if self.configuration not in CONFIGURATIONS:
            raise ValueError(f"configuration {self.configuration!r} is none of {', '.join(CONFIGURATIONS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """The chosen configuration or ensemble, its post-processing, and on which scores that rests.

    `scores` has the mean Dice of each candidate over classes and out-of-fold cases; `command` is what predicts new
    scans.
    """

    version: int
    task: str
    dataset: str
    members: tuple[DecisionMember, ...]
    post_processing: PostProcessing
    scores: dict[str, float]
    command: str

    def __post_init__(self) -> None:
        check_version(self.version, "decision")
        names = [member.configuration for member in self.members]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a decision needs at least one configuration, each once, got {names}")
