"""Bringing volumes to another number of voxels: cubic for images, linear for labels and probabilities.

All maps are edge-aligned: the volume keeps its outer faces, output voxel i of m has its centre at
(i + 1/2) * n / m - 1/2 in input voxels, and beyond the outermost centres the edge voxel continues. So a structure keeps
its place in the patient, whatever the two grids are.

The maps are separable. Along an axis a map is a banded matrix of weights (for the cubic spline the prefilter is part
of it), so that resampling is a few small matrix products per slab of slices: single precision, and no more memory than
the volumes themselves and one slab.

Shapes: D H W the volume before, D' H' W' after; n, m voxels of one axis before and after.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from utils.axes import triple

ANISOTROPY = 3.0
"""A grid is anisotropic when its largest spacing is more than this many times its smallest (nnU-Net)."""

HELD_VALUES = 2**24
"""Most input voxels of several volumes together from which a range of output slices is made, or those of one slice."""
_SLAB_VOXELS = 2**22
_BLOCK = 64
_SPLINE_MARGIN = 12
_SMALLEST_WEIGHT = 1e-7
# Interpolated one-hot values that differ by less are a tie; rounding in single precision stays far below.
_TIE = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AxisMap:
    """How the m output voxels of one axis follow from its n input voxels.

    Output i uses the inputs first[i]..last[i] with `weights[i]` ((m, n) float32, rows sum to 1). Without weights it is
    a copy of input first[i].
    """

    size_in: int
    first: np.ndarray
    last: np.ndarray
    weights: np.ndarray | None = None

    @property
    def size_out(self) -> int:
        """m."""
        return len(self.first)

    @property
    def is_identity(self) -> bool:
        """Whether output and input are the same."""
        return (
            self.weights is None
            and self.size_in == self.size_out
            and np.array_equal(self.first, np.arange(self.size_in))
        )

    def restrict(self, start: int, stop: int) -> tuple[AxisMap, slice]:
        """The map of outputs start..stop-1 alone, and the slice of inputs that it takes."""
        inputs = slice(int(self.first[start]), int(self.last[stop - 1]) + 1)
        weights = None if self.weights is None else self.weights[start:stop, inputs]
        first, last = self.first[start:stop] - inputs.start, self.last[start:stop] - inputs.start
        return AxisMap(size_in=inputs.stop - inputs.start, first=first, last=last, weights=weights), inputs

    def touched(self, start: int, stop: int) -> tuple[int, int]:
        """Range of the outputs that use any of the inputs start..stop-1; empty when both numbers are equal."""
        begin = int(np.searchsorted(self.last, start))
        return begin, max(begin, int(np.searchsorted(self.first, stop)))


Maps = tuple[AxisMap, AxisMap, AxisMap]
Shape = tuple[int, int, int]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""(start, stop) for each axis."""


def nearest_map(n: int, m: int) -> AxisMap:
    """Each output takes the input whose voxel contains its centre; on a face between two, the one behind it."""
    index = (2 * np.arange(m) + 1) * n // (2 * m)
    return AxisMap(size_in=n, first=index, last=index)


def linear_map(n: int, m: int) -> AxisMap:
    """Each output is a mean of its two neighbours, weighted by nearness."""
    position = np.clip(_positions(n, m), 0, n - 1)
    low = np.minimum(position.astype(np.int64), max(n - 2, 0))
    weights = np.zeros((m, n))
    np.add.at(weights, (np.arange(m), low), 1 - (position - low))
    np.add.at(weights, (np.arange(m), np.minimum(low + 1, n - 1)), position - low)
    return _banded(weights)


@functools.lru_cache(maxsize=32)
def cubic_map(n: int, m: int) -> AxisMap:
    """Interpolating cubic B-spline; equals `scipy.ndimage.zoom(order=3, mode="nearest", grid_mode=True)`."""
    # Half of the start of each worker, and not needed where no scan changes its grid.
    from scipy import ndimage

    padded = np.pad(np.eye(n), ((_SPLINE_MARGIN, _SPLINE_MARGIN), (0, 0)), mode="edge")
    coefficients = ndimage.spline_filter1d(padded, order=3, axis=0, mode="mirror")
    position = _positions(n, m) + _SPLINE_MARGIN
    base = np.floor(position).astype(np.int64)
    t = position - base
    taps = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 4 - 6 * (1 - t) ** 2 + 3 * (1 - t) ** 3, t**3)
    return _banded(sum(tap[:, None] / 6 * coefficients[base + k - 1] for k, tap in enumerate(taps)))


def _positions(n: int, m: int) -> np.ndarray:
    return (np.arange(m) + 0.5) * n / m - 0.5


def _banded(weights: np.ndarray) -> AxisMap:
    """Drop weights that no result in single precision can show, so that each row has a narrow band."""
    used = np.abs(weights) > _SMALLEST_WEIGHT
    weights = np.where(used, weights, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    # A row's band must not begin before that of the row above: slabs are cut by the first and last of a range of rows.
    first = np.minimum.accumulate(np.argmax(used, axis=1)[::-1])[::-1]
    last = np.maximum.accumulate(weights.shape[1] - 1 - np.argmax(used[:, ::-1], axis=1))
    return AxisMap(size_in=weights.shape[1], first=first, last=last, weights=weights.astype(np.float32))


def coarse_axis(spacing_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
    """Axis across which nothing is interpolated: the coarsest one, if the case or else the target is anisotropic.

    None for isotropic grids, and where two axes are equally coarse, so that no axis stands out.

    Source: Isensee et al. 2021 (nnU-Net), online methods, resampling.
    """
    for spacing in (spacing_mm, target_mm):
        largest = max(spacing)
        if largest > ANISOTROPY * (1 + 1e-6) * min(spacing):
            coarsest = [axis for axis, size in enumerate(spacing) if size > largest * (1 - 1e-3)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resampled_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float], *, rule: str = "extent"
) -> Shape:
    """Voxels at the target spacing: rounded to the nearest, at least one. `rule`: `Rules.grid_shape`."""
    if rule == "ratio":
        return triple(max(1, round(mm / target * n)) for n, mm, target in zip(shape, spacing_mm, target_mm))
    return triple(max(1, round(n * mm / target)) for n, mm, target in zip(shape, spacing_mm, target_mm))


def make_maps(shape: Sequence[int], new_shape: Sequence[int], *, cubic: bool, coarse: int | None) -> Maps:
    """The maps of the three axes: nearest across `coarse`, cubic or linear along the others, none where n == m."""
    smooth = cubic_map if cubic else linear_map
    return triple(
        nearest_map(n, m) if axis == coarse or n == m else smooth(n, m)
        for axis, (n, m) in enumerate(zip(shape, new_shape))
    )


def slabs(maps: Maps, *, num_volumes: int = 1) -> Iterator[slice]:
    """Ranges of output slices that are worked on at a time; see `slab_step`."""
    sizes = ([getattr(axis_map, name) for axis_map in maps] for name in ("size_in", "size_out"))
    step = slab_step(*sizes, num_volumes=num_volumes)
    return (slice(start, min(start + step, maps[0].size_out)) for start in range(0, maps[0].size_out, step))


def slab_step(shape: Sequence[int], new_shape: Sequence[int], *, num_volumes: int = 1) -> int:
    """Output slices (of D') that are worked on at a time.

    Args:
        shape: D H W.
        new_shape: D' H' W'.
        num_volumes: how many volumes' input slices of a range are held together: ranges are short where many are.
    """
    plane = math.prod(map(max, shape[1:], new_shape[1:]))
    each = HELD_VALUES / (num_volumes * max(1.0, shape[0] / new_shape[0]))
    return int(max(1, min(_SLAB_VOXELS, each) // plane))


def resample_slab(volume: np.ndarray, maps: Maps, slab: slice) -> np.ndarray:
    """The slices `slab` of a resampled volume: (D, H, W) of any type -> (slices, H', W') float32."""
    across, inputs = maps[0].restrict(slab.start, slab.stop)
    if across.weights is not None or across.is_identity:
        return resample_axis(resample_axis(resample_axis(volume[inputs], across, 0), maps[1], 1), maps[2], 2)
    # A slice that is repeated is resampled once.
    used, repeats = np.unique(across.first, return_inverse=True)
    return resample_axis(resample_axis(volume[inputs][used], maps[1], 1), maps[2], 2)[repeats]


def resample_axis(array: np.ndarray, axis_map: AxisMap, axis: int) -> np.ndarray:
    """Apply the map of one axis to (D, H, W) of any type; float32."""
    array = np.ascontiguousarray(array, dtype=np.float32)
    if axis_map.weights is None:
        return array if axis_map.is_identity else np.take(array, axis_map.first, axis=axis)
    out = np.empty((*array.shape[:axis], axis_map.size_out, *array.shape[axis + 1 :]), dtype=np.float32)
    # One matrix product per batch entry: the axis is the last but one, or the last with the weights transposed.
    source, target = (array, out) if axis else (a.reshape(1, len(a), -1) for a in (array, out))
    for start in range(0, axis_map.size_out, _BLOCK):
        stop = min(start + _BLOCK, axis_map.size_out)
        block, inputs = axis_map.restrict(start, stop)
        assert block.weights is not None, "a part of a map with weights has some"
        if axis == 2:
            flat, flat_out = source.reshape(-1, source.shape[2]), target.reshape(-1, target.shape[2])
            np.matmul(flat[:, inputs], block.weights.T, out=flat_out[:, start:stop])
        else:
            np.matmul(block.weights, source[:, inputs], out=target[:, start:stop])
    return out


def resample_image(volume: np.ndarray, maps: Maps, out: np.ndarray, *, coarse: int | None) -> None:
    """Write one resampled channel (D, H, W) into `out` (D', H', W') float32.

    Results stay within the input's range (each slice's own range across the axis `coarse`): the spline's overshoot is
    cut off as by scikit-image's `resize(clip=True)`, with which nnU-Net resamples.
    """
    if all(axis_map.is_identity for axis_map in maps):
        out[...] = volume
        return
    low, high = _range(volume, maps, np.min, coarse), _range(volume, maps, np.max, coarse)
    for slab in slabs(maps):
        rows = slab if coarse == 0 else slice(None)
        np.clip(resample_slab(volume, maps, slab), low[rows], high[rows], out=out[slab])


def _range(volume: np.ndarray, maps: Maps, reduce: Callable, coarse: int | None) -> np.ndarray:
    """Smallest or largest input, broadcastable to the output: of the volume, or of each output's slice."""
    bound = reduce(volume, axis=tuple(axis for axis in range(3) if axis != coarse), keepdims=True)
    return bound if coarse is None else np.take(bound, maps[coarse].first, axis=coarse)


def resample_label(label: np.ndarray, maps: Maps, out: np.ndarray) -> None:
    """Write a resampled label (D, H, W) uint8 into `out` (D', H', W') uint8.

    Each voxel gets the class whose interpolated one-hot mask is largest there (of equals, the highest class), so no
    voxel is left without one and no class appears that was not there.
    """
    if all(axis_map.is_identity for axis_map in maps):
        out[...] = label
        return
    for slab in slabs(maps):
        across, inputs = maps[0].restrict(slab.start, slab.stop)
        _resample_label_slab(label[inputs], (across, maps[1], maps[2]), out[slab])


def _resample_label_slab(label: np.ndarray, maps: Maps, out: np.ndarray) -> None:
    counts = np.bincount(label.ravel())
    common = int(counts.argmax())
    out[...] = common
    # Only what the box around the other classes reaches can differ from the most common one.
    box = nonzero_box(label != common)
    if box is None:
        return
    reached = [slice(*axis_map.touched(*sides)) for axis_map, sides in zip(maps[1:], box[1:])]
    if any(side.stop == side.start for side in reached):
        return
    in_plane = [axis_map.restrict(side.start, side.stop) for axis_map, side in zip(maps[1:], reached)]
    part = label[:, in_plane[0][1], in_plane[1][1]]
    part_maps = (maps[0], in_plane[0][0], in_plane[1][0])
    first, *others = np.flatnonzero(counts).tolist()
    best = resample_slab(part == first, part_maps, slice(0, maps[0].size_out))
    winner = np.full(best.shape, first, dtype=np.uint8)
    for k in others:
        share = resample_slab(part == k, part_maps, slice(0, maps[0].size_out))
        np.copyto(winner, k, where=share > best - _TIE)
        np.maximum(best, share, out=best)
    out[:, reached[0], reached[1]] = winner


def nonzero_box(mask: np.ndarray) -> Box | None:
    """(start, stop) per axis of the smallest box around non-zero voxels; None when every voxel is zero.

    `mask` is (D, H, W), or (C, D, H, W), where a voxel is non-zero if it is so in any channel.
    """
    volume = mask if mask.ndim == 4 else mask[None]
    _, depth, height, width = volume.shape
    used = (np.zeros(depth, dtype=bool), np.zeros(height, dtype=bool), np.zeros(width, dtype=bool))
    for d in range(depth):
        for channel in volume[:, d]:
            plane = channel != 0
            rows = plane.any(axis=1)
            used[0][d] |= rows.any()
            used[1][:] |= rows
            used[2][:] |= plane.any(axis=0)
    if not used[0].any():
        return None
    return triple((int(axis.argmax()), int(len(axis) - axis[::-1].argmax())) for axis in used)
