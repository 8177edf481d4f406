"""The packed voxels of NRRD and MetaImage files: where they lie, and whether they are whole.

SimpleITK does not look at the sums that they carry, nor at how many bytes there are: it would give other voxels in
silence. Headers are read as its readers read them, which take blanks, several spellings and files of their own.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from utils.errors import UserError

_CHUNK_BYTES = 1 << 20
_NRRD_PACKED = re.compile(rb"(?:^|[\r\n])[ \t]*encoding[ \t]*:[ \t]*gz", re.IGNORECASE)
_NRRD_FILE = re.compile(rb"(?:^|[\r\n])[ \t]*data[ \t]*file[ \t]*:(?!=)[ \t]*([^\r\n]*)", re.IGNORECASE)
_NRRD_END = re.compile(rb"\n\r?\n")
_NRRD_SKIP = re.compile(rb"(?:^|[\r\n])[ \t]*line[ \t]*skip[ \t]*:[ \t]*0*[1-9]", re.IGNORECASE)
_META_PACKED = re.compile(rb"^[ \t]*CompressedData[ \t]*[=:][=: \t]*[Tt1]", re.MULTILINE)
_META_MEANT = re.compile(rb"^[ \t]*compresseddata(size)?[=: \t]*[ty1-9]", re.IGNORECASE | re.MULTILINE)
"""What says that voxels are packed, also in words that MetaImage's reader takes for plain voxels."""
_META_SIZE = re.compile(rb"^[ \t]*CompressedDataSize[ \t]*[=:][=: \t]*(\d{1,18})[ \t]*\r?$", re.MULTILINE)
_META_SKIP = re.compile(rb"^[ \t]*headersize[ \t]*[=:][=: \t]*-?0*[1-9]", re.IGNORECASE | re.MULTILINE)
_META_FILE = re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:][=: \t]*([^\r\n]*)\r?\n?", re.MULTILINE)


def find_packed(path: Path) -> tuple[Path, int] | None:
    """The file of the packed voxels of an NRRD or MetaImage file, and where in it they begin; None: not packed.

    Raises:
        UserError: they are packed, and not where the header says, or in a way that cannot be checked.
    """
    with open(path, "rb") as file:
        start = file.read(_CHUNK_BYTES)
    return _find_nrrd(path, start) if start[:4].upper() == b"NRRD" else _find_meta(path, start)


def require_undamaged(path: Path) -> None:
    """Check the sums that the packed voxels of an NRRD or MetaImage file carry.

    Raises:
        UserError: they do not fit, or bytes are missing.
    """
    found = find_packed(path)
    if found is None:
        return
    packed, offset = found
    unpacker, waiting = zlib.decompressobj(wbits=47), b""
    with open(packed, "rb") as file:
        file.seek(offset)
        try:
            while not unpacker.eof and (waiting := waiting or file.read(_CHUNK_BYTES)):
                unpacker.decompress(waiting, _CHUNK_BYTES)
                waiting = unpacker.unconsumed_tail
        except zlib.error:
            raise UserError(f"{packed} is damaged; copy or download it again") from None
    if not unpacker.eof:
        raise UserError(f"{packed} is truncated; copy or download it again")


def _find_nrrd(path: Path, start: bytes) -> tuple[Path, int] | None:
    end = _NRRD_END.search(start)
    head = start if end is None else start[: end.start() + 1]
    if not _NRRD_PACKED.search(head):
        return None
    if re.search(rb"\r(?!\n)", head) or _NRRD_SKIP.search(head):
        raise _unchecked(path)
    named = _NRRD_FILE.search(head)
    if named is not None:
        return _beside(path, named[1]), 0
    if end is None:
        raise _unchecked(path)
    return path, end.end()


def _find_meta(path: Path, start: bytes) -> tuple[Path, int] | None:
    last = _META_FILE.search(start)
    head = start if last is None else start[: last.start()]
    if not _META_MEANT.search(head):
        return None
    is_known = _META_PACKED.search(head) is not None
    size = _META_SIZE.search(head)
    if not is_known or last is None or size is None or _META_SKIP.search(head):
        raise _unchecked(path)
    is_local = last[1].strip().lower() == b"local"
    packed, offset = (path, last.end()) if is_local else (_beside(path, last[1]), 0)
    stated, found = int(size[1]), packed.stat().st_size - offset
    if found < stated:
        raise UserError(f"{packed} is truncated; copy or download it again")
    if found > stated:
        raise UserError(
            f"{packed} is damaged: it has {found} bytes of packed voxels, and its header says {stated} "
            "(CompressedDataSize); copy or download it again"
        )
    return packed, offset


def _beside(path: Path, named: bytes) -> Path:
    """The file of the voxels that a header names, seen from the header's folder."""
    name = named.strip().decode("utf-8", "surrogateescape")
    if not name or "%" in name or name.split()[0].upper() == "LIST":
        raise UserError(f"{path} has packed voxels in several files, which cannot be checked; store it as one file")
    found = path.parent / name
    if not found.is_file():
        raise UserError(f"{path} names a file of voxels, {found}, that does not exist")
    return found


def _unchecked(path: Path) -> UserError:
    return UserError(
        f"{path} has packed voxels, and a header that does not say as it should where they begin and how many bytes "
        "they are; store it again, by SimpleITK or without packing"
    )
