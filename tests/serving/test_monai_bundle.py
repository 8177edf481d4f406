"""export-model --format monai-bundle: MONAI runs it, and its masks are those of inference.py."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import pytest

from scripts import export_model, inference
from tests.conftest import PROJECT
from tests.serving.service import save_model, save_scan

pytestmark = pytest.mark.slow


def test_monai_runs_the_bundle(tmp_path, capsys):
    pytest.importorskip("fire", reason="the extra bundle is not installed")
    model, scan = save_model(tmp_path / "model"), save_scan(tmp_path / "scans/a.nii.gz")
    words = ["--input", scan.parent, "--output", tmp_path / "masks", "--model", model, "--gpus", "0"]
    assert inference.main([*map(str, words)]) == 0
    words = ["--model", model, "--output", tmp_path / "a bundle", "--format", "monai-bundle"]
    assert export_model.main([*map(str, words)]) == 0
    said = capsys.readouterr().out.rpartition("with: python ")[2].strip()
    command = said.replace("SCANS", str(scan.parent)).replace("MASKS", str(tmp_path / "by_monai"))
    run = subprocess.run(
        [sys.executable, *shlex.split(command), "--gpus", "0"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)}, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "by_monai/a.nii.gz").read_bytes() == (tmp_path / "masks/a.nii.gz").read_bytes()


def test_metadata_names_what_goes_in_and_comes_out(tmp_path):
    words = ["--model", save_model(tmp_path / "model", 2), "--output", tmp_path / "bundle", "--format", "monai-bundle"]
    assert export_model.main([*map(str, words)]) == 0
    metadata = json.loads((tmp_path / "bundle/configs/metadata.json").read_text(encoding="utf-8"))
    data = metadata["network_data_format"]
    assert data["inputs"]["image"]["channel_def"] == {"0": "MRI 0", "1": "MRI 1"}
    assert data["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "anterior", "2": "posterior"}
    assert {"monai_version", "pytorch_version", "numpy_version", "version", "task"} <= metadata.keys()
    assert "anterior = 1" in (tmp_path / "bundle/docs/README.md").read_text(encoding="utf-8")
