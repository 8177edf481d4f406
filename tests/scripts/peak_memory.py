"""Predict one scan in a process of its own and print how much memory that took beyond the loaded program.

Not a test itself: python -m tests.scripts.peak_memory '{"classes": 31, ...}'
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from inference.configuration import ConfigurationModel, FoldWeights
from inference.configuration_predictor import ConfigurationPredictor, window_batch
from inference.predictor import Predictor
from inference.scan_run import ScanJob, ScanRun
from models.inferer import InferenceSettings
from tests.models.builders import make_network, make_plan, make_stage, with_spacing
from utils.config import HardwareConfig
from utils.config import ModelConfig as Model
from utils.runtime import configure_backends, resolve_hardware
from utils.schema import LabelScheme
from utils.throughput import host_peak_memory_bytes, reset_peak_memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What to predict: sizes in voxels, slices first."""

    folder: str
    classes: int
    patch: tuple[int, ...]
    shape: tuple[int, int, int]
    folds: int = 1
    tta: bool = False
    save_probabilities: bool = False
    spacing_mm: float = 1.0
    """Of the plan's grid; the scan has 1 mm."""


def main(job: Job) -> None:
    """Predict, and print bytes as JSON."""
    torch.set_num_threads(1)
    names = ("background", *(f"organ {k}" for k in range(1, job.classes)))
    labels = LabelScheme(names=names, values=tuple(range(job.classes)))
    stage = make_stage(tuple(job.patch), filters=(4, 8))
    plan = with_spacing(make_plan(stage, labels), (job.spacing_mm,) * stage.dim)
    weights = tuple(
        FoldWeights(name=f"fold_{fold}", fold=fold, state_dict=make_network(plan, seed=fold).state_dict())
        for fold in range(job.folds)
    )
    device, folder = torch.device("cpu"), Path(job.folder)
    configure_backends(resolve_hardware(HardwareConfig(accelerator="cpu")))
    together = window_batch(stage, device, num_outputs=job.classes, tta=job.tta)
    settings = InferenceSettings(tta=job.tta, window_batch=together, overlap=0.0)
    configuration = ConfigurationModel(source=folder, plan=plan, model=Model(), folds=weights)
    predictor = Predictor([ConfigurationPredictor(configuration, device=device, settings=settings)])
    (folder / "scans").mkdir()
    scan = np.random.default_rng(0).integers(1, 99, job.shape[::-1], dtype=np.int16)
    nib.save(nib.Nifti1Image(scan, np.eye(4)), folder / "scans" / "a.nii")
    run = ScanRun(
        ScanJob(
            input=folder / "scans", output=folder / "masks", model=folder, folds=None,
            save_probabilities=job.save_probabilities, overwrite=False, memory_gb=None,
        ),
        [predictor],
    )  # fmt: skip
    [forecast] = run.forecasts.values()
    reset_peak_memory()
    before = host_peak_memory_bytes()
    status, _ = run.run()
    print(json.dumps({"status": status, "forecast": forecast.peak_bytes, "taken": host_peak_memory_bytes() - before}))


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
