"""The bytes of a NIfTI file, packed or not: whole or an error, and never more than its header states."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError, missing_file

_GZIP_MAGIC = b"\x1f\x8b"
_HEAD_CHUNK_BYTES = 4096
_NEXT_CHUNK_BYTES = 1 << 14
_MOST_GZIP_GAIN = 1032
"""A byte of gzip unpacks to so many at most."""
_SURPLUS_BYTES = 1 << 26
"""Of what a file holds beyond its voxels, so much does no harm."""
_AGAIN = "copy or download it again"


def read_start(path: Path, limit: int) -> bytes:
    """The first `limit` bytes of the (unpacked) content of a file. Whether it is packed its first bytes tell.

    Raises:
        UserError: the file is missing, cut short before the limit, damaged or cannot be read.
    """
    with _opened(path) as (file, is_packed):
        return _first(_unpacked(file, _HEAD_CHUNK_BYTES), limit) if is_packed else file.read(limit)


def read_whole(path: Path, needed: int) -> tuple[bytes, int]:
    """The (unpacked) content of a file of which `needed` bytes are wanted, and how many bytes there are in all.

    Reading to the end checks gzip's own checksum, so damage inside a file is found as well as a missing end. What
    follows the last gzip stream is passed over, as `gzip -d` does. Of what lies behind the needed bytes only some is
    kept, so that no file takes more memory than its header states.

    Raises:
        UserError: as `read_start`; or a packed file is too small or far too large for what its header states.
    """
    with _opened(path) as (file, is_packed):
        size = os.fstat(file.fileno()).st_size
        if not is_packed:
            return file.read(min(needed, size)), size
        _require(path, size, needed, packed=True)
        kept, total = [], 0
        # A whole file is unpacked in one go: joining parts would hold it in memory twice.
        for part in filter(None, _unpacked(file, -1, max(needed, _SURPLUS_BYTES))):
            if total < needed:
                kept.append(part)
            total += len(part)
            if total > 2 * needed + _SURPLUS_BYTES:
                raise UserError(f"{path} unpacks to far more than the {needed} bytes that its header states; {_AGAIN}")
        return b"".join(kept), total


def require_content(path: Path, needed: int) -> None:
    """Refuse a file that cannot hold so many (unpacked) bytes; nothing is unpacked.

    Raises:
        UserError: it is too small, missing, or cannot be read.
    """
    with _opened(path) as (file, is_packed):
        _require(path, os.fstat(file.fileno()).st_size, needed, packed=is_packed)


def _require(path: Path, size: int, needed: int, *, packed: bool) -> None:
    if packed and needed > _MOST_GZIP_GAIN * size:
        raise UserError(f"{path} is truncated: {size} packed bytes never hold {needed}; {_AGAIN}")
    if not packed and needed > size:
        raise UserError(f"{path} is truncated: {size} of {needed} bytes; {_AGAIN}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """A file that is read, and whether it is packed; what goes wrong with it names the file."""
    try:
        with open(path, "rb") as file:
            is_packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            file.seek(0)
            yield file, is_packed
    except FileNotFoundError:
        raise missing_file(path) from None
    except (EOFError, zlib.error):
        raise UserError(f"{path} is truncated or damaged; {_AGAIN}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _unpacked(file: BinaryIO, chunk_bytes: int, most: int = 0) -> Iterator[bytes]:
    """The gzip streams of a file, one after the other, in parts of `most` bytes (0: as they come)."""
    stream, rest = zlib.decompressobj(wbits=31), b""
    while part := rest or file.read(chunk_bytes):
        yield stream.decompress(part, most)
        rest = stream.unconsumed_tail
        if stream.eof:
            rest = stream.unused_data
            if len(rest) > _NEXT_CHUNK_BYTES:
                # Each stream copies what follows it: with many small ones, all of a large file again and again.
                file.seek(-len(rest), os.SEEK_CUR)
                rest, chunk_bytes = b"", _NEXT_CHUNK_BYTES
            # Zeros pad tapes and blocks; anything else that is no further stream was put there by a transfer.
            while len(rest := rest.lstrip(b"\0")) < len(_GZIP_MAGIC) and (more := file.read(chunk_bytes)):
                rest += more
            if not rest.startswith(_GZIP_MAGIC):
                return
            stream = zlib.decompressobj(wbits=31)
    if not stream.eof:
        raise EOFError


def _first(parts: Iterator[bytes], limit: int) -> bytes:
    content = b""
    while len(content) < limit and (part := next(parts, None)) is not None:
        content += part
    return content[:limit]
