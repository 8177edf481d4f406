"""The training patches of every preset, change by change: a GPU's pipeline beside the CPU's, numbers and speed.

Zoom, rotation and mirroring take their random numbers from the same place on both, so whole pipelines are compared.
Intensities are DALI's work on a GPU and torch's on a CPU; each change is compared at fixed strengths, drawn by nobody,
and noise by its statistics.

Shapes: N batch, C channels, D H W space (2D without D).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def
from torch import Tensor

from benchmarks.gpu_check.context import Checks, Context, compare_speed, distance, judge, random_tensors
from benchmarks.gpu_check.findings import Numbers, Outcome
from data_loading.augment import cpu_intensity, gpu_intensity
from data_loading.augment.cascade import degrade, one_hot
from data_loading.augment.elastic import deform
from data_loading.augment.presets import PRESETS, UNCHANGED, Preset, RandomChange, choose_preset
from data_loading.sampling import BatchSpec, CaseShard, Place, Shape
from data_loading.train_loader import TrainLoader
from utils.throughput import num_cores

MOVES = ("zoom", "rotation", "flip")
INTENSITIES = ("noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma")
PATCHES = {"3D": (11, 13, 17), "anisotropic": (5, 17, 17), "2D": (17, 17)}
"""Odd sides: of an even one, a voxel that is kept at a lower resolution may lie half-way between two."""
CHANNELS = 2
NUM_CASES, VOLUME = 6, (20, 21, 24)
BATCHES = 4
THREADS = 8
"""Of the timed pipelines, as main.py has them."""
IMAGE_TOLERANCE = 2e-3
LABEL_TOLERANCE = 0.01
"""Share of the voxels of a label: a position half-way between two voxels may round to either."""
NOISE_TOLERANCE = 0.02
NOISE_SIDE = 64
ELASTIC = RandomChange(probability=1.0, bounds=(2.0, 2.5), shared=True)


def checks(context: Context) -> Checks:
    """Each change of each preset, all of a preset's together, what torch does after them, speed."""
    for name, preset in PRESETS.items():
        for move in MOVES:
            if _makes(preset, move):
                yield f"{name}: {move}", functools.partial(compare_batches, name, (move,))
        yield f"{name}: all that moves", functools.partial(compare_batches, name, MOVES)
        for change in INTENSITIES:
            if _makes(preset, change):
                function = compare_noise if change == "noise" else compare_intensity
                yield f"{name}: {change}", functools.partial(function, name, change)
        yield f"{name}: same batches again", functools.partial(replay, name)
    yield "elastic deformation", compare_elastic
    yield "masks of a cascade made worse", compare_degraded
    for name in PRESETS:
        yield f"{name}: speed", functools.partial(speed, name)


def compare_batches(name: str, moves: tuple[str, ...], context: Context) -> tuple[str, Numbers]:
    """Whole pipelines from the same files: images, and the share of label voxels that differ."""
    images, labels = {}, {}
    with made_cases(VOLUME) as shards:
        for kind, patch in PATCHES.items():
            preset = only(choose_preset(name, patch, foreground=0.5), moves)
            pairs = zip(*(batches(shards, patch, preset, place) for place in _places(context)), strict=True)
            for number, (right, found) in enumerate(pairs):
                which = f"{kind}, batch {number}"
                images[which] = distance(found["image"], right["image"])
                labels[which] = (found["label"].cpu() != right["label"].cpu()).double().mean().item()
    text, numbers = judge(images, IMAGE_TOLERANCE, {"label_shares": labels})
    worst = max(labels.values())
    if worst > LABEL_TOLERANCE:
        raise Outcome("differs", f"{worst:.1%} of the label's voxels differ", numbers)
    return f"{text}; {worst:.1%} of the label's voxels differ", numbers


def compare_intensity(name: str, field: str, context: Context) -> tuple[str, Numbers]:
    """DALI's change beside torch's, at fixed strengths over the preset's range."""
    distances = {}
    for kind, patch in PATCHES.items():
        preset = choose_preset(name, patch)
        (image,) = random_tensors((CHANNELS, *patch), seed=4)
        image = image + 1
        for share in (0.05, 0.5, 0.95):
            change = fixed(getattr(preset, field), share)
            right = image.clone()
            by_torch(field, right, change, in_plane=preset.in_plane)
            found = by_dali(field, image, change, in_plane=preset.in_plane, on_gpu=context.on_gpu)
            distances[f"{kind}, strength {change.bounds[0]:.3g}"] = distance(found, right)
    return judge(distances, IMAGE_TOLERANCE)


def compare_noise(name: str, field: str, context: Context) -> tuple[str, Numbers]:
    """Mean, deviation, share within one deviation, and likeness of neighbours and channels, of DALI's noise."""
    change = fixed(getattr(PRESETS[name], field), 0.95)
    blank = torch.zeros(CHANNELS, *(NOISE_SIDE,) * 3)
    drawn = by_dali(field, blank, change, in_plane=False, on_gpu=context.on_gpu) / change.bounds[0]
    within = math.erf(math.sqrt(0.5))
    found = {
        "mean": drawn.mean().abs().item(),
        "deviation": abs(drawn.std().item() - 1),
        "share within one deviation": abs((drawn.abs() < 1).double().mean().item() - within),
        "likeness of neighbours": (drawn[:, 1:] * drawn[:, :-1]).mean().abs().item(),
        "likeness of channels": (drawn[0] * drawn[1]).mean().abs().item(),
    }
    return judge(found, NOISE_TOLERANCE)


def replay(name: str, context: Context) -> tuple[str, Numbers]:
    """The same seed gives the same bits, noise included."""
    place = _places(context)[1]
    with made_cases(VOLUME) as shards:
        for kind, patch in PATCHES.items():
            preset = choose_preset(name, patch, foreground=0.5)
            one, other = (batches(shards, patch, preset, place) for _ in range(2))
            if not all(torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a):
                raise Outcome("differs", f"two runs of one seed give other {kind} batches")
    return "the same bits", {}


def compare_elastic(context: Context) -> tuple[str, Numbers]:
    """Displacements in torch, on the batch's device."""
    distances, labels = {}, {}
    for kind, patch in PATCHES.items():
        (image,) = random_tensors((2, CHANNELS, *patch), seed=5)
        label = (image[:, :1] > 0).to(torch.uint8)

        def run(
            device: torch.device, image: Tensor = image, label: Tensor = label, in_plane: bool = kind == "anisotropic"
        ) -> tuple[Tensor, Tensor]:
            generator = torch.Generator().manual_seed(6)
            return deform(image.to(device), label.to(device), ELASTIC, in_plane=in_plane, generator=generator)

        right, found = run(torch.device("cpu")), run(context.device)
        distances[kind] = distance(found[0], right[0])
        labels[kind] = (found[1].cpu() != right[1]).double().mean().item()
    text, numbers = judge(distances, IMAGE_TOLERANCE, {"label_shares": labels})
    if max(labels.values()) > LABEL_TOLERANCE:
        raise Outcome("differs", f"{max(labels.values()):.1%} of the label's voxels differ", numbers)
    return text, numbers


def compare_degraded(context: Context) -> tuple[str, Numbers]:
    """Dilated, eroded and removed components, and the channels that are made of them: exactly the same."""
    classes = torch.randint(0, 3, (4, 1, 6, 6, 6), generator=torch.Generator().manual_seed(7)).to(torch.uint8)
    classes = classes.repeat_interleave(3, 2).repeat_interleave(3, 3).repeat_interleave(3, 4)
    right, found = (
        one_hot(degrade(classes.to(device), 3, np.random.default_rng(8)), 3).cpu()
        for device in (torch.device("cpu"), context.device)
    )
    if not torch.equal(right, found):
        raise Outcome("differs", f"{(right != found).double().mean().item():.1%} of the voxels differ")
    return "the same voxels", {}


def speed(name: str, context: Context) -> tuple[str, Numbers]:
    """Patches in a second, with the patch and channels of the timed training steps."""
    side, taken = context.sizes.patch, {}
    patch, volume = (side, side, side), (side * 5 // 4, side * 5 // 4, side * 5 // 4)
    # A volume is somewhat larger than its patch.
    with made_cases(volume, channels=4) as shards:
        for where, place in zip(("cpu", "device"), _places(context)):
            taken[where] = _ms_of_a_batch(shards, patch, choose_preset(name, patch, foreground=0.4), place, context)
    numbers = {"ms": taken, "patches_per_second": {where: 2 / ms * 1e3 for where, ms in taken.items()}}
    text = f"{2 / taken['device'] * 1e3:.1f} patches/s, the CPU's pipeline {2 / taken['cpu'] * 1e3:.1f}"
    return compare_speed(context, taken["device"], taken["cpu"], text, numbers)


def _ms_of_a_batch(
    shards: list[CaseShard], patch: tuple[int, ...], preset: Preset, place: Place, context: Context
) -> float:
    """Mean milliseconds of a batch of two; all batches but the first, which waits for the pipeline."""
    loads = context.sizes.loads
    spec = BatchSpec(patch=patch, channels=4, cases_per_batch=2)
    loader = TrainLoader(
        shards,
        spec=spec,
        preset=preset,
        place=lambda: place,
        num_threads=min(THREADS, num_cores()),
        benchmark_batches=2 * loads,
    )
    stream = iter(loader)
    next(stream)
    start_s = time.perf_counter()
    for _ in range(loads):
        # To the CPU and back as a training reads it: the last voxel is there.
        next(stream)["image"].flatten()[-1].item()
    elapsed_s = time.perf_counter() - start_s
    loader.close()
    return elapsed_s / loads * 1e3


def only(preset: Preset, names: tuple[str, ...]) -> Preset:
    """The preset with nothing but the named changes; those that it makes happen to two thirds of the patches."""
    shared = {name: getattr(preset, name) for name in ("foreground", "in_plane", "cubic_zoom")}
    nothing = dataclasses.replace(UNCHANGED, **shared)
    kept = {name: getattr(preset, name) for name in names if _makes(preset, name)}
    often: dict[str, Any] = {
        name: dataclasses.replace(value, probability=0.67) if isinstance(value, RandomChange) else 0.5
        for name, value in kept.items()
    }
    return dataclasses.replace(nothing, **often)


def fixed(change: RandomChange, share: float) -> RandomChange:
    """The change always, in every channel, at one strength of its range."""
    strength = change.bounds[0] + share * (change.bounds[1] - change.bounds[0])
    bounds = (strength, strength * (1 + 1e-6))  # DALI takes no range without width.
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
    place: Any = 0 if on_gpu else None  # DALI's types know no pipeline without a device.

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


def _makes(preset: Preset, name: str) -> bool:
    value = getattr(preset, name)
    return bool(value.probability if isinstance(value, RandomChange) else value)


def _places(context: Context) -> tuple[Place, Place]:
    """The CPU, and the device that is checked."""
    return Place(seed=1), Place(seed=1, device_id=0 if context.on_gpu else None)
