"""Looking up the voxels of rotated patches on the CPU, in torch: DALI's `warp_affine` takes four times as long there.

Shapes: C channels, D H W space; A axes that are mixed, the last two or three.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample, pad

SLAB_VOXELS = 1 << 16
"""Positions that are worked on at once, so that they stay in a core's cache."""


def warp(
    image: NDArray[np.float32], label: NDArray[np.uint8], matrix: NDArray[np.float32], *, size: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Patches of `size` whose voxels are looked up in `image` (linearly) and in `label` (the nearest voxel).

    Voxel i of an axis reaches from i to i + 1. Outside there are zeros.

    Args:
        image: (C, D, H, W) or (C, H, W).
        label: the same part of the label, with any number of channels.
        matrix: (A, A + 1), position in the image for a position in the patch, in W, H, D order as DALI has it.
        size: (D, H, W) or (H, W) of the patch; with A = 2 all slices are moved alike.
    """
    num_axes = len(matrix)
    moved_size = size[-num_axes:]
    # Slices that are moved alike are as good as channels.
    frames, labels = (torch.from_numpy(v).reshape(-1, *v.shape[-num_axes:]) for v in (image, label))
    moved, moved_labels = frames.new_empty(len(frames), *moved_size), labels.new_empty(len(labels), *moved_size)
    padded = pad(labels, [1, 1] * num_axes)
    along_rows, within_row = _positions(torch.from_numpy(matrix).double(), moved_size)
    # grid_sample counts from -1 to 1.
    scale = 2 / _column(torch.tensor(frames.shape[:0:-1], dtype=torch.float64))
    grid_along, grid_within = (along_rows * scale).float(), (within_row * scale - 1).float()
    along_rows, within_row = along_rows.float(), within_row.float()
    step = max(SLAB_VOXELS // math.prod(moved_size[1:]), 1)
    for start in range(0, moved_size[0], step):
        rows = slice(start, start + step)
        grid = (grid_within + grid_along[:, rows]).movedim(0, -1)
        moved[:, rows] = grid_sample(frames[None], grid[None], align_corners=False)[0]
        _look_up_nearest(padded, within_row + along_rows[:, rows], out=moved_labels[:, rows])
    return moved.reshape(-1, *size).numpy(), moved_labels.reshape(-1, *size).numpy()


def _positions(matrix: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Where the patch's voxels come from, W first, as a sum of (A, D, 1, 1) and (A, 1, H, W); in 2D without D."""
    axes = len(size)
    centres = [(torch.arange(n) + 0.5).reshape(-1, *[1] * (axes - 1 - axis)) for axis, n in enumerate(size)]
    terms = [_column(matrix[:, axes - 1 - axis]) * centres[axis] for axis in range(axes)]
    return terms[0], sum(terms[1:], start=_column(matrix[:, -1]))


def _look_up_nearest(padded: Tensor, positions: Tensor, *, out: Tensor) -> None:
    """Values at positions (A, ...), W first, of (C, ...) around which there is one voxel of padding on each side."""
    index, stride = torch.zeros((), dtype=torch.int32), 1
    for position, length in zip(positions, padded.shape[:0:-1]):
        voxel = position.floor_().add_(1).clamp_(0, length - 1).to(torch.int32)
        index, stride = index + voxel.mul_(stride), stride * length
    for frame, values in zip(padded.flatten(1), out):
        torch.index_select(frame, 0, index.flatten(), out=values.view(-1))


def _column(numbers: Tensor) -> Tensor:
    """(A,) as (A, 1, 1[, 1])."""
    return numbers.reshape(-1, *[1] * len(numbers))
