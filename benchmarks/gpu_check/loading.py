"""The training patches of every preset, change by change: a GPU's pipeline beside the CPU's, numbers and speed.

Zoom, rotation and mirroring take their random numbers from the same place on both, so whole pipelines are compared.
Intensities are DALI's work on a GPU and torch's on a CPU; each change is compared at fixed strengths, drawn by nobody,
and noise by its statistics.

Shapes: N batch, C channels, D H W space (2D without D).
"""

from __future__ import annotations

import functools
import math
import time

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_check.context import Checks, Context, compare_speed, distance, judge, random_tensors
from benchmarks.gpu_check.findings import Numbers, Outcome
from benchmarks.gpu_check.patches import CHANNELS, batches, by_dali, by_torch, fixed, made_cases, makes, only
from data_loading.augment.cascade import degrade, one_hot
from data_loading.augment.elastic import deform
from data_loading.augment.presets import PRESETS, Preset, RandomChange, choose_preset
from data_loading.sampling import BatchSpec, CaseShard, Place
from data_loading.train_loader import TrainLoader
from utils.throughput import num_cores

MOVES = ("zoom", "rotation", "flip")
INTENSITIES = ("noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma")
PATCHES = {"3D": (11, 13, 17), "anisotropic": (5, 17, 17), "2D": (17, 17)}
"""Odd sides: of an even one, a voxel that is kept at a lower resolution may lie half-way between two."""
VOLUME = (20, 21, 24)
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
            if makes(preset, move):
                yield f"{name}: {move}", functools.partial(compare_batches, name, (move,))
        yield f"{name}: all that moves", functools.partial(compare_batches, name, MOVES)
        for change in INTENSITIES:
            if makes(preset, change):
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


def _places(context: Context) -> tuple[Place, Place]:
    """The CPU, and the device that is checked."""
    return Place(seed=1), Place(seed=1, device_id=0 if context.on_gpu else None)
