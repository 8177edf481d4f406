"""From the network's probabilities of a case to its mask: in the scan's own grid, written and scored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from data_preprocessing.preprocessor import native_label_classes, restore_mask, restore_probabilities
from data_preprocessing.shards import read_meta
from utils.files import write_atomically
from utils.nifti import from_working, read_label, write_mask
from utils.schema import CaseMeta, Plan
from utils.scores import label_counts


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
        label = native_label_classes(read_label(Path(meta.label)), self.plan)
        values = np.zeros(256, np.uint8)
        values[list(self.plan.labels.values)] = np.arange(self.plan.labels.num_classes)
        return label_counts(values[mask], label, self.plan.labels)

    def _write_probabilities(self, case: str, probabilities: np.ndarray, meta: CaseMeta) -> None:
        native = from_working(restore_probabilities(probabilities, meta, self.plan), meta.geometry)
        array = np.ascontiguousarray(native.transpose(0, 3, 2, 1))
        write_atomically(self.output / f"{case}.npy", lambda file: np.save(file, array, allow_pickle=False))
