"""Grids turned by 45 degrees, where the rounding of a header decides which axis is nearest to which direction."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

PLANES = ((0, 1), (0, 2), (1, 2))
NOISE = 1e-6
"""Angle in radians: some nanometres at the far corner of a small scan."""


def tilted(plane: tuple[int, int], noise: float) -> np.ndarray:
    """A grid turned by 45 degrees in a plane of world axes, and by a rounding error to one side or the other."""
    affine, angle = np.eye(4), np.pi / 4 + noise
    first, second = plane
    affine[first, first] = affine[second, second] = np.cos(angle)
    affine[first, second], affine[second, first] = -np.sin(angle), np.sin(angle)
    return affine


def save_tilted(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """Write an array (x, y, z) with this sform and no qform."""
    image = nib.Nifti1Image(array, None)
    image.header.set_sform(affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path
