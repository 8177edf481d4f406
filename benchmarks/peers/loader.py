"""One side's training patches from shards on disk, each with one thread: reading, cropping, augmenting, batching.

`augment` is `reference` (crop with oversampling, zoom, flips, noise, blur, brightness, contrast) or `nnunet` (nnU-Net
v2's default list). Peers get their patches from memory-mapped files, which is faster than what they bring along.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.peers.measure import Job, Outcome, serve, timed_batches
from benchmarks.peers.nnunet_files import make_trainer, read_plan, set_folders

AHEAD = 4
"""Batches more than are taken, so that a loader that works ahead goes on doing so to the end."""
FOREGROUND = {"reference": 0.4, "nnunet": 0.33}


def ours(job: Job) -> Outcome:
    """The training loader of this program."""
    import torch

    from data_loading.data_module import DataModule, LoadingSettings, ShardCases
    from utils.config import HardwareConfig, LoaderConfig
    from utils.files import read_json
    from utils.runtime import configure_backends, resolve_hardware
    from utils.schema import Plan

    torch.set_num_threads(1)
    configure_backends(resolve_hardware(HardwareConfig(accelerator="cpu")))
    folder = Path(job["folder"])
    module = DataModule(
        cases=ShardCases(folder=folder, train=tuple(_cases(folder))),
        plan=read_json(Plan, folder / "plan.json"),
        loader=LoaderConfig(
            batch_size=job["batch_size"], augment=job["augment"], oversampling=FOREGROUND[job["augment"]]
        ),
        settings=LoadingSettings(
            seed=job["seed"], num_threads=1, on_gpu=False, benchmark=True,
            train_batches=job["warmup"] + job["count"] + AHEAD,
        ),
    )  # fmt: skip
    return _measured(job, module.train_dataloader(), zoom="cubic" if job["augment"] == "reference" else "linear")


def batchgenerators(job: Job) -> Outcome:
    """batchgeneratorsv2: the same operations as transforms, or nnU-Net v2's own list."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    patch = tuple(read_plan(job["folder"])["stage"]["patch_size"])
    transforms = [
        SpatialTransform(patch, 0, random_crop=False, p_scaling=0.15, scaling=(0.7, 1.0),
                         p_synchronize_scaling_across_axes=1, mode_seg="nearest"),
        MirrorTransform(allowed_axes=(0, 1, 2)),
    ]  # fmt: skip
    changes = [
        GaussianNoiseTransform(noise_variance=(0.0, 0.33), p_per_channel=1, synchronize_channels=True),
        GaussianBlurTransform(
            blur_sigma=(0.5, 1.5), synchronize_channels=True, synchronize_axes=True, p_per_channel=1, benchmark=True
        ),
        MultiplicativeBrightnessTransform((0.7, 1.3), synchronize_channels=False, p_per_channel=1),
        ContrastTransform((0.65, 1.5), preserve_range=False, synchronize_channels=False, p_per_channel=1),
    ]
    transforms += [RandomTransform(change, apply_probability=0.15) for change in changes]
    composed = ComposeTransforms(transforms)

    def augmented(image, label):
        done = composed(image=image, segmentation=label.short())
        return done["image"], done["segmentation"]

    return _measured(job, _patches(job, patch, augmented), zoom="linear")


def nnunet(job: Job) -> Outcome:
    """batchgeneratorsv2 with the transforms and the initial patch size of nnU-Net v2's trainer."""
    set_folders(Path(job["scratch"]))
    plan = read_plan(job["folder"])
    trainer = make_trainer(plan, batch_size=job["batch_size"])
    rotation, in_plane, initial, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    transforms = trainer.get_training_transforms(plan["stage"]["patch_size"], rotation, None, axes, in_plane)

    def augmented(image, label):
        done = transforms(image=image, segmentation=label.short())
        return done["image"], done["segmentation"]

    return _measured(job, _patches(job, tuple(int(size) for size in initial), augmented), zoom="linear")


def monai(job: Job) -> Outcome:
    """MONAI's dictionary transforms with the same operations."""
    from monai.transforms import (
        Compose,
        RandFlipd,
        RandGaussianNoised,
        RandGaussianSmoothd,
        RandScaleIntensityd,
        RandScaleIntensityFixedMeand,
        RandZoomd,
    )

    both, sigma = ("image", "label"), (0.5, 1.5)
    composed = Compose(
        [
            RandZoomd(both, prob=0.15, min_zoom=1.0, max_zoom=1 / 0.7, mode=("trilinear", "nearest")),
            *(RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
            RandGaussianNoised("image", prob=0.15, std=0.33, sample_std=True),
            RandGaussianSmoothd("image", prob=0.15, sigma_x=sigma, sigma_y=sigma, sigma_z=sigma),
            RandScaleIntensityd("image", prob=0.15, factors=0.3, channel_wise=True),
            RandScaleIntensityFixedMeand("image", prob=0.15, factors=(-0.35, 0.5)),
        ]
    ).set_random_state(job["seed"])

    def augmented(image, label):
        done = composed({"image": image, "label": label})
        return done["image"].as_tensor(), done["label"].as_tensor()

    patch = tuple(read_plan(job["folder"])["stage"]["patch_size"])
    return _measured(job, _patches(job, patch, augmented), zoom="linear")


def _cases(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix("_x.npy") for path in folder.glob("*_x.npy"))


def _patches(job: Job, size: tuple[int, ...], augmented):
    """Batches without end: a box of a case, around the foreground as often as ours, augmented and stacked."""
    import random

    import numpy as np
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(job["seed"])
    # batchgeneratorsv2 draws from numpy's global generator.
    np.random.seed(job["seed"])
    random.seed(job["seed"])
    rng = np.random.default_rng(job["seed"])
    folder = Path(job["folder"])
    names = [[folder / f"{case}_{part}.npy" for part in ("x", "y", "fg")] for case in _cases(folder)]
    cases = [[np.load(path, mmap_mode="r") for path in paths] for paths in names]

    def one():
        image, label, foreground = cases[rng.integers(len(cases))]
        room = np.array(image.shape[1:]) - size
        low, high = np.minimum(room // 2, 0), np.maximum(room, room // 2)
        if rng.random() < FOREGROUND[job["augment"]]:
            start = np.clip(foreground[rng.integers(len(foreground))] - np.array(size) // 2, low, high)
        else:
            start = rng.integers(low, high + 1)
        image, label = (torch.from_numpy(_box(array, start, size)) for array in (image, label))
        return augmented(image, label)

    while True:
        with torch.no_grad():
            images, labels = zip(*(one() for _ in range(job["batch_size"])))
            yield torch.stack(images), torch.stack(labels)


def _box(array, start, size):
    """A copy of a box of (C, D, H, W); what sticks out is 0."""
    import numpy as np

    stop, limits = start + size, np.array(array.shape[1:])
    inside = tuple(slice(max(a, 0), min(b, n)) for a, b, n in zip(start, stop, limits))
    part = np.array(array[(slice(None), *inside)])
    margins = [(max(-a, 0), max(b - n, 0)) for a, b, n in zip(start, stop, limits)]
    return np.pad(part, [(0, 0), *margins]) if any(map(any, margins)) else part


def _measured(job: Job, batches, **settings: str) -> Outcome:
    seconds = timed_batches(batches, warmup=job["warmup"], count=job["count"])
    names = ("augment", "batch_size", "seed", "warmup")
    return seconds | {
        "items": job["count"] * job["batch_size"],
        "settings": {name: job[name] for name in names} | {"threads": 1, "precision": "fp32"} | settings,
    }


if __name__ == "__main__":
    serve({"ours": ours, "batchgenerators": batchgenerators, "nnunet": nnunet, "monai": monai})
