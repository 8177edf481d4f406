"""The NVIDIA reference's preprocessing steps, one process per case: what a peer without a plan of its own would do.

Crop to non-zero, z-score (CT: clip and scale), resample with scikit-image (images by cubic interpolation, each label
class by linear interpolation and a threshold; anisotropic scans slice by slice, then nearest across), pad to the patch,
save as .npy. Written anew after its README; the reference's own code needs libraries that no longer install.

python reference_steps.py CASES.json OUTPUT PROCESSES
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy.ndimage import map_coordinates
from skimage.transform import resize

ANISOTROPIC_RATIO = 3


def main() -> None:
    """Prepare all cases of CASES.json: {"cases": [[image, label], ...], "plan": {...}}."""
    content, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    jobs = [(image, label, content["plan"], str(output)) for image, label in content["cases"]]
    if sys.argv[3] == "1":
        for job in jobs:
            prepare(*job)
        return
    with multiprocessing.get_context("spawn").Pool(int(sys.argv[3])) as pool:
        pool.starmap(prepare, jobs, chunksize=1)


def prepare(image_path: str, label_path: str, plan: Mapping[str, Any], output: str) -> None:
    """Read, prepare and save one case of one channel."""
    file = nibabel.Nifti1Image.from_filename(image_path)
    # Depth first, as all arrays here.
    spacing = np.asarray(file.header.get_zooms()[2::-1], dtype=np.float64)
    image = file.get_fdata(dtype=np.float32).T
    label = np.asarray(nibabel.Nifti1Image.from_filename(label_path).dataobj).astype(np.uint8).T
    filled = [np.flatnonzero(image.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(found[0], found[-1] + 1) for found in filled)
    image, label = normalised(image[box], plan["channels"][0]), label[box]
    target = np.array(plan["stage"]["spacing_mm"])
    if not np.allclose(spacing, target):
        shape = np.rint(np.array(image.shape) * spacing / target).astype(int)
        coarse = max(spacing.max() / spacing.min(), target.max() / target.min()) > ANISOTROPIC_RATIO
        axis = int(np.argmax(spacing)) if coarse else None
        image = resampled(image, shape, order=3, coarse_axis=axis)
        classes = np.zeros(shape, np.uint8)
        for k in np.unique(label):
            classes[resampled((label == k).astype(np.float32), shape, order=1, coarse_axis=axis) >= 0.5] = k
        label = classes
    missing = np.maximum(np.array(plan["stage"]["patch_size"]) - image.shape, 0)
    margins = [(size // 2, size - size // 2) for size in missing]
    case = Path(label_path).name.removesuffix(".nii.gz")
    np.save(Path(output) / f"{case}_x.npy", np.pad(image, margins)[None].astype(np.float32))
    np.save(Path(output) / f"{case}_y.npy", np.pad(label, margins)[None])


def normalised(image: np.ndarray, channel: Mapping[str, Any]) -> np.ndarray:
    """Z-score over non-zero voxels, or CT by the data set's statistics."""
    if channel["scheme"] == "ct":
        return (np.clip(image, channel["lower"], channel["upper"]) - channel["mean"]) / channel["std"]
    inside = image != 0
    image = image.copy()
    image[inside] = (image[inside] - image[inside].mean()) / (image[inside].std() + 1e-5)
    return image


def resampled(volume: np.ndarray, shape: np.ndarray, *, order: int, coarse_axis: int | None) -> np.ndarray:
    """The volume on another grid; with a coarse axis slice by slice, then the nearest slice."""
    options = {"order": order, "mode": "edge", "clip": True, "anti_aliasing": False}
    if coarse_axis is None:
        return resize(volume, shape, **options)
    inner = [n for axis, n in enumerate(shape) if axis != coarse_axis]
    slices = [resize(plane, inner, **options) for plane in np.moveaxis(volume, coarse_axis, 0)]
    stacked = np.stack(slices, coarse_axis)
    if stacked.shape[coarse_axis] == shape[coarse_axis]:
        return stacked
    scale = np.array(stacked.shape) / shape
    places = np.meshgrid(*(s * (np.arange(n) + 0.5) - 0.5 for s, n in zip(scale, shape)), indexing="ij")
    return map_coordinates(stacked, np.array(places), order=0, mode="nearest")


if __name__ == "__main__":
    main()
