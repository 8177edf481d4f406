"""How much memory a case takes while it is inspected or preprocessed, as far as the headers of its files tell.

Python and its libraries, which each process loads once, are not in it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from pathlib import Path

import numpy as np

from data_preprocessing.dataset.case_files import CaseFiles
from data_preprocessing.preprocessor import padding, target_grid_mm
from data_preprocessing.resampling import resampled_shape
from utils.errors import UserError
from utils.limits import free_memory_bytes
from utils.nifti import read_header, working_grid
from utils.schema import Plan

FLOAT_BYTES = 4
LABEL_BYTES = 4
"""Of a voxel of a label: the file's content and the values, in two bytes each."""
MASK_BYTES = 7
"""Of a voxel while the holes of a mask are filled: the mask, what is outside, and the number of its region."""
POSITION_BYTES = 9
"""Of a voxel of the foreground while some are drawn, at most: whether it is foreground, and its place."""
PROCESS_BYTES = 150_000_000
"""Python and the libraries of preprocessing, in each process."""


def inspection_bytes(files: CaseFiles) -> int:
    """Memory of reading and checking a case at most; 0 for files that cannot be read, which are reported later."""
    grid = _grid(files.images)
    if grid is None:
        return 0
    channels, shape, _ = grid
    voxels = math.prod(shape)
    reading, label = _reading_bytes(channels, voxels), _label_bytes(files, voxels)
    return max(reading, FLOAT_BYTES * channels * voxels + label + POSITION_BYTES * voxels)


def preprocessing_bytes(files: CaseFiles, plan: Plan) -> int:
    """Memory of making a shard at most, taking the scan as uncropped; 0 as in `inspection_bytes`."""
    grid = _grid(files.images)
    if grid is None:
        return 0
    channels, shape, spacing_mm = grid
    voxels = math.prod(shape)
    spacing = tuple(spacing_mm[axis] for axis in plan.axes)
    new_shape = resampled_shape([shape[axis] for axis in plan.axes], spacing, target_grid_mm(plan.stage, spacing))
    padded, _ = padding(new_shape, plan.stage.patch_size)
    reading, label = _reading_bytes(channels, voxels), _label_bytes(files, voxels)
    # The scan, a normalised channel of it, and the shard; the label as read, as classes, and on the shard's grid.
    made = FLOAT_BYTES * (channels + 1) * voxels + FLOAT_BYTES * plan.image_channels * math.prod(padded)
    if files.label is not None:
        made += label + voxels + math.prod(padded)
    masked = any(channel.scheme == "zscore_mask" for channel in plan.channels)
    filling = (FLOAT_BYTES * channels + MASK_BYTES) * voxels if masked else 0
    return max(reading + label, made + masked * voxels, filling + label)


def mask_bytes(files: CaseFiles) -> int:
    """Memory of bringing a mask to the grid of its shard, roughly; 0 as in `inspection_bytes`."""
    grid = _grid(files.images)
    return 0 if grid is None else (LABEL_BYTES + 2 * FLOAT_BYTES) * math.prod(grid[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryLimits:
    """Forecast of each case by its name, and what those that are worked on together may take, all in bytes."""

    sizes: dict[str, int]
    budget_bytes: int
    all_fit: bool
    """Whether as many as there are processes fit at any time."""

    def submit(
        self,
        submit: Callable[[Sequence[CaseFiles]], Future],
        chunks: Sequence[Sequence[CaseFiles]],
        needs: Sequence[int],
        advance: Callable[[int], None],
    ) -> list:
        """The results of all chunks in their order; what is submitted at a time fits, or is a single chunk.

        Args:
            submit: gives a chunk to a pool of processes; the future is a list of results.
            chunks: cases that one process works on one after the other.
            needs: of each chunk, in bytes.
            advance: called with the number of results as they come.
        """
        futures: list[Future] = []
        running: dict[Future, int] = {}
        for chunk, needed in zip(chunks, needs):
            while not self.all_fit and running and sum(running.values()) + needed > self.budget_bytes:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    advance(len(future.result()))
                    del running[future]
            futures.append(submit(chunk))
            running[futures[-1]] = needed
        for future in as_completed(running):
            advance(len(future.result()))
        return [future.result() for future in futures]


def limit_memory(
    cases: Sequence[CaseFiles], size: Callable[[CaseFiles], int], num_processes: int, title: str
) -> MemoryLimits:
    """How many cases may be worked on at a time; says so where that is fewer than there are processes.

    Args:
        cases: those to come.
        size: forecast of a case in bytes, without the process's own memory.
        num_processes: how many there are.
        title: what is done, for messages.
    """
    sizes = {case.case: size(case) + PROCESS_BYTES for case in cases}
    budget = free_memory_bytes()
    largest = sorted(sizes.values(), reverse=True)[:num_processes]
    if sum(largest) <= budget:
        return MemoryLimits(sizes=sizes, budget_bytes=budget, all_fit=True)
    alone = [case for case, needed in sizes.items() if needed > budget]
    free = f"{budget / 1e9:.1f} GB are free"
    if alone:
        worst = max(alone, key=sizes.__getitem__)
        print(
            f"warning: {title}: {_names(alone)} may not fit into memory ({worst} needs up to {sizes[worst] / 1e9:.1f} "
            f"GB, {free}); each is worked on alone. Close other programs",
            file=sys.stderr,
        )
    if num_processes > 1:
        together, total = 0, 0
        while together < len(largest) and total + largest[together] <= budget:
            total, together = total + largest[together], together + 1
        print(
            f"{title}: {max(together, 1)} of {num_processes} processes at a time for the largest cases (up to "
            f"{largest[0] / 1e9:.1f} GB each, {free})",
            flush=True,
        )
    return MemoryLimits(sizes=sizes, budget_bytes=budget, all_fit=False)


def _names(cases: Sequence[str]) -> str:
    shown = ", ".join(cases[:3])
    return shown if len(cases) <= 3 else f"{shown} and {len(cases) - 3} others"


def _reading_bytes(channels: int, voxels: int) -> int:
    """The files' content, the scan as it is scaled, and as one array."""
    return 3 * FLOAT_BYTES * channels * voxels


def _label_bytes(files: CaseFiles, voxels: int) -> int:
    return 0 if files.label is None else LABEL_BYTES * voxels


@functools.lru_cache(maxsize=4096)
def _header(path: Path, size: int, mtime_ns: int) -> tuple[tuple[int, ...], np.ndarray]:
    """The header of a file as it is now: both passes over a data set ask for it."""
    return read_header(path)


def _grid(images: Sequence[Path]) -> tuple[int, tuple[int, int, int], tuple[float, float, float]] | None:
    """Channels, voxels along S, A, R and their size in mm."""
    try:
        found = images[0].stat()
        shape, affine = _header(images[0], found.st_size, found.st_mtime_ns)
    except (UserError, OSError, ValueError):
        return None
    if len(shape) not in (3, 4) or min(shape) < 1:
        return None
    channels = len(images) if len(images) > 1 else math.prod(shape[3:])
    return channels, *working_grid(shape, affine)
