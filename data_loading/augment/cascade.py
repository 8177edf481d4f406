"""What the second stage of a cascade is shown of the first: class indices, made worse on purpose, as one-hot channels.

The first stage's masks of training cases look better than those of new scans, and the second must not trust them.

Shapes: N batch, K classes, D H W space (2D has no D).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Degradation:
    """How often masks are made worse, and how much.

    Source: nnU-Net v2, the default trainer's transforms for a cascade.
    """

    operator: float = 0.4
    """Probability that a patch's classes are dilated, eroded, opened or closed."""
    removal: float = 0.2
    """Probability that a patch loses connected components."""
    per_class: float = 0.5
    """Probability of each class in such a patch."""
    radius_voxels: tuple[int, int] = (1, 8)
    """Smallest and largest radius of the ball that a class is dilated or eroded with."""
    largest_share: float = 0.15
    """Only components that fill less than this share of the patch are removed."""


DEGRADATION = Degradation()
FAR = 128
"""A squared distance beyond every radius; with the square of a radius added it still fits a byte."""
OPERATORS = ("dilate", "erode", "open", "close")


def one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """(N, K - 1, D, H, W) float32, a channel for each foreground class, of class indices (N, 1, D, H, W) uint8."""
    numbers = torch.arange(1, num_classes, dtype=classes.dtype, device=classes.device)
    return (classes == numbers.reshape(1, -1, *(1 for _ in classes.shape[2:]))).float()


def degrade(classes: Tensor, num_classes: int, rng: np.random.Generator, how: Degradation = DEGRADATION) -> Tensor:
    """Make the class indices (N, 1, D, H, W) uint8 of some patches worse; the others stay as they are.

    Voxels that a class gains are taken from the others, those that it loses become background.
    """
    patches = []
    for patch in classes:
        patch = patch[0]
        if rng.random() < how.operator:
            for k in _drawn(num_classes, rng, how):
                operator, radius = rng.choice(OPERATORS), int(rng.integers(*how.radius_voxels, endpoint=True))
                patch = change_class(patch, k, str(operator), radius)
        if rng.random() < how.removal:
            for k in _drawn(num_classes, rng, how):
                patch = remove_component(patch, k, rng, largest_share=how.largest_share)
        patches.append(patch[None])
    return torch.stack(patches)


def change_class(classes: Tensor, k: int, operator: str, radius: int) -> Tensor:
    """Dilate, erode, open or close class k of (D, H, W) class indices; what lies outside the patch plays no part."""
    before = classes == k
    after = before
    for step in {"dilate": "d", "erode": "e", "open": "ed", "close": "de"}[operator]:
        after = _dilate(after, radius) if step == "d" else ~_dilate(~after, radius)
    kept = torch.where(before, torch.zeros_like(classes), classes)
    return torch.where(after, torch.full_like(classes, k), kept)


def remove_component(classes: Tensor, k: int, rng: np.random.Generator, *, largest_share: float) -> Tensor:
    """(D, H, W) class indices without one connected component of class k (corners touch), if any is small enough."""
    # Components are counted on the CPU: scipy's labelling has no counterpart in torch.
    components, count = ndimage.label((classes == k).cpu().numpy(), structure=np.ones((3,) * classes.ndim))
    sizes = np.bincount(components.ravel(), minlength=count + 1)[1:]
    small = 1 + np.flatnonzero(sizes < largest_share * components.size)
    if not small.size:
        return classes
    gone = torch.from_numpy(components == rng.choice(small)).to(classes.device)
    return torch.where(gone, torch.zeros_like(classes), classes)


def _drawn(num_classes: int, rng: np.random.Generator, how: Degradation) -> list[int]:
    """Some foreground classes in random order."""
    return [int(k) for k in rng.permutation(np.arange(1, num_classes)) if rng.random() < how.per_class]


def _dilate(mask: Tensor, radius: int) -> Tensor:
    """Where a voxel of the mask (D, H, W) bool is at most `radius` voxels away: a dilation by a ball.

    Squared distances are found axis by axis: along each the least of what neighbours have and how far they are.
    """
    squares = (~mask).to(torch.uint8) * FAR
    for axis, length in enumerate(mask.shape):
        nearest = squares.clone()
        for step in range(1, min(radius, length - 1) + 1):
            away, rest = squares + step**2, length - step
            for to, start in ((0, step), (step, 0)):
                target = nearest.narrow(axis, to, rest)
                torch.minimum(target, away.narrow(axis, start, rest), out=target)
        squares = nearest
    return squares <= radius**2
