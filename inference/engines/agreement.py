"""How far the logits of another runtime are from torch's, and how far is too far."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from inference.engines.conversion import random_windows
from utils.errors import UserError
from utils.schema import LabelScheme, Plan

MOST_DIFFERING = 1e-4
"""Most voxels whose class may differ, as a share of all: where two classes are equally probable, rounding decides."""
LARGEST_DIFFERENCE = 5e-3
"""Largest difference of a logit, as a share of the largest logit (or of 1, where all are smaller)."""
CHECKED_WINDOWS = 2
Run = Callable[[Tensor], Tensor]
"""Logits of windows."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of `voxels`, `differing` have another class (or lie in another region); `largest` difference of a logit."""

    voxels: int
    differing: int
    largest: float
    scale: float = 1.0
    """The largest logit, at least 1."""

    @property
    def holds(self) -> bool:
        """Whether that is no more than rounding; NaN never is."""
        return self.largest <= LARGEST_DIFFERENCE * self.scale and self.differing <= MOST_DIFFERING * self.voxels

    def describe(self) -> str:
        """In a few words."""
        return f"{self.differing} of {self.voxels} voxels differ, logits by {self.largest:.1e} at most"


def compare_logits(expected: Tensor, found: Tensor, labels: LabelScheme) -> Agreement:
    """Compare logits (N, K, ...) of two runtimes.

    Raises:
        ValueError: shapes differ.
    """
    if expected.shape != found.shape:
        raise ValueError(f"logits of shape {tuple(found.shape)} in place of {tuple(expected.shape)}")
    if labels.regions:
        differing = ((expected > 0) != (found > 0)).any(dim=1)
    else:
        differing = expected.argmax(dim=1) != found.argmax(dim=1)
    return Agreement(
        voxels=differing.numel(), differing=int(differing.sum()), largest=float((expected - found).abs().max()),
        scale=max(1.0, float(expected.abs().max())),
    )  # fmt: skip


@torch.inference_mode()
def check_runtime(network: nn.Module, run: Run, plan: Plan, *, name: str) -> Agreement:
    """Compare a runtime with torch on random windows, one at a time and two.

    Raises:
        UserError: they do not agree; `name` says which network it is.
    """
    windows = random_windows(plan, CHECKED_WINDOWS, seed=1)
    expected = network(windows)
    try:
        both = compare_logits(expected, run(windows), plan.labels)
        single = compare_logits(expected[:1], run(windows[:1]), plan.labels)
    except ValueError as error:
        raise UserError(f"{name} gives {error}; nothing was kept") from None
    worst = single if both.holds and not single.holds else both
    if not worst.holds:
        raise UserError(
            f"{name} does not compute what torch computes: {worst.describe()}; nothing was kept. Use --engine torch, "
            "and tell the versions of both"
        )
    return worst
