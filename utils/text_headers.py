"""Headers of NRRD and MetaImage files that end the whole process in SimpleITK's readers, or make up voxels there.

Those are written in C and trust the text: lines that are too long for their messages, names with a percent sign,
numbers of axes. So all that is looked through before they see a file.
"""

from __future__ import annotations

import re
from pathlib import Path

from utils.errors import UserError

LONGEST_LINE = 900
"""Characters of a line of an NRRD header that its reader may have to quote, for which it has room for about 1,000."""
_HEADER_BYTES = 1 << 20
_BLANK_LINE = re.compile(rb"\n\r?\n")
_META_AXES = re.compile(rb"^[ \t]*NDims[ \t]*[=:][=: \t]*([^\r\n]*)", re.MULTILINE)
_META_VOXELS = re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:][=: \t]*([^\r\n]*)", re.MULTILINE)


def require_harmless(path: Path) -> None:
    """Refuse an NRRD or MetaImage file whose header its reader does not survive, or takes voxels from nowhere for.

    Raises:
        UserError: a line is too long, the number of axes is none, or its voxels lie in several
            files (MetaImage: what such files lack would be what lay in memory).
    """
    with open(path, "rb") as file:
        start = file.read(_HEADER_BYTES)
    if start[:4].upper() == b"NRRD":
        end = _BLANK_LINE.search(start)
        _require_short_lines(path, start if end is None else start[: end.start()])
    else:
        _require_plain_meta(path, start)


def require_text_name(path: Path) -> None:
    """Refuse a path that cannot be given to a library that wants UTF-8 and ends the process otherwise.

    Raises:
        UserError: it is none.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "replace").decode()
        raise UserError(f"{shown} has a name that is no UTF-8; rename it", files=[path]) from None


def _require_short_lines(path: Path, head: bytes) -> None:
    for line in re.split(rb"[\r\n]+", head):
        if len(line) > LONGEST_LINE and not line.startswith(b"#") and b":=" not in line[:LONGEST_LINE]:
            raise UserError(
                f"{path} has a line of {len(line)} characters in its NRRD header, which its reader takes "
                f"{LONGEST_LINE} of; store it again"
            )


def _require_plain_meta(path: Path, start: bytes) -> None:
    voxels = _META_VOXELS.search(start)
    head = start if voxels is None else start[: voxels.start()]
    axes = [found.strip() for found in _META_AXES.findall(head)]
    if axes and (len(axes) > 1 or axes[0] not in (b"2", b"3", b"4")):
        raise UserError(f"{path} does not say once that it has 2, 3 or 4 axes (NDims); store it again")
    named = b"" if voxels is None else voxels[1].strip()
    if named.startswith(b"LIST") or b"%" in named:
        raise UserError(
            f"{path} has its voxels in several files, or in one whose name is read as several (LIST, %), which cannot "
            "be checked; store it as one file"
        )
