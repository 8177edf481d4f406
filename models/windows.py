"""Where overlapping windows lie and how much each of their voxels counts, as MONAI's sliding window or nnU-Net has it.

Written here and not imported: importing MONAI takes longer than torch itself, and whoever predicts a few scans waits.

Shapes: D H W space. To a 2D network a slice is a window of one plane.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.inferer import InferenceSettings
from utils.rules import Rules
from utils.schema import StagePlan

Start = tuple[int, int, int]

SIGMA_SHARE = 0.125
"""Deviation of the Gaussian along an axis, as a share of the window."""
LEAST_WEIGHT = 1e-3
DEFAULT_RULES = Rules()


def window_starts(size: Sequence[int], window: Sequence[int], step: Sequence[int]) -> list[tuple[int, ...]]:
    """First voxel of every window, the last axis fastest; the last window along an axis ends with the volume.

    All are voxels by axis; a window is at most as large as the volume, and a step leaves no gap.
    """
    assert all(1 <= s <= w <= n for n, w, s in zip(size, window, step)), (size, window, step)
    # -(-a // b) is a / b rounded up.
    counts = [-(-(n - w) // s) + 1 for n, w, s in zip(size, window, step)]
    axes = [[min(i * s, n - w) for i in range(count)] for n, w, s, count in zip(size, window, step, counts)]
    return list(itertools.product(*axes))


def even_starts(size: Sequence[int], window: Sequence[int], overlap: float) -> list[tuple[int, ...]]:
    """First voxel of every window, the last axis fastest: no further apart than overlap allows, spread out evenly.

    Source: nnU-Net v2, sliding_window_prediction.py, compute_steps_for_sliding_window.
    """
    axes = []
    for n, w in zip(size, window):
        count = math.ceil((n - w) / (w * (1 - overlap))) + 1
        # Python rounds a half to the even neighbour, as numpy does there.
        axes.append([round((n - w) / max(count - 1, 1) * i) for i in range(count)])
    return list(itertools.product(*axes))


def sampled_importance(window: Sequence[int], *, device: torch.device) -> Tensor:
    """Weights of a window's voxels, float16 of its shape: a Gaussian around voxel n // 2, 10 at its largest.

    Where half precision has 0 for them, they are the smallest other weight.

    Source: nnU-Net v2, sliding_window_prediction.py, compute_gaussian: a single voxel, blurred and rounded.
    """
    weight = np.ones(())
    for size in window:
        sigma = SIGMA_SHARE * size
        reach = int(4 * sigma + 0.5)
        along = np.exp(-0.5 / sigma**2 * np.arange(-reach, reach + 1) ** 2)
        places = np.arange(size) - size // 2 + reach
        weight = weight[..., None] * (along / along.sum())[places]
    weight /= weight.max() / 10
    halved = torch.from_numpy(weight).to(device, torch.float16)
    halved[halved == 0] = halved[halved > 0].min()
    return halved


def importance_map(window: Sequence[int], *, blend: str, device: torch.device) -> Tensor:
    """Weights of a window's voxels, float32 of its shape, at least 0.001 (or what the corner has, where that is more).

    `constant`: 1 everywhere. `gaussian`: a Gaussian around the middle, of an eighth of the window along each axis.

    Source: Isensee et al., nnU-Net (2021), inference: Gaussian importance weighting.
    """
    weight = torch.ones((), device=device)
    for size in window:
        if blend == "gaussian":
            places = torch.arange(-(size - 1) / 2, (size - 1) / 2 + 1, dtype=torch.float32, device=device)
            along = torch.exp(places**2 / (-2 * (SIGMA_SHARE * size) ** 2))
        else:
            along = torch.ones(size, device=device)
        weight = weight[..., None] * along
    return weight.clamp_(min=max(weight.min().item(), LEAST_WEIGHT))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowLayout:
    """Where the windows of a volume lie, and in which order and company they go through the network.

    `window`, `padded` and `low` are (D, H, W): size of a window, of the volume padded to at least a window, and how
    many voxels of padding lie in front. `blended` is False where one window holds everything.
    """

    window: Start
    padded: Start
    low: Start
    batches: tuple[tuple[Start, ...], ...]
    blended: bool

    @property
    def num_windows(self) -> int:
        """All of them."""
        return sum(map(len, self.batches))

    @property
    def span(self) -> int:
        """Planes that are held at a time."""
        starts = [batch[0][0] for batch in self.batches]
        return max(batch[-1][0] + self.window[0] - first for batch, first in zip(self.batches, starts))

    @property
    def largest_step(self) -> int:
        """Most planes that are finished at a time."""
        starts = [batch[0][0] for batch in self.batches]
        return max(after - before for before, after in zip(starts, [*starts[1:], self.padded[0]]))


def window_layout(
    shape: Sequence[int], stage: StagePlan, settings: InferenceSettings, rules: Rules = DEFAULT_RULES
) -> WindowLayout:
    """The layout for a volume of `shape` (D, H, W): MONAI's positions and order, or nnU-Net's where rules say so."""
    axes = range(3 - stage.dim, 3)
    window = _three((1,) * (3 - stage.dim) + stage.patch_size)
    padded = _three(max(size, least) for size, least in zip(shape, window))
    sizes = [padded[axis] for axis in axes]
    if rules.windows == "even":
        places = even_starts(sizes, stage.patch_size, settings.overlap)
    else:
        # As MONAI does, by axis: the whole window where it covers the axis, else at least one voxel.
        steps = [
            window[axis] if window[axis] == padded[axis] else max(int(window[axis] * (1 - settings.overlap)), 1)
            for axis in axes
        ]
        places = window_starts(sizes, stage.patch_size, steps)
    planes = range(padded[0]) if stage.dim == 2 else (None,)
    starts = [_three(place if plane is None else (plane, *place)) for plane in planes for place in places]
    size = settings.window_batch
    return WindowLayout(
        window=window, padded=padded, low=_three((total - size) // 2 for total, size in zip(padded, shape)),
        batches=tuple(tuple(starts[first : first + size]) for first in range(0, len(starts), size)),
        blended=any(padded[axis] > window[axis] for axis in axes),
    )  # fmt: skip


def window_weights(layout: WindowLayout, settings: InferenceSettings, rules: Rules, *, device: torch.device) -> Tensor:
    """Weights (D, H, W) of a window's voxels."""
    if rules.importance == "sampled" and settings.blend == "gaussian":
        return sampled_importance(layout.window, device=device)
    return importance_map(layout.window, blend=settings.blend if layout.blended else "constant", device=device)


def _three(values: Iterable[int]) -> Start:
    depth, height, width = values
    return depth, height, width


def padded_image(image: Tensor, layout: WindowLayout) -> Tensor:
    """(C, D, H, W) with zeros around it, where a window is larger than the image; else the image itself."""
    high = [total - size - low for total, size, low in zip(layout.padded, image.shape[1:], layout.low)]
    margins = [margin for pair in zip(reversed(layout.low), reversed(high)) for margin in pair]
    return F.pad(image, margins) if any(margins) else image


def cut_windows(image: Tensor, starts: Sequence[Start], window: Start, dim: int) -> Tensor:
    """Windows (N, C, D, H, W) of an image (C, D, H, W), or (N, C, H, W) for a 2D network."""
    sides = ([slice(begin, begin + size) for begin, size in zip(start, window)] for start in starts)
    windows = torch.stack([image[(slice(None), *side)] for side in sides])
    return windows.squeeze(2) if dim == 2 else windows
