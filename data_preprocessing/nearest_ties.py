"""Masks on another grid by the rule that nnU-Net v2's cascades have: of equal shares, that of the nearest voxel counts.

Shapes: D H W the mask before, D' H' W' after.
"""

from __future__ import annotations

import itertools

import numpy as np

from data_preprocessing.resampling import AxisMap, Maps, slabs

Indices = tuple[np.ndarray, np.ndarray, np.ndarray]


def resample_to_nearest(label: np.ndarray, maps: Maps, out: np.ndarray) -> None:
    """Write a resampled mask (D, H, W) uint8 into `out` (D', H', W') uint8; the maps are linear or nearest ones.

    Each voxel gets the class whose interpolated one-hot mask is largest there; of equals that of the nearest voxel if
    it is one of them, else the lowest. In double precision and scipy's order, since rounding decides what is equal.

    Source: batchgenerators 0.25, resize_segmentation.
    """
    if all(axis_map.is_identity for axis_map in maps):
        out[...] = label
        return
    axes = [_neighbours(axis_map) for axis_map in maps]
    nearest = [_nearest(axis_map) for axis_map in maps]
    for slab in slabs(maps):
        first = [(index[slab], share[slab]) for index, share in axes[0]]
        corners = [
            (label[np.ix_(z, y, x)], (wz[:, None, None] * wy[:, None]) * wx)
            for (z, wz), (y, wy), (x, wx) in itertools.product(first, *axes[1:])
        ]
        _decide(corners, label[np.ix_(nearest[0][slab], *nearest[1:])], out[slab])


def _decide(corners: list[tuple[np.ndarray, np.ndarray]], nearest: np.ndarray, out: np.ndarray) -> None:
    best, leads = np.full(out.shape, -1.0), np.zeros(out.shape, dtype=bool)
    for k in np.unique(np.stack([part for part, _ in corners])):
        share = np.zeros(out.shape)
        for part, weight in corners:
            share += np.where(part == k, weight, 0.0)
        ahead, level = share > best, share == best
        np.copyto(out, k, where=ahead)
        # Whether the class of the nearest voxel is among those with the largest share so far.
        leads = np.where(ahead, nearest == k, leads | (level & (nearest == k)))
        np.maximum(best, share, out=best)
    np.copyto(out, nearest, where=leads)


def _positions(axis_map: AxisMap) -> np.ndarray:
    n, m = axis_map.size_in, axis_map.size_out
    return np.clip((np.arange(m) + 0.5) * (n / m) - 0.5, 0, n - 1)


def _neighbours(axis_map: AxisMap) -> list[tuple[np.ndarray, np.ndarray]]:
    """The one or two inputs that each output takes, and their shares."""
    if axis_map.weights is None:
        return [(axis_map.first, np.ones(axis_map.size_out))]
    position = _positions(axis_map)
    low = position.astype(np.int64)
    share = position - low
    return [(low, 1 - share), (np.minimum(low + 1, axis_map.size_in - 1), share)]


def _nearest(axis_map: AxisMap) -> np.ndarray:
    if axis_map.weights is None:
        return axis_map.first
    return np.floor(_positions(axis_map) + 0.5).astype(np.int64)
