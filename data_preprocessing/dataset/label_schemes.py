"""The labels of dataset.json as a label scheme: classes, overlapping regions, ignored voxels, BraTS.

Two notations are read: the Medical Segmentation Decathlon's, {"1": "tumour"}, and nnU-Net v2's, {"tumour": 1}
with regions as lists of values and an `ignore` label.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import Any

from utils.errors import UserError
from utils.schema import LabelScheme, Region

IGNORE = "ignore"


def parse_labels(content: dict[str, Any], problems: list[str]) -> LabelScheme | None:
    """The label scheme of a dataset.json; what is wrong with it is appended to `problems` and gives None."""
    labels = content.get("labels")
    if not isinstance(labels, dict) or not labels:
        problems.append('\'labels\' must name the label values, such as {"0": "background", "1": "tumour"}')
        return None
    if all(key.isdecimal() for key in labels):
        pairs = [(name, int(value)) for value, name in labels.items()]
    else:
        pairs = list(labels.items())
    faults = _faults(pairs)
    if faults:
        problems.extend(faults)
        return None
    values = dict(pairs)
    ignore_value = values.pop(IGNORE, None)
    foreground = {name: value for name, value in values.items() if value != 0}
    try:
        if any(isinstance(value, list) for value in foreground.values()):
            return _region_scheme(foreground, ignore_value, content.get("regions_class_order"))
        ordered = sorted(foreground.items(), key=lambda item: item[1])
        return LabelScheme(
            names=("background", *(name for name, _ in ordered)),
            values=(0, *(value for _, value in ordered)),
            ignore_value=ignore_value,
        )
    except ValueError as error:
        problems.append(f"'labels': {error}")
        return None


def with_brats_regions(labels: LabelScheme) -> LabelScheme:
    """The scheme with whole tumour, tumour core and enhancing tumour as targets, by the labels' names.

    Raises:
        UserError: the names do not say which class is oedema, which necrotic or non-enhancing, which enhancing.
    """
    kinds: dict[str, list[int]] = {"edema": [], "core": [], "enhancing": []}
    for index, name in enumerate(labels.names[1:], start=1):
        kinds.get(_brats_kind(name), []).append(index)
    edema, core, enhancing = kinds.values()
    tumour = sorted(edema + core + enhancing)
    told_apart = len(edema) == len(enhancing) == 1 and core and len(tumour) == labels.num_classes - 1
    if labels.regions or not told_apart:
        raise UserError(
            f"--brats: the labels {', '.join(labels.names[1:])} cannot be told apart as edema, non-enhancing (or "
            "necrotic) and enhancing tumour; rename them in dataset.json or leave --brats out"
        )
    # Later regions overwrite: what only WT covers is oedema, what only WT and TC cover is core.
    regions = (
        Region(name="WT", classes=tuple(tumour), write_class=edema[0]),
        Region(name="TC", classes=tuple(sorted(core + enhancing)), write_class=core[0]),
        Region(name="ET", classes=(enhancing[0],), write_class=enhancing[0]),
    )
    return dataclasses.replace(labels, regions=regions)


def _faults(pairs: list[tuple[Any, Any]]) -> list[str]:
    faults = [
        f"label {name!r} must be a name with a whole number in 0..255 (for a region: a list), got {value!r}"
        for name, value in pairs
        if not isinstance(name, str) or not _is_values(value) or (name == IGNORE and isinstance(value, list))
    ]
    counts = Counter(str(name) for name, _ in pairs)
    faults += [f"{count} labels are called {name!r}" for name, count in counts.items() if count > 1]
    if [str(name).lower() for name, value in pairs if value == 0] != ["background"]:
        faults.append("one label must have the value 0 and be called 'background'")
    return faults


def _is_values(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(type(v) is int and 0 <= v <= 255 for v in values)


def _region_scheme(foreground: dict[str, Any], ignore_value: int | None, order: Any) -> LabelScheme:
    """nnU-Net v2's overlapping regions: the classes are the single values, `order` how regions are written."""
    regions = {name: value if isinstance(value, list) else [value] for name, value in foreground.items()}
    values = (0, *sorted({v for listed in regions.values() for v in listed} - {0}))
    if not isinstance(order, list) or len(order) != len(regions) or any(v not in values[1:] for v in order):
        raise ValueError(f"regions need 'regions_class_order': {len(regions)} values out of {values[1:]}")
    single = {listed[0]: name for name, listed in regions.items() if len(listed) == 1}
    return LabelScheme(
        names=("background", *(single.get(v, f"label {v}") for v in values[1:])),
        values=values,
        ignore_value=ignore_value,
        regions=tuple(
            Region(name=name, classes=tuple(map(values.index, listed)), write_class=values.index(written))
            for (name, listed), written in zip(regions.items(), order)
        ),
    )


def _brats_kind(name: str) -> str:
    text = name.lower()
    words = set(re.findall(r"[a-z]+", text))
    if re.search(r"necro|non.?enhanc", text) or words & {"ncr", "net"}:
        return "core"
    if re.search(r"edema", text) or "ed" in words:
        return "edema"
    return "enhancing" if "enhanc" in text or "et" in words else "unknown"
