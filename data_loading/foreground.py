"""Foreground positions of a case, read row by row: those of all cases together are too many to be kept in memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError


class ForegroundRows:
    """`<case>_fg.npy`, (n, 3) int32 voxel positions, as a sequence of (3,) rows; each is read when it is asked for.

    No file stays open: a data set may have more cases than a process may have files.

    Raises:
        UserError: the file is no such array, or was changed since.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read ({error}); run preprocess.py again") from None
        if (
            rows.ndim != 2
            or rows.shape[1] != 3
            or rows.dtype != np.int32
            or not len(rows)
            or not rows.flags.c_contiguous
        ):
            raise UserError(
                f"{path} is {rows.dtype} {rows.shape}; needed is int32 (n, 3) in C order: run preprocess.py again"
            )
        self._length, self._offset, self._row_bytes = len(rows), rows.offset, rows[0].nbytes

    def __len__(self) -> int:
        """n."""
        return self._length

    def __getitem__(self, index: int | np.integer) -> NDArray[np.int32]:
        """Row `index`, (3,)."""
        file = os.open(self._path, os.O_RDONLY)
        try:
            content = os.pread(file, self._row_bytes, self._offset + int(index) * self._row_bytes)
        finally:
            os.close(file)
        if len(content) < self._row_bytes:
            raise UserError(f"{self._path} was changed while it was in use; run preprocess.py again")
        return np.frombuffer(content, np.int32)
