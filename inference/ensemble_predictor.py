"""Several configurations as one object that predicts; see `inference/predictor.py`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inference.model_set import ModelSet
from inference.postprocessing import keep_largest
from inference.predictor import Prediction, Predictor
from inference.preparing import as_volume, finite_scan, read_scan
from inference.saved import SLAB_VALUES
from utils.nifti import Volume
from utils.pages import give_back_pages
from utils.predictions import most_probable
from utils.reserved import create_array


class EnsemblePredictor:
    """Predicts scans with the mean of several configurations; the same methods as a `Predictor`.

    Args:
        models: what the members are, and the post-processing.
        members: a predictor for each.
    """

    def __init__(self, models: ModelSet, members: Sequence[Predictor]) -> None:
        self.models, self.members, self.plan = models, tuple(members), models.plan

    @property
    def weight_bytes(self) -> int:
        """Memory of all weights."""
        return sum(member.weight_bytes for member in self.members)

    def predict(self, image: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """See `Predictor.predict`."""
        return self._mask(as_volume(image, spacing_mm), "the image")

    def predict_probabilities(self, image: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """See `Predictor.predict_probabilities`."""
        return self._probabilities(as_volume(image, spacing_mm), "the image")

    def predict_file(self, paths: Path | str | Sequence[Path | str]) -> Prediction:
        """See `Predictor.predict_file`."""
        volume, name = read_scan(paths)
        return Prediction(mask=self._mask(volume, name), geometry=volume.geometry)

    def _mask(self, volume: Volume, name: str) -> np.ndarray:
        """The sum of all members' probabilities lies in a file, as for the command; a few planes are in memory."""
        labels = self.plan.labels
        values = np.array(labels.values, dtype=np.uint8)
        mask = np.empty(volume.array.shape[1:], dtype=np.uint8)
        with tempfile.TemporaryDirectory(prefix="nnunet-ensemble-") as folder:
            path = Path(folder) / "sum.npy"
            total = create_array(path, (labels.num_outputs, *mask.shape), target=path)
            self._add_up(total, volume, name)
            step = max(1, SLAB_VALUES // total[:, 0].size)
            for start in range(0, len(mask), step):
                part = slice(start, start + step)
                mask[part] = values[most_probable(total[:, part] / len(self.members), labels)]
                give_back_pages(total)
            del total
        return keep_largest(mask, labels, self.models.post_processing)

    def _probabilities(self, volume: Volume, name: str) -> np.ndarray:
        total = np.zeros((self.plan.labels.num_outputs, *volume.array.shape[1:]), dtype=np.float32)
        self._add_up(total, volume, name)
        total /= len(self.members)
        return total

    def _add_up(self, total: np.ndarray, volume: Volume, name: str) -> None:
        """Add each member's probabilities to (K, S, A, R), one member after the other."""
        # Here and not by each member, which would each say so.
        volume = finite_scan(volume, name)
        for member in self.members:
            member.restore(member.prepare(volume, name), total)
