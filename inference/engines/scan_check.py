"""Whether networks in another form make the mask that torch makes of a whole scan.

Random windows (`agreement`) find a network that was converted wrongly; a scan shows the intensities, the blending and
the nearly equal classes that the networks were made for.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from inference.configuration_predictor import ConfigurationPredictor
from inference.engines.agreement import MOST_DIFFERING, Run
from inference.model import Model
from inference.predictor import Predictor
from utils.errors import UserError
from utils.nifti import Volume


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanAgreement:
    """Of a scan's `voxels`, `foreground` are not background for torch, and `differing` are another class by others."""

    voxels: int
    foreground: int
    differing: int

    @property
    def holds(self) -> bool:
        """Whether that is no more than rounding: one voxel, or as many in 10,000 of the foreground."""
        return self.differing <= max(1.0, MOST_DIFFERING * self.foreground)

    def describe(self) -> str:
        """In a few words."""
        return f"{self.differing} of {self.voxels} voxels differ ({self.foreground} are foreground)"


class ScanCheck:
    """The mask that torch makes of a scan, before post-processing, to which those of others are compared.

    Raises:
        UserError: the scan does not fit the model.
    """

    def __init__(self, model: Model, scan: Volume, name: str) -> None:
        self._model, self._scan, self.name = model, scan, name
        self._expected = Predictor(_predictors(model)).predict_volume(scan, name)

    def compare(self, runs: Sequence[Run]) -> ScanAgreement:
        """The same scan by other networks: one for each fold, a cascade's second stage before its first one.

        Raises:
            UserError: the mask is another one.
        """
        predictors, rest = _predictors(self._model), iter(runs)
        for predictor in predictors:
            for stage in (predictor, predictor.previous):
                if stage is not None:
                    networks = tuple(_Outside(next(rest)) for _ in stage.ensemble.names)
                    stage.ensemble = dataclasses.replace(stage.ensemble, networks=networks)
        found = Predictor(predictors).predict_volume(self._scan, self.name)
        background = self._model.plan.labels.values[0]
        agreement = ScanAgreement(
            voxels=found.size, foreground=int(np.count_nonzero(self._expected != background)),
            differing=int(np.count_nonzero(found != self._expected)),
        )  # fmt: skip
        if not agreement.holds:
            raise UserError(
                f"the exported networks make another mask of {self.name} than torch: {agreement.describe()}; "
                "nothing was kept. Tell the versions of both, and which network it is (nnunet info)"
            )
        if agreement.foreground == 0:
            print(
                f"warning: {self.name} is background alone to this model; a scan with structures says more",
                file=sys.stderr,
            )
        return agreement


class _Outside(nn.Module):
    """A runtime as a network of an ensemble."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def forward(self, windows: Tensor) -> Tensor:
        return self._run(windows)


def _predictors(model: Model) -> list[ConfigurationPredictor]:
    return [ConfigurationPredictor(each, device=torch.device("cpu")) for each in model.configurations]
