"""Memory of arrays that lie in files."""

from __future__ import annotations

import mmap

import numpy as np


def give_back_pages(array: np.ndarray | None) -> None:
    """Let go of the memory through which parts of an array in a file (or a view of it) were reached.

    What was written is the system's to bring to the disk; a part that is needed again is read again. Other arrays, and
    None, are left as they are.
    """
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
