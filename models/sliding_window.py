"""Whole cases in little memory: planes leave the sliding window as soon as no later window reaches them.

One engine for validation, for preprocessed cases and for raw scans: windows advance plane by plane, and only as many
planes as a window is deep are held, for each network. What leaves are the probabilities of an ensemble
(`stream_probabilities`), or the logits of one network, collected into a whole volume (`predict_volume`).

The logits equal those of MONAI's sliding window to the last bit, and so do the probabilities but for rounding: torch's
softmax treats the odd voxels behind its last full vector, whose place depends on the size of the array, with another
exponential function.

Shapes: N windows, C channels, K classes or regions, D H W space. To a 2D network a slice is a window of one plane.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from models.averaging import mean_of
from models.certainty import CertaintyCounter
from models.inferer import (
    FlipCounter,
    InferenceSettings,
    most_device_bytes,
    plane_blocks,
    say_cpu,
    to_probabilities,
    window_logits,
)  # fmt: skip
from models.windows import DEFAULT_RULES, Start, WindowLayout, cut_windows, padded_image, window_layout, window_weights
from utils.rules import Rules
from utils.schema import LabelScheme, StagePlan

Place = tuple[slice, slice, slice]
Counter = Callable[[int], None]
"""Called with the number of windows that have just gone through all networks."""

SLAB_VALUES = 2**24
"""Most probabilities that come out at a time, unless a single plane has more: several slabs wait for the writer."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """Networks in evaluation mode on one device, each with the name of its fold.

    `amp` is the type that they compute in under autocast; None computes in what the caller has chosen.
    """

    names: tuple[str, ...]
    networks: tuple[nn.Module, ...]
    labels: LabelScheme
    device: torch.device
    amp: torch.dtype | None = None
    rules: Rules = dataclasses.field(default_factory=Rules)
    mirror_axes: tuple[int, ...] | None = None
    """Axes of a window that test-time augmentation flips; None: all."""

    @property
    def num_outputs(self) -> int:
        """K."""
        return self.labels.num_outputs


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _OneNetwork:
    """A network whose logits are wanted as they are."""

    networks: tuple[nn.Module]
    num_outputs: int
    device: torch.device
    amp: None = None
    rules: Rules = dataclasses.field(default_factory=Rules)
    mirror_axes: tuple[int, ...] | None = None


def buffer_bytes(layout: WindowLayout, *, num_outputs: int, num_networks: int) -> int:
    """Memory of the planes that are held: logits of each network, and the weights that all share."""
    return 4 * (num_networks * num_outputs + 1) * layout.span * layout.padded[1] * layout.padded[2]


def slab_planes(layout: WindowLayout, *, num_outputs: int) -> int:
    """Most planes that come out at a time."""
    most = SLAB_VALUES // (num_outputs * layout.padded[1] * layout.padded[2])
    return min(max(most, 1), layout.largest_step)


@torch.inference_mode()
def stream_probabilities(
    image: Tensor,
    ensemble: Ensemble,
    *,
    stage: StagePlan,
    settings: InferenceSettings,
    count: Counter | None = None,
    certainty: CertaintyCounter | None = None,
) -> Iterator[Tensor]:
    """Mean probabilities of a case (1, C, D, H, W) as slabs (K, d, H, W) float32 on the CPU, in order of planes.

    Where the rules average logits the slabs hold those, in the type that the rules sum up in. They have D planes
    together. The image may stay on the CPU; only windows go to the device.

    Args:
        image: the case.
        ensemble: what predicts it; the folds' probabilities are averaged.
        stage: patch size and dimension of the networks.
        settings: of the sliding window.
        count: told of windows as they are done.
        certainty: counts what each network says, or a single one of flipped windows.
    """

    def noted(logits: Tensor) -> Tensor:
        if certainty is None and ensemble.rules.average == "logits":
            return logits
        found = to_probabilities(logits[None], ensemble.labels)[0]
        if certainty is not None:
            certainty.add(found)
        return logits if ensemble.rules.average == "logits" else found

    def mean(logits: Iterator[Tensor]) -> Tensor:
        return mean_of(map(noted, logits))

    flip = certainty.add_flip if certainty is not None and certainty.members == 1 else None
    for slab in _stream(image, ensemble, mean, stage=stage, settings=settings, count=count, flip=flip):
        yield slab.cpu()
        # Gone before the next one is made.
        del slab


@torch.inference_mode()
def predict_volume(
    image: Tensor, network: nn.Module, *, num_outputs: int, stage: StagePlan, settings: InferenceSettings,
    rules: Rules = DEFAULT_RULES, mirror_axes: tuple[int, ...] | None = None,
) -> Tensor:  # fmt: skip
    """Logits (1, K, D, H, W) float32 of a case (1, C, D, H, W); every voxel keeps its position.

    A 3D network sees windows of the patch size, a 2D one windows of every slice. A volume smaller than the patch is
    padded with zeros and cropped again. The image may lie on the CPU; the result lies on the network's device, or on
    the CPU where it would take too much of the device's memory.
    """
    assert not network.training, "call network.eval() first"
    device = next((p.device for p in network.parameters()), image.device)
    one = _OneNetwork(
        networks=(network,), num_outputs=num_outputs, device=device, rules=rules, mirror_axes=mirror_axes
    )  # fmt: skip
    shape, cpu = (num_outputs, *image.shape[2:]), torch.device("cpu")

    def collect(place: torch.device) -> Tensor:
        volume, first = torch.empty(shape, device=place), 0
        for slab in _stream(image, one, next, stage=stage, settings=settings):
            volume[:, first : first + slab.shape[1]] = slab
            first += slab.shape[1]
            del slab
        return volume[None]

    if device.type != "cuda":
        return collect(device)
    if 4 * math.prod(shape) <= most_device_bytes(device, settings):
        try:
            return collect(device)
        except torch.OutOfMemoryError:
            pass
        # Outside the except clause, so that what the failed attempt held is free by now.
        torch.cuda.empty_cache()
    say_cpu(device)
    return collect(cpu)


def _stream(
    image: Tensor,
    networks: Ensemble | _OneNetwork,
    combine: Callable[[Iterator[Tensor]], Tensor],
    *,
    stage: StagePlan,
    settings: InferenceSettings,
    count: Counter | None = None,
    flip: FlipCounter | None = None,
) -> Iterator[Tensor]:
    """Slabs (K, d, H, W) of a case (1, C, D, H, W): what `combine` makes of the networks' logits (K, d, H, W).

    It gets them one network after the other, so that no more than one network's planes and its own result are there.
    """
    assert image.dim() == 5 and image.shape[0] == 1, image.shape
    shape = tuple(image.shape[2:])
    layout = window_layout(shape, stage, settings, networks.rules)
    image = padded_image(image[0], layout)
    inner = tuple(slice(low, low + size) for low, size in zip(layout.low, shape))
    held = _HeldPlanes(layout, networks, stage, settings, flip)
    first_planes = [batch[0][0] for batch in layout.batches[1:]]
    for batch, next_plane in zip(layout.batches, [*first_planes, layout.padded[0]]):
        held.add(cut_windows(image, batch, layout.window, stage.dim), batch)
        if count is not None:
            count(len(batch))
        start = held.first
        for slab in map(combine, held.release(next_plane)):
            stop = start + slab.shape[1]
            wanted = slice(max(inner[0].start - start, 0), max(inner[0].stop - start, 0))
            slab, start = slab[(slice(None), wanted, *inner[1:])], stop
            if slab.shape[1]:
                yield slab
            del slab


class _HeldPlanes:
    """Weighted logits of the planes that windows still reach: one buffer per network, one for the weights."""

    def __init__(
        self, layout: WindowLayout, networks: Ensemble | _OneNetwork, stage: StagePlan, settings: InferenceSettings,
        flip: FlipCounter | None,
    ) -> None:  # fmt: skip
        self.layout, self.networks, self.dim, self.settings = layout, networks, stage.dim, settings
        self.flip = flip
        self.first = 0
        self.device = self._choose_device(settings)
        self.weight = window_weights(layout, settings, networks.rules, device=networks.device)
        planes = (layout.span, *layout.padded[1:])
        kind = torch.float16 if networks.rules.sums == "float16" else torch.float32
        self.logits = [
            torch.zeros((networks.num_outputs, *planes), device=self.device, dtype=kind) for _ in networks.networks
        ]
        self.weights = torch.zeros(planes, device=self.device, dtype=kind)

    def _choose_device(self, settings: InferenceSettings) -> torch.device:
        """The networks' device, or the CPU where the planes would take too much of it."""
        device, number = self.networks.device, len(self.networks.networks)
        if device.type != "cuda":
            return device
        needed = buffer_bytes(self.layout, num_outputs=self.networks.num_outputs, num_networks=number)
        if needed <= most_device_bytes(device, settings):
            return device
        say_cpu(device)
        return torch.device("cpu")

    def add(self, windows: Tensor, starts: Sequence[Start]) -> None:
        """Put windows (N, C, ...) through every network and add what it says to its buffer."""
        windows = windows.to(self.networks.device)
        places = [self._place(start) for start in starts]
        for network, buffer in zip(self.networks.networks, self.logits):
            self._add_logits(network, windows, buffer, places)
        weight = self.weight.to(self.device)
        for place in places:
            self.weights[place] += weight

    def _add_logits(self, network: nn.Module, windows: Tensor, buffer: Tensor, places: Sequence[Place]) -> None:
        # A function of its own, so that one network's logits are gone before the next one computes.
        device, amp = self.networks.device, self.networks.amp
        with torch.autocast(device.type, dtype=amp) if amp else nullcontext():
            logits = window_logits(network, windows, self.settings, self.networks.mirror_axes, self.flip)
        if self.dim == 2:
            logits = logits.unsqueeze(2)
        for window, (planes, *sides) in zip(logits, places):
            for part in plane_blocks(window[None]):
                weighted = (window[:, part] * self.weight[part]).to(self.device)
                buffer[(slice(None), slice(planes.start + part.start, planes.start + part.stop), *sides)] += weighted

    def _place(self, start: Start) -> Place:
        depth, height, width = (slice(low, low + size) for low, size in zip(start, self.layout.window))
        return slice(depth.start - self.first, depth.stop - self.first), height, width

    def release(self, stop: int) -> Iterator[Iterator[Tensor]]:
        """Of the planes before `stop`, in portions, the logits (K, d, H, W) of each network; then they make room."""
        count = stop - self.first
        step = slab_planes(self.layout, num_outputs=self.networks.num_outputs)
        for begin in range(0, count, step):
            planes = slice(begin, min(begin + step, count))
            yield (buffer[:, planes] / self.weights[planes] for buffer in self.logits)
        if not count:
            return
        for volume in (self.weights, *itertools.chain.from_iterable(self.logits)):
            rest = volume[count:].clone()
            volume[: len(rest)] = rest
            volume[len(rest) :] = 0
        self.first = stop


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
