"""Room on a disk: how much there is, how much is needed, and what a failed write really failed of."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import BinaryIO

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What a file answers that cannot grow: a full disk, a full quota, a limit on the size of files."""
_PROBE_BYTES = 1 << 20


class DiskFull(OSError):
    """A file could not be written for lack of room; `room` says how much it needs and how much there is."""

    room = ""

    def __str__(self) -> str:
        return f"{super().__str__()} ({self.room})"


def size_text(num_bytes: float) -> str:
    """A size that a person reads: megabytes below a gigabyte, with more digits where there are few."""
    if num_bytes >= 1e9:
        return f"{num_bytes / 1e9:.1f} GB"
    return f"{num_bytes / 1e6:.{1 if num_bytes >= 1e7 else 2}f} MB"


def free_bytes(path: Path) -> int | None:
    """Room for this user on the disk of a file or folder that may not be there yet; None where nothing says."""
    there = next((folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()), None)
    try:
        return None if there is None else shutil.disk_usage(there).free
    except OSError:
        return None


def find_write_fault(file: BinaryIO) -> OSError | None:
    """Why a file cannot grow, asked by writing to its end; None if it can."""
    try:
        descriptor = file.fileno()
        os.lseek(descriptor, 0, os.SEEK_END)
        rest = memoryview(bytes(_PROBE_BYTES))
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except ValueError:  # closed by whoever wrote to it
        return None
    except OSError as error:
        return error
    return None


def name_fault(fault: OSError, descriptor: int, path: Path) -> OSError:
    """The fault of a write to `path`, naming it; a `DiskFull` where the unfinished file could not grow."""
    if fault.errno not in FULL:
        return OSError(fault.errno, fault.strerror, str(path))
    written, free = os.fstat(descriptor).st_size, free_bytes(path)
    full = DiskFull(fault.errno, fault.strerror, str(path))
    # What the unfinished file takes is free again once it is removed.
    room = "" if free is None else f", {size_text(free + written)} free"
    full.room = f"more than {size_text(written)} needed{room}"
    return full
