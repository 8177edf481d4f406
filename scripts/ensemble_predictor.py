"""Several configurations as one object that predicts; see `scripts/predictor.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.ensemble import Member, mean_probabilities
from models.model_set import ModelSet
from scripts.predictor import Prediction, Predictor, as_volume, read_scan
from utils.nifti import Volume
from utils.postprocessing import keep_largest
from utils.predictions import most_probable


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
        labels = self.plan.labels
        values = np.array(labels.values, dtype=np.uint8)
        mask = values[most_probable(self._probabilities(volume, name), labels)]
        return keep_largest(mask, labels, self.models.post_processing)

    def _probabilities(self, volume: Volume, name: str) -> np.ndarray:
        each = (member.native_probabilities(member.prepare(volume, name)) for member in self.members)
        return mean_probabilities(
            [Member(name=n, labels=self.plan.labels, probabilities=p) for n, p in zip(self.models.names, each)]
        )
