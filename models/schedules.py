"""Optimisers and learning rate schedules of `OptimConfig`; a schedule moves once an epoch, or once a step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import SupportsFloat

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    MultiStepLR,
    ReduceLROnPlateau,
)

from models.muon import Muon
from utils.optim_config import OptimConfig

POLY_EXPONENT = 0.9
LOSS_MEMORY = 0.93
"""Share of the moving average that stays each epoch; the paper names none, this is nnU-Net v1's."""
LOSS_IMPROVEMENT = 5e-3
"""By how much the moving average has to fall to count as better."""


class LossPlateau(ReduceLROnPlateau):
    """Multiplies the learning rate by a factor when the moving average of the training loss stands still.

    It drops in the epoch after `patience` epochs in a row whose average is not better by `LOSS_IMPROVEMENT` than
    the best one. The average is part of the state, so a resumed training drops when an uninterrupted one does.

    Source: Isensee et al., nnU-Net: Breaking the Spell (2019), section 2.2; Self-adapting Framework (2018),
    section 2.2, for the improvement that counts.
    """

    def __init__(self, optimizer: Optimizer, *, factor: float, patience: int) -> None:
        super().__init__(
            optimizer, mode="min", factor=factor, patience=patience, threshold=LOSS_IMPROVEMENT, threshold_mode="abs"
        )
        self.average: float | None = None

    # As its parent does, it takes a score where other schedules take an epoch.
    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take in the mean training loss of an epoch."""
        loss = float(metrics)
        before = loss if self.average is None else self.average
        self.average = LOSS_MEMORY * before + (1 - LOSS_MEMORY) * loss
        super().step(self.average)


def build_optimizer(parameters: Iterable[nn.Parameter], optim: OptimConfig, *, fused: bool) -> Optimizer:
    """The optimiser over the parameters, at the initial learning rate."""
    rate, decay = optim.learning_rate, optim.weight_decay
    if optim.optimizer == "sgd":
        nesterov = optim.momentum > 0
        return SGD(
            parameters, lr=rate, momentum=optim.momentum, nesterov=nesterov, weight_decay=decay, fused=fused
        )  # fmt: skip
    if optim.optimizer == "muon":
        return Muon(parameters, lr=rate, weight_decay=decay)
    kind = AdamW if optim.optimizer == "adam" else Adam
    return kind(parameters, lr=rate, weight_decay=decay, fused=fused)


class StepRate:
    """Share of the learning rate that a step has, of a training whose number of steps may change on its way.

    Its attributes are plain numbers and words: torch saves them with the schedule, and a resumed one goes on from them.

    Attributes:
        kind: `--scheduler`.
        total: steps of the training.
        warmup: the first of them, in which the share grows.
        decay: share of the steps in which `wsd` falls.
        since: step at which `total` was last changed.
        done: how far the training was then, 0..1.
    """

    def __init__(self, optim: OptimConfig, total: int) -> None:
        self.kind, self.warmup, self.decay = str(optim.scheduler), optim.warmup_steps, optim.decay_share
        self.total, self.since, self.done = max(total, 1), 0, 0.0

    def progress(self, step: int) -> float:
        """How far the training is before a step, counted from 0; 1 after the last one."""
        left = max(self.total - self.since, 1)
        return min(self.done + (1 - self.done) * (step - self.since) / left, 1.0)

    def change_total(self, step: int, total: int) -> None:
        """Let the training end after `total` steps; from `step` on the rest of the schedule is spread over the rest."""
        self.done, self.since, self.total = self.progress(step), step, max(total, step + 1)

    def __call__(self, step: int) -> float:
        """The share of a step, counted from 0."""
        growing = (step + 1) / (self.warmup + 1) if step < self.warmup else 1.0
        return growing * falling_share(self.kind, self.progress(step), self.decay)


def falling_share(kind: str, progress: float, decay: float) -> float:
    """Share of the learning rate after `progress` (0..1) of a training, without a warm-up."""
    if kind == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if kind == "poly":
        return (1 - progress) ** POLY_EXPONENT
    return min((1 - progress) / decay, 1.0) if kind == "wsd" else 1.0


def build_scheduler(optimizer: Optimizer, optim: OptimConfig, *, steps: int = 0) -> LRScheduler | None:
    """The schedule, or None where the learning rate stays as it is.

    Args:
        optimizer: whose rate it moves.
        optim: which one.
        steps: of the whole training; only a schedule that moves by step asks for them.
    """
    if optim.moves_by_step:
        return LambdaLR(optimizer, StepRate(optim, steps))
    if optim.scheduler == "multistep":
        return MultiStepLR(optimizer, milestones=list(optim.steps or ()), gamma=optim.factor)
    if optim.scheduler == "cosine":
        return CosineAnnealingLR(optimizer, T_max=optim.max_epochs)
    if optim.scheduler == "poly":
        return LambdaLR(optimizer, lambda epoch: poly_share(epoch, optim.max_epochs))
    if optim.scheduler == "plateau":
        return ReduceLROnPlateau(optimizer, mode="max", factor=optim.factor, patience=optim.lr_patience)
    if optim.scheduler == "loss_plateau":
        return LossPlateau(optimizer, factor=optim.factor, patience=optim.lr_patience)
    return None


def poly_share(epoch: int, max_epochs: int) -> float:
    """Share of the initial learning rate in an epoch, 1 in epoch 0 and 0 after the last one.

    Source: Isensee et al., nnU-Net (2021), Methods, "Training schedule".
    """
    return max(1 - epoch / max_epochs, 0.0) ** POLY_EXPONENT
