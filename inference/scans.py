"""Which scans a path means: one file, a folder of files, the test images of a task's folder, or DICOM series.

A case is one file (a 4D file holds the channels in its last axis), or one 3D file per channel with the endings `_0000`,
`_0001`, ... before the ending. `utils.nifti` reads every format.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.dataset.case_files import case_name
from data_preprocessing.dataset.description_file import DESCRIPTION
from data_preprocessing.dataset.pairing import plain_name
from inference.dicom.channels import as_channels
from inference.dicom.headers import is_dicom
from inference.dicom.series import Series, find_series, holds_dicom
from inference.dicom.sources import reference_fault
from utils.errors import UserError, list_problems
from utils.nifti import Volume, read_header, read_image
from utils.scan_names import (
    VOLUME_FORMATS,
    group_channels,
    is_picture,
    left_out,
    scan_ending,
    scan_files,
    split_channel,
)

TEST_IMAGES = "imagesTs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scan:
    """The files of one case, and what is wrong with their number, if anything.

    Attributes:
        case: its name.
        images: its files; the slices where it is a DICOM series.
        problem: why it cannot be predicted.
        nameless: the same without names of files and series, where it has some.
        series: where `images` are one.
        mask_ending: of the file for its mask, which says the format.
        shown: what messages call it; empty: its first file.
        remarks: what was done to make it one scan.
    """

    case: str
    images: tuple[Path, ...]
    problem: str | None = None
    nameless: str = ""
    series: Series | None = None
    mask_ending: str = ".nii.gz"
    shown: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.shown or str(self.images[0])

    def header(self) -> tuple[tuple[int, ...], np.ndarray]:
        """Shape (x, y, z[, c]) and voxel-to-world matrix (4, 4) in mm; the voxels are not read.

        Raises:
            UserError: it cannot be read.
        """
        return read_header(self.images[0]) if self.series is None else self.series.header()

    def read(self) -> Volume:
        """Its image (C, S, A, R).

        Raises:
            UserError: it has a problem, or cannot be read.
        """
        if self.problem is not None:
            raise UserError(self.problem)
        return read_image(self.images) if self.series is None else self.series.read()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The scans of a path, and what looks like one there and is left out: one line for each."""

    scans: tuple[Scan, ...]
    left_out: tuple[str, ...]


def find_input(path: Path, num_channels: int, dicom_channels: Sequence[str] = ()) -> Found:
    """The scans that a path means, and what is left out. Raises as `find_scans` and `as_channels` do.

    `dicom_channels` say which series of a study is which channel (see `as_channels`).
    """
    if path.is_file() and not scan_ending(path) and is_dicom(path):
        return _series_scans(path, num_channels, dicom_channels)
    # Pictures beside DICOM files are what somebody made of them.
    if path.is_dir() and all(map(is_picture, scan_files(_images_folder(path)))) and holds_dicom(path):
        return _series_scans(path, num_channels, dicom_channels)
    if dicom_channels:
        raise UserError(f"--dicom_channels says which DICOM series are which channels, and {path} holds no DICOM")
    return Found(scans=find_scans(path, num_channels), left_out=tuple(unread_scans(path)))


def find_scans(path: Path, num_channels: int) -> tuple[Scan, ...]:
    """The scans of a file or folder, sorted by case, for a plan of `num_channels` channels; DICOM is not looked for.

    The files of a folder are taken, but not those of its sub-folders, except `imagesTs` of a task's folder; what
    `unread_scans` lists is left out.

    Raises:
        UserError: nothing there, no scan, or two files of one case name.
    """
    if path.is_file():
        if not scan_ending(path):
            raise UserError(f"--input {path} is no scan ({VOLUME_FORMATS}, .png, .tif)")
        channels = _siblings(path) if num_channels > 1 else [path]
        return tuple(_group(channels, num_channels))
    if not path.is_dir():
        raise UserError(f"--input {path} does not exist")
    folder = _images_folder(path)
    files = scan_files(folder)
    if not files:
        unread = "".join(f"\n  - left out: {line}" for line in left_out(folder))
        raise UserError(f"--input {folder} holds no scan ({VOLUME_FORMATS}, .png, .tif){unread}")
    scans = sorted(_group(files, num_channels), key=lambda scan: scan.case)
    twice = [case for case, count in Counter(scan.case for scan in scans).items() if count > 1]
    if twice:
        names = [f"{scan.case}: {scan.images[0].name}" for scan in scans if scan.case in twice]
        raise list_problems(
            f"--input {folder} has several files for one case:", names, advice="Rename or remove all but one of each."
        )
    return tuple(scans)


def _series_scans(place: Path, num_channels: int, dicom_channels: Sequence[str]) -> Found:
    """The DICOM series of a folder and of those below it, or the one that a file belongs to."""
    root = place if place.is_dir() else place.parent
    # `.` and `..` have a name elsewhere.
    name = plain_name(Path(os.path.abspath(root)).name) or "scan"
    found, left_out = find_series(place, name)
    if dicom_channels and found:
        channels = as_channels(found, dicom_channels, num_channels, root, name)
        found, left_out = list(channels.cases), [*left_out, *channels.left_out]
    if not found:
        lines = "".join(f"\n  - left out: {line}" for line in left_out)
        kind = "that --dicom_channels fits" if dicom_channels else "of slices with positions"
        raise UserError(f"--input {place} holds no DICOM series {kind}{lines}")
    twice = [name for name, count in Counter(series.name for series in found).items() if count > 1]
    if twice:
        raise list_problems(f"--input {place} has several series of one name:", twice, advice="Rename their folders.")
    several = (
        f"the model needs {num_channels} channels, and a DICOM series is one; say by --dicom_channels which series of "
        "a study is which channel"
    )
    scans = tuple(
        Scan(
            case=series.name, images=series.files, series=series, shown=series.name,
            problem=series.problem or (several if num_channels > 1 and not dicom_channels else None),
            nameless=series.nameless, remarks=series.remarks,
        )
        for series in found
    )  # fmt: skip
    return Found(scans=scans, left_out=tuple(left_out))


def with_reference(scan: Scan) -> Scan:
    """The scan, with a problem where a DICOM-SEG of its mask could not refer to its series."""
    fault = None if scan.series is None or scan.problem else reference_fault(scan.series)
    return scan if fault is None else dataclasses.replace(scan, problem=fault)


def unread_scans(path: Path) -> list[str]:
    """What looks like a scan in the folder that `find_scans` reads and is left out, one line for each."""
    return left_out(_images_folder(path)) if path.is_dir() else []


def _images_folder(path: Path) -> Path:
    """The folder itself, or `imagesTs` in it where it is a task's folder or has no scans of its own."""
    inner = path / TEST_IMAGES
    return inner if inner.is_dir() and ((path / DESCRIPTION).is_file() or not scan_files(path)) else path


def _siblings(path: Path) -> list[Path]:
    """All channels of the case that one file belongs to."""
    found = split_channel(case_name(path))
    if found is None:
        return [path]
    channels = group_channels(scan_files(path.parent), case_name).cases.get(found[0], {})
    same = [file for files in channels.values() for file in files]
    return [file for file in same if file == path or _is_3d(file)] if _is_3d(path) else [path]


def _single_channel(files: list[Path]) -> list[Scan]:
    """Each file a case, unless `_0000` stands beside further channels of its name."""
    numbers = group_channels(files, case_name).cases
    scans, several = [], {case: found for case, found in numbers.items() if len(found) > 1 and 0 in found}
    for case, found in several.items():
        images = tuple(file for same in found.values() for file in same)
        shown = ", ".join(f"_{number:04d}" for number in list(found)[:5]) + (", ..." if len(found) > 5 else "")
        rest = (
            "and the model takes one; leave only the right one there, or rename the files if each is a scan of its own"
        )
        problem = f"{images[0].parent} has the channels {shown} of {case}, {rest}"
        scans.append(Scan(case=case, images=images, problem=problem, nameless=f"there are channels {shown}, {rest}"))
    for file in files:
        name = case_name(file)
        numbered = split_channel(name)
        if numbered is None or numbered[0] not in several:
            # nnU-Net's way to name the images of a single channel; its labels lack the ending.
            scans.append(Scan(case=name.removesuffix("_0000") or name, images=(file,)))
    return scans


def _group(files: list[Path], num_channels: int) -> list[Scan]:
    if num_channels == 1:
        return _single_channel(files)
    numbered = {file for file in files if split_channel(case_name(file)) and _is_3d(file)}
    # A colour picture holds its channels in one file, as nnU-Net's `case_0000.png` do.
    scans = [
        Scan(case=case_name(file).removesuffix("_0000" if is_picture(file) else ""), images=(file,))
        for file in files if file not in numbered
    ]  # fmt: skip
    for case, channels in group_channels([file for file in files if file in numbered], case_name).cases.items():
        numbers, images = zip(*((number, file) for number in sorted(channels) for file in channels[number]))
        problem, nameless = None, ""
        if numbers != tuple(range(num_channels)):
            found = ", ".join(f"_{number:04d}" for number in numbers)
            wanted = f"_0000 to _{num_channels - 1:04d}"
            problem = f"{images[0].parent} has the channels {found} of {case}; the model needs {wanted}"
            nameless = f"there are channels {found}; the model needs {wanted}"
        scans.append(Scan(case=case, images=images, problem=problem, nameless=nameless))
    return scans


def _is_3d(file: Path) -> bool:
    """Whether a file holds one channel; a damaged one counts as a case of its own and is reported when it is read."""
    try:
        shape, _ = read_header(file)
    except UserError:
        return False
    return len(shape) == 3 or shape[3:] == (1,)
