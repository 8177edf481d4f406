"""Intensity normalisation of one channel, in place and some slices at a time: no copy of the volume is made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from utils.schema import ChannelPlan

SCHEME_NAMES = {
    "CT": "ct",
    "noNorm": "none",
    "rescale_to_0_1": "rescale_to_0_1",
    "rgb_to_0_1": "rgb_to_0_1",
    "zscore": "zscore",
}
"""Names of channels in dataset.json that choose a normalisation, in any case, as in nnU-Net v2."""
RGB_MAXIMUM = 255
_LEAST_RANGE = 1e-8
_CHUNK_VOXELS = 2**18


def scheme_of(name: str) -> str | None:
    """The normalisation that a channel's name chooses, or None: such a channel is z-scored."""
    by_name = {known.casefold(): scheme for known, scheme in SCHEME_NAMES.items()}
    return by_name.get(name.strip().casefold())


def intensity_fault(volume: np.ndarray, scheme: str | None) -> str | None:
    """What keeps the intensities (any shape) from being normalised so; None where nothing does."""
    if scheme != "rgb_to_0_1" or not volume.size:
        return None
    low, high = float(volume.min()), float(volume.max())
    if low >= 0 and high <= RGB_MAXIMUM:
        return None
    return f"holds {low:g} .. {high:g}, and rgb_to_0_1 is for 0 .. {RGB_MAXIMUM}"


def chunks(volume: np.ndarray) -> Iterator[np.ndarray]:
    """Views of some slices of (D, H, W), few enough that what is computed from them stays in the cache."""
    step = max(1, _CHUNK_VOXELS // max(1, volume[0].size))
    return (volume[start : start + step] for start in range(0, len(volume), step))


def normalize_channel(volume: np.ndarray, channel: ChannelPlan, *, inside: np.ndarray | None = None) -> None:
    """Normalise (D, H, W) float32 in place by the channel's scheme.

    Source: nnU-Net v2, default_normalization_schemes.py; for `zscore` see `standardize_nonzero`.

    Args:
        volume: of one channel.
        channel: its plan.
        inside: (D, H, W) bool, the mask of `zscore_mask` (see `filled_mask`).
    """
    if channel.scheme == "ct":
        scale_ct(volume, channel)
    elif channel.scheme == "zscore":
        standardize_nonzero(volume)
    elif channel.scheme == "zscore_crop":
        standardize(volume, None)
    elif channel.scheme == "zscore_mask":
        assert inside is not None
        standardize(volume, inside)
    elif channel.scheme == "rescale_to_0_1":
        rescale(volume)
    elif channel.scheme == "rgb_to_0_1":
        volume /= np.float32(RGB_MAXIMUM)


def rescale(volume: np.ndarray) -> None:
    """Bring the smallest value to 0 and the largest to 1; a constant becomes 0."""
    volume -= volume.min()
    volume /= max(volume.max(), np.float32(_LEAST_RANGE))


def scale_ct(volume: np.ndarray, channel: ChannelPlan) -> None:
    """Clip to [lower, upper] and bring to (x - mean) / std with the data set's numbers, zeros included.

    Zero is water in Hounsfield units, so no value means "outside" here.
    """
    assert channel.lower is not None and channel.upper is not None
    for part in chunks(volume):
        np.clip(part, channel.lower, channel.upper, out=part)
        part -= channel.mean
        part /= channel.std


def standardize(volume: np.ndarray, inside: np.ndarray | None) -> None:
    """Bring the voxels inside (default: all) to mean 0 and standard deviation 1 (population); the others become 0.

    Where all of them are equal they become 0, and where there is none the volume is left as it is.

    Source: nnU-Net v2, ZScoreNormalization, with and without `use_mask_for_norm`.
    """
    whole = np.True_
    masks = itertools.repeat(whole) if inside is None else chunks(inside)
    parts: list[tuple[np.ndarray, np.ndarray | np.bool_]] = list(zip(chunks(volume), masks))
    count = volume.size if inside is None else np.count_nonzero(inside)
    if count == 0:
        return
    mean = float(sum(part.sum(dtype=np.float64, where=mask) for part, mask in parts) / count)
    squares = float(sum(np.square(part - mean).sum(where=mask) for part, mask in parts))
    scale = _scale(mean, math.sqrt(squares / count))
    for part, mask in parts:
        part -= np.float32(mean)
        part /= np.float32(scale)
        if mask is not whole:
            np.copyto(part, 0, where=~mask)


def filled_mask(image: np.ndarray) -> np.ndarray:
    """(D, H, W) bool: where any channel (C, D, H, W) is not zero, and the holes in there.

    A hole is reached from the border of the volume over no face between two voxels that are outside.

    Source: nnU-Net v2, create_nonzero_mask.
    """
    from scipy import ndimage

    inside = image[0] != 0
    for channel in image[1:]:
        inside |= channel != 0
    # Several times as fast as scipy's binary_fill_holes, which grows the outside voxel by voxel.
    regions, count = ndimage.label(~inside)
    reached = np.zeros(count + 1, dtype=bool)
    for axis in range(inside.ndim):
        for side in (0, -1):
            reached[np.unique(regions.take(side, axis))] = True
    for part, labels in zip(chunks(inside), chunks(regions)):
        part |= ~reached[labels]
    return inside


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
    scale = _scale(mean, math.sqrt(squares / count))
    for part in chunks(volume):
        outside = part == 0
        part -= np.float32(mean)
        part /= np.float32(scale)
        np.copyto(part, 0, where=outside)


def _scale(mean: float, std: float) -> float:
    # Rounding alone lies below this; a constant must not be blown up to noise.
    return std if std > 1e-6 * abs(mean) else 1.0
