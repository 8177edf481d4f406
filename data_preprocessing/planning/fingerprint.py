"""What planning must know of a data set: shapes, spacings and foreground intensities, gathered case by case.

Arrays in, numbers out. Of each case a fixed number of foreground voxels is kept, so memory does not grow with
the size of the scans (the nnU-Net v2 way; the NVIDIA reference keeps every voxel).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from data_preprocessing.resampling import nonzero_box
from utils.errors import UserError
from utils.schema import FORMAT_VERSION, ChannelStatistics, Fingerprint, LabelScheme

SAMPLES_PER_CASE = 10_000
"""Foreground voxels that a case contributes to the intensity statistics."""
DIGEST_VOXELS = 1 << 22
"""Of about as many voxels the digest of a scan is made."""
PART = 1 << 17
"""Voxels whose deviations from the mean are in memory at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """What one case contributes.

    `shape_after_crop` and `spacing_mm` are in S, A, R order; `intensities` is (C, SAMPLES_PER_CASE) float32,
    or (C, 0) for a case without a label or without foreground.
    """

    case: str
    spacing_mm: tuple[float, float, float]
    shape_after_crop: tuple[int, int, int]
    intensities: np.ndarray
    digest: str = ""
    """Of voxels all over the scan: equal for two cases that are one scan."""
    relative_size: float = 1.0
    """Voxels after cropping, as a share of all."""


def inspect_case(
    case: str,
    image: np.ndarray,
    label: np.ndarray | None,
    *,
    spacing_mm: tuple[float, float, float],
    labels: LabelScheme,
) -> CaseFingerprint:
    """Fingerprint of one case.

    Args:
        case: its name; seeds the choice of voxels, so that the same data give the same fingerprint.
        image: (C, S, A, R).
        label: (S, A, R) file values, or None.
        spacing_mm: voxel size along S, A, R.
        labels: which values are background or ignored.
    """
    shape, (slices, rows, columns) = _nonzero_shape(image), spacing_mm
    return CaseFingerprint(
        case=case,
        spacing_mm=(float(slices), float(rows), float(columns)),
        shape_after_crop=shape,
        intensities=_sample_foreground(case, image, label, labels),
        digest=_digest(image),
        relative_size=math.prod(shape) / math.prod(image.shape[1:]),
    )


def describe_twins(cases: Sequence[CaseFingerprint]) -> list[str]:
    """A sentence for each group of cases that are the same scan."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        groups[case.digest].append(case.case)
    return [
        f"{', '.join(names)} have the same voxels: where one is trained on and another validated on, scores are too "
        "good; take all but one out of dataset.json, or keep them together with --group_by or --splits"
        for digest, names in groups.items() if digest and len(names) > 1
    ]  # fmt: skip


def _digest(image: np.ndarray) -> str:
    """Of the shape and of voxels at equal distances: a scan that is hashed as a whole costs as much as its checks."""
    voxels = image.reshape(-1)
    content = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    # An odd step wanders through the columns of a scan, whose sides are mostly even.
    content.update(np.ascontiguousarray(voxels[:: voxels.size // DIGEST_VOXELS | 1]).data)
    return content.hexdigest()


def combine(cases: Sequence[CaseFingerprint]) -> Fingerprint:
    """Fingerprint of the data set; every case with foreground weighs the same in the intensity statistics.

    Raises:
        UserError: no case has foreground.
    """
    if not any(case.intensities.size for case in cases):
        raise UserError(
            f"none of the {len(cases)} training cases has a single labelled voxel, so there is nothing to learn; look "
            "at the labels and at the values that dataset.json names"
        )
    return Fingerprint(
        version=FORMAT_VERSION,
        cases=tuple(c.case for c in cases),
        spacings_mm=tuple(c.spacing_mm for c in cases),
        shapes_after_crop=tuple(c.shape_after_crop for c in cases),
        foreground=_channel_statistics([c.intensities for c in cases]),
        median_relative_size=float(np.median([c.relative_size for c in cases])),
    )


def _nonzero_shape(image: np.ndarray) -> tuple[int, int, int]:
    """Shape after the crop that preprocessing makes; that of the image where every voxel is zero."""
    box = nonzero_box(image)
    slices, rows, columns = image.shape[1:] if box is None else (stop - start for start, stop in box)
    return slices, rows, columns


def _sample_foreground(case: str, image: np.ndarray, label: np.ndarray | None, labels: LabelScheme) -> np.ndarray:
    """(C, SAMPLES_PER_CASE) intensities of the same randomly chosen foreground voxels in every channel.

    A case with fewer foreground voxels gives each of them about equally often, so that all cases weigh alike.
    """
    if label is None:
        return np.empty((len(image), 0), np.float32)
    foreground = label != labels.values[0]
    if labels.ignore_value is not None:
        foreground &= label != labels.ignore_value
    positions = np.flatnonzero(foreground)
    if positions.size:
        # crc32 and not hash(): Python's hash of a string differs from process to process.
        rng = np.random.default_rng(zlib.crc32(case.encode()))
        shuffled = rng.permutation(positions) if positions.size <= SAMPLES_PER_CASE else rng.choice(
            positions, SAMPLES_PER_CASE, replace=False
        )  # fmt: skip
        positions = np.resize(shuffled, SAMPLES_PER_CASE)
    return np.stack([channel.reshape(-1)[positions] for channel in image]).astype(np.float32)


def _channel_statistics(intensities: Sequence[np.ndarray]) -> tuple[ChannelStatistics, ...]:
    if not any(sample.shape[1] for sample in intensities):
        return ()
    statistics = []
    for channel in range(len(intensities[0])):
        # A sample of each case makes millions of voxels: nothing here makes another array of them.
        values = np.concatenate([sample[channel] for sample in intensities])
        mean = float(values.mean(dtype=np.float64))
        std = math.sqrt(_squares(values, mean) / values.size)
        values.sort()
        statistics.append(
            ChannelStatistics(
                mean=mean,
                std=std,
                percentile_00_5=_percentile(values, 0.5),
                median=_percentile(values, 50),
                percentile_99_5=_percentile(values, 99.5),
                minimum=float(values[0]),
                maximum=float(values[-1]),
            )
        )
    return tuple(statistics)


def _squares(values: np.ndarray, mean: float) -> float:
    """Sum of squared deviations, halved as NumPy halves a sum, so that its last digit is that of np.std."""
    if values.size <= PART:
        return float(np.square(values - np.float64(mean)).sum())
    half = values.size // 2
    half -= half % 8
    return _squares(values[:half], mean) + _squares(values[half:], mean)


def _percentile(ordered: np.ndarray, percent: float) -> float:
    """Of sorted voxels, in between by a straight line, to the last digit as np.percentile, which copies them twice."""
    place = (ordered.size - 1) * (percent / 100)
    below = math.floor(place)
    low, high = float(ordered[below]), float(ordered[min(below + 1, ordered.size - 1)])
    share = place - below
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)
