"""Whole cases in little memory: probabilities leave as soon as no later window reaches their planes.

Windows advance plane by plane, so only as many planes as a window is deep are held, for each network of the ensemble.
The logits equal those of `inferer.predict_volume` (MONAI's sliding window) to the last bit, and so do the probabilities
but for rounding: torch's softmax treats the odd voxels behind its last full vector, whose place depends on the size of
the array, with another exponential function.

Shapes: N windows, C channels, K classes or regions, D H W space. To a 2D network a slice is a window of one plane.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.averaging import Member, mean_probabilities
from models.inferer import (
    InferenceSettings,
    free_device_bytes,
    plane_blocks,
    say_host,
    to_probabilities,
    window_logits,
)
from models.windows import importance_map, window_starts
from utils.schema import LabelScheme, StagePlan

Start = tuple[int, int, int]
Place = tuple[slice, slice, slice]

SLAB_VALUES = 2**24
"""Most probabilities that come out at a time, unless a single plane has more: several slabs wait for the writer."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """Networks in evaluation mode on one device, each with the name of its fold.

    `amp` is the type that they compute in under autocast, None for float32.
    """

    names: tuple[str, ...]
    networks: tuple[nn.Module, ...]
    labels: LabelScheme
    device: torch.device
    amp: torch.dtype | None = None


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
    def span(self) -> int:
        """Planes that are held at a time."""
        starts = [batch[0][0] for batch in self.batches]
        return max(batch[-1][0] + self.window[0] - first for batch, first in zip(self.batches, starts))

    @property
    def largest_step(self) -> int:
        """Most planes that are finished at a time."""
        starts = [batch[0][0] for batch in self.batches]
        return max(after - before for before, after in zip(starts, [*starts[1:], self.padded[0]]))


def window_layout(shape: Sequence[int], stage: StagePlan, settings: InferenceSettings) -> WindowLayout:
    """The layout for a volume of `shape` (D, H, W); MONAI's positions and order."""
    axes = range(3 - stage.dim, 3)
    window = (1,) * (3 - stage.dim) + stage.patch_size
    padded = tuple(max(size, least) for size, least in zip(shape, window))
    low = tuple((total - size) // 2 for total, size in zip(padded, shape))
    # As MONAI does, by axis: the whole window where it covers the axis, else at least one voxel.
    steps = [
        window[axis] if window[axis] == padded[axis] else max(int(window[axis] * (1 - settings.overlap)), 1)
        for axis in axes
    ]
    starts = window_starts([padded[axis] for axis in axes], stage.patch_size, steps)
    if stage.dim == 2:
        starts = [(plane, *start) for plane in range(padded[0]) for start in starts]
    size = settings.window_batch
    batches = tuple(tuple(starts[first : first + size]) for first in range(0, len(starts), size))
    return WindowLayout(
        window=window, padded=padded, low=low, batches=batches,
        blended=any(padded[axis] > window[axis] for axis in axes),
    )  # fmt: skip


def buffer_bytes(layout: WindowLayout, *, num_outputs: int, num_networks: int) -> int:
    """Memory of the planes that are held: logits of each network, and the weights that all share."""
    return 4 * (num_networks * num_outputs + 1) * layout.span * layout.padded[1] * layout.padded[2]


def slab_planes(layout: WindowLayout, *, num_outputs: int) -> int:
    """Most planes that come out at a time."""
    most = SLAB_VALUES // (num_outputs * layout.padded[1] * layout.padded[2])
    return min(max(most, 1), layout.largest_step)


@torch.inference_mode()
def stream_probabilities(
    image: Tensor, ensemble: Ensemble, *, stage: StagePlan, settings: InferenceSettings
) -> Iterator[Tensor]:
    """Mean probabilities of a case (1, C, D, H, W) as slabs (K, d, H, W) float32 on the host, in order of planes.

    The slabs have D planes together. The image stays on the host; only windows go to the device.
    """
    assert image.dim() == 5 and image.shape[0] == 1, image.shape
    shape = tuple(image.shape[2:])
    layout = window_layout(shape, stage, settings)
    image = _pad(image[0], layout)
    inner = tuple(slice(low, low + size) for low, size in zip(layout.low, shape))
    held = _HeldPlanes(layout, ensemble, stage, settings)
    first_planes = [batch[0][0] for batch in layout.batches[1:]]
    for batch, next_plane in zip(layout.batches, [*first_planes, layout.padded[0]]):
        held.add(_cut(image, batch, layout.window, stage.dim), batch)
        start = held.first
        for slab in held.release(next_plane):
            stop = start + slab.shape[1]
            wanted = slice(max(inner[0].start - start, 0), max(inner[0].stop - start, 0))
            slab, start = slab[(slice(None), wanted, *inner[1:])], stop
            if slab.shape[1]:
                yield slab.cpu()
            # Gone before the next one is made.
            del slab


class _HeldPlanes:
    """Weighted logits of the planes that windows still reach: one buffer per network, one for the weights."""

    def __init__(self, layout: WindowLayout, ensemble: Ensemble, stage: StagePlan, settings: InferenceSettings) -> None:
        self.layout, self.ensemble, self.dim, self.settings = layout, ensemble, stage.dim, settings
        self.first = 0
        self.device = self._choose_device(settings)
        blend = settings.blend if layout.blended else "constant"
        self.weight = importance_map(stage.patch_size, blend=blend, device=ensemble.device)
        if stage.dim == 2:
            self.weight = self.weight[None]
        planes = (layout.span, *layout.padded[1:])
        self.logits = [
            torch.zeros((ensemble.labels.num_outputs, *planes), device=self.device) for _ in ensemble.networks
        ]
        self.weights = torch.zeros(planes, device=self.device)

    def _choose_device(self, settings: InferenceSettings) -> torch.device:
        """The networks' device, or the host where the planes would take more than a third of what is free."""
        device = self.ensemble.device
        if device.type != "cuda":
            return device
        limit = settings.device_bytes
        limit = free_device_bytes(device) // 3 if limit is None else limit
        outputs, networks = self.ensemble.labels.num_outputs, len(self.ensemble.networks)
        needed = buffer_bytes(self.layout, num_outputs=outputs, num_networks=networks)
        if needed <= limit:
            return device
        say_host(device)
        return torch.device("cpu")

    def add(self, windows: Tensor, starts: Sequence[Start]) -> None:
        """Put windows (N, C, ...) through every network and add what it says to its buffer."""
        windows = windows.to(self.ensemble.device)
        places = [self._place(start) for start in starts]
        for network, buffer in zip(self.ensemble.networks, self.logits):
            self._add_logits(network, windows, buffer, places)
        weight = self.weight.to(self.device)
        for place in places:
            self.weights[place] += weight

    def _add_logits(self, network: nn.Module, windows: Tensor, buffer: Tensor, places: Sequence[Place]) -> None:
        # A function of its own, so that one network's logits are gone before the next one computes.
        ensemble = self.ensemble
        with torch.autocast(ensemble.device.type, dtype=ensemble.amp) if ensemble.amp else nullcontext():
            logits = window_logits(network, windows, self.settings)
        if self.dim == 2:
            logits = logits.unsqueeze(2)
        for window, (planes, *sides) in zip(logits, places):
            for part in plane_blocks(window[None]):
                weighted = (window[:, part] * self.weight[part]).to(self.device)
                buffer[(slice(None), slice(planes.start + part.start, planes.start + part.stop), *sides)] += weighted

    def _place(self, start: Start) -> Place:
        start = (start[0] - self.first, *start[1:])
        return tuple(slice(begin, begin + size) for begin, size in zip(start, self.layout.window))

    def release(self, stop: int) -> Iterator[Tensor]:
        """Mean probabilities (K, d, H, W) of the planes before `stop`, in portions; then they make room."""
        count = stop - self.first
        step = slab_planes(self.layout, num_outputs=self.ensemble.labels.num_outputs)
        for begin in range(0, count, step):
            yield self._mean(slice(begin, min(begin + step, count)))
        if not count:
            return
        for volume in (self.weights, *itertools.chain.from_iterable(self.logits)):
            rest = volume[count:].clone()
            volume[: len(rest)] = rest
            volume[len(rest) :] = 0
        self.first = stop

    def _mean(self, planes: slice) -> Tensor:
        weights = self.weights[planes]
        members = zip(self.ensemble.names, self.logits)
        # One network at a time, so that no more than its planes and the sum are there.
        return mean_probabilities(self._member(name, buffer[:, planes], weights) for name, buffer in members)

    def _member(self, name: str, planes: Tensor, weights: Tensor) -> Member:
        labels = self.ensemble.labels
        return Member(name=name, labels=labels, probabilities=to_probabilities((planes / weights)[None], labels)[0])


def _pad(image: Tensor, layout: WindowLayout) -> Tensor:
    """(C, D, H, W) with zeros around it, where a window is larger than the image; else the image itself."""
    high = [total - size - low for total, size, low in zip(layout.padded, image.shape[1:], layout.low)]
    margins = [margin for pair in zip(reversed(layout.low), reversed(high)) for margin in pair]
    return F.pad(image, margins) if any(margins) else image


def _cut(image: Tensor, starts: Sequence[Start], window: Start, dim: int) -> Tensor:
    """Windows (N, C, D, H, W) of an image (C, D, H, W), or (N, C, H, W) for a 2D network."""
    sides = ([slice(begin, begin + size) for begin, size in zip(start, window)] for start in starts)
    windows = torch.stack([image[(slice(None), *side)] for side in sides])
    return windows.squeeze(2) if dim == 2 else windows


def activation_bytes(stage: StagePlan, *, num_windows: int, num_outputs: int, tta: bool = False) -> int:
    """Rough memory of the feature maps while `num_windows` windows go through a network, in float32.

    The skip connections of all levels live at once; at full resolution a decoder's convolution takes twice the features
    and gives them once, and the CPU library works on copies of both in its own order. Logits come when most of that is
    gone, from the features and perhaps in another order first; with `tta` the sum over flips is there all the time.
    """
    voxels, features = math.prod(stage.patch_size), stage.filters[0]
    per_voxel, shrinking = 7.0 * features, 1
    for filters, stride in zip(stage.filters, stage.strides):
        shrinking *= math.prod(stride)
        per_voxel += filters / shrinking
    per_voxel = max(per_voxel, 3.0 * features + 2.0 * num_outputs) + (num_outputs if tta else 0)
    return int(4 * num_windows * voxels * per_voxel)
