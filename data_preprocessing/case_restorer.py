"""The cases of a shard folder on their way back to their scans: masks and probabilities written, masks scored.

Shapes: K classes or regions, D H W the preprocessed grid, S A R the axes of the scan, z y x the voxels of its file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_preprocessing.restoration import native_shape, restore_slabs, without_padding
from data_preprocessing.shards import read_meta
from utils.errors import UserError, list_problems
from utils.nifti import read_header, working_grid, write_mask
from utils.predictions import working_view
from utils.reserved import new_array
from utils.schema import CaseMeta, Plan
from utils.scoring import score_mask


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

    def scan_box(self, case: str) -> tuple[slice, slice, slice]:
        """Where the scan of a case lies in what is predicted of it, which may be padded."""
        return without_padding(read_meta(self.folder, case))

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

    def restore(self, case: str, slabs: Iterable[np.ndarray]) -> np.ndarray | None:
        """Bring one case back to its scan, write what is asked for, and score it.

        Args:
            case: name of the shard.
            slabs: probabilities (K, d, H, W) float32 on the preprocessed grid, in order, D planes together.

        Returns:
            (T, 3) true positives, false positives and false negatives per target, or None without a label file.

        Raises:
            UserError: there is no room for the probabilities, or a file cannot be written.
        """
        meta = read_meta(self.folder, case)
        with self._stored(case, meta) as probabilities:
            mask = restore_slabs(slabs, meta, self.plan, probabilities)
        if self.output is not None:
            # The mask comes last: where it is, the case is done.
            write_mask(self.output / f"{case}.nii.gz", mask, meta.geometry)
        return self._score(mask, meta)

    def _score(self, mask: np.ndarray, meta: CaseMeta) -> np.ndarray | None:
        if meta.label is None or not Path(meta.label).is_file():
            return None
        values = np.zeros(256, np.uint8)
        values[list(self.plan.labels.values)] = np.arange(self.plan.labels.num_classes)
        try:
            return score_mask(values[mask], meta.geometry, Path(meta.label), self.plan.labels, of=f"scan {meta.case}")
        except UserError as error:
            raise UserError(f"{error}; where scan or label have changed, run preprocess.py again") from None

    @contextmanager
    def _stored(self, case: str, meta: CaseMeta) -> Iterator[np.ndarray | None]:
        """Zeros (K, S, A, R) to be filled, in a file (K, z, y, x) of the scan's voxel order that appears at the end."""
        if self.output is None or not self.save_probabilities:
            yield None
            return
        shape = (self.plan.labels.num_outputs, *reversed(meta.geometry.shape_xyz))
        with new_array(self.output / f"{case}.npy", shape) as stored:
            yield working_view(stored, meta.geometry.affine)
