"""Which files are scans by their names, and what lies in a folder of scans besides.

Endings count in upper and lower case (Windows and some archives write `.NII.GZ`), and a name may hold any character
that the file system allows, line breaks too. Pictures (`.png`, `.tif`) are scans of one slice; since many programs
write pictures of other things, they count only where a folder holds no volumes.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

NIFTI_ENDINGS = (".nii.gz", ".nii")
VOLUME_ENDINGS = (*NIFTI_ENDINGS, ".nrrd", ".nhdr", ".mha", ".mhd")
PICTURE_ENDINGS = (".png", ".tif", ".tiff")
VOLUME_FORMATS = ", ".join(VOLUME_ENDINGS)
"""For messages."""

_SCAN = re.compile(rf"(?s:.+?)({'|'.join(map(re.escape, (*VOLUME_ENDINGS, *PICTURE_ENDINGS)))})\Z", re.IGNORECASE)
_OTHER_SCAN = re.compile(
    r"(?s:.+)\.(?:nii\.(?:bz2|xz|zst|zip|tar|tgz)|hdr|img|img\.gz|mgz|mgh|mnc|dcm|ima)\Z", re.IGNORECASE
)
_CHANNEL = re.compile(r"(.+)_([0-9]{4})", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelGroups(Generic[T]):
    """Files put together by nnU-Net's names `<case>_0000`, `<case>_0001`, ...: one file for each channel of a case."""

    cases: dict[str, dict[int, list[T]]]
    """Case -> channel -> files; more than one where endings differ (`.nii`, `.nrrd`)."""
    others: list[T]
    """Files whose names have no number of a channel."""


def scan_ending(path: str | Path) -> str:
    """The ending of a volume or picture as the name has it, or an empty text where it is no scan."""
    match = _SCAN.fullmatch(Path(path).name)
    return match[1] if match else ""


def scan_stem(path: str | Path) -> str:
    """File name without the ending of a scan."""
    name = Path(path).name
    return name.removesuffix(scan_ending(name))


def is_picture(path: str | Path) -> bool:
    """Whether a file is one slice as a picture, by its name."""
    return scan_ending(path).lower() in PICTURE_ENDINGS


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


def scan_files(folder: Path, *endings: str) -> list[Path]:
    """The visible scans directly in a folder (none if it does not exist), in the order of their names.

    Links that lead nowhere are listed too: a scan that cannot be read is an error and not an empty place.

    Args:
        folder: to list.
        endings: in lower case; none means volumes, and where there are none, pictures.
    """
    there = folder.iterdir() if folder.is_dir() else ()
    # Names with a dot in front are no scans: macOS' "._name", and what a killed run left.
    files = sorted(p for p in there if scan_ending(p) and not p.name.startswith(".") and _is_file(p))
    if endings:
        return [path for path in files if scan_ending(path).lower() in endings]
    return [path for path in files if not is_picture(path)] or files


def scan_tree(folder: Path) -> list[Path]:
    """The visible scans in a folder and its sub-folders, those behind links too, each folder once.

    Pictures count where there is no volume in the whole tree.
    """
    found, seen = [], set()
    for place, folders, _ in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += scan_files(Path(place))
    found.sort()
    return [path for path in found if not is_picture(path)] or found


def left_out(folder: Path, known: Collection[str] = ()) -> list[str]:
    """What a reader of this one folder does not see although it may hold scans: one line for each.

    Sub-folders with volumes, and files of other formats; none of the names in `known`.
    """
    lines = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or path.name in known:
            continue
        if path.is_dir():
            inside = [file for file in scan_tree(path) if not is_picture(file)]
            if inside:
                lines.append(f"{path.name}/ (a folder with {len(inside)} scans, such as {inside[0].name})")
            elif scan_ending(path) and not is_picture(path):
                lines.append(f"{path.name}/ (a folder)")
        elif _OTHER_SCAN.fullmatch(path.name):
            lines.append(f"{path.name} (not read here)")
        elif scan_ending(path.name.strip()) and not scan_ending(path):
            lines.append(f"{path.name!r} (blanks or line breaks after its ending)")
    return lines


def _is_file(path: Path) -> bool:
    return path.is_file() or (path.is_symlink() and not path.exists())
