"""What dataset.json says: channels, labels and files of a task; the folds.

The notations of the Medical Segmentation Decathlon (`modality`) and of nnU-Net v2 (`channel_names`) are read;
for labels see labels.py, for files case_files.py.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_preprocessing.dataset.case_files import CaseFiles, missing_files, parse_cases
from data_preprocessing.dataset.findings import Finding, problems_of
from data_preprocessing.dataset.label_schemes import parse_labels, with_brats_regions
from utils.errors import UserError, list_problems
from utils.json_text import parse_json
from utils.scan_formats import require_package
from utils.schema import FORMAT_VERSION, Fold, LabelScheme, Splits
from utils.task_number import checked_task

DESCRIPTION = "dataset.json"
FOLD_SEED = 12345


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A task's folder, read and found consistent; every file that it names exists."""

    task: str
    """Two digits."""
    name: str
    """Name of the folder."""
    folder: Path
    channels: tuple[str, ...]
    """Names of the modalities, in channel order."""
    labels: LabelScheme
    training: tuple[CaseFiles, ...]
    test: tuple[CaseFiles, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """A dataset.json that can be used, with the entries that cannot."""

    content: dict[str, Any]
    """As it was parsed."""
    dataset: Dataset
    """Its files may be missing."""
    findings: tuple[Finding, ...]
    """Entries that were left out, and names that several cases have."""


def load_dataset(data: Path, task: str, *, brats: bool = False) -> Dataset:
    """Read the dataset.json of a task.

    Args:
        data: the folder above `TaskNN_Name` (nnU-Net v2: `DatasetNNN_Name`), or that folder itself.
        task: task number; leading zeros do not matter.
        brats: predict the overlapping BraTS regions in place of the classes.

    Raises:
        UserError: no such folder, or dataset.json is missing, malformed, contradicts itself, names files
            that do not exist or lie outside the folder; all problems are listed.
    """
    folder = find_task_folder(data, task)
    source = folder / DESCRIPTION
    description = _parse_description(folder, tolerate=False)
    dataset = description.dataset
    for remark in description.findings:
        print(f"warning: {remark.message}", file=sys.stderr)
    missing = missing_files((*dataset.training, *dataset.test))
    if missing:
        raise list_problems(
            f"{source} names {len(missing)} files that do not exist:", list(map(str, missing)),
            advice="Add them or take them out.",
        )  # fmt: skip
    return dataclasses.replace(dataset, labels=with_brats_regions(dataset.labels)) if brats else dataset


def read_description(data: Path, task: str) -> Description:
    """Read the dataset.json of a task as `load_dataset` does, but report entries that are wrong in place of raising.

    Raises:
        UserError: dataset.json as a whole cannot be used.
    """
    return _parse_description(find_task_folder(data, task), tolerate=True)


def _parse_description(folder: Path, *, tolerate: bool) -> Description:
    source = folder / DESCRIPTION
    content = _read_description(source)
    problems: list[str] = []
    channels = _parse_channels(content, problems)
    labels = parse_labels(content, problems)
    sections: dict[str, tuple[CaseFiles, ...]] = {}
    entries: list[Finding] = []
    for section in ("training", "test"):
        sections[section] = ()
        if not isinstance(content.get(section, []), list):
            problems.append(f"{section!r} must be a list of cases")
            continue
        sections[section], faults = parse_cases(content, section, folder, len(channels))
        entries += faults
    if not any(sections.values()) and not problems and not entries:
        problems.append("neither 'training' nor 'test' lists a case")
    faults = problems_of(entries)
    if problems or labels is None or (faults and not tolerate):
        problems += [f"{finding.case}: {finding.message}" for finding in faults]
        raise list_problems(f"{source} cannot be used:", problems, advice="Correct the file and run again.")
    require_package(
        path for cases in sections.values() for case in cases for path in (*case.images, case.label) if path
    )
    number = task_number(folder.name)
    assert number is not None, f"{folder} is the folder of a task"
    dataset = Dataset(
        task=f"{number:02d}", name=folder.name, folder=folder, channels=channels, labels=labels,
        training=sections["training"], test=sections["test"],
    )  # fmt: skip
    return Description(content=content, dataset=dataset, findings=tuple(entries))


def find_task_folder(data: Path, task: str) -> Path:
    """Absolute path of the folder `TaskNN_Name` (or `DatasetNNN_Name`) in `data`, or of `data` itself if it is one.

    Raises:
        UserError: there is none, or more than one.
    """
    data = Path(os.path.abspath(data))
    number = int(checked_task(task))
    if not data.is_dir():
        raise UserError(f"{data} is not a folder; --data takes the folder above TaskNN_Name (see download.py)")
    if task_number(data.name) == number:
        return data
    tasks = sorted(f for f in data.iterdir() if task_number(f.name) is not None and f.is_dir())
    found = [f for f in tasks if task_number(f.name) == number]
    if len(found) > 1:
        raise UserError(f"{data} has several folders for task {task}: {', '.join(f.name for f in found)}; rename one")
    if not found:
        there = ", ".join(f.name for f in tasks) or "no task at all"
        raise UserError(f"{data} has no folder Task{number:02d}_<Name>; it has {there}")
    return found[0]


def make_splits(cases: Sequence[str], nfolds: int) -> Splits:
    """Cross-validation folds of the sorted cases, the same on every machine.

    Raises:
        UserError: there are fewer cases than folds.

    Source: the reference's data_loading/data_module.py; scikit-learn's KFold(shuffle=True, random_state=12345).
    """
    names = np.array(sorted(cases))
    require_two(len(names), "training cases")
    if len(names) < nfolds:
        raise UserError(f"{len(names)} training cases cannot make {nfolds} folds; lower --nfolds or add cases")
    order = np.random.RandomState(FOLD_SEED).permutation(len(names))
    parts = [np.sort(part) for part in np.array_split(order, nfolds)]
    folds = tuple(Fold(train=tuple(np.delete(names, part).tolist()), val=tuple(names[part].tolist())) for part in parts)
    return Splits(version=FORMAT_VERSION, folds=folds)


def require_two(number: int, what: str) -> None:
    """Refuse a data set that no fold can be made of.

    Raises:
        UserError: fewer than two `what` (training cases, patients).
    """
    if number < 2:
        raise UserError(
            f"{number} {what}: every fold needs at least one to train on and another one to validate on. Add labelled "
            "cases to dataset.json; 2 are the least, and 5 or more make the usual folds"
        )


def task_number(name: str) -> int | None:
    """The number in a folder name such as `Task04_Hippocampus` or `Dataset004_Hippocampus`, or None."""
    match = re.match(r"(?:Task|Dataset)(\d+)(?:_|$)", name)
    return int(match.group(1)) if match else None


def _read_description(source: Path) -> dict[str, Any]:
    try:
        # Bytes, so that a mark of the encoding at the start, as Windows writes it, tells which one it is.
        content = parse_json(source.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{source} does not exist; it lists the channels, labels and files of the task") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{source} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{source} must hold a JSON object with 'modality', 'labels' and 'training'")
    return content


def _parse_channels(content: dict[str, Any], problems: list[str]) -> tuple[str, ...]:
    named = content.get("channel_names", content.get("modality"))
    if isinstance(named, list):
        named = {str(index): name for index, name in enumerate(named)}
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        problems.append("'modality' (or 'channel_names') must name the channels, such as {\"0\": \"MRI\"}")
        return ()
    if not named or set(named) != {str(index) for index in range(len(named))}:
        problems.append(f"channels must be numbered 0, 1, ..., got {', '.join(named) or 'none'}")
        return ()
    return tuple(named[str(index)] for index in range(len(named)))
