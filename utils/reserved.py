"""Arrays in files whose room on the disk is reserved before anything is written into them.

A memory map of a sparse file ends the process with SIGBUS when the disk is full; here a full disk is an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.disk import FULL, size_text
from utils.errors import UserError
from utils.temporary import temporary_file

_CANNOT_RESERVE = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV}
"""What a file system says that cannot reserve room."""
_CHUNK_BYTES = 1 << 20


def array_bytes(shape: Sequence[int]) -> int:
    """Bytes of float32 values of a shape."""
    return 4 * int(np.prod([int(size) for size in shape], dtype=object))


def create_array(path: Path, shape: Sequence[int], *, target: Path) -> np.memmap:
    """A new .npy file of float32 zeros, mapped for writing; its room is reserved.

    Args:
        path: file to make, which must not exist; after an error it may be left behind.
        shape: of the array.
        target: what messages call the file.

    Raises:
        UserError: there is no room for it.
        OSError: it cannot be made for another reason.
    """
    with open(path, "xb") as file:
        return _fill(file, path, shape, target)


@contextlib.contextmanager
def new_array(target: Path, shape: Sequence[int]) -> Iterator[np.memmap]:
    """A .npy file of float32 zeros to be filled, which appears under its name at the end; after an error nothing does.

    Raises:
        UserError: there is no room for it.
        OSError: it cannot be made for another reason.
    """
    with temporary_file(target) as (file, path):
        stored = _fill(file, path, shape, target)
        yield stored
        stored.flush()
        os.replace(path, target)


def _fill(file: BinaryIO, path: Path, shape: Sequence[int], target: Path) -> np.memmap:
    """Header and zeros of a new file, mapped."""
    sizes = tuple(int(size) for size in shape)
    header = {"descr": "<f4", "fortran_order": False, "shape": sizes}
    size = array_bytes(shape)
    try:
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        start = file.tell()
        _reserve(file.fileno(), start, size)
    except OSError as error:
        if error.errno in FULL:
            raise UserError(
                f"{target} needs {size_text(size)} of disk, and there is no room for it in {target.parent} "
                f"({error.strerror}); make room or choose another folder"
            ) from None
        raise
    return np.memmap(path, dtype=np.dtype("<f4"), mode="r+", offset=start, shape=sizes)


def _reserve(file: int, start: int, size: int) -> None:
    """Room of a file from `start` on, filled with zeros."""
    if not size:
        return
    try:
        os.posix_fallocate(file, start, size)
        return
    except AttributeError:  # Windows, macOS
        pass
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:
            raise
    zeros = bytes(_CHUNK_BYTES)
    for first in range(0, size, _CHUNK_BYTES):
        part = memoryview(zeros)[: min(_CHUNK_BYTES, size - first)]
        while part:
            part = part[os.pwrite(file, part, start + first + min(_CHUNK_BYTES, size - first) - len(part)) :]
