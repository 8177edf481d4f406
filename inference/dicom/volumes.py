"""One series, several volumes: echoes, phases, times or b-values, told apart by what their slices say of themselves."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from inference.dicom.headers import MARKS, Slice

SAME_PLACE_MM = 0.01
MOST_MARKS = 3
"""So many kinds of marks together at most, such as b-value and direction."""
LABELS = {
    "EchoTime": ("echo", "echo time"), "InversionTime": ("inversion", "inversion time"),
    "FlipAngle": ("flip", "flip angle"), "DiffusionBValue": ("b", "b-value"),
    "DiffusionGradientOrientation": ("direction", "diffusion gradient"), "ImageType": ("type", "image type"),
    "StackID": ("stack", "stack"), "TemporalPositionIdentifier": ("time", "position in time"),
    "TriggerTime": ("phase", "trigger time"), "AcquisitionNumber": ("acquisition", "acquisition number"),
    "AcquisitionTime": ("time", "acquisition time"),
}  # fmt: skip
"""Mark -> its word in names of volumes, and in sentences."""
BY_VALUE = ("DiffusionBValue",)
"""Marks whose value is in the name, and not which of the values it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VolumePart:
    """Slices of one volume; `label` tells it from the others of its series, and `remark` says how it was found."""

    slices: tuple[Slice, ...]
    label: str = ""
    remark: str = ""


def split_volumes(slices: Sequence[Slice]) -> list[VolumePart]:
    """The volumes of parallel slices; all of them together where there is one, or where nothing tells them apart.

    A way to tell them apart is taken where each volume has every place once, at least half of all places.
    """
    places = _places(slices)
    whole = [VolumePart(slices=tuple(slices))]
    if len(set(places)) == len(slices):
        return whole
    varying = [
        name for index, name in enumerate(MARKS) if len({each.marks[index] for each in slices if each.marks}) > 1
    ]
    for count in range(1, MOST_MARKS + 1):
        for names in itertools.combinations(varying, count):
            keys = [_key(each, names) for each in slices]
            if _is_split(keys, places):
                return _named(slices, keys, names)
    numbers = _by_number(slices, places)
    if numbers is None:
        return whole
    total = 1 + max(numbers)
    groups = [tuple(one for one, own in zip(slices, numbers) if own == number) for number in range(total)]
    return [
        VolumePart(
            slices=group, label=f"volume{number}",
            remark=f"one of {total} volumes of its series, told apart by the order of instance numbers alone",
        )
        for number, group in enumerate(groups, start=1)
    ]  # fmt: skip


def _places(slices: Sequence[Slice]) -> list[int]:
    """The number of each slice's place along the normal."""
    turn = np.asarray(slices[0].orientation, float).reshape(2, 3)
    along = np.array([each.position for each in slices]) @ np.cross(turn[0], turn[1])
    order = np.argsort(along, kind="stable")
    found = np.empty(len(slices), int)
    found[order] = np.cumsum(np.diff(along[order], prepend=along[order[0]]) > SAME_PLACE_MM)
    return found.tolist()


def _key(one: Slice, names: Sequence[str]) -> tuple[str | float | None, ...]:
    return tuple(mark for name, mark in zip(MARKS, one.marks) if name in names)


def _is_split(keys: Sequence[Hashable], places: Sequence[int]) -> bool:
    counts = Counter(keys)
    is_once = len(set(zip(keys, places))) == len(keys)
    return len(counts) > 1 and is_once and min(counts.values()) * 2 >= len(set(places)) and min(counts.values()) > 1


def _by_number(slices: Sequence[Slice], places: Sequence[int]) -> list[int] | None:
    """For each slice the number of its volume, where instance numbers run through one volume after the other."""
    size = len(set(places))
    numbers = [each.number for each in slices]
    if len(slices) % size or len(set(numbers)) < len(numbers):
        return None
    found = [0] * len(slices)
    for rank, index in enumerate(sorted(range(len(slices)), key=numbers.__getitem__)):
        found[index] = rank // size
    return found if _is_split(found, places) else None


def _named(
    slices: Sequence[Slice], keys: Sequence[tuple[str | float | None, ...]], names: Sequence[str]
) -> list[VolumePart]:
    groups: dict[tuple[str | float | None, ...], list[Slice]] = defaultdict(list)
    for one, key in zip(slices, keys):
        groups[key].append(one)
    columns = [sorted(set(column), key=_order) for column in zip(*groups)]
    used = [name for name in MARKS if name in names]
    words = ", ".join(LABELS[name][1] for name in used)
    parts = []
    for key in sorted(groups, key=lambda key: [_order(value) for value in key]):
        label = "_".join(_label(name, value, column) for name, value, column in zip(used, key, columns))
        remark = f"one of {len(groups)} volumes of its series, told apart by {words}"
        parts.append(VolumePart(slices=tuple(groups[key]), label=label, remark=remark))
    return parts


def _order(value: str | float | None) -> tuple[int, float, str]:
    if value is None:
        return 0, 0.0, ""
    return (1, value, "") if isinstance(value, float) else (2, 0.0, value)


def _label(name: str, value: str | float | None, column: Sequence[str | float | None]) -> str:
    word, _ = LABELS[name]
    if name in BY_VALUE and isinstance(value, float):
        return f"{word}{value:g}"
    return f"{word}{column.index(value) + 1}"
