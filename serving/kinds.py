"""What an uploaded file is, by its first bytes, and whether its header may be handed to a reader.

Names of clients have no say. Headers of NRRD and MetaImage are text that may name further files, which would be files
of this machine; and MetaImage's reader trusts numbers in it with its memory. So both are looked through before.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from serving.refusals import Refused

GZIP_MAGIC = b"\x1f\x8b"
MAGIC = {
    GZIP_MAGIC: ".nii.gz", b"NRRD000": ".nrrd", b"\x89PNG\r\n\x1a\n": ".png", b"II*\0": ".tif", b"MM\0*": ".tif",
    b"II+\0": ".tif", b"MM\0+": ".tif", b"PK\x03\x04": ".zip", b"PK\x05\x06": ".zip",
}  # fmt: skip
ARCHIVE, DICOM = ".zip", ".dcm"
HEADER_BYTES = 1 << 20
"""Of a text header; NRRD and MetaImage have some kilobytes."""
META_END = re.compile(rb"^ElementDataFile[ \t]*[=:][ \t]*(LOCAL|Local|local)[ \t]*\r?\n", re.MULTILINE)
META_LINE = re.compile(r"([A-Za-z_][\w .\-\[\]]{0,99}?)[ \t]*[=:][ \t]?([^\0-\x08\x0a-\x1f]{0,2000})")
META_KEYS = frozenset({"ObjectType", "NDims", "DimSize", "ElementType", "ElementDataFile"})
"""Which every MetaImage has."""
META_AXES, MOST_META_LINES = ("2", "3", "4"), 1000
_NRRD_OTHER_FILE = re.compile(rb"data[ \t]*file[ \t]*:", re.IGNORECASE)
_NRRD_END = re.compile(rb"\n\r?\n")
_CHUNK_BYTES = 1 << 20


def ending_of(start: bytes) -> str:
    """The ending of the name that a file gets here, by its first bytes."""
    if start[128:132] == b"DICM":
        return DICOM
    found = next((ending for magic, ending in MAGIC.items() if start.startswith(magic)), None)
    # What is none of all this a reader of NIfTI refuses with the right words.
    return found or (".mha" if b"NDims" in start[:4096] and b"ObjectType" in start[:4096] else ".nii")


def check_text_header(path: Path, title: str) -> None:
    """Refuse an NRRD or MetaImage whose header names other files, or holds what its reader should not see.

    Raises:
        Refused: so it is.
    """
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    if path.suffix == ".nrrd":
        _check_nrrd(start, title)
    elif path.suffix == ".mha":
        _check_meta(start, title)


def _check_nrrd(start: bytes, title: str) -> None:
    ends = [match.end() for match in _NRRD_END.finditer(start)]
    # Its reader takes a lone carriage return for the end of a line as well: searched through is all that may be header.
    head = start[: next((end for end in ends if start[end - 2 : end] == b"\n\n"), len(start))]
    if _NRRD_OTHER_FILE.search(head):
        raise Refused(422, f"{title} has its voxels in another file; send them in one .nrrd")
    if not ends:
        raise Refused(422, f"{title} has no end of its NRRD header, or more than {HEADER_BYTES} bytes of it")


def _check_meta(start: bytes, title: str) -> None:
    place = start.find(b"ElementDataFile")
    end = META_END.match(start, place) if place == 0 or start[place - 1 : place] == b"\n" else None
    if end is None:
        raise Refused(422, f"{title} has its voxels in another file (ElementDataFile); send them in one .mha")
    lines = start[: end.end()].decode("latin-1").replace("\r\n", "\n").splitlines()
    fields = [META_LINE.fullmatch(line) for line in lines]
    if len(lines) > MOST_META_LINES or not all(fields):
        raise Refused(422, f"{title} has a damaged MetaImage header")
    values = {field[1]: field[2].split() for field in fields if field is not None}
    axes = " ".join(values.get("NDims", ()))
    if not values.keys() >= META_KEYS or axes not in META_AXES:
        raise Refused(422, f"{title} has a MetaImage header without {', '.join(sorted(META_KEYS))} of 2 to 4 axes")
    sizes = values["DimSize"]
    if len(sizes) != int(axes) or not all(size.isdecimal() and len(size) < 10 for size in sizes):
        raise Refused(422, f"{title} has a MetaImage header whose DimSize does not fit its NDims")
    if sum(field[1] == "NDims" for field in fields if field is not None) > 1:
        raise Refused(422, f"{title} has a MetaImage header that says NDims twice")


def unpacked_beyond(path: Path, most_bytes: int, offset: int = 0) -> bool:
    """Whether what is packed in a file from `offset` on (gzip or zlib) becomes longer than `most_bytes`.

    Damaged and cut files do not: whoever reads them says what is wrong.
    """
    found = 0
    with contextlib.suppress(OSError, EOFError, zlib.error), path.open("rb") as file:
        file.seek(offset)
        is_gzip = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        file.seek(offset)
        for part in _gzip_parts(file) if is_gzip else _zlib_parts(file):
            found += len(part)
            if found > most_bytes:
                return True
    return False


def _gzip_parts(file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as unpacked:
        while part := unpacked.read(_CHUNK_BYTES):
            yield part


def _zlib_parts(file: BinaryIO) -> Iterator[bytes]:
    stream, waiting = zlib.decompressobj(), b""
    while not stream.eof and (waiting := waiting or file.read(_CHUNK_BYTES)):
        yield stream.decompress(waiting, _CHUNK_BYTES)
        waiting = stream.unconsumed_tail
