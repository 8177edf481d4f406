"""A model repository for Triton Inference Server: the exported model, a configuration, and a `model.py` of two lines.

| file | what |
|---|---|
| `<name>/config.pbtxt` | inputs, outputs, batching, where it runs |
| `<name>/1/model.py` | calls `serving.triton_backend`; this program must be installed for Triton's Python |
| `<name>/1/model.zip` | the model |
"""

from __future__ import annotations

import re
from pathlib import Path

from inference.archive import write_archive
from inference.model import Model
from utils.files import new_folder

MODEL_ZIP = "model.zip"
MOST_SCANS = 8
"""Scans of one size that a request may hold, and that Triton may hand over together."""
MODEL_PY = '''"""Triton's Python backend looks for this class here; the program that it comes from must be installed."""

from serving.triton_backend import TritonPythonModel  # noqa: F401
'''


def write_repository(folder: Path, model: Model) -> str:
    """Write a new folder for `tritonserver --model-repository`; returns the name of the model in it.

    Raises:
        UserError: the weights do not fit the plan.
    """
    name = triton_name(model)
    with new_folder(folder) as temporary:
        version = temporary / name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(_config(name, len(model.plan.channels)), encoding="utf-8")
        (version / "model.py").write_text(MODEL_PY, encoding="utf-8")
        write_archive(version / MODEL_ZIP, model)
    return name


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
  # The bytes of one NIfTI file, packed or not, with all channels.
  {{ name: "SCAN" data_type: TYPE_UINT8 dims: [ -1 ] optional: true allow_ragged_batch: true }}
]

output [
  # Voxels along superior, anterior, right.
  {{ name: "MASK" data_type: TYPE_UINT8 dims: [ -1, -1, -1 ] }},
  # For SCAN: the bytes of a .nii.gz on the scan's own grid.
  {{ name: "MASK_FILE" data_type: TYPE_UINT8 dims: [ -1 ] }}
]

# Scans that wait are handed over together, whatever their sizes.
dynamic_batching {{ }}

# A GPU where there is one, else the CPU.
instance_group [ {{ count: 1 kind: KIND_AUTO }} ]
"""
