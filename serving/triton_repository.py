"""Model repositories for Triton Inference Server: scans to masks, and the networks alone.

| file | what |
|---|---|
| `scans/<name>/config.pbtxt` | inputs, outputs, batching, where it runs |
| `scans/<name>/1/model.py` | calls `serving.triton_backend`; this program must be installed for Triton's Python |
| `scans/<name>/1/model.zip` | the model |
| `networks/<name>_<fold>/` | one network as ONNX for the ONNX Runtime backend: windows to logits |

They are two repositories, as a server without one of the backends refuses to start with a model for it.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from inference.archive import LICENSE_NOTE, write_archive
from inference.engines.export import DESCRIPTION, MOST_WINDOWS, export_networks
from inference.model import Model
from utils.errors import UserError
from utils.extras import optional_import
from utils.files import new_folder
from utils.json_text import parse_json

MODEL_ZIP = "model.zip"
SCANS, NETWORKS = "scans", "networks"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MOST_SCANS = 8
"""Scans of one size that a request may hold, and that Triton may hand over together."""
FORMAT = "format"
"""The parameter of a request that says the format of MASK_FILE."""
MODEL_PY = '''"""Triton's Python backend looks for this class here; the program that it comes from must be installed."""

from serving.triton_backend import TritonPythonModel  # noqa: F401
'''


def write_repository(folder: Path, model: Model, *, license_note: str = LICENSE_NOTE) -> tuple[str, list[str]]:
    """Write a new folder with both repositories; the one of networks only where ONNX is installed.

    Returns:
        The name of the model that takes scans, and a line for each network.

    Raises:
        UserError: the weights do not fit the plan, or a network computes something else as ONNX.
    """
    name = triton_name(model)
    with new_folder(folder) as temporary:
        version = temporary / SCANS / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(_config(name, len(model.plan.channels)), encoding="utf-8")
        (version / "model.py").write_text(MODEL_PY, encoding="utf-8")
        write_archive(version / MODEL_ZIP, model, license_note=license_note)
        try:
            for package in ONNX_PACKAGES:
                optional_import(package, extra="onnx", purpose="ONNX")
        except UserError as error:
            return name, [f"the networks alone (ONNX) are left out: {error}"]
        return name, _write_networks(temporary / NETWORKS, name, model, license_note)


def _write_networks(repository: Path, name: str, model: Model, license_note: str) -> list[str]:
    """Rearrange what `--format onnx` writes as Triton wants it."""
    with tempfile.TemporaryDirectory(dir=repository.parent) as made:
        exported = Path(made) / "onnx"
        lines = export_networks(exported, model, "onnx", license_note=license_note)
        description = parse_json((exported / DESCRIPTION).read_bytes())
        for configuration in description["configurations"]:
            for stage in (configuration, configuration["previous"]):
                for network in [] if stage is None else stage["networks"]:
                    _write_network(repository, name, exported, network, stage)
    return lines


def _write_network(repository: Path, name: str, exported: Path, written: dict[str, Any], stage: dict[str, Any]) -> None:
    """Move one ONNX file, and the weights beside it where they are large, to where the server looks for it."""
    # A checkpoint may be called epoch=8-dice=0.8669.
    network = re.sub(r"[^A-Za-z0-9_-]+", "_", f"{name}_{written['file'].removesuffix('.onnx')}")
    version = repository / network / "1"
    version.mkdir(parents=True)
    (exported / written["file"]).rename(version / "model.onnx")
    for weights in written["weights"]:
        # The ONNX file knows them by their name.
        (exported / weights["file"]).rename(version / Path(weights["file"]).name)
    sides = [
        f'{side} [ {{ name: "{stage[side]["name"]}" data_type: TYPE_FP32 dims: {stage[side]["shape"][1:]} }} ]'
        for side in ("input", "output")
    ]
    lines = (f'name: "{network}"', 'backend: "onnxruntime"', f"max_batch_size: {MOST_WINDOWS}", *sides, "")
    (version.parent / "config.pbtxt").write_text("\n".join(lines), encoding="utf-8")


def triton_name(model: Model) -> str:
    """What clients call the model: the name of its data set in letters that every server takes."""
    return re.sub(r"[^a-z0-9]+", "_", model.plan.dataset.lower()).strip("_") or "model"


def _config(name: str, channels: int) -> str:
    return f"""# Written by nnunet export-model --format triton. Clients send IMAGE and SPACING_MM, or SCAN.
name: "{name}"
backend: "python"
max_batch_size: {MOST_SCANS}

input [
  # Intensities as in the files: channels, then voxels along superior, anterior, right.
  {{ name: "IMAGE" data_type: TYPE_FP32 dims: [ {channels}, -1, -1, -1 ] optional: true allow_ragged_batch: true }},
  # Voxel size in mm along superior, anterior, right.
  {{ name: "SPACING_MM" data_type: TYPE_FP32 dims: [ 3 ] optional: true }},
  # The bytes of one file with all channels: NIfTI, NRRD, MetaImage, a picture, or a zip of a DICOM series.
  {{ name: "SCAN" data_type: TYPE_UINT8 dims: [ -1 ] optional: true allow_ragged_batch: true }}
]

output [
  # Voxels along superior, anterior, right.
  {{ name: "MASK" data_type: TYPE_UINT8 dims: [ -1, -1, -1 ] }},
  # How doubtful the mask is, as in inference.py's <case>.doubt.json; RECORD says more.
  {{ name: "DOUBT" data_type: TYPE_FP32 dims: [ 1 ] }},
  # JSON: structures with their volumes, doubt with its verdict and remarks.
  {{ name: "RECORD" data_type: TYPE_UINT8 dims: [ -1 ] }},
  # For SCAN: the bytes of the mask's file on the scan's own grid, in its format or in that of the parameter "format".
  {{ name: "MASK_FILE" data_type: TYPE_UINT8 dims: [ -1 ] }}
]

# Scans that wait are handed over together, whatever their sizes.
dynamic_batching {{ }}

# A GPU where there is one, else the CPU.
instance_group [ {{ count: 1 kind: KIND_AUTO }} ]
"""
