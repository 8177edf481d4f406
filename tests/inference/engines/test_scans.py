"""inference.py --engine on scans: a trained model of nnU-Net v2, whose masks are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.inference.engines.made_up import ENGINES, ONNX
from tests.inference.nnunet_v2 import made_up_models
from tests.models.builders import make_plan
from tests.models.checkpoints import save_ours
from tests.scripts.trained import masks, predict, write_scans

FOLDER = Path(made_up_models.__file__).parent
MOST_DIFFERING = 2
"""Voxels of a mask of about 15,000."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_masks_of_an_imported_model_are_nnunets(name: str, tmp_path: Path, capsys):
    made_up_models.write_scans(tmp_path, made_up_models.MODELS["isotropic"])
    words = ["--input", tmp_path, "--model", FOLDER / "trained_by_nnunet.zip", "--output", tmp_path / "out"]
    assert predict(*words, "--engine", name) == 0
    assert f"by {name}" in capsys.readouterr().out
    recorded, found = np.load(FOLDER / "trained_masks.npz"), masks(tmp_path / "out")
    for index in range(2):
        mask, expected = found[f"scan{index}.nii.gz"], recorded[f"trained {index}"]
        assert np.count_nonzero(mask != expected) <= MOST_DIFFERING
        # Dice of all that is not background, to 1e-4.
        both = np.count_nonzero((mask > 0) & (expected > 0))
        assert 2 * both / (np.count_nonzero(mask) + np.count_nonzero(expected)) >= 1 - 1e-4
    assert json.loads((tmp_path / "out/run.json").read_text())["environment"]["engine"].startswith(name)


@ONNX
@pytest.mark.slow
def test_masks_of_another_engine_are_made_again(tmp_path: Path, capsys):
    save_ours(tmp_path / "last.ckpt", make_plan())
    words = ["--input", write_scans(tmp_path / "scans"), "--model", tmp_path, "--output", tmp_path / "out"]
    assert predict(*words) == 0
    assert predict(*words, "--engine", "torch") == 0
    assert "0 written, 2 kept" in capsys.readouterr().out
    assert predict(*words, "--engine", "onnxruntime") == 0
    assert "the engine was torch, now it is onnxruntime" in capsys.readouterr().out
    assert predict(*words) == 0
    assert "the engine was onnxruntime, now it is torch" in capsys.readouterr().out


def test_prepared_cases_take_torch(tmp_path: Path, capsys):
    words = ["--data", tmp_path, "--fold", "0", "--dim", "3", "--model", tmp_path, "--engine", "openvino"]
    assert predict(*words) == 2
    assert "--engine openvino is for raw scans" in capsys.readouterr().err
