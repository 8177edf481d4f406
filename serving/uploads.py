"""An uploaded scan: files under names of ours, checked before any of it is unpacked into memory.

A header may claim anything, and a few kilobytes of gzip may unpack to terabytes. So the voxels that the header states
are counted first, and what is unpacked is counted against them.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inference.configuration_predictor import ConfigurationPredictor
from inference.memory import PROGRAM_BYTES, forecast_predictor, free_memory_bytes, planned_grid
from inference.predictor import Predictor
from serving.limits import Limits
from serving.refusals import Refused, too_large
from utils.errors import UserError
from utils.nifti import read_header, working_grid

GZIP_MAGIC = b"\x1f\x8b"
MOST_VOXEL_BYTES = 8
HEADER_ROOM_BYTES = 1 << 24
"""What may stand before the voxels: header and extensions."""
CHUNK_BYTES = 1 << 20


def check_upload(files: Sequence[Path], predictor: Predictor, limits: Limits) -> tuple[int, ...]:
    """Shape (x, y, z) of a scan whose files may be read.

    Raises:
        Refused: a file is broken (422), or too large to be read or predicted here (413).
    """
    try:
        headers = [read_header(path) for path in files]
    except UserError as error:
        raise Refused(422, in_clients_words(str(error), files)) from None
    voxels = sum(math.prod(shape) for shape, _ in headers)
    if voxels > limits.voxels:
        raise too_large(f"the scan has {voxels} voxels; this service takes {limits.voxels}")
    for path, (shape, _) in zip(files, headers):
        _check_unpacked(path, math.prod(shape) * MOST_VOXEL_BYTES + HEADER_ROOM_BYTES)
    shape, affine = headers[0]
    grid, spacing_mm = working_grid(shape[:3], affine)
    _check_resampled(grid, spacing_mm, affine, predictor, limits)
    needed = forecast_predictor(predictor, grid, spacing_mm, affine).peak_bytes
    free = free_memory_bytes()
    if needed > free - PROGRAM_BYTES:
        raise too_large(f"the scan needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
    return shape[:3]


def _check_resampled(
    shape: tuple[int, int, int], spacing_mm: Sequence[float], affine: np.ndarray, predictor: Predictor, limits: Limits
) -> None:
    """Spacing decides how large a scan becomes on the model's grid: a small file may claim metres."""
    turned: np.ndarray | None = affine
    if predictor.merge is not None:
        shape, spacing_mm = predictor.merge.grid(shape, spacing_mm)
        turned = affine if predictor.merge.orientation == "stored" else None
    for configuration in predictor.configurations:
        stage: ConfigurationPredictor | None = configuration
        while stage is not None:
            _, grid = planned_grid(shape, spacing_mm, plan=stage.plan, affine=turned)
            voxels = math.prod(grid) * len(stage.plan.channels)
            if voxels > limits.voxels:
                raise too_large(f"the scan has {voxels} voxels on the model's grid; this service takes {limits.voxels}")
            stage = stage.previous


def in_clients_words(message: str, files: Sequence[Path]) -> str:
    """A message of ours without the names that files have here."""
    for number, path in enumerate(files, start=1):
        message = message.replace(str(path), f"file {number}").replace(path.name, f"file {number}")
    return message


def nifti_name(number: int, start: bytes) -> str:
    """The name of an uploaded file here; only its first bytes have a say."""
    return f"scan_{number}.nii.gz" if start.startswith(GZIP_MAGIC) else f"scan_{number}.nii"


def _check_unpacked(path: Path, most_bytes: int) -> None:
    with path.open("rb") as file:
        if file.read(2) != GZIP_MAGIC:
            return
    found = 0
    try:
        with gzip.open(path) as unpacked:
            while part := unpacked.read(CHUNK_BYTES):
                found += len(part)
                if found > most_bytes:
                    raise too_large("the file unpacks to far more than its header states")
    except (OSError, EOFError, zlib.error):
        # Damaged: whoever reads it says how.
        return
