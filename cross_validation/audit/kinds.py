"""What kind of error a label looks like: the change that would make it fit best what the networks believe.

Each kind of error has its own undoing: a shifted label is moved back, a dilated one shrunk, of swapped classes the
values are exchanged, what is missing is filled in. The undoing that takes away most of the contradiction names the
kind; where none takes away enough, the label fits the scan nowhere. Axes: S A R.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from cross_validation.audit.edits import best_growth, best_shift, best_swap, class_sums, worth_of
from cross_validation.audit.evidence import FLOOR, Evidence

ENOUGH = 0.5
"""Share of the contradiction that an undoing must take away to name the kind."""
NOTHING_LIKE_IT = 0.7
"""Dice with the prediction below which a label that no undoing explains is of another scan."""
ABSENT = 0.1
"""A class of which less than this share is there, next to the prediction (or to the label), is missing (or extra)."""
PUT_RIGHT = 0.6
"""Dice with the prediction that a label must have after a move, or grown or shrunk: networks of few epochs reach it."""
FEW_VOXELS = 10
MOVES = ("shifted", "dilated", "eroded")
"""Kinds whose undoing must leave a foreground like the predicted one: to move or shrink any wrong label helps a bit."""
SLICES_SHARE = 0.15
"""Slices that are missing are no matter of the last one or two of a structure: share of its extent, and at least 2."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a label looks like.

    Attributes:
        kind: `missing structure`, `extra structure`, `swapped classes`, `shifted`, `missing slices`, `dilated`,
            `eroded`, `wrong scan` or `unclear`.
        share: of the contradiction that the undoing takes away.
        structure: name of the class or classes, or `foreground`.
        box: (start, stop) along S, A, R of the whole scan, around what the undoing changes.
        numbers: what the undoing needs: the two classes (indices), the move along S A R, or the radius.
    """

    kind: str
    share: float
    structure: str
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    numbers: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Undoing:
    """A label as it would be without an error."""

    kind: str
    label: np.ndarray
    structure: str = "foreground"
    numbers: tuple[int, ...] = ()
    likely: float = 1.0
    """Factor of its share where it is compared with others: a class that is there to its last voxel or to its first is
    one, and slices without a label fill up a missing class, too."""


def explain(evidence: Evidence) -> Explanation:
    """Name the kind of error that a label looks most like; whether it has one is for the ranking to say."""
    given, predicted = evidence.label, np.where(evidence.counts, evidence.predicted, evidence.label)
    found = undoings(evidence)
    before, after, *gains = likelihoods(evidence, [given, predicted, *(each.label for each in found)])
    deficit = max(after - before, 1e-6)
    fits = [each.kind not in MOVES or foreground_dice(each.label, predicted, evidence.counts) >= PUT_RIGHT
            for each in found]  # fmt: skip
    shares = [(gain - before) / deficit if fit else 0.0 for gain, fit in zip(gains, fits)]
    best = max(range(len(found)), key=lambda number: shares[number] * found[number].likely, default=None)
    if best is None or shares[best] < ENOUGH:
        kind = "wrong scan" if foreground_dice(given, predicted, evidence.counts) < NOTHING_LIKE_IT else "unclear"
        share = 0.0 if best is None else max(0.0, shares[best])
        return Explanation(kind=kind, share=share, structure="foreground", box=_box(evidence, predicted))
    chosen = found[best]
    return Explanation(kind=chosen.kind, share=shares[best], structure=chosen.structure, numbers=chosen.numbers,
                       box=_box(evidence, chosen.label))  # fmt: skip


def undoings(evidence: Evidence) -> list[Undoing]:
    """The label without each of the errors that it may have."""
    given, counts = evidence.label, evidence.counts
    foreground = counts & (given > 0)
    worth = worth_of(evidence.probability(0), counts)
    found = [*_structures(evidence), *_slices(evidence)]
    (a, b), gain = best_swap(class_sums(evidence))
    if gain > 0:
        names = " and ".join(evidence.labels.names[index] for index in (a, b))
        swapped = np.select([given == a, given == b], [np.uint8(b), np.uint8(a)], given)
        found.append(Undoing(kind="swapped classes", label=swapped, structure=names, numbers=(a, b)))
    shift = best_shift(foreground, worth)
    if shift.gain > 0:
        found.append(Undoing(kind="shifted", label=moved(given, shift.offset), numbers=shift.offset))
    growth = best_growth(foreground, worth, evidence.spacing_mm)
    if growth.radius:
        kind = "eroded" if growth.radius > 0 else "dilated"
        label = grown(given, foreground, growth.radius, evidence.spacing_mm)
        found.append(Undoing(kind=kind, label=np.where(counts, label, given), numbers=(abs(growth.radius),)))
    return found


def likelihoods(evidence: Evidence, labels: Sequence[np.ndarray]) -> list[float]:
    """Log-likelihood of each of several labels."""
    found = [0.0] * len(labels)
    for index in range(evidence.labels.num_classes):
        logs = np.log(np.clip(evidence.probability(index), FLOOR, 1 - FLOOR))
        for number, label in enumerate(labels):
            found[number] += float(logs[evidence.counts & (label == index)].sum(dtype=np.float64))
    return found


def moved(label: np.ndarray, offset: Sequence[int]) -> np.ndarray:
    """Moved by whole voxels along each axis; what comes in is background."""
    found = np.zeros_like(label)
    into, out_of = [], []
    for step, size in zip(offset, label.shape):
        into.append(slice(max(0, step), min(size, size + step)))
        out_of.append(slice(max(0, -step), min(size, size - step)))
    found[tuple(into)] = label[tuple(out_of)]
    return found


def grown(label: np.ndarray, foreground: np.ndarray, radius: int, spacing_mm: Sequence[float]) -> np.ndarray:
    """The foreground grown by a ball, new voxels with the class that is nearest, or shrunk (negative radius)."""
    unit = [each / min(spacing_mm) for each in spacing_mm]
    if radius < 0:
        return np.where(foreground & (ndimage.distance_transform_edt(foreground, unit) <= -radius), np.uint8(0), label)
    distance, nearest = ndimage.distance_transform_edt(~foreground, unit, return_indices=True)
    return np.where(distance <= radius, label[tuple(nearest)], label)


def foreground_dice(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> float:
    """Dice of the foreground of two labels; 1 where both are empty."""
    first, second = (a > 0) & counts, (b > 0) & counts
    both = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / both if both else 1.0


def _structures(evidence: Evidence) -> list[Undoing]:
    """Classes that only the prediction has, or only the label."""
    found = []
    for index in range(1, evidence.labels.num_classes):
        given, predicted = (array == index for array in (evidence.label, evidence.predicted))
        there, expected = int(given.sum()), int((predicted & evidence.counts).sum())
        name = evidence.labels.names[index]
        if expected >= FEW_VOXELS and there < ABSENT * expected:
            filled = np.where(predicted & evidence.counts, np.uint8(index), evidence.label)
            found.append(Undoing(kind="missing structure", label=filled, structure=name, numbers=(index,),
                                 likely=0.9 if there else 1.1))  # fmt: skip
        if there >= FEW_VOXELS and expected < ABSENT * there:
            without = np.where(given, evidence.predicted, evidence.label)
            found.append(Undoing(kind="extra structure", label=without, structure=name, numbers=(index,)))
    return found


def _slices(evidence: Evidence) -> list[Undoing]:
    """Slices along each axis that are empty in the label although the prediction has foreground in them."""
    found = []
    given = evidence.counts & (evidence.label > 0)
    predicted = evidence.counts & (evidence.predicted > 0)
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        there, expected = given.any(axis=others), predicted.sum(axis=others)
        missing = ~there & (expected > ABSENT * expected.max(initial=0))
        if there.any() and missing.sum() >= max(2, SLICES_SHARE * np.count_nonzero(expected)):
            shape = [-1 if each == axis else 1 for each in range(3)]
            label = np.where(missing.reshape(shape) & predicted, evidence.predicted, evidence.label)
            found.append(Undoing(kind="missing slices", label=label, numbers=(axis, int(missing.sum()))))
    return found


def _box(evidence: Evidence, label: np.ndarray) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    changed = ndimage.find_objects((label != evidence.label).astype(np.uint8))
    if not changed:
        changed = [tuple(slice(0, size) for size in label.shape)]
    s, a, r = ((whole.start + part.start, whole.start + part.stop) for whole, part in zip(evidence.box, changed[0]))
    return s, a, r
