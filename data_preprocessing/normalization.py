"""Intensity normalisation of one channel, in place and some slices at a time: no copy of the volume is made."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from utils.schema import ChannelPlan

_CHUNK_VOXELS = 2**18


def chunks(volume: np.ndarray) -> Iterator[np.ndarray]:
    """Views of some slices of (D, H, W), few enough that what is computed from them stays in the cache."""
    step = max(1, _CHUNK_VOXELS // max(1, volume[0].size))
    return (volume[start : start + step] for start in range(0, len(volume), step))


def normalize_channel(volume: np.ndarray, channel: ChannelPlan) -> None:
    """Normalise (D, H, W) float32 in place by the channel's scheme: `ct` or `zscore`."""
    if channel.scheme == "ct":
        scale_ct(volume, channel)
    else:
        standardize_nonzero(volume)


def scale_ct(volume: np.ndarray, channel: ChannelPlan) -> None:
    """Clip to [lower, upper] and bring to (x - mean) / std with the data set's numbers, zeros included.

    Zero is water in Hounsfield units, so no value means "outside" here.
    """
    assert channel.lower is not None and channel.upper is not None
    for part in chunks(volume):
        np.clip(part, channel.lower, channel.upper, out=part)
        part -= channel.mean
        part /= channel.std


def standardize_nonzero(volume: np.ndarray) -> None:
    """Bring the non-zero voxels to mean 0 and standard deviation 1 (population); zeros stay zero.

    A channel whose non-zero voxels are all equal becomes 0 everywhere; one without any is left as it is.

    Source: MONAI's NormalizeIntensity(nonzero=True), which the NVIDIA reference applies per channel.
    """
    count = sum(np.count_nonzero(part) for part in chunks(volume))
    if count == 0:
        return
    mean = sum(part.sum(dtype=np.float64) for part in chunks(volume)) / count
    squares = sum(np.square(part - mean).sum(where=part != 0) for part in chunks(volume))
    std = math.sqrt(squares / count)
    # Rounding alone lies below this; a constant must not be blown up to noise.
    scale = std if std > 1e-6 * abs(mean) else 1.0
    for part in chunks(volume):
        outside = part == 0
        part -= np.float32(mean)
        part /= np.float32(scale)
        np.copyto(part, 0, where=outside)
