"""Measure the training transforms of nnU-Net v2 and write batchgeneratorsv2.json, which the tests compare with.

pip install --no-deps batchgeneratorsv2 batchgenerators scikit-image pandas imageio lazy_loader  (torch, scipy as here)
PYTHONPATH=. python tests/data_loading/record_batchgeneratorsv2.py

The list is that of nnU-Net v2's nnUNetTrainer.get_training_transforms (2.8.1).
"""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from tests.data_loading.strengths import MEASURES, Patch, movement, ramps, summarise, summarise_movements

RECORD = Path(__file__).with_name("batchgeneratorsv2.json")
PATCHES = {"cube": (16, 16, 16), "flat": (4, 16, 16), "square": (16, 16), "oblong": (16, 10)}
"""Patches of every kind for which nnU-Net v2 turns differently."""
COUNT = 6000
"""Patches of each measurement: of those that are changed, a tenth at the least."""
DEGREES = {"cube": 30, "flat": 180, "square": 180, "oblong": 15}


def transforms() -> dict[str, object]:
    """Changes of intensities in their order, as nnU-Net v2 makes them."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    each = {"synchronize_channels": False, "p_per_channel": 1}
    bend = {"gamma": BGContrast((0.7, 1.5)), "p_retain_stats": 1, **each}
    return {
        "noise": RandomTransform(
            GaussianNoiseTransform(noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1
        ),
        "blur": RandomTransform(
            GaussianBlurTransform(
                blur_sigma=(0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5
            ),
            0.2,
        ),
        "brightness": RandomTransform(
            MultiplicativeBrightnessTransform(multiplier_range=BGContrast((0.75, 1.25)), **each), 0.15
        ),
        "contrast": RandomTransform(
            ContrastTransform(contrast_range=BGContrast((0.75, 1.25)), preserve_range=True, **each), 0.15
        ),
        "low_resolution": RandomTransform(
            SimulateLowResolutionTransform(
                scale=(0.5, 1), synchronize_channels=False, synchronize_axes=True, ignore_axes=None,
                allowed_channels=None, p_per_channel=0.5,
            ),
            0.25,
        ),
        "inverted_gamma": RandomTransform(GammaTransform(p_invert_image=1, **bend), 0.1),
        "gamma": RandomTransform(GammaTransform(p_invert_image=0, **bend), 0.3),
    }  # fmt: skip


def changed(name: str, count: int) -> Iterator[Patch]:
    """Patches that batchgeneratorsv2 was given `count` times."""
    transform, before = transforms()[name], MEASURES[name][0]()
    for _ in range(count):
        yield transform(image=torch.from_numpy(before.copy()))["image"].numpy()


def movements(kind: str, count: int) -> list[tuple[float, float]]:
    """Zoom and turn of `count` patches; a flat patch is moved slice by slice, as nnU-Net v2 does it."""
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    size = PATCHES[kind][-2:] if kind == "flat" else PATCHES[kind]
    angle = math.radians(DEGREES[kind])
    transform = SpatialTransform(
        size, patch_center_dist_from_border=0, random_crop=False, p_elastic_deform=0, p_rotation=0.2,
        rotation=(-angle, angle), p_scaling=0.2, scaling=(0.7, 1.4), p_synchronize_scaling_across_axes=1,
        bg_style_seg_sampling=False, border_mode_seg="constant", padding_value_seg=-1,
    )  # fmt: skip
    wide = torch.from_numpy(ramps(tuple(3 * n for n in size)))
    return [movement(transform(image=wide)["image"].numpy()) for _ in range(count)]


def mirrored(count: int) -> float:
    """Share of axes that are mirrored."""
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

    transform, image = MirrorTransform(allowed_axes=(0, 1, 2)), torch.from_numpy(ramps((4, 4, 4)))
    moved = (transform(image=image)["image"] for _ in range(count))
    return float(np.mean([[(patch[axis] != image[axis]).any().item() for axis in range(3)] for patch in moved]))


def measure(count: int) -> dict[str, object]:
    """All numbers, of `count` patches each."""
    np.random.seed(0)
    torch.manual_seed(0)
    return {
        "intensities": {name: summarise(name, changed(name, count)) for name in MEASURES},
        "movements": {kind: summarise_movements(movements(kind, count)) for kind in PATCHES},
        "mirror_frequency": mirrored(count),
    }


def main() -> None:
    """Write the file."""
    versions = {name: importlib.metadata.version(name) for name in ("batchgeneratorsv2", "torch")}
    RECORD.write_text(json.dumps({"versions": versions, **measure(COUNT)}, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
