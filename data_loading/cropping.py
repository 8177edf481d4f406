"""Which part of a volume is read for a patch, and how that part is laid onto the patch: pure functions of numbers.

Positions are continuous: voxel i of an axis reaches from i to i + 1. Spatial tuples are in D, H, W order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from data_loading.augment.presets import Preset
from data_loading.foreground import ForegroundRows
from data_loading.sampling import Shape

Foreground = NDArray[np.integer] | ForegroundRows
ROUNDING_VOXELS = 1e-3
"""Boxes are so much wider than computed, as DALI computes positions in single precision."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """A part of a volume: `start` and `size` (3,) in voxels, which may stick out of the volume.

    With a `matrix` (3, 4) voxels of the patch are looked up in it: the position of patch position q is
    matrix[:, :3] @ q + matrix[:, 3], counted from the box's start. Without, the box is enlarged or shrunk to the patch.
    """

    start: NDArray[np.integer]
    size: NDArray[np.integer]
    matrix: NDArray[np.floating] | None = None


def draw_box(rng: np.random.Generator, shape: Shape, foreground: Foreground, patch: Shape, preset: Preset) -> Box:
    """The box of a volume that becomes one patch.

    A box around a foreground voxel is moved into the volume where it would stick out, so it still holds the voxel.
    Along an axis on which the volume is smaller than the box, the volume lies in the middle of it. A zoomed patch
    gets a smaller or greater box, a rotated one a box that holds all voxels it is interpolated from. Every call
    takes the same number of random numbers.

    Args:
        rng: source of the random numbers.
        shape: D, H, W of the volume.
        foreground: rows (3,) of voxel positions, of which a uniformly drawn one is the centre; each class has as many.
        patch: D, H, W that the network sees.
        preset: how often to centre on the foreground, to zoom and to rotate, and how much.
    """
    # Numbers and not arrays of three, for which NumPy takes ten times as long.
    zoomed, extent, centred = rng.random(), rng.uniform(*preset.zoom.bounds), rng.random()
    row, anywhere = rng.integers(len(foreground)), rng.random(3).tolist()
    rotated, degrees = rng.random(), rng.uniform(*preset.rotation.bounds, size=3)
    scale, size = [1.0, 1.0, 1.0], list(patch)
    if zoomed < preset.zoom.probability:
        scale[preset.in_plane :] = [extent] * (3 - preset.in_plane)
        size = [max(round(voxels * factor), 1) for voxels, factor in zip(patch, scale, strict=True)]
    # A row is read from the disk only where it is needed.
    centre = foreground[row].tolist() if centred < preset.foreground else None
    start = []
    for axis in range(3):
        room = shape[axis] - size[axis]
        if room < 0:
            start.append(room // 2)
        elif centre is not None:
            start.append(min(max(centre[axis] - size[axis] // 2, 0), room))
        else:
            start.append(math.floor(anywhere[axis] * (room + 1)))
    if rotated >= preset.rotation.probability:
        return Box(start=np.array(start), size=np.array(size))
    linear = rotation_matrix(degrees, in_plane=preset.in_plane) * scale
    middle: NDArray[np.floating] = np.array(start) + np.array(size) / 2
    if centre is not None:
        middle = _middle_with(np.array(centre) + 0.5, middle, linear, np.asarray(patch))
    return looked_up_box(middle, linear, patch, in_plane=preset.in_plane)


def rotation_matrix(degrees: NDArray[np.floating], *, in_plane: bool) -> NDArray[np.floating]:
    """(3, 3) rotation about the D, then the H, then the W axis; in plane about the D axis only."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees[:1] if in_plane else degrees)):
        one, other = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def looked_up_box(middle: NDArray[np.floating], linear: NDArray[np.floating], patch: Shape, *, in_plane: bool) -> Box:
    """The smallest box with all voxels between which a patch about `middle` is interpolated.

    Args:
        middle: (3,) position of the volume that the middle of the patch shows.
        linear: (3, 3) step in the volume for a step in the patch.
        patch: D, H, W.
        in_plane: the first axis is neither scaled nor mixed with the others.
    """
    half = np.asarray(patch) / 2
    reach = np.abs(linear) @ (half - 0.5) + ROUNDING_VOXELS
    low = np.floor(middle - reach - 0.5).astype(np.int64)
    high = np.floor(middle + reach - 0.5).astype(np.int64) + 2
    if in_plane:
        low[0] = np.rint(middle[0] - half[0])
        high[0] = low[0] + patch[0]
    return Box(start=low, size=high - low, matrix=np.column_stack([linear, middle - low - linear @ half]))


def _middle_with(
    voxel: NDArray[np.floating], middle: NDArray[np.floating], linear: NDArray[np.floating], patch: NDArray[np.integer]
) -> NDArray[np.floating]:
    """`middle` moved as little as it takes for the patch to have `voxel` as the centre of one of its own voxels."""
    seen_at = np.linalg.solve(linear, voxel - middle) + patch / 2
    shown_at = np.clip(np.floor(seen_at), 0, patch - 1) + 0.5
    return voxel - linear @ (shown_at - patch / 2)


def columns_for(preset: Preset) -> tuple[str, ...]:
    """What the training pipeline asks for each sample: DALI warns of what it does not use."""
    zoom = ("zoomed",) if preset.zoom.probability else ()
    rotation = ("rotated", "matrix") if preset.rotation.probability else ()
    return ("start", "size", *zoom, *rotation)


def box_batches(
    batches: NDArray[np.int64], box_of: Callable[[int], Box], patch: Shape, preset: Preset
) -> Iterator[tuple[NDArray, ...]]:
    """For each row of case numbers in `batches` (B, N) the boxes of its cases, as `columns_for` the preset.

    Yields:
        start and size (N, 3) int32; zoomed and rotated (N,) bool; matrix (N, A, A + 1) float32 as DALI's `warp_affine`
        takes it, in W, H, D order and with A = 2 in plane, else 3.
    """
    names = columns_for(preset)
    for batch in batches:
        boxes = [box_of(case) for case in batch]
        start, size = (np.array([getattr(box, name) for box in boxes], np.int32) for name in ("start", "size"))
        columns: dict[str, NDArray] = {"start": start, "size": size}
        rotated = np.array([box.matrix is not None for box in boxes])
        if "zoomed" in names:
            columns["zoomed"] = (size != np.asarray(patch)).any(axis=1) & ~rotated
        if "rotated" in names:
            matrices = [np.eye(3, 4) if box.matrix is None else box.matrix for box in boxes]
            columns |= {"rotated": rotated, "matrix": _as_xyz(matrices, preset.in_plane)}
        yield tuple(columns[name] for name in names)


def _as_xyz(matrices: list[NDArray[np.floating]], in_plane: bool) -> NDArray[np.float32]:
    stacked = np.array(matrices, np.float32)
    first = int(in_plane)
    linear, offset = stacked[:, first:, first:3], stacked[:, first:, 3:]
    return np.concatenate([linear[:, ::-1, ::-1], offset[:, ::-1]], axis=2)
