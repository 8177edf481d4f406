"""Slices of a tilted gantry: each is shifted in its plane against the one before, so they make no rectangular grid.

They are brought onto one by shifting them back, and masks go the other way to the slices.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tilt:
    """How far each slice lies from its place on the rectangular grid.

    Attributes:
        degrees: of the gantry.
        step: rows and columns (fractions count) from slice to slice.
        shape: rows and columns of a slice.
        slices: how many.
    """

    degrees: float
    step: tuple[float, float]
    shape: tuple[int, int]
    slices: int

    @property
    def low(self) -> tuple[int, int]:
        """The first row and column of the grid, counted from those of the first slice."""
        rows, columns = (math.floor(min(0.0, step * (self.slices - 1))) for step in self.step)
        return rows, columns

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the grid, which holds all slices whole."""
        high = [math.ceil(max(0.0, step * (self.slices - 1))) for step in self.step]
        rows, columns = (size + top - low for size, top, low in zip(self.shape, high, self.low))
        return rows, columns

    def straighten(self, plane: np.ndarray, number: int) -> np.ndarray:
        """A slice on the grid, float32, by linear interpolation; NaN where it says nothing."""
        result = plane.astype(np.float32)
        for axis, (step, low, size) in enumerate(zip(self.step, self.low, self.grid)):
            result = _shifted(result, axis, number * step - low, size)
        return result

    def lean(self, planes: np.ndarray) -> np.ndarray:
        """Planes of a mask (slices, rows, columns) of the grid on the slices: the nearest voxels."""
        result = np.empty((self.slices, *self.shape), planes.dtype)
        for number, plane in enumerate(planes):
            rows, columns = (
                np.rint(np.arange(size) + number * step - low).astype(int).clip(0, most - 1)
                for size, step, low, most in zip(self.shape, self.step, self.low, self.grid)
            )
            result[number] = plane[np.ix_(rows, columns)]
        return result


def _shifted(plane: np.ndarray, axis: int, by: float, size: int) -> np.ndarray:
    """Values at index i come to i + by along an axis that then has `size` values; NaN where there were none."""
    whole = math.floor(by + 1e-6)
    part = max(by - whole, 0.0)
    lines = np.moveaxis(plane, axis, 0)
    room = np.full((size + 1, *lines.shape[1:]), np.nan, np.float32)
    room[whole + 1 : whole + 1 + len(lines)] = lines
    # One more in front, for the value before.
    here, before = room[1:], room[:-1]
    moved = here if part < 1e-4 else here * np.float32(1 - part) + before * np.float32(part)
    return np.moveaxis(moved, 0, axis)
