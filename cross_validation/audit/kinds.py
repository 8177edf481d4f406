"""What kind of error a label looks like: the change after which it would look like a usual one.

Each kind of error has its own undoing: a shifted label is moved back, a dilated one shrunk, of swapped classes the
values are exchanged, what is missing is filled in. The undoing after which the label has the lowest score names the
kind; where none takes away enough of it, the label fits the scan nowhere. Axes: S A R.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from cross_validation.audit.edits import best_shift, best_swap, class_sums, growths, worth_of
from cross_validation.audit.evidence import Evidence
from cross_validation.audit.ranking import Usual
from cross_validation.audit.signals import Signals, signals

ENOUGH = 0.5
"""Share of the score that an undoing must take away to name the kind."""
NOTHING_LIKE_IT = 0.8
"""Share of the usual overlap with the prediction below which a label that no undoing explains is of another scan."""
MOVES = ("shifted", "dilated", "eroded")
"""Kinds whose undoing must leave that overlap: to move or shrink any wrong label helps a bit."""
SURPRISE = 1.5
"""Robust deviations: a label of this scan has about the usual boundaries after it was moved back, another has not."""
ABSENT = 0.1
"""A class of which less than this share is there, next to the prediction (or to the label), is missing (or extra)."""
FEW_VOXELS = 10
SLICES_SHARE = 0.15
"""Slices that are missing are no matter of the last one or two of a structure: share of its extent, and at least 2."""
WHOLE = 2.0
"""How much lower the score may be after another undoing where a class is absent to its last voxel: to fill slices that
have no label fills up a missing class, too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a label looks like.

    Attributes:
        kind: `missing structure`, `extra structure`, `swapped classes`, `shifted`, `missing slices`, `dilated`,
            `eroded`, `wrong scan` or `unclear`.
        share: of the score that the undoing takes away.
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
    handicap: float = 0.0
    """Added to the score after it where it is compared with others."""


def explain(evidence: Evidence, before: Signals, usual: Usual) -> Explanation:
    """Name the kind of error that a label looks most like; whether it has one is for its score to say.

    Args:
        evidence: of the case.
        before: its signals.
        usual: what they are compared with.
    """
    found = undoings(evidence)
    least = NOTHING_LIKE_IT * usual.overlap
    after: list[float] = []
    for each in found:
        undone = signals(dataclasses.replace(evidence, label=each.label))
        fits = each.kind not in MOVES or undone.overlap >= least
        fits &= each.kind != "shifted" or usual.surprise(undone) < SURPRISE
        after.append(usual.score(undone) if fits else math.inf)
    best = min(range(len(found)), key=lambda number: after[number] + found[number].handicap, default=None)
    share = 0.0 if best is None else max(0.0, 1 - after[best] / max(usual.score(before), 1e-6))
    if best is None or share < ENOUGH:
        kind = "wrong scan" if before.overlap < least else "unclear"
        box = _box(evidence, np.where(evidence.counts, evidence.predicted, evidence.label))
        return Explanation(kind=kind, share=share, structure="foreground", box=box)
    chosen = found[best]
    return Explanation(kind=chosen.kind, share=share, structure=chosen.structure, numbers=chosen.numbers,
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
        label = moved(np.where(counts, given, 0), shift.offset)
        found.append(Undoing(kind="shifted", label=np.where(counts, label, given), numbers=shift.offset))
    # The best radius of all foreground may leave the thinner structures too large; the score decides among all.
    for radius, changed in growths(given, foreground, worth, evidence.spacing_mm):
        kind = "eroded" if radius > 0 else "dilated"
        found.append(Undoing(kind=kind, label=np.where(counts, changed, given), numbers=(abs(radius),)))
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


def _structures(evidence: Evidence) -> list[Undoing]:
    """Classes that only the prediction has, or only the label."""
    found = []
    for index in range(1, evidence.labels.num_classes):
        given, predicted = (array == index for array in (evidence.label, evidence.predicted))
        there, expected = int(given.sum()), int((predicted & evidence.counts).sum())
        name = evidence.labels.names[index]
        if expected >= FEW_VOXELS and there < ABSENT * expected:
            handicap = WHOLE if there else -WHOLE
            # Networks that hardly tell classes apart have it elsewhere, too, or something else in its place.
            empty = evidence.counts & (evidence.label == 0) & (evidence.predicted > 0)
            for where in (predicted & evidence.counts, empty):
                filled = np.where(where, np.uint8(index), evidence.label)
                found.append(Undoing(kind="missing structure", label=filled, structure=name, numbers=(index,),
                                     handicap=handicap))  # fmt: skip
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
