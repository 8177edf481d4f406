"""What a command does not import before it is needed: half of a short command's CPU time is its imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import PROJECT

HEAVY = {"torch", "numpy", "scipy", "nibabel", "matplotlib", "pytorch_lightning", "monai", "nvidia", "pandas"}
TRAINING = {"pytorch_lightning", "torchmetrics", "nvidia", "torch._dynamo", "torch._inductor", "tensorboard"}
"""Packages of training alone."""
LATER = {"scipy.ndimage", "scipy.optimize", "scipy.stats", "scipy.signal", "matplotlib", "pandas", "monai"}
"""What a few scans, or only the end of a command, need."""
MODEL = "tests/inference/nnunet_v2/trained_by_nnunet.zip"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["main", "preprocess", "evaluate", "scripts.inference"])
def test_help_needs_no_heavy_package(module):
    assert not imported_by(f"import {module}") & HEAVY


@pytest.mark.slow
def test_preprocessing_starts_without_what_only_some_scans_need():
    begun = "import preprocess, data_preprocessing.folders, data_preprocessing.outcome, data_preprocessing.outdated"
    assert not imported_by(begun) & (LATER | TRAINING | {"torch"})


@pytest.mark.slow
def test_a_prediction_starts_without_what_only_training_needs():
    begun = f"import inference.run; from inference import Predictor; Predictor.load({MODEL!r}, device='cpu')"
    assert not imported_by(begun) & (LATER | TRAINING)


def imported_by(code: str) -> set[str]:
    """Names of all modules that are there after a piece of code, in a Python of its own."""
    answer = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        cwd=PROJECT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(answer.stdout.split())
