"""Changes of a given label that would make it fit what the networks believe, and how much better it would fit.

A gain is in nats, summed over voxels: log-likelihood of the changed label minus that of the given one. `worth`
(S, A, R) is the gain of calling a voxel foreground: log(p_foreground / p_background), within `WORTH`; 0 where a
voxel is ignored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import fft, ndimage

from cross_validation.audit.evidence import FLOOR, Evidence

WORTH = math.log((1 - FLOOR) / FLOOR)
FARTHEST = 6
"""Voxels of the longest shift that is tried, along each axis."""
RADII = (1, 2, 3)
"""By how many of the finest voxels a label is grown and shrunk."""
FFT_VOXELS = 2**23
"""Larger boxes are searched on a coarser grid."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """The best move of the given foreground along S, A, R in voxels, and its gain."""

    offset: tuple[int, int, int]
    gain: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
    """The best change of the radius of the given foreground in finest voxels (negative: shrunk), and its gain."""

    radius: int
    gain: float


def worth_of(background: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`worth` of the probability of background."""
    inside = np.clip(background, FLOOR, 1 - FLOOR)
    return np.where(counts, np.log((1 - inside) / inside), 0).astype(np.float32)


def deficit(foreground: np.ndarray, worth: np.ndarray) -> float:
    """The gain of putting every voxel right."""
    return float(np.abs(worth[foreground != (worth > 0)]).sum())


def best_shift(foreground: np.ndarray, worth: np.ndarray) -> Shift:
    """The best of all moves by up to `FARTHEST` voxels; what is moved out of the box is lost."""
    step = max(1, math.ceil((foreground.size / FFT_VOXELS) ** (1 / 3)))
    mask, value = (array[::step, ::step, ::step].astype(np.float32) for array in (foreground, worth))
    reach = math.ceil(FARTHEST / step)
    shape = [fft.next_fast_len(size + reach, real=True) for size in mask.shape]
    # Gain of a move by s: sum over v of mask(v - s) worth(v), minus the sum without a move.
    product = np.conj(fft.rfftn(mask, shape)) * fft.rfftn(value, shape)
    sums = fft.irfftn(product, shape)
    near = np.ix_(*(np.r_[0 : reach + 1, -reach:0] for _ in shape))
    table = sums[near]
    place = np.unravel_index(int(table.argmax()), table.shape)
    steps = [int(p) if p <= reach else int(p) - (2 * reach + 1) for p in place]
    gain = float(table[place] - table[0, 0, 0]) * step**3
    return Shift(offset=(steps[0] * step, steps[1] * step, steps[2] * step), gain=gain)


def best_growth(foreground: np.ndarray, worth: np.ndarray, spacing_mm: Sequence[float]) -> Growth:
    """The best of growing and shrinking the foreground by a ball."""
    if not foreground.any() or foreground.all():
        return Growth(radius=0, gain=0.0)
    unit = [each / min(spacing_mm) for each in spacing_mm]
    outside = ndimage.distance_transform_edt(~foreground, unit)
    gains = {radius: float(worth[(outside > 0) & (outside <= radius)].sum()) for radius in RADII}
    inside = ndimage.distance_transform_edt(foreground, unit)
    gains |= {-radius: -float(worth[(inside > 0) & (inside <= radius)].sum()) for radius in RADII}
    best = max(gains, key=lambda radius: gains[radius])
    return Growth(radius=best, gain=gains[best]) if gains[best] > 0 else Growth(radius=0, gain=0.0)


def class_sums(evidence: Evidence) -> np.ndarray:
    """(K, K): summed log-likelihood of class b over the voxels that the label gives to class a."""
    number = evidence.labels.num_classes
    found = np.zeros((number, number))
    for b in range(number):
        logs = np.log(np.clip(evidence.probability(b), FLOOR, 1 - FLOOR))
        found[:, b] = np.bincount(evidence.label[evidence.counts], logs[evidence.counts], minlength=number)[:number]
    return found


def best_swap(sums: np.ndarray) -> tuple[tuple[int, int], float]:
    """The two foreground classes that gain most by exchanging their values, and the gain."""
    best, gain = (0, 0), 0.0
    for a in range(1, len(sums)):
        for b in range(a + 1, len(sums)):
            found = sums[a, b] + sums[b, a] - sums[a, a] - sums[b, b]
            if found > gain:
                best, gain = (a, b), float(found)
    return best, gain


def swap_gain(sums: np.ndarray, voxels: Sequence[int]) -> float:
    """The largest gain of exchanging two foreground classes that the label has, for each of their voxels; else NaN."""
    there = [index for index in range(1, len(sums)) if voxels[index]]
    gains = [
        float(sums[a, b] + sums[b, a] - sums[a, a] - sums[b, b]) / (voxels[a] + voxels[b])
        for a in there for b in there if a < b
    ]  # fmt: skip
    return max(gains, default=math.nan)
