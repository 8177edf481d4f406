"""The scans in a folder of DICOM files: series by their UID, each a volume or named with what is wrong with it."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.dataset.pairing import plain_name
from inference.dicom.arranging import Stack, arrange, fitting
from inference.dicom.headers import DicomFile, is_dicom, load_pydicom, read_file
from inference.dicom.volumes import split_volumes
from inference.dicom.voxels import read_frames
from utils.errors import UserError
from utils.nifti import Volume, from_working, working_grid

INDEX = "DICOMDIR"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """A series that makes a volume, or the `problem` why it makes none; `name` is that of its folder.

    `uid`, `study`, `number`, `description` and `modality` are those of its header. `others` are further channels of the
    same grid, after this one. `nameless` is the problem without names of series, where it has some.
    """

    name: str
    files: tuple[Path, ...]
    stack: Stack | None
    problem: str | None = None
    nameless: str = ""
    uid: str = ""
    study: str = ""
    number: int | None = None
    description: str = ""
    modality: str = ""
    others: tuple[Series, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was done to make it a scan, of all channels."""
        stacks = [each.stack for each in (self, *self.others) if each.stack is not None]
        return tuple(dict.fromkeys(remark for stack in stacks for remark in stack.remarks))

    def header(self) -> tuple[tuple[int, ...], np.ndarray]:
        """Shape (x, y, z[, c]) and voxel-to-world matrix (4, 4) in mm.

        Raises:
            UserError: its problem.
        """
        geometry = self.require_stack().geometry
        channels = (1 + len(self.others),) if self.others else ()
        return (*geometry.shape_xyz, *channels), np.array(geometry.affine)

    def read(self) -> Volume:
        """The scan (C, S, A, R) float32, in the units of the rescaled values: HU for CT.

        Raises:
            UserError: its problem, or slices that cannot be unpacked.
        """
        stack = self.require_stack()
        grid, spacing_mm = working_grid(stack.geometry.shape_xyz, np.array(stack.geometry.affine))
        array: np.ndarray = np.empty((1 + len(self.others), *grid), np.float32)
        for channel, series in zip(array, (self, *self.others)):
            # Grids agree within a tolerance; all are turned as the first one is.
            _fill(from_working(channel, stack.geometry), series.require_stack())
        return Volume(array=array, spacing_mm=spacing_mm, geometry=stack.geometry)

    def require_stack(self) -> Stack:
        """Its slices in order.

        Raises:
            UserError: its problem.
        """
        if self.stack is None:
            raise UserError(self.problem or "no volume")
        return self.stack


def _fill(stored: np.ndarray, stack: Stack) -> None:
    """Read the slices into an array (x, y, z); what a tilted gantry has not seen is as dark as the darkest voxel."""
    tilt = stack.tilt
    for index, values in read_frames(stack.slices):
        stored[:, :, index] = (values if tilt is None else tilt.straighten(values, index)).T
    if tilt is not None:
        np.nan_to_num(stored, copy=False, nan=float(np.nanmin(stored)), posinf=None, neginf=None)


def holds_dicom(place: Path) -> bool:
    """Whether there is a visible DICOM file in a folder or below it, by its first bytes."""
    return any(map(is_dicom, _tree(place)))


def find_series(place: Path, name: str) -> tuple[list[Series], list[str]]:
    """The series of a folder and of all folders below it, in the order of their names, and what is left out.

    Args:
        place: the folder; or a file, which means the series in its folder that it belongs to.
        name: what series directly in the folder are called.

    Raises:
        UserError: pydicom is not installed.
    """
    load_pydicom()
    root = place if place.is_dir() else place.parent
    there = [path for path in _tree(root) if path.name != INDEX]
    paths = [path for path in there if is_dicom(path)]
    others = len(there) - len(paths) if place.is_dir() else 0
    left_out = [f"{others} files that are no DICOM"] if others else []
    groups: dict[str, list[DicomFile]] = defaultdict(list)
    skipped: Counter[str] = Counter()
    for path in paths:
        try:
            file = read_file(path)
        except UserError:
            skipped["damaged headers"] += 1
            continue
        if file is None:
            skipped["no DICOM, against their names"] += 1
        elif file.skipped:
            skipped[file.skipped] += 1
        else:
            groups[file.series].append(file)
    left_out += [f"{count} files: {why}" for why, count in skipped.items()]
    if not place.is_dir():
        groups = {uid: files for uid, files in groups.items() if any(file.path == place for file in files)}
    return _named(list(groups.values()), root, name), left_out


def _named(groups: Sequence[Sequence[DicomFile]], root: Path, name: str) -> list[Series]:
    """Series called after their folders; where one holds several, with the series' numbers."""
    folders = [common_name([file.path for file in files], root) or name for files in groups]
    numbers = [files[0].series_number for files in groups]
    by_folder: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(groups)), key=lambda i: (numbers[i] is None, numbers[i] or 0, groups[i][0].series)):
        by_folder[folders[index]].append(index)
    found = []
    for folder, members in by_folder.items():
        given = [numbers[index] for index in members]
        are_told_apart = None not in given and len(set(given)) == len(given)
        for count, index in enumerate(members, start=1):
            number = numbers[index] if are_told_apart else count
            found += _volumes(folder if len(members) == 1 else f"{folder}_{number}", groups[index])
    return sorted(found, key=lambda series: series.name)


def _volumes(name: str, files: Sequence[DicomFile]) -> list[Series]:
    """The volumes of a series, each as a series of its own."""
    first = files[0]
    whole = Series(
        name=name, files=tuple(sorted(file.path for file in files)), stack=None, uid=first.series, study=first.study,
        number=first.series_number, description=first.description, modality=first.modality,
    )  # fmt: skip
    try:
        kept, remarks = fitting([each for file in files for each in file.slices])
    except UserError as error:
        return [dataclasses.replace(whole, problem=str(error))]
    found = []
    for part in split_volumes(kept):
        # A multi-frame file may be one of several volumes' files.
        own = whole.files if not part.label else tuple(sorted({each.path for each in part.slices}))
        one = dataclasses.replace(whole, files=own, name="_".join(filter(None, (name, part.label))))
        try:
            stack = arrange(part.slices, [*remarks, *filter(None, [part.remark])])
            found.append(dataclasses.replace(one, stack=stack))
        except UserError as error:
            found.append(dataclasses.replace(one, problem=str(error)))
    return found


def common_name(paths: Sequence[Path], root: Path) -> str:
    """The path below `root` of the folder that holds all files of a series, as one word."""
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return plain_name("_".join(common.relative_to(root).parts)) if common != root else ""


def _tree(root: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(root):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))
