"""What a random change does to patches, in numbers: how often, how strongly, alike in all channels or not.

The same measurements are taken of this project's changes and of batchgeneratorsv2's (record_batchgeneratorsv2.py), from
patches before and after alone. Every patch has two channels and the same content, so that a change shows its strength:
noise for what smooths and bends it, ramps (the voxel's position) for what moves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
SIDE = 20
SPACE = (1, 2, 3)
Patch = NDArray[np.float32]
"""(C, D, H, W)."""


def noise_patch() -> Patch:
    """(2, D, H, W) normal voxels about 3, of deviation 1: the mean shows factors, the deviation what is lost of it."""
    return (3 + np.random.default_rng(0).normal(size=(2, SIDE, SIDE, SIDE))).astype(np.float32)


def empty_patch() -> Patch:
    """(2, D, H, W) zeros: what is there afterwards has been added."""
    return np.zeros((2, SIDE, SIDE, SIDE), np.float32)


def ramps(size: tuple[int, ...]) -> Patch:
    """(A, ...) position of each voxel along each of the A axes of `size`, counted from the middle."""
    centred = [np.arange(n) - (n - 1) / 2 for n in size]
    return np.stack(np.meshgrid(*centred, indexing="ij")).astype(np.float32)


def noise_deviation(before: Patch, after: Patch) -> NDArray:
    return (after - before).std(axis=SPACE)


def brightness_factor(before: Patch, after: Patch) -> NDArray:
    return after.mean(axis=SPACE) / before.mean(axis=SPACE)


def contrast_factor(before: Patch, after: Patch) -> NDArray:
    """Of the distance between the quartiles, which no clipping reaches."""
    return _quartiles(after) / _quartiles(before)


def kept_deviation(before: Patch, after: Patch) -> NDArray:
    """Share of the noise that smoothing or lost resolution leaves."""
    return after.std(axis=SPACE) / before.std(axis=SPACE)


def bent(before: Patch, after: Patch) -> NDArray:
    """Skewness that a power gives to normal noise; mean and deviation stay."""
    assert np.allclose(after.mean(axis=SPACE), before.mean(axis=SPACE), atol=1e-3)
    assert np.allclose(after.std(axis=SPACE), before.std(axis=SPACE), rtol=1e-3)
    centred = after - after.mean(axis=SPACE, keepdims=True)
    return (centred**3).mean(axis=SPACE) / after.std(axis=SPACE) ** 3


MEASURES: dict[str, tuple[Callable[[], Patch], Callable[[Patch, Patch], NDArray]]] = {
    "noise": (empty_patch, noise_deviation),
    "blur": (noise_patch, kept_deviation),
    "brightness": (noise_patch, brightness_factor),
    "contrast": (noise_patch, contrast_factor),
    "low_resolution": (noise_patch, kept_deviation),
    "inverted_gamma": (noise_patch, bent),
    "gamma": (noise_patch, bent),
}
"""Change of intensities -> what it is tried on, and its strength in each channel (C,)."""


def summarise(name: str, patches: Iterable[Patch]) -> dict[str, object]:
    """What a change of that name did to the patches that it was given.

    `frequency`: share of patches with any change; `channel_frequency`: of the channels of those; `strength`: quantiles
    over changed channels; `shared`: correlation of the two channels' strengths where both are changed, and `pattern`
    that of their voxels (for noise).
    """
    make, measure = MEASURES[name]
    before = make()
    changed, strengths, pairs, patterns, count = [], [], [], [], 0
    for after in patches:
        count += 1
        channels = [not np.array_equal(one, other) for one, other in zip(before, after, strict=True)]
        if not any(channels):
            continue
        changed.append(np.mean(channels))
        found = measure(before, after)
        strengths += [value for value, is_changed in zip(found, channels) if is_changed]
        if all(channels):
            pairs.append(found)
            if name == "noise":
                patterns.append(np.corrcoef(*(after - before).reshape(2, -1))[0, 1])
    summary = {
        "patches": count,
        "frequency": len(changed) / count,
        "channel_frequency": float(np.mean(changed)),
        "mean": float(np.mean(strengths)),
        "strength": np.quantile(strengths, QUANTILES).tolist(),
        "shared": float(np.corrcoef(np.array(pairs).T)[0, 1]),
    }
    return summary | ({"pattern": float(np.mean(patterns))} if patterns else {})


def movement(after: Patch) -> tuple[float, float]:
    """(share of the extent that is shown, degrees of the turn) of ramps (A, ...) that were moved, from their slopes."""
    axes = len(after)
    middle = tuple(slice(n // 2 - 1, n // 2 + 1) for n in after.shape[1:])
    core = after[(slice(None), *middle)].astype(np.float64)
    linear = np.stack(
        [np.diff(core, axis=axis + 1).mean(axis=tuple(range(1, axes + 1))) for axis in range(axes)], axis=1
    )
    zoom = abs(np.linalg.det(linear)) ** (1 / axes)
    cosine = (np.trace(linear / zoom) - (axes - 2)) / 2
    return float(zoom), float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def summarise_movements(movements: list[tuple[float, float]]) -> dict[str, object]:
    """How often patches are zoomed and turned, together and by how much."""
    zooms, turns = np.array(movements).T
    zoomed, turned = np.abs(zooms - 1) > 1e-3, turns > 0.1
    return {
        "patches": len(movements),
        "zoom_frequency": float(zoomed.mean()),
        "rotation_frequency": float(turned.mean()),
        "both_frequency": float((zoomed & turned).mean()),
        "zoom": np.quantile(zooms[zoomed], QUANTILES).tolist(),
        "degrees": np.quantile(turns[turned], QUANTILES).tolist(),
    }


def _quartiles(patch: Patch) -> NDArray:
    low, high = np.quantile(patch, (0.25, 0.75), axis=SPACE)
    return high - low
