"""Options of the training itself: loss, optimiser, schedule, length, validation."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import tyro

from utils.duration import seconds_of
from utils.errors import require

BY_STEP = ("none", "cosine", "poly", "wsd")
"""Schedules that can move after each step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Loss, optimiser, schedule and when to stop."""

    recipe: Literal["reference", "paper", "nnunet"] = "reference"
    """Where the defaults of the training flags come from: the NVIDIA reference, the nnU-Net paper or nnU-Net v2."""
    budget: str | None = None
    """Wall time from the command's start to its end, such as 10m, 1h30m or 8h. Network, length, optimiser,
    learning rate, augmentation and validation are chosen to fit by what a step takes here; flags that are given stay as
    they are."""
    learning_rate: float = 8e-4
    """Initial learning rate."""
    optimizer: Literal["sgd", "adam", "adam_l2", "muon"] = "adam"
    """sgd: Nesterov momentum; adam: decoupled weight decay (AdamW); adam_l2: Adam with the decay in the gradient; muon:
    Muon for kernels of convolutions and AdamW for the rest, which learns more in few steps at a rate of about 0.01."""
    momentum: float = 0.99
    """Momentum of sgd."""
    weight_decay: float = 1e-4
    """Weight decay."""
    scheduler: Literal["none", "multistep", "cosine", "poly", "wsd", "plateau", "loss_plateau"] = "none"
    """Learning rate schedule over epochs. poly: (1 - epoch / max_epochs) ** 0.9; wsd: constant, then down to 0
    (--decay_share); plateau: drops when the validation Dice stands still; loss_plateau: when the moving average of the
    training loss does."""
    schedule_by: Literal["epoch", "step"] = "epoch"
    """cosine, poly: the learning rate moves after each epoch or after each step; wsd and a warm-up move by step."""
    warmup_steps: int = 0
    """none, cosine, poly, wsd: steps at the beginning in which the learning rate grows to its value."""
    decay_share: float = 0.3
    """wsd: share of all steps, the last ones, in which the learning rate falls to 0."""
    ema: float = 0.0
    """Share that an exponential moving average of the weights keeps of itself each step, such as 0.99; the averaged
    weights are validated and saved as the model (0: no average)."""
    steps: tuple[int, ...] | None = None
    """multistep: epochs at which the learning rate is multiplied by --factor."""
    factor: float = 0.3
    """multistep, plateau, loss_plateau: what the learning rate is multiplied by."""
    lr_patience: int = 70
    """plateau, loss_plateau: epochs without a better Dice or loss that are tolerated before the learning rate drops."""
    min_learning_rate: float = 0.0
    """Training ends when the learning rate has fallen below this, after --min_epochs at the earliest (0: never)."""
    gradient_clip_val: float = 0.0
    """Largest norm of the gradient (0: not clipped)."""
    focal: bool = False
    """Focal loss instead of cross-entropy."""
    batch_dice: Literal["always", "never", "auto"] = "always"
    """Dice loss over a batch as if it were one volume, or over each patch. auto, nnU-Net's rule: over the batch where a
    patch shows little of a scan (2D, and full resolution of data that have a low-resolution stage too)."""
    min_epochs: int = 30
    """Epochs before early stopping may act."""
    max_epochs: Annotated[int, tyro.conf.arg(aliases=("--epochs",))] = 10000
    """Largest number of epochs."""
    patience: int = 100
    """Epochs without a better Dice before training stops, those without validation at its beginning not counted (0: it
    does not stop for that)."""
    skip_first_n_eval: int = 0
    """Epochs without validation at the beginning."""
    validate_every: int | None = None
    """Epochs from one validation of whole cases to the next; the last epoch has one, too. In those between one patch of
    each case is scored. (default: 1, or as many as keep validation under a quarter of the time)"""

    def __post_init__(self) -> None:
        if self.budget is not None:
            seconds_of(self.budget, "--budget")
        require(self.learning_rate > 0, "--learning_rate must be positive")
        require(0 <= self.momentum < 1, "--momentum must lie in [0, 1)")
        require(0 < self.factor < 1, "--factor must lie between 0 and 1")
        require(0 < self.decay_share <= 1, f"--decay_share must lie in (0, 1], got {self.decay_share}")
        require(0 <= self.ema < 1, f"--ema must lie in [0, 1), got {self.ema}")
        require(
            not self.warmup_steps or self.scheduler in BY_STEP,
            f"--warmup_steps works with --scheduler {', '.join(BY_STEP)}, not with {self.scheduler}",
        )
        require(self.scheduler != "multistep" or bool(self.steps), "--scheduler multistep needs --steps")
        require(all(step >= 0 for step in self.steps or ()), f"--steps must not be negative, got {self.steps}")
        for name in (
            "weight_decay", "gradient_clip_val", "min_epochs", "skip_first_n_eval", "patience", "min_learning_rate",
            "warmup_steps",
        ):  # fmt: skip
            require(getattr(self, name) >= 0, f"--{name} must not be negative")
        for name in ("max_epochs", "lr_patience", "validate_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"--{name} must be at least 1")
        if self.scheduler == "plateau":
            require(
                self.validate_every in (None, 1),
                "--scheduler plateau judges the validation of each epoch: leave out --validate_every, or choose "
                "loss_plateau",
            )

    @property
    def moves_by_step(self) -> bool:
        """Whether the learning rate moves after each step and not after each epoch."""
        by_step = self.schedule_by == "step" and self.scheduler in ("cosine", "poly")
        return by_step or self.scheduler == "wsd" or self.warmup_steps > 0
