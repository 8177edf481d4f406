"""A scan with its mask and label as arrays on one grid, and what follows from them: volumes, differences, slices.

Axes: S, A, R (superior, anterior, right), as in utils/nifti.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from report.sources import CaseFiles
from utils.errors import UserError
from utils.nifti import Volume, is_same_grid, read_image, read_label, to_working
from utils.scan_names import scan_ending, scan_stem, split_channel
from utils.schema import Geometry, LabelScheme

MISSED_VALUE, INVENTED_VALUE, CONFUSED_VALUE = 1, 2, 3
"""Values of a difference: only in the label, only in the mask, another structure."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Structure:
    """What a value of a mask means."""

    name: str
    value: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layers:
    """Arrays (S, A, R) of one case on one grid; mask and label hold file values, 0 is background."""

    scan: np.ndarray
    mask: np.ndarray | None
    label: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    """(4, 4): indices (R, A, S) to mm."""
    ignore_value: int | None = None
    """Value of the label of voxels that count for nothing."""
    other_channels: tuple[np.ndarray, ...] = ()
    """Those after the first one, which is `scan`."""
    window: tuple[float, float] | None = None
    """Intensities of `scan` to show as black and as white; None: those of almost all its voxels."""

    @property
    def difference(self) -> np.ndarray | None:
        """Where mask and label disagree, and how; None unless there are both."""
        if self.mask is None or self.label is None:
            return None
        found = differences(self.mask, self.label)
        if self.ignore_value is not None:
            found[self.label == self.ignore_value] = 0
        return found

    @property
    def telling(self) -> np.ndarray:
        """Voxels that a person should see first: where mask and label disagree, else foreground, else nothing."""
        difference = self.difference
        if difference is not None and difference.any():
            return difference > 0
        marked = [each > 0 for each in (self.mask, self.label) if each is not None and each.any()]
        return marked[0] if marked else np.zeros(self.scan.shape, dtype=bool)

    @property
    def marked(self) -> np.ndarray:
        """Voxels that the mask or the label marks."""
        found = np.zeros(self.scan.shape, dtype=bool)
        for each in (self.mask, self.label):
            if each is not None:
                found |= each > 0
        return found


def structures_of(labels: LabelScheme | None, values: Sequence[int] = ()) -> tuple[Structure, ...]:
    """The foreground structures of a label scheme; without one those of the values that occur, named by them."""
    if labels is not None:
        known = [Structure(name=name, value=value) for name, value in zip(labels.names[1:], labels.values[1:])]
        values = [value for value in values if value not in (*labels.values, labels.ignore_value)]
    else:
        known = []
    return (*known, *(Structure(name=f"value {value}", value=value) for value in sorted(set(values) - {0})))


def read_layers(files: CaseFiles) -> Layers:
    """The arrays of a case.

    Raises:
        UserError: a file is missing, cannot be read, or lies on another grid than its scan.
    """
    if files.read is not None:
        scan, name = files.read(), ""
    elif files.image is not None:
        scan, name = read_image(channel_files(files.image)), files.image.name
    else:
        raise UserError("its scan was not found")
    mask, label = (_on_grid(path, scan, name) for path in (files.mask, files.label))
    return Layers(
        scan=scan.array[0], mask=mask, label=label, spacing_mm=scan.spacing_mm, affine=working_affine(scan.geometry),
        other_channels=tuple(scan.array[1:]),
    )  # fmt: skip


def channel_files(first: Path) -> list[Path]:
    """The files of a scan's channels: of `<case>_0000` those that follow it beside it, else the one file."""
    found, named, ending = [first], split_channel(scan_stem(first)), scan_ending(first)
    if named is not None and named[1] == 0:
        while (after := first.with_name(f"{named[0]}_{len(found):04d}{ending}")).is_file():
            found.append(after)
    return found


def differences(mask: np.ndarray, label: np.ndarray) -> np.ndarray:
    """uint8 of the voxels where a mask and a label disagree: missed, invented, or another structure."""
    found = np.zeros(mask.shape, dtype=np.uint8)
    found[(mask == 0) & (label > 0)] = MISSED_VALUE
    found[(mask > 0) & (label == 0)] = INVENTED_VALUE
    found[(mask > 0) & (label > 0) & (mask != label)] = CONFUSED_VALUE
    return found


def value_counts(mask: np.ndarray, path: Path) -> np.ndarray:
    """How many voxels of a mask have each value, (256,).

    Raises:
        UserError: the mask holds other values than 0 to 255; `path` names it.
    """
    _require_bytes(mask, path)
    return np.bincount(mask.ravel(), minlength=256)


def volumes_ml(counts: np.ndarray, spacing_mm: Sequence[float], structures: Sequence[Structure]) -> dict[str, float]:
    """Structure -> its volume in ml, of the voxel counts of a mask."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return {structure.name: int(counts[structure.value]) * voxel_ml for structure in structures}


def working_affine(geometry: Geometry) -> np.ndarray:
    """Indices (R, A, S) of the working axes to mm, for a file of this geometry."""
    stored = np.asarray(geometry.affine, dtype=float)
    shape = geometry.shape_xyz
    # Where each working voxel lies in the file, read off three arrays that take no memory.
    places = [np.broadcast_to(np.arange(size).reshape([-1 if a == axis else 1 for a in range(3)]), shape)
              for axis, size in enumerate(shape)]  # fmt: skip
    turned = [to_working(place, geometry.affine) for place in places]
    origin = np.array([place[0, 0, 0] for place in turned], dtype=float)
    working = np.eye(4)
    for column, axis in enumerate((2, 1, 0)):
        step = [np.sign(np.diff(np.moveaxis(place, axis, 0)[:2, 0, 0])) if place.shape[axis] > 1 else [0.0]
                for place in turned]  # fmt: skip
        working[:3, column] = stored[:3, :3] @ np.array([float(each[0]) for each in step])
    working[:3, 3] = stored[:3, :3] @ origin + stored[:3, 3]
    _fill_flat_axes(working, stored, shape)
    return working


def _fill_flat_axes(working: np.ndarray, stored: np.ndarray, shape: Sequence[int]) -> None:
    """An axis of one voxel has no neighbour to show its direction; it keeps the stored one."""
    if min(shape) > 1:
        return
    left = [axis for axis in range(3) if shape[axis] == 1]
    for column in range(3):
        if not working[:3, column].any():
            working[:3, column] = stored[:3, left.pop(0)]


def _on_grid(path: Path | None, scan: Volume, image: str) -> np.ndarray | None:
    if path is None:
        return None
    volume = read_label(path, scan.geometry)
    if not is_same_grid(volume.geometry, scan.geometry):
        raise UserError(f"{path.name} lies on another grid than its scan {image}".rstrip())
    _require_bytes(volume.array, path)
    return volume.array.astype(np.uint8)


def _require_bytes(mask: np.ndarray, path: Path) -> None:
    low, high = int(mask.min(initial=0)), int(mask.max(initial=0))
    if low < 0 or high > 255:
        raise UserError(f"{path.name} holds values from {low} to {high}; a page shows 0 to 255")
