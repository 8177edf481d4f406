"""The files of each case of a task: as dataset.json lists them, or as the file names of nnU-Net tell.

Three ways are read: an image file with all channels, or a list of files with one channel each (`image` of an entry);
nnU-Net v1's entries `case.nii.gz` for the files `case_0000.nii.gz`, `case_0001.nii.gz`, ...; and nnU-Net v2's folders,
whose dataset.json names a `file_ending` and no file at all.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_preprocessing.dataset.findings import Finding
from utils.files import real_path
from utils.scan_names import (
    PICTURE_ENDINGS,
    VOLUME_ENDINGS,
    VOLUME_FORMATS,
    group_channels,
    left_out,
    scan_ending,
    scan_files,
    split_channel,
)
from utils.scan_names import scan_stem as case_name

FOLDERS = {"training": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}
"""Where nnU-Net v2 looks for the images and labels of a section."""
RESERVED_NAMES = (
    "plan", "plan.auto", "plan.edited", "plan.old", "splits", "splits.old", "fingerprint", "inspection", "run",
    "cases",
)  # fmt: skip
"""Files `<name>.json` in a folder of shards that are no case; a case of that name would overwrite one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The files of one case: one image with all channels or one per channel, and the label if any."""

    case: str
    images: tuple[Path, ...]
    label: Path | None

    def __str__(self) -> str:
        """The name of the case, by which messages call it."""
        return self.case


def parse_cases(
    content: dict[str, Any], section: str, folder: Path, num_channels: int
) -> tuple[tuple[CaseFiles, ...], list[Finding]]:
    """The cases of a section of dataset.json (`training` or `test`), and what is wrong with the entries left out.

    Args:
        content: dataset.json; its section is a list, or absent.
        section: `training`, where every case has a label, or `test`.
        folder: of the task; paths are relative to it, and whether files exist matters for nnU-Net's names only.
        num_channels: as dataset.json names them.
    """
    if "file_ending" in content and not {"training", "test", "dataset"} & set(content):
        cases, findings = _discover(str(content["file_ending"]), section, folder, num_channels)
    else:
        cases, findings = [], []
        entries = _listed(content, section)
        for number, entry in enumerate(entries):
            case, faults = _parse_entry(_with_slashes(entry, folder), section, folder, num_channels)
            findings += [Finding(kind="file", message=fault, case=f"{section}[{number}]") for fault in faults]
            cases += [] if case is None else [case]
    counts = Counter(case.case for case in cases)
    collisions = [f"{count} cases are called {name!r}" for name, count in counts.items() if count > 1]
    collisions += [fault for name in counts if (fault := name_fault(name))]
    kept = tuple(case for case in cases if not name_fault(case.case))
    return kept, findings + [Finding(kind="file", message=text, case=section) for text in collisions]


def name_fault(case: str) -> str:
    """Why a case cannot have this name; empty where it can."""
    if case.lower() not in RESERVED_NAMES:
        return ""
    return f"a case cannot be called {case!r}, as {case}.json is the program's own file; rename its files"


def _listed(content: dict[str, Any], section: str) -> list[Any]:
    """The section's entries. nnU-Net v2 may list its training cases as a mapping from name to `images` and `label`."""
    mapping = content.get("dataset")
    if section == "training" and section not in content and isinstance(mapping, dict):
        entries = [entry if isinstance(entry, dict) else {} for entry in mapping.values()]
        return [{"image": entry.get("images"), "label": entry.get("label")} for entry in entries]
    return content.get(section, [])


def _parse_entry(
    entry: Any, section: str, folder: Path, num_channels: int
) -> tuple[CaseFiles | None, list[str]]:  # fmt: skip
    entry = entry if isinstance(entry, dict) else {"image": entry}
    listed, label = entry.get("image"), entry.get("label")
    images = listed if isinstance(listed, list) else [listed]
    needed = [*images, *([label] if label is not None or section == "training" else [])]
    faults = [fault for path in needed if (fault := _path_fault(path, folder))]
    if faults or not images:
        return None, faults or ["no image"]
    name, paths = case_name(images[0]), [folder / path for path in images]
    if len(paths) > 1:
        name, _ = split_channel(name) or (name, 0)
    elif isinstance(listed, list):
        name = name.removesuffix("_0000")
    elif not paths[0].exists() and channel_file(paths[0], 0).is_file():
        paths = [channel_file(paths[0], channel) for channel in range(max(1, num_channels))]
    return CaseFiles(case=name, images=tuple(paths), label=None if label is None else folder / label), []


def channel_file(path: Path, channel: int) -> Path:
    """nnU-Net's name for the file of one channel: `case.nii.gz` becomes `case_0000.nii.gz`."""
    name = case_name(path)
    return path.with_name(f"{name}_{channel:04d}{path.name.removeprefix(name)}")


def _with_slashes(entry: Any, folder: Path) -> Any:
    """An entry whose paths can be used here: with / for Windows' \\, and relative where they lie in the folder."""
    if isinstance(entry, dict):
        return {key: _with_slashes(value, folder) for key, value in entry.items()}
    if isinstance(entry, list):
        return [_with_slashes(value, folder) for value in entry]
    if not isinstance(entry, str):
        return entry
    path = entry
    # A file may have a backslash in its name, where the system allows it.
    if "\\" in path and not (folder / path).exists():
        path = path.replace("\\", "/")
    if os.path.isabs(path):
        plain = Path(os.path.normpath(path))
        for root in (folder, real_path(folder)):
            if plain.is_relative_to(root):
                return plain.relative_to(root).as_posix()
    return path


def _path_fault(path: Any, folder: Path) -> str | None:
    if not isinstance(path, str):
        return f"a case needs an 'image' and, for training, a 'label' path, got {path!r}"
    if os.path.isabs(path) or re.match(r"[A-Za-z]:/", path):
        example = f"such as imagesTr/{Path(path).name}"
        return f"{path} leaves the folder of the task; write paths relative to {folder}, {example}"
    if os.path.normpath(path).split(os.sep)[0] == "..":
        return f"{path} leaves the folder of the task"
    return None if scan_ending(path) else f"{path} is no scan ({VOLUME_FORMATS}, or .png, .tif)"


def _discover(
    ending: str, section: str, folder: Path, num_channels: int
) -> tuple[list[CaseFiles], list[Finding]]:  # fmt: skip
    """The cases of a section of an nnU-Net v2 folder, by its files `<case>_<channel><ending>`."""
    ending = ending.lower()
    if ending not in (*VOLUME_ENDINGS, *PICTURE_ENDINGS):
        message = f"file_ending {ending} is not read; convert the files to one of {VOLUME_FORMATS}, .png, .tif"
        return [], [Finding(kind="file", message=message, case=section)] if section == "training" else []
    images, labels = (folder / name for name in FOLDERS[section])
    groups = group_channels(scan_files(images, ending), case_name)
    messages = {path: f"{path} has no channel number such as _0000 at the end of its name" for path in groups.others}
    for first, *twins in (files for channels in groups.cases.values() for files in channels.values()):
        messages |= {path: f"{path} and {first.name} are one channel of one case" for path in twins}
    named = {case_name(path): path for path in scan_files(labels, ending)}
    cases = []
    for case, found in sorted(groups.cases.items()):
        # A colour picture holds its channels in one file, as nnU-Net's do.
        in_one = ending in PICTURE_ENDINGS and set(found) == {0}
        numbers = range(1 if in_one else max(num_channels, max(found) + 1))
        label = named.get(case)
        if label is None and section == "training":
            label = labels / f"{case}{ending}"
        paths = tuple(found[c][0] if c in found else images / f"{case}_{c:04d}{ending}" for c in numbers)
        cases.append(CaseFiles(case=case, images=paths, label=label))
    findings = [Finding(kind="file", message=message, case=section) for _, message in sorted(messages.items())]
    other = [path.name for path in scan_files(images) if scan_ending(path).lower() != ending]
    for name in [*left_out(images), *other]:
        message = f"{images}/{name} is left out: cases are the files <case>_0000{ending} directly in {images.name}"
        findings.append(Finding(kind="file", message=message, case=section, is_remark=True))
    return cases, findings


def missing_files(cases: Sequence[CaseFiles]) -> list[Path]:
    """Files of the cases that do not exist."""
    paths = [path for case in cases for path in (*case.images, case.label) if path is not None]
    return [path for path in paths if not path.is_file()]
