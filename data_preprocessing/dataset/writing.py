"""Writing dataset.json: cases file by file, counted; label values with names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_preprocessing.dataset.case_files import CaseFiles, case_name
from data_preprocessing.dataset.label_schemes import IGNORE


def list_cases(
    content: dict[str, Any], folder: Path, *, training: Sequence[CaseFiles], test: Sequence[CaseFiles]
) -> dict[str, Any]:
    """dataset.json with these cases in place of its own; files lie below `folder`."""
    return {key: value for key, value in content.items() if key != "dataset"} | {
        "numTraining": len(training),
        "numTest": len(test),
        "training": [_entry(files, folder) for files in training],
        "test": [_entry(files, folder) for files in test],
    }


def name_labels(content: dict[str, Any], values: Sequence[int]) -> dict[str, Any]:
    """dataset.json with a name for each of the values too, in the notation that is there; regions keep their order."""
    labels = dict(content["labels"])
    by_value = all(key.isdecimal() for key in labels)
    ignored = None if by_value else labels.pop(IGNORE, None)
    for value in values:
        name = f"label_{value}"
        while name in (labels.values() if by_value else labels):
            name += "_"
        labels |= {str(value): name} if by_value else {name: value}
    result = content | {"labels": labels | ({} if ignored is None else {IGNORE: ignored})}
    if values and isinstance(content.get("regions_class_order"), list):
        result["regions_class_order"] = [*content["regions_class_order"], *values]
    return result


def _entry(files: CaseFiles, folder: Path) -> dict[str, Any] | str:
    images = [f"./{path.relative_to(folder).as_posix()}" for path in files.images]
    # A list means one file for each channel; its names carry the channel's number, the name of the case does not.
    is_single = len(images) == 1 and case_name(images[0]) == files.case
    image = images[0] if is_single else images
    if files.label is not None:
        return {"image": image, "label": f"./{files.label.relative_to(folder).as_posix()}"}
    return image if isinstance(image, str) else {"image": image}
