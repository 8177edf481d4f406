"""Changes of a given label that would make it fit what the networks believe, and how much better it would fit.

A gain is in nats, summed over voxels: log-likelihood of the changed label minus that of the given one. `worth`
(S, A, R) is the gain of calling a voxel foreground: log(p_foreground / p_background), within `WORTH`; 0 where a
voxel is ignored.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import fft, ndimage

from cross_validation.audit.evidence import FLOOR, Evidence, log_of

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


def growths(
    label: np.ndarray, foreground: np.ndarray, worth: np.ndarray, spacing_mm: Sequence[float]
) -> list[tuple[int, np.ndarray]]:
    """The label with its foreground grown by a ball of each of the `RADII`, new voxels with the class that is nearest.

    Where it gains more, shrunk instead, by radii that are negative; nothing where it gains neither way.
    """
    if not foreground.any() or foreground.all():
        return []
    unit = [each / min(spacing_mm) for each in spacing_mm]
    outside, nearest = ndimage.distance_transform_edt(~foreground, unit, return_indices=True)
    inside = ndimage.distance_transform_edt(foreground, unit)
    growing = max(float(worth[(outside > 0) & (outside <= radius)].sum()) for radius in RADII)
    shrinking = max(-float(worth[(inside > 0) & (inside <= radius)].sum()) for radius in RADII)
    if max(growing, shrinking) <= 0:
        return []
    if growing >= shrinking:
        filled = label[tuple(nearest)]
        return [(radius, np.where(outside <= radius, filled, label)) for radius in RADII]
    return [(-radius, np.where(foreground & (inside <= radius), np.uint8(0), label)) for radius in RADII]


def sums_by_class(evidence: Evidence, logs: np.ndarray) -> np.ndarray:
    """(K,): a log-likelihood (S, A, R) summed over the voxels that the label gives to each class."""
    number, counts = evidence.labels.num_classes, evidence.counts
    return np.bincount(evidence.label[counts], logs[counts], minlength=number)[:number]


def class_sums(evidence: Evidence) -> np.ndarray:
    """(K, K): summed log-likelihood of class b over the voxels that the label gives to class a."""
    classes = range(evidence.labels.num_classes)
    return np.stack([sums_by_class(evidence, log_of(evidence.probability(b))) for b in classes], axis=1)


def exchange_gain(sums: np.ndarray, a: int, b: int) -> float:
    """The gain of exchanging the values of two classes."""
    return float(sums[a, b] + sums[b, a] - sums[a, a] - sums[b, b])


def best_swap(sums: np.ndarray) -> tuple[tuple[int, int], float]:
    """The two foreground classes that gain most by exchanging their values, and the gain; of a single one, 0."""
    pairs = itertools.combinations(range(1, len(sums)), 2)
    best = max(pairs, key=lambda pair: exchange_gain(sums, *pair), default=(0, 0))
    return best, exchange_gain(sums, *best)


def swap_gain(sums: np.ndarray, voxels: Sequence[int]) -> float:
    """The largest gain of exchanging two foreground classes that the label has, for each of their voxels; else NaN."""
    there = [index for index in range(1, len(sums)) if voxels[index]]
    gains = [exchange_gain(sums, a, b) / (voxels[a] + voxels[b]) for a, b in itertools.combinations(there, 2)]
    return max(gains, default=math.nan)
