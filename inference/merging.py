"""Several models' masks of one scan, merged by class into one: the grid that all models see, and the way back.

Shapes: C channels; S A R (superior, anterior, right) of the scan, S' A' R' of the common grid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import numpy as np

from data_preprocessing.resampling import Shape, make_maps, nearest_map, resample_image, resampled_shape
from utils.axes import triple
from utils.nifti import Volume, stored_axes, working_grid
from utils.schema import Geometry

Orientation = Literal["ras", "stored"]
Order = Literal[1, 3]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge:
    """How scans come to the models of a set, and which values their classes have in the merged mask.

    Attributes:
        labels: name -> value of all classes.
        values: of each model, value in its mask -> value in the merged one; what is not named there is left out.
        orientation: models see scans as in RAS+, or as they lie in their files.
        spacing_mm: voxel size along S, A, R at which models see scans; None: the scan's own.
        order: of the splines that bring scans to it: 1, linear, or 3, cubic.
    """

    labels: dict[str, int]
    values: tuple[dict[int, int], ...]
    orientation: Orientation
    spacing_mm: tuple[float, float, float] | None = None
    order: Order = 1

    def grid(self, shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[Shape, tuple[float, float, float]]:
        """Voxels S' A' R' and their size for a scan of these voxels."""
        if self.spacing_mm is None:
            return triple(shape), triple(spacing_mm)
        return resampled_shape(shape, spacing_mm, self.spacing_mm), self.spacing_mm

    def on_grid(self, volume: Volume) -> Volume:
        """The scan as all models see it, interpolated along all axes."""
        if self.spacing_mm is None and self.orientation == "stored":
            return volume
        old = volume.array.shape[1:]
        shape, spacing_mm = self.grid(old, volume.spacing_mm)
        array = volume.array
        if shape != old:
            maps = make_maps(old, shape, cubic=self.order == 3, coarse=None)
            array = np.empty((len(array), *shape), dtype=np.float32)
            for channel, new in zip(volume.array, array):
                resample_image(channel, maps, new, coarse=None)
        geometry = self._lying(shape, spacing_mm, volume.geometry)
        return Volume(array=array, spacing_mm=spacing_mm, geometry=geometry)

    def _lying(self, shape: Shape, spacing_mm: Sequence[float], like: Geometry) -> Geometry:
        """A grid without rotation whose axes lie as in RAS+ or as those of `like`; no mask is written on it."""
        affine, shape_xyz = np.zeros((4, 4)), [0, 0, 0]
        affine[3, 3] = 1
        turned = stored_axes(like.affine) if self.orientation == "stored" else ((0, 1, 2), (False,) * 3)
        # z, y and x of the file, each along one of S, A and R, which are z, y and x of the world.
        for place, axis, backwards in zip((2, 1, 0), *turned):
            affine[2 - axis, place] = -spacing_mm[axis] if backwards else spacing_mm[axis]
            shape_xyz[place] = shape[axis]
        matrix = tuple(map(tuple, affine.tolist()))
        return Geometry(shape_xyz=triple(shape_xyz), affine=matrix, qform_code=1, sform_code=1, xyzt_units=2)

    def add(self, merged: np.ndarray | None, index: int, mask: np.ndarray) -> np.ndarray:
        """Write the classes of model `index` over those of the models before it, in place.

        Args:
            merged: (S', A', R') uint8; None before the first model.
            index: which model made the mask.
            mask: (S', A', R') uint8 of its own values.
        """
        values = np.zeros(256, dtype=np.uint8)
        values[list(self.values[index])] = list(self.values[index].values())
        merged = np.zeros(mask.shape, dtype=np.uint8) if merged is None else merged
        for plane, own in zip(merged, mask):
            new = values[own]
            np.copyto(plane, new, where=new != 0)
        return merged

    def back(self, merged: np.ndarray, geometry: Geometry) -> np.ndarray:
        """The merged mask (S, A, R) on the scan's own grid: each voxel has the value of the nearest one."""
        shape, _ = working_grid(geometry.shape_xyz, np.array(geometry.affine))
        if shape == merged.shape:
            return merged
        planes, rows, columns = (nearest_map(n, m).first for n, m in zip(merged.shape, shape))
        mask = np.empty(shape, dtype=np.uint8)
        for target, plane in zip(mask, planes):
            target[...] = merged[plane][np.ix_(rows, columns)]
        return mask

    def describe(self) -> str:
        """Grid, number of classes and a digest of all that a mask depends on."""
        sizes = self.spacing_mm or ()
        grid = " x ".join(f"{size:g}" for size in sizes) + f" mm, order {self.order}" if sizes else "their own spacing"
        content = [sorted(self.labels.items()), [sorted(each.items()) for each in self.values]]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]
        return f"{len(self.labels)} classes ({digest}), {self.orientation}, {grid}"
