"""Masks of nnU-Net v2's models equal those that nnU-Net itself made; see record_masks.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inference import Predictor
from models.inferer import InferenceSettings
from tests.inference.nnunet_v2.made_up_models import MODELS, scan_files, write_model, write_scans
from utils.nifti import from_working

HERE = Path(__file__).parent
TRAINED = HERE / "trained_by_nnunet.zip"
"""What nnU-Net's own trainer wrote (nnUNetTrainer of nnunetv2 2.8.1: an epoch of two steps, two features a level)."""
TRAINED_MASKS = np.load(HERE / "trained_masks.npz")
"""Of that model without mirroring, for the scans of the isotropic one."""
RECORDED = np.load(HERE / "nnunet_masks.npz")
MOST_DIFFERING = 2
"""Voxels of a mask of about 15,000 where two classes tie within the rounding of another processor."""


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_masks_are_those_of_nnunet(name: str, tmp_path: Path):
    model = MODELS[name]
    if model.reader == "NaturalImage2DIO":
        pytest.importorskip("SimpleITK", reason="SimpleITK is not installed: pip install -e '.[formats]'")
    write_scans(tmp_path, model)
    settings = InferenceSettings(tta=True)
    predictor = Predictor.load(write_model(tmp_path / "models", model), device="cpu", settings=settings)
    for index in range(len(model.scans)):
        prediction = predictor.predict_file(scan_files(tmp_path, model, index))
        mask, expected = from_working(prediction.mask, prediction.geometry), RECORDED[f"{name} {index}"]
        assert len(np.unique(expected)) > 1
        assert mask.shape == expected.shape and np.count_nonzero(mask != expected) <= MOST_DIFFERING


@pytest.mark.slow
def test_masks_of_a_model_that_nnunets_trainer_wrote(tmp_path: Path):
    write_scans(tmp_path, MODELS["isotropic"])
    predictor = Predictor.load(TRAINED, device="cpu")
    assert predictor.plan.mirror_axes is None and predictor.plan.stage.filters == (2, 2, 2)
    for index in range(2):
        prediction = predictor.predict_file(tmp_path / f"scan{index}_0000.nii.gz")
        mask, expected = from_working(prediction.mask, prediction.geometry), TRAINED_MASKS[f"trained {index}"]
        assert np.count_nonzero(mask != expected) <= MOST_DIFFERING
