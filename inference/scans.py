"""Which scans a path means: one file, a folder of files, or the test images of a task's folder.

A case is one file (a 4D file holds the channels in its last axis), or one 3D file per channel with the endings `_0000`,
`_0001`, ... before `.nii` or `.nii.gz`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path

from data_preprocessing.dataset.case_files import case_name
from data_preprocessing.dataset.description_file import DESCRIPTION
from utils.errors import UserError, list_problems
from utils.nifti import read_header
from utils.scan_names import left_out, nifti_ending, nifti_files

TEST_IMAGES = "imagesTs"
_CHANNEL = re.compile(r"(.+)_(\d{4})", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """The files of one case, and what is wrong with their number, if anything."""

    case: str
    images: tuple[Path, ...]
    problem: str | None = None


def find_scans(path: Path, num_channels: int) -> tuple[Scan, ...]:
    """The scans of a file or folder, sorted by case, for a plan of `num_channels` channels.

    The files of a folder are taken, but not those of its sub-folders, except `imagesTs` of a task's folder; what
    `unread_scans` lists is left out.

    Raises:
        UserError: nothing there, no NIfTI file, or two files of one case name.
    """
    if path.is_file():
        if not nifti_ending(path):
            raise UserError(f"--input {path} is not a NIfTI file (.nii or .nii.gz)")
        channels = _siblings(path) if num_channels > 1 else [path]
        return tuple(_group(channels, num_channels))
    if not path.is_dir():
        raise UserError(f"--input {path} does not exist")
    folder = _images_folder(path)
    files = nifti_files(folder)
    if not files:
        unread = "".join(f"\n  - left out: {line}" for line in left_out(folder))
        raise UserError(f"--input {folder} holds no NIfTI file (.nii or .nii.gz){unread}")
    scans = sorted(_group(files, num_channels), key=lambda scan: scan.case)
    twice = [case for case, count in Counter(scan.case for scan in scans).items() if count > 1]
    if twice:
        names = [f"{scan.case}: {scan.images[0].name}" for scan in scans if scan.case in twice]
        raise list_problems(
            f"--input {folder} has several files for one case:", names, advice="Rename or remove all but one of each."
        )
    return tuple(scans)


def unread_scans(path: Path) -> list[str]:
    """What looks like a scan in the folder that `find_scans` reads and is left out, one line for each."""
    return left_out(_images_folder(path)) if path.is_dir() else []


def _images_folder(path: Path) -> Path:
    """The folder itself, or `imagesTs` in it where it is a task's folder or has no scans of its own."""
    inner = path / TEST_IMAGES
    return inner if inner.is_dir() and ((path / DESCRIPTION).is_file() or not nifti_files(path)) else path


def _siblings(path: Path) -> list[Path]:
    """All channels of the case that one file belongs to."""
    match = _CHANNEL.fullmatch(case_name(path))
    if match is None:
        return [path]
    files = nifti_files(path.parent)
    names = (_CHANNEL.fullmatch(case_name(file)) for file in files)
    same = [file for file, name in zip(files, names) if name and name.group(1) == match.group(1)]
    return [file for file in same if file == path or _is_3d(file)] if _is_3d(path) else [path]


def _single_channel(files: list[Path]) -> list[Scan]:
    """Each file a case, unless `_0000` stands beside further channels of its name."""
    numbers: dict[str, dict[str, list[Path]]] = {}
    for file in files:
        match = _CHANNEL.fullmatch(case_name(file))
        if match:
            numbers.setdefault(match[1], {}).setdefault(match[2], []).append(file)
    scans, several = [], {case: found for case, found in numbers.items() if len(found) > 1 and "0000" in found}
    for case, found in several.items():
        images = tuple(file for same in found.values() for file in same)
        shown = ", ".join(f"_{number}" for number in list(found)[:5]) + (", ..." if len(found) > 5 else "")
        problem = (
            f"{images[0].parent} has the channels {shown} of {case}, and the model takes one; leave only the right one "
            "there, or rename the files if each is a scan of its own"
        )
        scans.append(Scan(case=case, images=images, problem=problem))
    for file in files:
        name = case_name(file)
        match = _CHANNEL.fullmatch(name)
        if match is None or match[1] not in several:
            # nnU-Net's way to name the images of a single channel; its labels lack the ending.
            scans.append(Scan(case=name.removesuffix("_0000") or name, images=(file,)))
    return scans


def _group(files: list[Path], num_channels: int) -> list[Scan]:
    if num_channels == 1:
        return _single_channel(files)
    scans: list[Scan] = []
    groups: dict[str, list[tuple[int, Path]]] = {}
    for file in files:
        name = case_name(file)
        match = _CHANNEL.fullmatch(name)
        if match is None or not _is_3d(file):
            scans.append(Scan(case=name, images=(file,)))
        else:
            groups.setdefault(match.group(1), []).append((int(match.group(2)), file))
    for case, channels in groups.items():
        numbers, images = zip(*sorted(channels))
        problem = None
        if numbers != tuple(range(num_channels)):
            found = ", ".join(f"_{number:04d}" for number in numbers)
            wanted = f"_0000 to _{num_channels - 1:04d}"
            problem = f"{images[0].parent} has the channels {found} of {case}; the model needs {wanted}"
        scans.append(Scan(case=case, images=images, problem=problem))
    return scans


def _is_3d(file: Path) -> bool:
    """Whether a file holds one channel; a damaged one counts as a case of its own and is reported when it is read."""
    try:
        shape, _ = read_header(file)
    except UserError:
        return False
    return len(shape) == 3 or shape[3:] == (1,)
