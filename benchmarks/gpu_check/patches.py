"""Patches for loading.py: shards of smooth noise, presets with single changes, one change by torch or by DALI.

Shapes: C channels, D H W space (2D without D).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def
from torch import Tensor

from data_loading.augment import cpu_intensity, gpu_intensity
from data_loading.augment.presets import UNCHANGED, Preset, RandomChange
from data_loading.sampling import BatchSpec, CaseShard, Place, Shape
from data_loading.train_loader import TrainLoader

CHANNELS = 2
NUM_CASES = 6
BATCHES = 4


def only(preset: Preset, names: tuple[str, ...]) -> Preset:
    """The preset with nothing but the named changes; those that it makes happen to two thirds of the patches."""
    nothing = dataclasses.replace(
        UNCHANGED, foreground=preset.foreground, in_plane=preset.in_plane, cubic_zoom=preset.cubic_zoom
    )
    kept = {name: getattr(preset, name) for name in names if makes(preset, name)}
    often: dict[str, Any] = {
        name: dataclasses.replace(value, probability=0.67) if isinstance(value, RandomChange) else 0.5
        for name, value in kept.items()
    }
    return dataclasses.replace(nothing, **often)


def fixed(change: RandomChange, share: float) -> RandomChange:
    """The change always, in every channel, at one strength of its range."""
    strength = change.bounds[0] + share * (change.bounds[1] - change.bounds[0])
    # DALI takes no range without width.
    bounds = (strength, strength * (1 + 1e-6))
    return dataclasses.replace(change, probability=1.0, bounds=bounds, draw="uniform", channel_probability=1.0)


def by_torch(name: str, patch: Tensor, change: RandomChange, *, in_plane: bool) -> None:
    """Change a patch (C, ...) in place as a CPU's loader does."""
    generator = torch.Generator().manual_seed(0)
    calls: dict[str, Callable[[], None]] = {
        "blur": lambda: cpu_intensity.blur(patch, change, generator),
        "brightness": lambda: cpu_intensity.brightness(patch, change, generator),
        "contrast": lambda: cpu_intensity.contrast(patch, change, generator),
        "low_resolution": lambda: cpu_intensity.low_resolution(patch, change, generator, in_plane=in_plane),
        "inverted_gamma": lambda: cpu_intensity.gamma(patch, change, generator, inverted=True),
        "gamma": lambda: cpu_intensity.gamma(patch, change, generator, inverted=False),
    }
    calls[name]()


def by_dali(name: str, image: Tensor, change: RandomChange, *, in_plane: bool, on_gpu: bool) -> Tensor:
    """A patch (C, ...) changed by the graph of a GPU's pipeline; without a GPU DALI computes it on the CPU."""
    shape, layout = tuple(image.shape), "CDHW" if image.dim() == 4 else "CHW"

    # DALI's types know no pipeline without a device.
    place: Any = 0 if on_gpu else None

    @pipeline_def(enable_conditionals=True, num_threads=1, device_id=place, batch_size=1)
    def define():
        node = fn.external_source(source=lambda: [image.numpy()], layout=layout)
        node = node.gpu() if on_gpu else node
        if name == "noise":
            return gpu_intensity.noise(node, change)
        if name == "low_resolution":
            return gpu_intensity.low_resolution(node, change, shape=shape, in_plane=in_plane)
        if name in ("gamma", "inverted_gamma"):
            return gpu_intensity.gamma(node, change, shape=shape, inverted=name == "inverted_gamma")
        return getattr(gpu_intensity, name)(node, change, shape=shape)

    (output,) = define(seed=9).run()
    return torch.from_numpy(np.array((output.as_cpu() if on_gpu else output).at(0)))


def batches(shards: list[CaseShard], patch: tuple[int, ...], preset: Preset, place: Place) -> list[dict[str, Tensor]]:
    """Some batches of an epoch."""
    spec = BatchSpec(patch=patch, channels=CHANNELS, cases_per_batch=2)
    loader = TrainLoader(
        shards, spec=spec, preset=preset, place=lambda: place, num_threads=1, benchmark_batches=BATCHES
    )
    found = list(loader)
    loader.close()
    return found


@contextmanager
def made_cases(shape: Shape, *, channels: int = CHANNELS) -> Iterator[list[CaseShard]]:
    """Shards of smooth noise in a temporary folder: rough noise would show rounding of positions only."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="nnunet-gpu-check-") as folder:
        shards = []
        for number in range(NUM_CASES):
            paths = [Path(folder) / f"{number}_{part}.npy" for part in ("x", "y", "fg")]
            image = rng.standard_normal((channels, *shape), dtype=np.float32)
            for axis in (1, 2, 3):
                image = image + np.roll(image, 1, axis)
            label = (image[:1] > 0).astype(np.uint8) + (image[:1] > 3)
            positions = np.argwhere(label[0] > 0)
            drawn = positions[rng.integers(len(positions), size=1024)].astype(np.int32)
            arrays: tuple[np.ndarray, ...] = (image, label, drawn)
            for path, values in zip(paths, arrays):
                np.save(path, values)
            shards.append(CaseShard(case=str(number), image=paths[0], label=paths[1], foreground=paths[2], shape=shape))
        yield shards


def makes(preset: Preset, name: str) -> bool:
    """Whether a preset makes the change of that name."""
    value = getattr(preset, name)
    return bool(value.probability if isinstance(value, RandomChange) else value)
