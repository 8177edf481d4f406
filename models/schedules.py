"""Optimisers and learning rate schedules of `OptimConfig`; every schedule moves once an epoch."""

from __future__ import annotations

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
    kind = AdamW if optim.optimizer == "adam" else Adam
    return kind(parameters, lr=rate, weight_decay=decay, fused=fused)


def build_scheduler(optimizer: Optimizer, optim: OptimConfig) -> LRScheduler | None:
    """The schedule, or None where the learning rate stays as it is."""
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
