"""What the audit knows of a case: its given label, and what a network that has not seen it believes of each voxel.

Axes: S A R. K classes, background first. Regions that overlap are brought to classes: a class is as probable as that
each region which holds it is there and each other one is not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from cross_validation.audit.origin import require_mask
from inference.saved import SavedProbabilities, mean_classes, read_probabilities
from utils.nifti import working_grid
from utils.pages import give_back_pages
from utils.predictions import working_view
from utils.schema import Geometry, LabelScheme
from utils.scoring import read_label_on

MARGIN = 6
"""Voxels around all foreground, given or predicted, that are looked at."""
FLOOR = 0.01
"""Smallest probability that counts: one voxel of which a network is sure must not outweigh a boundary."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """A case within the box around its foreground.

    Attributes:
        label: (S, A, R) given class indices; an ignored voxel has the number of classes.
        predicted: (S, A, R) class indices.
        saved: (R or K, S, A, R) probabilities of the whole scan, in their file.
        labels: names and values of the classes.
        box: where in the scan this is.
        spacing_mm: of the voxels.
        geometry: of the file.
    """

    label: np.ndarray
    predicted: np.ndarray
    saved: np.ndarray
    labels: LabelScheme
    box: tuple[slice, slice, slice]
    spacing_mm: tuple[float, float, float]
    geometry: Geometry

    def probability(self, index: int) -> np.ndarray:
        """(S, A, R) float32: how probable a class is; classes in the same regions share one probability."""
        if not self.labels.regions:
            found = self._channel(index)
        else:
            found = self._joint(index) / self._total
        return np.where(self.counts, found, np.float32(index == 0))

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """(S, A, R) bool: voxels that are not ignored."""
        return self.label < self.labels.num_classes

    @functools.cached_property
    def alike(self) -> tuple[int, ...]:
        """For each class the first one in the same regions: nothing tells them apart."""
        found = [tuple(index in region.classes for region in self.labels.regions) or (index,) for index in self._all]
        return tuple(found.index(each) for each in found)

    @property
    def _all(self) -> range:
        return range(self.labels.num_classes)

    @functools.cached_property
    def _total(self) -> np.ndarray:
        total = np.full(self.label.shape, np.float32(1e-6))
        for index in sorted(set(self.alike)):
            total += self._joint(index)
        return total

    def _joint(self, index: int) -> np.ndarray:
        product = np.ones(self.label.shape, np.float32)
        for number, region in enumerate(self.labels.regions):
            share = self._channel(number)
            product *= share if index in region.classes else 1 - share
        return product

    def _channel(self, number: int) -> np.ndarray:
        part = np.array(self.saved[number][self.box], dtype=np.float32)
        give_back_pages(self.saved)
        return part


def log_of(probability: np.ndarray) -> np.ndarray:
    """Logarithm of probabilities, none below `FLOOR`."""
    return np.log(np.clip(probability, FLOOR, 1))


def read_evidence(folder: Path, case: str, label: Path, mask: str) -> Evidence:
    """The evidence of a case whose out-of-fold probabilities lie in a folder.

    Args:
        folder: of the probabilities.
        case: its name.
        label: its file.
        mask: digest of what was predicted, as its fold has noted it.

    Raises:
        UserError: a file is missing or damaged, or of another prediction, or the label lies on another grid.
    """
    saved = read_probabilities(folder, case)
    grid = _grid(saved)
    given = read_label_on(grid, label, saved.labels, of=f"its prediction {saved.name}")
    predicted = working_view(mean_classes([saved]), saved.affine)
    require_mask(saved, folder / f"{case}.nii.gz", predicted, mask)
    return make_evidence(given, predicted, working_view(saved.values, saved.affine), saved.labels, grid)


def make_evidence(
    given: np.ndarray, predicted: np.ndarray, saved: np.ndarray, labels: LabelScheme, geometry: Geometry
) -> Evidence:
    """Of whole arrays (S, A, R) and probabilities (R or K, S, A, R), all on one grid."""
    box = _box((given > 0) & (given < labels.num_classes) | (predicted > 0))
    _, spacing_mm = working_grid(geometry.shape_xyz, np.asarray(geometry.affine, float))
    draft = Evidence(label=given[box], predicted=predicted[box], saved=saved, labels=labels, box=box,
                     spacing_mm=spacing_mm, geometry=geometry)  # fmt: skip
    if draft.alike == tuple(range(labels.num_classes)):
        return draft
    table = np.array([*draft.alike, labels.num_classes], dtype=np.uint8)
    return dataclasses.replace(draft, label=table[draft.label], predicted=table[draft.predicted])


def _box(marked: np.ndarray) -> tuple[slice, slice, slice]:
    found = ndimage.find_objects(marked.astype(np.uint8))
    if not found:
        depth, height, width = marked.shape
        return slice(0, depth), slice(0, height), slice(0, width)
    near = [slice(max(0, part.start - MARGIN), min(size, part.stop + MARGIN))
            for part, size in zip(found[0], marked.shape)]  # fmt: skip
    return near[0], near[1], near[2]


def _grid(saved: SavedProbabilities) -> Geometry:
    shape: Sequence[int] = saved.values.shape[:0:-1]
    columns, rows, slices = (int(size) for size in shape)
    return Geometry(
        shape_xyz=(columns, rows, slices), affine=tuple(map(tuple, np.asarray(saved.affine, float).tolist())),
        qform_code=0, sform_code=0, xyzt_units=2,
    )  # fmt: skip
