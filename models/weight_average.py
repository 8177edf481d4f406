"""Exponential moving average of the weights (`--ema`): it is what is validated, saved as the model and exported."""

from __future__ import annotations

import torch
from pytorch_lightning.callbacks import Callback, WeightAveraging
from torch import Tensor

SHORTEST_MEMORY = 10
"""Steps over which the average reaches at first; it follows the weights closely while they change most."""


class AveragedWeights(WeightAveraging):
    """Averages after every step; the average remembers more as training goes on, up to `decay`.

    A checkpoint holds the average as its model, and the weights that training goes on from beside it.

    Args:
        decay: share that the average keeps of itself, after the first steps.
        device: of the training.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        def move(averages: list[Tensor], weights: list[Tensor], steps: Tensor) -> None:
            torch._foreach_lerp_(averages, weights, 1 - kept_share(decay, int(steps)))

        # Buffers (statistics of batch norm) are averages already.
        super().__init__(device=device, use_buffers=False, multi_avg_fn=move)


def kept_share(decay: float, steps: int) -> float:
    """What the average keeps of itself after so many steps: at most `decay`."""
    return min(decay, (1 + steps) / (SHORTEST_MEMORY + steps))


def weight_averages(decay: float, device: torch.device) -> list[Callback]:
    """The callback that averages, where it is asked for."""
    return [AveragedWeights(decay, device)] if decay else []
