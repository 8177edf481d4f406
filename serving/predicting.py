"""One scan to its mask and its doubt, as inference.py makes both; what every server of this program does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inference.configuration_predictor import Counter
from inference.doubt_files import Doubts
from inference.predictor import Predictor
from inference.preparing import odd_remark, odd_voxels
from utils.certainty import DoubtRecord
from utils.nifti import Volume
from utils.reserved import array_bytes, create_array


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """Mask (S, A, R) uint8 of file values, what is said of it, and what was done to the scan before."""

    mask: np.ndarray
    doubt: DoubtRecord
    remarks: tuple[str, ...]


class ScanPredictor:
    """A predictor on its device, and what its cross-validation says of doubt.

    Args:
        predictor: what predicts.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        # Nothing is written: the folder of records plays no part.
        self._doubts = Doubts(Path(), predictor)

    @property
    def warnings(self) -> list[str]:
        """What makes its verdicts rougher."""
        return self._doubts.warnings

    def predict(
        self, volume: Volume, name: str, folder: Path, need: Callable[[int], None], count: Counter | None = None
    ) -> Predicted:
        """Predict a scan that has been read.

        Args:
            volume: the scan.
            name: what messages call it.
            folder: where a sum of probabilities may lie.
            need: asked for room on the disk before it is taken.
            count: told of what is done; may raise what ends the work.

        Raises:
            UserError: as `Predictor.predict_volume`.
        """
        predictor, stored = self.predictor, None
        if predictor.adds_up:
            shape = (predictor.plan.labels.num_outputs, *reversed(volume.geometry.shape_xyz))
            need(array_bytes(shape))
            stored = create_array(folder / "sum.npy", shape, target=folder / "sum.npy")
        prepared = predictor.prepare(volume, name)
        watch = self._doubts.begin(prepared)
        mask = predictor.finish(predictor.collect(predictor.stream(prepared, count, watch.counters), stored))
        remarks = tuple(filter(None, [odd_remark(odd_voxels(volume))]))
        return Predicted(mask=mask, doubt=self._doubts.say(name, watch, mask, prepared), remarks=remarks)
