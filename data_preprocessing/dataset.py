"""What dataset.json says: channels, labels and files of a task; the integrity of a case; the folds.

The notations of the Medical Segmentation Decathlon (`modality`) and of nnU-Net v2 (`channel_names`) are read;
for labels see labels.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_preprocessing.labels import parse_labels, with_brats_regions
from utils.errors import UserError, list_problems
from utils.nifti import GRID_TOLERANCE_MM, Volume, grid_difference_mm
from utils.schema import FORMAT_VERSION, Fold, LabelScheme, Splits

DESCRIPTION = "dataset.json"
FOLD_SEED = 12345


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The files of one case: one image with all channels or one per channel, and the label if any."""

    case: str
    images: tuple[Path, ...]
    label: Path | None


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
class CaseReport:
    """What is wrong with one case, each problem as one phrase."""

    case: str
    problems: tuple[str, ...]


def load_dataset(data: Path, task: str, *, brats: bool = False) -> Dataset:
    """Read the dataset.json of a task.

    Args:
        data: the folder above `TaskNN_Name`, or that folder itself.
        task: task number; leading zeros do not matter.
        brats: predict the overlapping BraTS regions in place of the classes.

    Raises:
        UserError: no such folder, or dataset.json is missing, malformed, contradicts itself, names files
            that do not exist or lie outside the folder; all problems are listed.
    """
    folder = find_task_folder(data, task)
    source = folder / DESCRIPTION
    content = _read_description(source)
    problems: list[str] = []
    channels = _parse_channels(content, problems)
    labels = parse_labels(content, problems)
    training = _parse_cases(content, "training", folder, problems)
    test = _parse_cases(content, "test", folder, problems)
    if not training and not test and not problems:
        problems.append("neither 'training' nor 'test' lists a case")
    if problems or labels is None:
        raise list_problems(f"{source} cannot be used:", problems, advice="Correct the file and run again.")
    _require_files((*training, *test), source)
    return Dataset(
        task=f"{int(task):02d}", name=folder.name, folder=folder, channels=channels,
        labels=with_brats_regions(labels) if brats else labels, training=training, test=test,
    )  # fmt: skip


def find_task_folder(data: Path, task: str) -> Path:
    """Absolute path of the folder `TaskNN_Name` in `data`, or of `data` itself if it is that folder.

    Raises:
        UserError: there is none, or more than one.
    """
    data = Path(os.path.abspath(data))
    if not task.isdecimal():
        raise UserError(f"--task must be a number such as 04, got {task!r}")
    if not data.is_dir():
        raise UserError(f"{data} is not a folder; --data takes the folder above TaskNN_Name (see download.py)")
    if _task_number(data.name) == int(task):
        return data
    tasks = sorted(f for f in data.iterdir() if _task_number(f.name) is not None and f.is_dir())
    found = [f for f in tasks if _task_number(f.name) == int(task)]
    if len(found) > 1:
        raise UserError(f"{data} has several folders for task {task}: {', '.join(f.name for f in found)}; rename one")
    if not found:
        there = ", ".join(f.name for f in tasks) or "no task at all"
        raise UserError(f"{data} has no folder Task{int(task):02d}_<Name>; it has {there}")
    return found[0]


def make_splits(cases: Sequence[str], nfolds: int) -> Splits:
    """Cross-validation folds of the sorted cases, the same on every machine.

    Raises:
        UserError: there are fewer cases than folds.

    Source: the reference's data_loading/data_module.py; scikit-learn's KFold(shuffle=True, random_state=12345).
    """
    names = np.array(sorted(cases))
    if len(names) < max(nfolds, 2):
        raise UserError(f"{len(names)} training cases cannot make {nfolds} folds; lower --nfolds or add cases")
    order = np.random.RandomState(FOLD_SEED).permutation(len(names))
    parts = [np.sort(part) for part in np.array_split(order, nfolds)]
    folds = tuple(Fold(train=tuple(np.delete(names, part).tolist()), val=tuple(names[part].tolist())) for part in parts)
    return Splits(version=FORMAT_VERSION, folds=folds)


def case_name(path: str | Path) -> str:
    """File name without `.nii` or `.nii.gz`."""
    return re.sub(r"\.nii(\.gz)?$", "", Path(path).name)


def check_case(files: CaseFiles, image: Volume, label: Volume | None, dataset: Dataset) -> list[str]:
    """Everything that makes a case unfit for training or prediction, each as one phrase; empty if it is sound."""
    problems = []
    channels = len(image.array)
    if channels != len(dataset.channels):
        expected = f"{len(dataset.channels)} ({', '.join(dataset.channels)})"
        problems.append(f"{files.images[0]} has {channels} channels, {DESCRIPTION} names {expected}")
    num_odd = int(image.array.size - np.count_nonzero(np.isfinite(image.array)))
    if num_odd:
        problems.append(f"{files.images[0]} has {num_odd} NaN or infinite intensities")
    if not image.array.any():
        problems.append(f"{files.images[0]} is empty: all intensities are zero")
    if label is None:
        return problems
    grid, label_grid = image.geometry, label.geometry
    if label_grid.shape_xyz != grid.shape_xyz:
        problems.append(f"{files.label} has shape {label_grid.shape_xyz}, its image {grid.shape_xyz}")
    else:
        distance_mm = grid_difference_mm(grid.affine, label_grid.affine, grid.shape_xyz)
        if distance_mm > GRID_TOLERANCE_MM:
            problems.append(f"{files.label} lies {distance_mm:.3g} mm away from its image (orientation or origin)")
    known = sorted({*dataset.labels.values, dataset.labels.ignore_value} - {None})
    unknown = np.unique(label.array[~np.isin(label.array, known)])
    if unknown.size:
        shown = ", ".join(map(str, unknown[:10]))
        problems.append(f"{files.label} has label values that {DESCRIPTION} does not name: {shown}")
    return problems


def _task_number(name: str) -> int | None:
    match = re.match(r"Task(\d+)(?:_|$)", name)
    return int(match.group(1)) if match else None


def _read_description(source: Path) -> dict[str, Any]:
    try:
        content = json.loads(source.read_text(encoding="utf-8-sig"))
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


def _parse_cases(content: dict, section: str, folder: Path, problems: list[str]) -> tuple[CaseFiles, ...]:
    entries = content.get(section, [])
    if not isinstance(entries, list):
        problems.append(f"{section!r} must be a list of cases")
        return ()
    cases = []
    for number, entry in enumerate(entries):
        entry = entry if isinstance(entry, dict) else {"image": entry}
        images, label = entry.get("image"), entry.get("label")
        per_channel = isinstance(images, list)
        images = images if per_channel else [images]
        needed = [*images, *([label] if label is not None or section == "training" else [])]
        faults = [fault for path in needed if (fault := _path_fault(path))]
        if faults or not images:
            problems.extend(f"{section}[{number}]: {fault}" for fault in faults or ["no image"])
            continue
        name = case_name(images[0])
        cases.append(
            CaseFiles(
                case=re.sub(r"_\d{4}$", "", name) if per_channel else name,
                images=tuple(folder / path for path in images),
                label=None if label is None else folder / label,
            )
        )
    counts = Counter(case.case for case in cases)
    problems.extend(f"{section}: {n} cases are called {name!r}" for name, n in counts.items() if n > 1)
    return tuple(cases)


def _path_fault(path: Any) -> str | None:
    if not isinstance(path, str):
        return f"a case needs an 'image' and, for training, a 'label' path, got {path!r}"
    if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == "..":
        return f"{path} leaves the folder of the task"
    return None if re.search(r"[^/]\.nii(\.gz)?$", path) else f"{path} is not .nii or .nii.gz"


def _require_files(cases: Sequence[CaseFiles], source: Path) -> None:
    paths = [path for case in cases for path in (*case.images, case.label) if path is not None]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise list_problems(
            f"{source} names {len(missing)} files that do not exist:",
            missing,
            advice="Add them or take them out.",
        )
