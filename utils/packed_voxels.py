"""The packed voxels of NRRD and MetaImage files: where they lie, and whether they are whole.

SimpleITK does not look at the sums that they carry, nor at how many bytes there are: it would give other voxels in
silence. Headers are read as its readers read them, which take blanks, several spellings and files of their own.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from pathlib import Path

from utils.errors import UserError

_CHUNK_BYTES = 1 << 20
_GZIP, _GZIP_OR_ZLIB = 31, 47
_GZIP_MAGIC = b"\x1f\x8b"
_NRRD_PACKED = re.compile(rb"(?:^|[\r\n])[ \t]*encoding[ \t]*:[ \t]*gz", re.IGNORECASE)
_NRRD_FILE = re.compile(rb"(?:^|[\r\n])[ \t]*data[ \t]*file[ \t]*:(?!=)[ \t]*([^\r\n]*)", re.IGNORECASE)
_NRRD_END = re.compile(rb"\n\r?\n")
_NRRD_SKIP = re.compile(rb"(?:^|[\r\n])[ \t]*line[ \t]*skip[ \t]*:[ \t]*0*[1-9]", re.IGNORECASE)
_META_PACKED = re.compile(rb"^[ \t]*CompressedData[ \t]*[=:][=: \t]*[Tt1]", re.MULTILINE)
_META_SAID = re.compile(rb"^[ \t]*compresseddata[ \t]*[=:]", re.IGNORECASE | re.MULTILINE)
_META_MEANT = re.compile(rb"^[ \t]*compresseddata[=: \t]*[ty1-9]", re.IGNORECASE | re.MULTILINE)
_META_MEANT_BY_SIZE = re.compile(rb"^[ \t]*compresseddatasize[=: \t]*[1-9]", re.IGNORECASE | re.MULTILINE)
"""What says that voxels are packed, also in words that MetaImage's reader takes for plain voxels."""
_META_SIZE_SAID = re.compile(rb"^[ \t]*compresseddatasize[ \t]*[=:]", re.IGNORECASE | re.MULTILINE)
_META_SIZE = re.compile(rb"^[ \t]*CompressedDataSize[ \t]*[=:][=: \t]*(\d{1,18})[ \t]*\r?$", re.MULTILINE)
_NRRD_SEVERAL = re.compile(r"LIST|.*%\d*d")
"""Names of voxels that SimpleITK's reader takes for several files, in these letters; `utils.text_headers` has those of
MetaImage, which are refused packed or not."""
_META_SKIP = re.compile(rb"^[ \t]*headersize[ \t]*[=:][=: \t]*-?0*[1-9]", re.IGNORECASE | re.MULTILINE)
_META_FILE = re.compile(rb"^[ \t]*ElementDataFile[ \t]*[=:][=: \t]*([^\r\n]*)\r?\n?", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """Packed voxels: `num_bytes` of `path` from `offset` on; None: all that follow. `wbits` is zlib's word for how."""

    path: Path
    offset: int
    num_bytes: int | None
    wbits: int


def find_packed(path: Path) -> Packed | None:
    """The packed voxels of an NRRD or MetaImage file; None: they are not packed.

    Raises:
        UserError: they are packed, and not where the header says, or in a way that cannot be checked.
    """
    with open(path, "rb") as file:
        start = file.read(_CHUNK_BYTES)
    return _find_nrrd(path, start) if start[:4].upper() == b"NRRD" else _find_meta(path, start)


def require_undamaged(path: Path, least_bytes: int) -> None:
    """Check the sums that the packed voxels of an NRRD or MetaImage file carry, and that they are enough.

    Args:
        path: of the header.
        least_bytes: what its voxels are unpacked. A reader of MetaImage leaves what is missing as memory was.

    Raises:
        UserError: the sums do not fit, or bytes are missing.
    """
    packed = find_packed(path)
    if packed is None:
        return
    try:
        found = _unpacked_bytes(packed)
    except EOFError:
        raise _broken(packed.path, "is truncated") from None
    except zlib.error:
        raise _broken(packed.path, "is damaged") from None
    if found < least_bytes:
        said = f"it unpacks to {found} bytes, and its header says {least_bytes}"
        raise _broken(packed.path, f"is truncated: {said}")


def _unpacked_bytes(packed: Packed) -> int:
    """How many bytes the voxels unpack to; what follows their last stream, such as an end of line, is left alone.

    Raises:
        EOFError: a stream has no end.
        zlib.error: a stream is damaged.
    """
    found, left = 0, packed.num_bytes
    unpacker = zlib.decompressobj(wbits=packed.wbits)
    with open(packed.path, "rb") as file:
        file.seek(packed.offset)
        waiting = b""
        while True:
            if len(waiting) < len(_GZIP_MAGIC):
                part = file.read(_CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES))
                left = None if left is None else left - len(part)
                waiting += part
            if unpacker.eof:
                # NRRD's reader goes on with further streams, as gzip does, and MetaImage's does not.
                if packed.wbits != _GZIP or not waiting.startswith(_GZIP_MAGIC):
                    return found
                unpacker = zlib.decompressobj(wbits=packed.wbits)
            if not waiting:
                raise EOFError
            found += len(unpacker.decompress(waiting, _CHUNK_BYTES))
            waiting = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail


def _find_nrrd(path: Path, start: bytes) -> Packed | None:
    end = _NRRD_END.search(start)
    head = start if end is None else start[: end.start() + 1]
    if not _NRRD_PACKED.search(head):
        return None
    if re.search(rb"\r(?!\n)", head) or _NRRD_SKIP.search(head):
        raise _unchecked(path)
    named = _NRRD_FILE.search(head)
    if named is not None:
        if _NRRD_SEVERAL.match(named[1].strip().decode("latin-1")):
            raise UserError(
                f"{path} has packed voxels in several files, or in one whose name is read as several (LIST, %), which "
                "cannot be checked; store it as one file"
            )
        return Packed(path=_beside(path, named[1]), offset=0, num_bytes=None, wbits=_GZIP)
    if end is None:
        raise _unchecked(path)
    return Packed(path=path, offset=end.end(), num_bytes=None, wbits=_GZIP)


def _find_meta(path: Path, start: bytes) -> Packed | None:
    last = _META_FILE.search(start)
    head = start if last is None else start[: last.start()]
    said = len(_META_SAID.findall(head))
    if not (_META_MEANT.search(head) or (not said and _META_MEANT_BY_SIZE.search(head))):
        return None
    is_known = said == 1 and _META_PACKED.search(head) is not None
    size = _META_SIZE.search(head)
    if not is_known or last is None or _META_SKIP.search(head):
        raise _unchecked(path)
    is_local = last[1].strip().lower() == b"local"
    if size is None and (is_local or _META_SIZE_SAID.search(head)):
        raise _unchecked(path)
    packed, offset = (path, last.end()) if is_local else (_beside(path, last[1]), 0)
    stated = 0 if size is None else int(size[1])
    if not stated and not is_local:
        # As older programs wrote it: all of the file.
        stated = packed.stat().st_size
    if packed.stat().st_size - offset < stated:
        raise _broken(packed, "is truncated")
    return Packed(path=packed, offset=offset, num_bytes=stated, wbits=_GZIP_OR_ZLIB)


def _beside(path: Path, named: bytes) -> Path:
    """The file of the voxels that a header names, seen from the header's folder.

    Args:
        path: of the header.
        named: what it says.

    Raises:
        UserError: there is no such file.
    """
    name = named.strip().decode("utf-8", "surrogateescape")
    found = path.parent / name
    if not found.is_file():
        raise UserError(f"{path} names a file of voxels, {found}, that does not exist", files=[found])
    return found


def _broken(voxels: Path, what: str) -> UserError:
    return UserError(f"{voxels} {what}; copy or download it again", files=[voxels])


def _unchecked(path: Path) -> UserError:
    return UserError(
        f"{path} has packed voxels, and a header that does not say as it should where they begin and how many bytes "
        "they are; store it again, by SimpleITK or without packing"
    )
