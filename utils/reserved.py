"""Arrays in files whose room on the disk is reserved before anything is written into them.

A memory map of a sparse file ends the process with SIGBUS when the disk is full; here a full disk is an error.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.errors import UserError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Faults of a disk, a quota or a limit that has no room left."""
_CANNOT_RESERVE = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV}
"""What a file system says that cannot reserve room."""
_CHUNK_BYTES = 1 << 20


def array_bytes(shape: Sequence[int]) -> int:
    """Bytes of float32 values of a shape."""
    return 4 * int(np.prod([int(size) for size in shape], dtype=object))


def describe_bytes(number: int) -> str:
    """For people: in GB, or in MB where that is little."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.2f} MB"


def require_room(target: Path, needed_bytes: int) -> None:
    """Find out before hours of work that a file will not fit.

    Raises:
        UserError: the disk has less room than that; the message names the file and both numbers.
    """
    free = shutil.disk_usage(target.parent).free
    if free < needed_bytes:
        raise _no_room(target, needed_bytes, f"{describe_bytes(free)} are free")


def create_array(path: Path, shape: Sequence[int], *, target: Path) -> np.ndarray:
    """A new .npy file of float32 zeros, mapped for writing; its room is reserved.

    Args:
        path: file to make, which must not exist; after an error it may be left behind.
        shape: of the array.
        target: what messages call the file.

    Raises:
        UserError: there is no room for it.
        OSError: it cannot be made for another reason.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": tuple(int(size) for size in shape)}
    size = array_bytes(shape)
    try:
        with open(path, "xb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            start = file.tell()
            _reserve(file.fileno(), start, size)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise _no_room(target, size, error.strerror) from None
        raise
    return np.memmap(path, dtype="<f4", mode="r+", offset=start, shape=header["shape"])


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


def _no_room(target: Path, needed_bytes: int, reason: str) -> UserError:
    return UserError(
        f"{target} needs {describe_bytes(needed_bytes)} of disk, and there is no room for it in {target.parent} "
        f"({reason}); make room or choose another folder"
    )
