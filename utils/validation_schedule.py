"""Which epochs are validated, and how: whole scans cost far more than the training between where scans are large."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

Kind = Literal["none", "patches", "whole"]
"""none: nothing is scored. patches: one patch of each validation case. whole: the validation cases themselves."""

FORWARD_SHARE = 3
"""A patch that is trained on takes about as long as so many that only go forward: backward is twice forward."""
LARGEST_SHARE = 0.25
"""Of the time of a training that validation may take, where no flag says how often."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValidationSchedule:
    """What is validated after an epoch, counted from 0.

    Attributes:
        every: epochs from one validation of whole cases to the next; the last epoch has one in any case.
        skipped: epochs at the beginning without any validation.
        last_epoch: the last one.
    """

    every: int = 1
    skipped: int = 0
    last_epoch: int

    def kind(self, epoch: int) -> Kind:
        """What is validated after this epoch."""
        if epoch < self.skipped:
            return "none"
        return "whole" if epoch >= self.last_epoch or (epoch + 1) % self.every == 0 else "patches"

    def in_words(self) -> str:
        """What a user is told of it."""
        if self.skipped >= self.last_epoch:
            return "whole validation cases are scored after the last epoch (--skip_first_n_eval)"
        often = f"every {self.every} epochs and after the last one"
        return (
            f"whole validation cases are scored {'after the last epoch' if self.every > self.last_epoch else often}, "
            "in the others one patch of each (--validate_every)"
        )

    @property
    def is_empty(self) -> bool:
        """Whether no epoch is validated."""
        return self.skipped > self.last_epoch


def affordable_interval(windows: int, patches: int) -> int:
    """Epochs between validations, the fewest with which they take at most `LARGEST_SHARE` of the time.

    Reckoned from counts and not from the clock, so that a training that is repeated or continued, here or on another
    machine, is validated after the same epochs and keeps the same best checkpoint.

    Args:
        windows: of all validation cases together; each goes forward through the network.
        patches: that an epoch trains on.
    """
    validation, epoch = windows, FORWARD_SHARE * patches
    return max(1, math.ceil(validation * (1 - LARGEST_SHARE) / (LARGEST_SHARE * epoch)))


def count_windows(shapes: Sequence[Sequence[int]], patch: Sequence[int], overlap: float) -> int:
    """Windows of all volumes (D, H, W) together; a patch (H, W) is a window of each plane."""
    box = (1,) * (3 - len(patch)) + tuple(patch)
    steps = [max(int(window * (1 - overlap)), 1) for window in box]
    return sum(
        math.prod(math.ceil(max(size - window, 0) / step) + 1 for size, window, step in zip(shape, box, steps))
        for shape in shapes
    )
