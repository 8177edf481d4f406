"""The files of each case of a task: as dataset.json lists them, or as the file names of nnU-Net tell.

Three ways are read: an image file with all channels, or a list of files with one channel each (`image` of an entry);
nnU-Net v1's entries `case.nii.gz` for the files `case_0000.nii.gz`, `case_0001.nii.gz`, ...; and nnU-Net v2's folders,
whose dataset.json names a `file_ending` and no file at all.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_preprocessing.findings import Finding

FOLDERS = {"training": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}
"""Where nnU-Net v2 looks for the images and labels of a section."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseFiles:
    """The files of one case: one image with all channels or one per channel, and the label if any."""

    case: str
    images: tuple[Path, ...]
    label: Path | None


def case_name(path: str | Path) -> str:
    """File name without `.nii` or `.nii.gz`."""
    return re.sub(r"\.nii(\.gz)?$", "", Path(path).name)


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
            case, faults = _parse_entry(entry, section, folder, num_channels)
            findings += [Finding(kind="file", message=fault, case=f"{section}[{number}]") for fault in faults]
            cases += [] if case is None else [case]
    counts = Counter(case.case for case in cases)
    collisions = [f"{count} cases are called {name!r}" for name, count in counts.items() if count > 1]
    return tuple(cases), findings + [Finding(kind="file", message=text, case=section) for text in collisions]


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
    faults = [fault for path in needed if (fault := _path_fault(path))]
    if faults or not images:
        return None, faults or ["no image"]
    name, paths = case_name(images[0]), [folder / path for path in images]
    if len(paths) > 1:
        name = re.sub(r"_\d{4}$", "", name)
    elif isinstance(listed, list):
        name = name.removesuffix("_0000")
    elif not paths[0].exists() and channel_file(paths[0], 0).is_file():
        paths = [channel_file(paths[0], channel) for channel in range(max(1, num_channels))]
    return CaseFiles(case=name, images=tuple(paths), label=None if label is None else folder / label), []


def channel_file(path: Path, channel: int) -> Path:
    """nnU-Net's name for the file of one channel: `case.nii.gz` becomes `case_0000.nii.gz`."""
    name = case_name(path)
    return path.with_name(f"{name}_{channel:04d}{path.name.removeprefix(name)}")


def _path_fault(path: Any) -> str | None:
    if not isinstance(path, str):
        return f"a case needs an 'image' and, for training, a 'label' path, got {path!r}"
    if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == "..":
        return f"{path} leaves the folder of the task"
    return None if re.search(r"[^/]\.nii(\.gz)?$", path) else f"{path} is not .nii or .nii.gz"


def _discover(
    ending: str, section: str, folder: Path, num_channels: int
) -> tuple[list[CaseFiles], list[Finding]]:  # fmt: skip
    """The cases of a section of an nnU-Net v2 folder, by its files `<case>_<channel><ending>`."""
    if ending not in (".nii", ".nii.gz"):
        message = f"file_ending {ending} is not read; convert the files to .nii.gz"
        return [], [Finding(kind="file", message=message, case=section)] if section == "training" else []
    images, labels = (folder / name for name in FOLDERS[section])
    channels: dict[str, list[int]] = defaultdict(list)
    findings = []
    for path in nifti_files(images, ending):
        match = re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending))
        if match is None:
            message = f"{path} has no channel number such as _0000 at the end of its name"
            findings.append(Finding(kind="file", message=message, case=section))
        else:
            channels[match[1]].append(int(match[2]))
    cases = []
    for case, found in sorted(channels.items()):
        label = labels / f"{case}{ending}"
        cases.append(
            CaseFiles(
                case=case,
                images=tuple(images / f"{case}_{c:04d}{ending}" for c in range(max(num_channels, max(found) + 1))),
                label=label if section == "training" or label.is_file() else None,
            )
        )
    return cases, findings


def nifti_files(folder: Path, *endings: str) -> list[Path]:
    """The visible NIfTI files directly in a folder (none if it does not exist), in the order of their names."""
    there = folder.iterdir() if folder.is_dir() else ()
    endings = endings or (".nii", ".nii.gz")
    return sorted(p for p in there if p.name.endswith(tuple(endings)) and not p.name.startswith(".") and p.is_file())


def missing_files(cases: Sequence[CaseFiles]) -> list[Path]:
    """Files of the cases that do not exist."""
    paths = [path for case in cases for path in (*case.images, case.label) if path is not None]
    return [path for path in paths if not path.is_file()]
