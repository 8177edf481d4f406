"""Which files are NIfTI scans by their names, and what lies in a folder of scans besides.

`.nii` and `.nii.gz` count in upper and lower case (Windows and some archives write `.NII.GZ`), and a name may hold any
character that the file system allows, line breaks too.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_NIFTI = re.compile(r"(?s:.+?)(\.nii(?:\.gz)?)\Z", re.IGNORECASE)
_OTHER_SCAN = re.compile(
    r"(?s:.+)\.(?:nii\.(?:bz2|xz|zst|zip|tar|tgz)|hdr|img|img\.gz|mha|mhd|nrrd|nhdr|mgz|mgh|mnc|dcm|ima)\Z",
    re.IGNORECASE,
)
_CHANNEL = re.compile(r"(.+)_([0-9]{4})", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelGroups(Generic[T]):
    """Files put together by nnU-Net's names `<case>_0000`, `<case>_0001`, ...: one file for each channel of a case."""

    cases: dict[str, dict[int, list[T]]]
    """Case -> channel -> files; more than one where endings differ (`.nii`, `.nii.gz`)."""
    others: list[T]
    """Files whose names have no number of a channel."""


def nifti_ending(path: str | Path) -> str:
    """`.nii` or `.nii.gz` as the name has it, or an empty text where it is no NIfTI file."""
    match = _NIFTI.fullmatch(Path(path).name)
    return match[1] if match else ""


def nifti_stem(path: str | Path) -> str:
    """File name without `.nii` or `.nii.gz`."""
    name = Path(path).name
    return name.removesuffix(nifti_ending(name))


def split_channel(name: str) -> tuple[str, int] | None:
    """Case and channel of a name without ending: `case` and 1 of `case_0001`. None where it has no such number."""
    match = _CHANNEL.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def group_channels(files: Iterable[T], name: Callable[[T], str]) -> ChannelGroups[T]:
    """Files by case and channel, each in the order in which they come.

    Args:
        files: in any order.
        name: of a file, without its ending.
    """
    groups: ChannelGroups[T] = ChannelGroups(cases=defaultdict(lambda: defaultdict(list)), others=[])
    for file in files:
        found = split_channel(name(file))
        if found is None:
            groups.others.append(file)
        else:
            case, channel = found
            groups.cases[case][channel].append(file)
    return groups


def nifti_files(folder: Path, *endings: str) -> list[Path]:
    """The visible NIfTI files directly in a folder (none if it does not exist), in the order of their names.

    Links that lead nowhere are listed too: a scan that cannot be read is an error and not an empty place.

    Args:
        folder: to list.
        endings: `.nii`, `.nii.gz`; none means both.
    """
    wanted = endings or (".nii", ".nii.gz")
    there = folder.iterdir() if folder.is_dir() else ()
    # Names with a dot in front are no scans: macOS' "._name", and what a killed run left.
    return sorted(p for p in there if nifti_ending(p).lower() in wanted and not p.name.startswith(".") and _is_file(p))


def nifti_tree(folder: Path) -> list[Path]:
    """The visible NIfTI files in a folder and its sub-folders, those behind links too, each folder once."""
    found, seen = [], set()
    for place, folders, _ in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += nifti_files(Path(place))
    return sorted(found)


def left_out(folder: Path) -> list[str]:
    """What a reader of this one folder does not see although it may hold scans: one line for each.

    Sub-folders with NIfTI files, and files of other formats.
    """
    lines = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            inside = nifti_tree(path)
            if inside:
                lines.append(f"{path.name}/ (a folder with {len(inside)} NIfTI files, such as {inside[0].name})")
            elif nifti_ending(path):
                lines.append(f"{path.name}/ (a folder)")
        elif _OTHER_SCAN.fullmatch(path.name):
            lines.append(f"{path.name} (not NIfTI)")
        elif nifti_ending(path.name.strip()) and not nifti_ending(path):
            lines.append(f"{path.name!r} (blanks or line breaks after its ending)")
    return lines


def _is_file(path: Path) -> bool:
    return path.is_file() or (path.is_symlink() and not path.exists())
