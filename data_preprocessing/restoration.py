"""From the network's probabilities of a case to its mask: in the scan's own grid, written and scored.

The steps of preprocessor.py inverted. A case may come as a whole or plane by plane, as the network finishes them; what
comes out is the same to the last bit.

Shapes: K classes or regions, D H W the preprocessed grid, S A R the axes of the scan.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_preprocessing.preprocessor import native_label_classes, target_grid_mm
from data_preprocessing.resampling import coarse_axis, make_maps, resample_slab, slabs
from data_preprocessing.shards import read_meta
from utils.errors import UserError, list_problems
from utils.files import write_atomically
from utils.nifti import from_working, read_header, read_label, working_grid, write_mask
from utils.schema import CaseMeta, LabelScheme, Plan
from utils.scores import label_counts

REGION_THRESHOLD = 0.5


def restore_mask(probabilities: np.ndarray, meta: CaseMeta, plan: Plan) -> np.ndarray:
    """Mask (S, A, R) uint8 of file values, from probabilities (K, D, H, W) on the preprocessed grid.

    Each class is brought back by linear interpolation, and the most probable wins (of equals, the lowest); a region
    holds where its probability exceeds 1/2, and later regions overwrite earlier ones. Outside the crop is background.
    """
    restorer = SlabRestorer(meta, plan)
    restorer.add(probabilities)
    return restorer.finish()


def restore_probabilities(probabilities: np.ndarray, meta: CaseMeta, plan: Plan) -> np.ndarray:
    """Probabilities (K, S, A, R) float32 in the scan's grid, from (K, D, H, W) on the preprocessed grid.

    Outside the crop the background has probability 1; regions have 0.
    """
    native = np.zeros((len(probabilities), *native_shape(meta)), dtype=np.float32)
    restorer = SlabRestorer(meta, plan, probabilities=native)
    restorer.add(probabilities)
    restorer.finish()
    return native


def native_shape(meta: CaseMeta) -> tuple[int, int, int]:
    """Voxels of the scan along S, A, R."""
    return tuple(meta.original_shape[meta.axes.index(axis)] for axis in range(3))


class SlabRestorer:
    """Restores the mask of one case from planes that arrive in order; only those still needed are kept.

    Args:
        meta: how the case was preprocessed.
        plan: by which plan.
        probabilities: (K, S, A, R) float32 array of zeros, to be filled with the probabilities of the scan's voxels;
            None for the mask alone.
    """

    def __init__(self, meta: CaseMeta, plan: Plan, probabilities: np.ndarray | None = None) -> None:
        self._labels = plan.labels
        self._values = np.array(plan.labels.values, dtype=np.uint8)
        self._mask = np.full(native_shape(meta), self._values[0], dtype=np.uint8)
        crop = tuple(slice(*side) for side in meta.crop_box)
        self._crop = self._mask.transpose(meta.axes)[crop]
        self._native = None
        if probabilities is not None:
            if not plan.labels.regions:
                probabilities[0] = 1
            self._native = probabilities.transpose(0, *(1 + axis for axis in meta.axes))[(slice(None), *crop)]
        # The same rule as on the way there, so that slices which were not mixed stay unmixed.
        coarse = coarse_axis(meta.spacing_mm, target_grid_mm(plan.stage, meta.spacing_mm))
        self._maps = make_maps(meta.resampled_shape, self._crop.shape, cubic=False, coarse=coarse)
        self._waiting = deque(slabs(self._maps))
        self._plane_shape = meta.padded_shape[1:]
        self._inner = tuple(slice(low, low + n) for low, n in zip(meta.pad_low[1:], meta.resampled_shape[1:]))
        # Planes are counted from the first one that is no padding.
        self._arrived, self._first, self._depth = -meta.pad_low[0], 0, meta.resampled_shape[0]
        self._held = np.empty((plan.labels.num_outputs, 0, *meta.resampled_shape[1:]), dtype=np.float32)

    def add(self, planes: np.ndarray) -> None:
        """Take the next planes (K, d, H, W) of the padded, preprocessed grid."""
        assert planes.shape[0] == len(self._held) and planes.shape[2:] == self._plane_shape, planes.shape
        valid = slice(max(0, -self._arrived), max(0, self._depth - self._arrived))
        new = planes[(slice(None), valid, *self._inner)]
        self._arrived += planes.shape[1]
        self._held = np.concatenate([self._held, new], axis=1) if self._held.shape[1] else new
        while self._waiting and self._inputs(self._waiting[0]).stop <= self._first + self._held.shape[1]:
            self._restore(self._waiting.popleft())
        end = self._first + self._held.shape[1]
        needed = min(self._inputs(self._waiting[0]).start, end) if self._waiting else end
        # A copy, so that the planes that came in can go.
        self._held = self._held[:, max(0, needed - self._first) :].copy()
        self._first = max(self._first, needed)

    def finish(self) -> np.ndarray:
        """The mask (S, A, R) uint8 of file values, once all planes have been added."""
        assert not self._waiting, f"planes are missing; {self._arrived} of {self._depth} arrived"
        return self._mask

    def _inputs(self, slab: slice) -> slice:
        return self._maps[0].restrict(slab.start, slab.stop)[1]

    def _restore(self, slab: slice) -> None:
        across, inputs = self._maps[0].restrict(slab.start, slab.stop)
        maps, part = (across, *self._maps[1:]), slice(inputs.start - self._first, inputs.stop - self._first)
        shares = (resample_slab(channel[part], maps, slice(0, across.size_out)) for channel in self._held)
        if self._native is not None:
            shares = _recorded(shares, self._native[:, slab])
        decide = _region_classes if self._labels.regions else _most_probable
        self._crop[slab] = self._values[decide(shares, self._labels)]


def _recorded(shares: Iterator[np.ndarray], out: np.ndarray) -> Iterator[np.ndarray]:
    for share, target in zip(shares, out):
        target[...] = share
        yield share


def _most_probable(shares: Iterator[np.ndarray], labels: LabelScheme) -> np.ndarray:
    """Class indices from the classes' probabilities, one class in memory at a time."""
    best = np.array(next(shares))
    winner = np.zeros(best.shape, dtype=np.uint8)
    for k, share in enumerate(shares, start=1):
        np.copyto(winner, k, where=share > best)
        np.maximum(best, share, out=best)
    return winner


def _region_classes(shares: Iterator[np.ndarray], labels: LabelScheme) -> np.ndarray:
    """Class indices from the regions' probabilities, later regions over earlier ones."""
    winner = None
    for region, share in zip(labels.regions, shares):
        winner = np.zeros(share.shape, dtype=np.uint8) if winner is None else winner
        np.copyto(winner, region.write_class, where=share > REGION_THRESHOLD)
    return winner


def _grid_problem(label: Path, shape: tuple[int, ...], meta: CaseMeta) -> str | None:
    if tuple(shape) == native_shape(meta):
        return None
    return f"{meta.case}: {label} has {tuple(shape)} voxels, its scan had {native_shape(meta)} when it was preprocessed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseRestorer:
    """Restores the cases of one shard folder.

    Attributes:
        folder: shards, with one `<case>.json` each.
        plan: the plan that they were made with.
        output: folder for `<case>.nii.gz`; None writes nothing.
        save_probabilities: also write `<case>.npy`, float32 (K, z, y, x) in the voxel order of the source file.
    """

    folder: Path
    plan: Plan
    output: Path | None = None
    save_probabilities: bool = False

    def require_labels(self, cases: Sequence[str]) -> None:
        """Find out before hours of work whether every case has the label file that it is scored against.

        Raises:
            UserError: files are missing (the raw data stayed elsewhere), cannot be read, or have another grid.
        """
        problems = [problem for case in cases if (problem := self._label_problem(case))]
        if problems:
            raise list_problems(
                f"{len(problems)} of {len(cases)} cases cannot be scored in the grid of their scan:",
                problems,
                advice="Bring the raw data back to where preprocess.py read them, or run it again where they are now; "
                "without --invert_resampled_y the labels of the shards are enough.",
            )

    def _label_problem(self, case: str) -> str | None:
        meta = read_meta(self.folder, case)
        if meta.label is None:
            return f"{case}: it has no label"
        if not Path(meta.label).is_file():
            return f"{case}: {meta.label} does not exist"
        try:
            shape, affine = read_header(Path(meta.label))
            return _grid_problem(Path(meta.label), working_grid(shape, affine)[0], meta)
        except UserError as error:
            return f"{case}: {error}"

    def restore(self, case: str, probabilities: np.ndarray) -> np.ndarray | None:
        """Bring one case back to its scan, write what is asked for, and score it.

        Args:
            case: name of the shard.
            probabilities: (K, D, H, W) float32 on the preprocessed grid.

        Returns:
            (T, 3) true positives, false positives and false negatives per target, or None without a label file.
        """
        meta = read_meta(self.folder, case)
        mask = restore_mask(probabilities, meta, self.plan)
        if self.output is not None:
            write_mask(self.output / f"{case}.nii.gz", mask, meta.geometry)
            if self.save_probabilities:
                self._write_probabilities(case, probabilities, meta)
        return self._score(mask, meta)

    def _score(self, mask: np.ndarray, meta: CaseMeta) -> np.ndarray | None:
        if meta.label is None or not Path(meta.label).is_file():
            return None
        volume = read_label(Path(meta.label))
        if problem := _grid_problem(Path(meta.label), volume.array.shape, meta):
            raise UserError(f"{problem}; run preprocess.py again")
        label = native_label_classes(volume, self.plan)
        values = np.zeros(256, np.uint8)
        values[list(self.plan.labels.values)] = np.arange(self.plan.labels.num_classes)
        return label_counts(values[mask], label, self.plan.labels)

    def _write_probabilities(self, case: str, probabilities: np.ndarray, meta: CaseMeta) -> None:
        native = from_working(restore_probabilities(probabilities, meta, self.plan), meta.geometry)
        array = np.ascontiguousarray(native.transpose(0, 3, 2, 1))
        write_atomically(self.output / f"{case}.npy", lambda file: np.save(file, array, allow_pickle=False))
