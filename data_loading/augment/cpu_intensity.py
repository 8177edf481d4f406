"""Changes of intensities on the CPU, in torch and in place: what gpu_intensity.py does in DALI's graph on a GPU.

Same numbers of the preset, same distributions, same order; a test holds both to the same rules. On the CPU DALI takes
ten times as long for noise and three to five times for gamma and contrast.

Shapes: a patch is (C, D, H, W) or (C, H, W) float32, a channel is one of its (D, H, W) or (H, W).
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from data_loading.augment.presets import SMALLEST_RANGE, Preset, RandomChange


def change_intensities(image: Tensor, preset: Preset, generator: Generator) -> None:
    """RandomChange the patches of a batch (N, C, ...) as the preset says, in place.

    Args:
        image: float32 on the CPU.
        preset: what is done how often; its changes of geometry are left out.
        generator: source of all random numbers.
    """
    for patch in image:
        if _drawn(preset.noise.probability, generator):
            noise(patch, preset.noise, generator)
        if _drawn(preset.blur.probability, generator):
            blur(patch, preset.blur, generator)
        if _drawn(preset.brightness.probability, generator):
            brightness(patch, preset.brightness, generator)
        if _drawn(preset.contrast.probability, generator):
            contrast(patch, preset.contrast, generator)
        if _drawn(preset.low_resolution.probability, generator):
            low_resolution(patch, preset.low_resolution, generator, in_plane=preset.in_plane)
        if _drawn(preset.inverted_gamma.probability, generator):
            gamma(patch, preset.inverted_gamma, generator, inverted=True)
        if _drawn(preset.gamma.probability, generator):
            gamma(patch, preset.gamma, generator, inverted=False)


def noise(patch: Tensor, change: RandomChange, generator: Generator) -> None:
    """Add normal noise of one standard deviation; every voxel of every channel has its own."""
    [deviation] = _strengths(change, 1, generator)
    drawn = torch.empty_like(patch[0])
    for channel in patch:
        channel.add_(drawn.normal_(generator=generator), alpha=deviation)


def blur(patch: Tensor, change: RandomChange, generator: Generator) -> None:
    """Smooth with a Gaussian, of one width for all or of its own for each channel and axis; borders are mirrored."""
    if change.shared:
        widths = _strengths(change, 1, generator) * (patch.ndim - 1)
    for channel in patch:
        if change.shared or _drawn(change.channel_probability, generator):
            chosen = widths if change.shared else _strengths(change, channel.ndim, generator)
            smoothed = channel
            for axis, width in enumerate(chosen):
                smoothed = _smooth(smoothed, axis, width)
            channel.copy_(smoothed)


def brightness(patch: Tensor, change: RandomChange, generator: Generator) -> None:
    """Multiply each channel by its own factor."""
    for channel, factor in zip(patch, _strengths(change, len(patch), generator)):
        channel.mul_(factor)


def contrast(patch: Tensor, change: RandomChange, generator: Generator) -> None:
    """Stretch each channel about its mean by its own factor, within the values that it had."""
    for channel, factor in zip(patch, _strengths(change, len(patch), generator)):
        low, high = torch.aminmax(channel)
        offset = (1 - factor) * channel.mean()
        channel.mul_(factor).add_(offset).clamp_(low, high)


def low_resolution(patch: Tensor, change: RandomChange, generator: Generator, *, in_plane: bool) -> None:
    """Keep a share of a channel's voxels along each axis (in plane: not the first of three), and interpolate the rest.

    Every channel has its own coin and share; nearest voxels are kept, and interpolation is linear.
    """
    size = patch.shape[1:]
    linear = {2: "bilinear", 3: "trilinear"}[len(size)]
    for channel in patch:
        if _drawn(change.channel_probability, generator):
            [share] = _strengths(change, 1, generator)
            kept = [max(math.floor(share * n + 0.5), 1) for n in size]
            if in_plane and len(size) == 3:
                kept[0] = size[0]
            small = interpolate(channel[None, None], kept, mode="nearest-exact")
            channel.copy_(interpolate(small, size, mode=linear)[0, 0])


def gamma(patch: Tensor, change: RandomChange, generator: Generator, *, inverted: bool) -> None:
    """Raise each channel to a power of its own, counted from its least value; mean and deviation stay as they were.

    `inverted` counts from the brightest voxel down, so that an exponent stretches the bright end in place of the dark.
    """
    for channel, exponent in zip(patch, _strengths(change, len(patch), generator)):
        mean = channel.mean()
        deviation = _deviation(channel.sub_(mean))
        low, high = torch.aminmax(channel)
        # Not brought to 0..1: a factor before the power is a factor after it, and goes with the deviation.
        base = torch.sub(high, channel, out=channel) if inverted else channel.sub_(low)
        # pow takes three times as long.
        curved = base.log2_().mul_(exponent).exp2_()
        curved.sub_(curved.mean())
        spread = deviation / _deviation(curved).clamp(min=SMALLEST_RANGE)
        curved.mul_(-spread if inverted else spread).add_(mean)


def _smooth(channel: Tensor, axis: int, width: float) -> Tensor:
    """Gaussian along one axis, cut off at three widths as DALI's is: a product with the matrix of its weights."""
    length, radius = channel.shape[axis], math.ceil(3 * width)
    distances = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (distances / width) ** 2)
    reached = _mirrored(torch.arange(length)[:, None] + distances, length)
    matrix = torch.zeros(length, length).scatter_add_(1, reached, (weights / weights.sum()).expand(length, -1))
    if axis == channel.ndim - 1:
        return channel @ matrix.T
    return (matrix @ channel.reshape(math.prod(channel.shape[:axis]), length, -1)).view_as(channel)


def _mirrored(index: Tensor, length: int) -> Tensor:
    """Positions outside 0..length-1 mirrored at the first and the last voxel, again and again."""
    period = max(2 * (length - 1), 1)
    index = index % period
    return torch.minimum(index, period - index) if length > 1 else index * 0


def _deviation(centred: Tensor) -> Tensor:
    """Standard deviation of numbers with mean 0; `std` takes three times as long."""
    flat = centred.flatten()
    return (flat.dot(flat) / len(flat)).sqrt()


def _drawn(probability: float, generator: Generator) -> bool:
    return torch.rand((), generator=generator).item() < probability


def _strengths(change: RandomChange, count: int, generator: Generator) -> list[float]:
    """Drawn numbers, as `RandomChange.draw` says."""
    low, high = change.bounds
    shares = torch.rand(count, generator=generator).tolist()
    if change.draw == "about_one":
        weaker = torch.rand(count, generator=generator) < 0.5
        return [low + (1 - low) * s if weak else 1 + (high - 1) * s for s, weak in zip(shares, weaker.tolist())]
    return [low + (high - low) * share for share in shares]
