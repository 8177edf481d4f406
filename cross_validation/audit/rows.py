"""From what was found in each case to the lines of the table, in the words and axes of the files."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cross_validation.audit.kinds import Explanation
from cross_validation.audit.places import Place
from cross_validation.audit.ranking import THRESHOLD
from cross_validation.audit.signals import Signals
from utils.label_audit import AuditRow, box_text
from utils.nifti import stored_axes
from utils.schema import Geometry, LabelScheme

VAGUE = ("wrong scan", "unclear")
"""Kinds that say no more than that nothing else was found."""
CLEAN = "nothing special"
PLACE_NATS = 100.0
"""Places of less weight have no line of their own: that is 25 voxels of another class of which a network is sure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audited:
    """What was found in one case."""

    case: str
    label: Path
    label_digest: str
    geometry: Geometry
    signals: Signals
    explanation: Explanation | None
    """None where there is little to explain."""
    places: tuple[Place, ...]
    cpu_s: float


def audit_rows(audited: Sequence[Audited], score: np.ndarray, limit: float, labels: LabelScheme) -> list[AuditRow]:
    """A line for each case, the most suspicious first, each followed by the places in it that weigh most."""
    order = sorted(range(len(audited)), key=lambda index: (-score[index], audited[index].case))
    rows = []
    for rank, index in enumerate(order, start=1):
        each, found = audited[index], audited[index].explanation
        # Of a sound label there is nothing to explain, and so nothing explains it; nor is there a reason to change it.
        clear = score[index] > THRESHOLD
        if found is None or (found.kind in VAGUE and not clear):
            told = {"kind": CLEAN, "structure": "", "where": "", "suggestion": ""}
        else:
            told = {"kind": found.kind, "structure": found.structure,
                    "where": box_text(stored_box(found.box, each.geometry)),
                    "suggestion": suggestion(found, each.geometry, labels) if clear else ""}  # fmt: skip
        row = AuditRow(
            rank=rank, case=each.case, scope="case", score=float(score[index]), suspicious=bool(score[index] > limit),
            decision="", label=str(each.label), label_digest=each.label_digest, **told,
        )  # fmt: skip
        rows.append(row)
        rows += [_place_row(row, place, each, labels, clear) for place in each.places if place.weight >= PLACE_NATS]
    return rows


def suggestion(found: Explanation, geometry: Geometry, labels: LabelScheme) -> str:
    """What a person could decide; in the words of the column `decision` where the label can be put right by itself."""
    if found.kind == "swapped classes":
        return "swap {} {}".format(*(labels.values[index] for index in found.numbers))
    if found.kind == "extra structure":
        return f"erase {labels.values[found.numbers[0]]}"
    if found.kind == "shifted":
        return "shift {} {} {}".format(*stored_offset(found.numbers, geometry))
    if found.kind == "wrong scan":
        return "remove, unless its own label is found: replace FILE"
    if found.kind == "unclear":
        return "look at it"
    return "draw it anew: replace FILE"


def stored_box(box: Sequence[tuple[int, int]], geometry: Geometry) -> list[tuple[int, int]]:
    """A box along S, A, R as one along x, y, z of the file."""
    axes, backwards = stored_axes(geometry.affine)
    found = []
    for size, axis, turned in zip(geometry.shape_xyz[::-1], axes, backwards):
        start, stop = box[axis]
        found.append((size - stop, size - start) if turned else (start, stop))
    return found[::-1]


def stored_offset(offset: Sequence[int], geometry: Geometry) -> list[int]:
    """A move along S, A, R as one along x, y, z of the file."""
    axes, backwards = stored_axes(geometry.affine)
    return [-offset[axis] if turned else offset[axis] for axis, turned in zip(axes, backwards)][::-1]


def _place_row(row: AuditRow, place: Place, audited: Audited, labels: LabelScheme, clear: bool) -> AuditRow:
    advice = f"erase {labels.values[place.given]}" if place.kind == "extra structure" else "look at it"
    names = [labels.names[index] for index in (place.given, place.predicted) if index]
    return dataclasses.replace(
        row, scope="place", score=place.weight, kind=place.kind, structure=" or ".join(names),
        where=box_text(stored_box(place.box, audited.geometry)), suggestion=advice if clear else "",
    )  # fmt: skip
