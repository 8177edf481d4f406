"""How good a segmentation is: voxel counts, Dice, and surface distances in mm. Arrays in, numbers out.

Shapes: T scored targets (regions, or the foreground classes), D H W space.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from utils.lesions import LesionCounts, together
from utils.schema import LabelScheme


def dice_from_counts(counts: np.ndarray) -> np.ndarray:
    """Dice = 2 TP / (2 TP + FP + FN) of counts (..., 3); NaN where neither mask has a voxel.

    Source: Isensee et al., nnU-Net (2021): counts first, ratios after; cases without the class say nothing.
    """
    true_positive, false_positive, false_negative = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    size = 2 * true_positive + false_positive + false_negative
    return np.divide(2 * true_positive, size, out=np.full_like(size, np.nan), where=size > 0)


def finite_mean(values: ArrayLike, axis: int | None = None) -> np.ndarray:
    """Mean over the finite values (NaN: undefined, infinite: one mask empty); NaN where there is none."""
    array = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(array)
    count = finite.sum(axis=axis)
    total = np.where(finite, array, 0).sum(axis=axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def target_masks(indices: np.ndarray, labels: LabelScheme) -> list[np.ndarray]:
    """One boolean mask per target of an array of class indices."""
    parts = [region.classes for region in labels.regions] or [(k,) for k in range(1, labels.num_classes)]
    return [np.isin(indices, classes) for classes in parts]


def label_counts(prediction: np.ndarray, label: np.ndarray, labels: LabelScheme) -> np.ndarray:
    """True positives, false positives and false negatives (T, 3) int64 of two arrays of class indices.

    Voxels that the label marks as ignored are not counted.
    """
    assert prediction.shape == label.shape, (prediction.shape, label.shape)
    if labels.ignore_index is not None:
        valid = label != labels.ignore_index
        prediction, label = prediction[valid], label[valid]
    rows = []
    for found, true in zip(target_masks(prediction, labels), target_masks(label, labels)):
        both = np.count_nonzero(found & true)
        rows.append((both, np.count_nonzero(found) - both, np.count_nonzero(true) - both))
    return np.array(rows, dtype=np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurfaceScores:
    """Distances between the surfaces of two masks.

    hd95_mm: the larger of the two directed 95th percentiles of the surface distances, in mm.
    nsd: share of both surfaces (0..1) that lies within the tolerance of the other one.
    Both masks empty: NaN and NaN. One mask empty: infinite and 0.
    """

    hd95_mm: float
    nsd: float


def surface_scores(
    prediction: np.ndarray, label: np.ndarray, spacing_mm: Sequence[float], *, tolerance_mm: float = 1.0
) -> SurfaceScores:
    """HD95 and normalised surface Dice of two masks on one grid of spacing D, H, W.

    A surface voxel is a voxel of the mask with a face neighbour outside it; beyond the volume is outside.

    Source: Maier-Hein et al., Metrics Reloaded (2024); Nikolov et al. (2018) for the NSD, here on voxel
    centres.
    """
    prediction, label = np.asarray(prediction, dtype=bool), np.asarray(label, dtype=bool)
    if not prediction.any() or not label.any():
        if prediction.any() == label.any():
            return SurfaceScores(hd95_mm=math.nan, nsd=math.nan)
        return SurfaceScores(hd95_mm=math.inf, nsd=0.0)
    # Half of a preprocessing worker's start, and only evaluation measures surfaces.
    from scipy import ndimage

    box = ndimage.find_objects((prediction | label).astype(np.uint8))[0]
    found, true = (m & ~ndimage.binary_erosion(m, border_value=0) for m in (prediction[box], label[box]))
    # Every surface voxel lies in the common box, so distances inside it are those of the whole volume.
    to_label = ndimage.distance_transform_edt(~true, sampling=spacing_mm)[found]
    to_prediction = ndimage.distance_transform_edt(~found, sampling=spacing_mm)[true]
    within = np.count_nonzero(to_label <= tolerance_mm) + np.count_nonzero(to_prediction <= tolerance_mm)
    return SurfaceScores(
        hd95_mm=float(max(np.percentile(to_label, 95), np.percentile(to_prediction, 95))),
        nsd=within / (to_label.size + to_prediction.size),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseScores:
    """Scores of one case, one entry per target; surface scores are empty where they were not asked for."""

    case: str
    counts: tuple[tuple[int, int, int], ...]
    dice: tuple[float, ...]
    hd95_mm: tuple[float, ...] = ()
    nsd: tuple[float, ...] = ()
    lesions: tuple[LesionCounts, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSummary:
    """Means over cases for each target, and over the targets; NaN where no case defines a value.

    Cases in which both masks lack a target are left out, and for HD95 also those in which one does;
    `unbounded` says how many the latter are. Lesions are counted over all cases.
    """

    targets: tuple[str, ...]
    num_cases: int
    dice: tuple[float, ...]
    mean_dice: float
    hd95_mm: tuple[float, ...] = ()
    mean_hd95_mm: float | None = None
    unbounded: tuple[int, ...] = ()
    nsd: tuple[float, ...] = ()
    mean_nsd: float | None = None
    lesions: tuple[LesionCounts, ...] = ()
    lesion_f1: tuple[float, ...] = ()
    lesion_sensitivity: tuple[float, ...] = ()
    lesion_precision: tuple[float, ...] = ()


def summarise(cases: Sequence[CaseScores], targets: Sequence[str]) -> ScoreSummary:
    """Pool the scores of at least one case; all cases carry the same kinds of scores."""
    dice = finite_mean([case.dice for case in cases], axis=0)
    summary = ScoreSummary(
        targets=tuple(targets), num_cases=len(cases), dice=tuple(dice.tolist()), mean_dice=float(finite_mean(dice))
    )
    if cases[0].hd95_mm:
        distances = np.array([case.hd95_mm for case in cases])
        means = finite_mean(distances, axis=0)
        summary = dataclasses.replace(
            summary,
            hd95_mm=tuple(means.tolist()), mean_hd95_mm=float(finite_mean(means)),
            unbounded=tuple(np.isinf(distances).sum(axis=0).tolist()),
        )  # fmt: skip
    if cases[0].nsd:
        means = finite_mean([case.nsd for case in cases], axis=0)
        summary = dataclasses.replace(summary, nsd=tuple(means.tolist()), mean_nsd=float(finite_mean(means)))
    if cases[0].lesions:
        totals = tuple(together(column) for column in zip(*(case.lesions for case in cases), strict=True))
        summary = dataclasses.replace(
            summary, lesions=totals, lesion_f1=tuple(each.f1 for each in totals),
            lesion_sensitivity=tuple(each.sensitivity for each in totals),
            lesion_precision=tuple(each.precision for each in totals),
        )  # fmt: skip
    return summary
