"""A stranger's way from a scan to its mask: an exported folder, ONNX Runtime, numpy and scipy; nothing of this program.

Written after `model.json` alone, for scans in RAS+ orientation.
Shapes: C channels, K classes or regions, N windows, D H W space.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage


def predict(folder: Path, image: np.ndarray, spacing: Sequence[float] = (1, 1, 1)) -> np.ndarray:
    """Mask (D, H, W) of file values of an image (C, D, H, W) and its spacing in mm: superior, anterior, right."""
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    means = [_probabilities(folder, model["window"], each, image, spacing) for each in model["configurations"]]
    labels = model["configurations"][0]["plan"]["labels"]
    mask = np.array(labels["values"], np.uint8)[_classes(np.mean(means, axis=0), labels)]
    post = model["post_processing"]
    if post["foreground"]:
        _keep_largest(mask, mask != labels["values"][0], labels)
    for name in post["classes"]:
        _keep_largest(mask, mask == labels["values"][labels["names"].index(name)], labels)
    return mask


@dataclasses.dataclass
class Grid:
    """A scan's axes turned as the plan says, cropped, and where its voxels go."""

    crop: tuple[slice, slice, slice]
    before: tuple[int, ...]
    after: tuple[int, ...]
    coarse: int | None


def prepared(plan: dict[str, Any], image: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, Grid]:
    """What networks see of an image (C, D, H, W), before padding and without a first stage's classes."""
    assert plan["orientation"] == "ras"
    turned = image.transpose(0, *(1 + axis for axis in plan["axes"]))
    mm = [spacing[axis] for axis in plan["axes"]]
    filled = np.argwhere((turned != 0).any(axis=0))
    crop = tuple(slice(low, high + 1) for low, high in zip(filled.min(axis=0), filled.max(axis=0)))
    cropped = turned[(slice(None), *crop)].astype(np.float32)
    target = plan["stage"]["spacing_mm"]
    target = [*mm[: 3 - len(target)], *target]
    before = cropped.shape[1:]
    after = tuple(round(n * size / wanted) for n, size, wanted in zip(before, mm, target))
    assert plan["normalize_first"] or after == before
    grid = Grid(crop=crop, before=before, after=after, coarse=_coarse(mm, target))
    nearest = np.ix_(*(_nearest(n, m) for n, m in zip(before, after)))
    channels = []
    for one, channel in zip(cropped, plan["channels"]):
        channels.append(_resampled(_normalized(one, channel), after, grid.coarse, order=3))
        if channel["scheme"] == "zscore":
            channels[-1] = np.where(one[nearest] != 0, channels[-1], 0)
    if plan["mask_channel"]:
        channels.append((cropped != 0).any(axis=0)[nearest].astype(np.float32))
    return np.stack(channels), grid


def _coarse(*spacings: Sequence[float]) -> int | None:
    for spacing in spacings:
        if max(spacing) > 3 * min(spacing):
            largest = [axis for axis in range(3) if spacing[axis] == max(spacing)]
            return largest[0] if len(largest) == 1 else None
    return None


def _nearest(n: int, m: int) -> np.ndarray:
    return np.floor((np.arange(m) + 0.5) * n / m).astype(int)


def _resampled(volume: np.ndarray, after: Sequence[int], coarse: int | None, order: int) -> np.ndarray:
    """A volume, or a stack of slices across the coarse axis, by splines of an order."""
    if coarse is not None:
        slices = np.moveaxis(volume, coarse, 0)
        flat = [m for axis, m in enumerate(after) if axis != coarse]
        each = [_zoomed(slices[index], flat, order) for index in _nearest(len(slices), after[coarse])]
        return np.moveaxis(np.stack(each), 0, coarse)
    return _zoomed(volume, after, order)


def _zoomed(volume: np.ndarray, after: Sequence[int], order: int) -> np.ndarray:
    if volume.shape == tuple(after):
        return volume
    factors = [m / n for n, m in zip(volume.shape, after)]
    found = ndimage.zoom(volume.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)
    return np.clip(found, volume.min(), volume.max())


def _probabilities(
    folder: Path, window: dict[str, Any], configuration: dict[str, Any], image: np.ndarray, spacing: Sequence[float]
) -> Any:
    """(K, D, H, W) of one configuration: background outside of the crop."""
    plan = configuration["plan"]
    assert plan["rules"]["average"] == "probabilities"
    channels, grid = prepared(plan, image, spacing)
    if configuration["previous"] is not None:
        first = _probabilities(folder, window, configuration["previous"], image, spacing)
        classes = _classes(first, plan["labels"]).transpose(plan["axes"])[grid.crop]
        shares = [
            _resampled((classes == k).astype(np.float32), grid.after, grid.coarse, order=1)
            for k in range(len(plan["labels"]["names"]))
        ]
        # Of equal shares the highest class.
        found = len(shares) - 1 - np.argmax(np.round(shares[::-1], 5), axis=0)
        channels = np.stack([*channels, *(found == k for k in range(1, len(shares)))])
    networks = [_run(folder / each["file"], configuration, window, channels) for each in configuration["networks"]]
    inside = np.mean([_share(logits, plan["labels"]) for logits in networks], axis=0)
    turned = [image.shape[1 + axis] for axis in plan["axes"]]
    whole = np.zeros((len(inside), *turned), np.float32)
    if not plan["labels"]["regions"]:
        whole[0] = 1
    back = [_resampled(share, grid.before, grid.coarse, order=1) for share in inside]
    whole[(slice(None), *grid.crop)] = np.stack(back)
    return whole.transpose(0, *(1 + np.argsort(plan["axes"])))


def _normalized(volume: np.ndarray, channel: dict[str, Any]) -> np.ndarray:
    if channel["scheme"] == "ct":
        return (np.clip(volume, channel["lower"], channel["upper"]) - channel["mean"]) / channel["std"]
    assert channel["scheme"] == "zscore", channel
    inside = volume[volume != 0].astype(np.float64)
    return np.where(volume != 0, (volume - inside.mean()) / inside.std(), 0)


def _run(path: Path, configuration: dict[str, Any], window: dict[str, Any], image: np.ndarray) -> np.ndarray:
    """Logits (K, D, H, W) of one network."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    size = configuration["input"]["shape"][2:]
    flat = len(size) == 2
    size = [1] * flat + size
    low = [(max(n, w) - n) // 2 for n, w in zip(image.shape[1:], size)]
    padded = np.pad(
        image, [(0, 0), *((before, max(n, w) - n - before) for n, w, before in zip(image.shape[1:], size, low))]
    )
    shape = padded.shape[1:]
    weight = np.ones(size) if shape == tuple(size) else _weights(size, window["gaussian"], flat)
    sums, weights = np.zeros((configuration["output"]["shape"][1], *shape)), np.zeros(shape)
    for start in itertools.product(*(_starts(n, w, window["overlap"]) for n, w in zip(shape, size))):
        part = (slice(None), *(slice(first, first + w) for first, w in zip(start, size)))
        piece = padded[part].astype(np.float32)
        logits = _mean_of_flips(session, configuration, window, piece[:, 0] if flat else piece)
        sums[part] += weight * (logits[:, None] if flat else logits)
        weights[part[1:]] += weight
    inner = (slice(None), *(slice(first, first + n) for first, n in zip(low, image.shape[1:])))
    return (sums / weights)[inner]


def _mean_of_flips(
    session: Any, configuration: dict[str, Any], window: dict[str, Any], piece: np.ndarray
) -> np.ndarray:
    axes = [1 + axis for axis in configuration["mirror_axes"]] if window["test_time_flips"] else []
    sets = [flips for count in range(len(axes) + 1) for flips in itertools.combinations(axes, count)]
    names = [configuration[side]["name"] for side in ("output", "input")]
    each = [np.flip(session.run([names[0]], {names[1]: np.flip(piece, f)[None].copy()})[0][0], f) for f in sets]
    return np.mean(each, axis=0)


def _starts(n: int, w: int, overlap: float) -> list[int]:
    step = w if n == w else max(1, math.floor(w * (1 - overlap)))
    return [min(i * step, n - w) for i in range(math.ceil((n - w) / step) + 1)]


def _weights(size: list[int], gaussian: dict[str, float], flat: bool) -> np.ndarray:
    weight = np.ones(())
    for w in size:
        distance = np.arange(w) - (w - 1) / 2
        weight = weight[..., None] * np.exp(-(distance**2) / (2 * (gaussian["deviation_as_share_of_window"] * w) ** 2))
    return np.maximum(weight, max(weight.min(), gaussian["least_weight"]))


def _share(logits: np.ndarray, labels: dict[str, Any]) -> np.ndarray:
    if labels["regions"]:
        return 1 / (1 + np.exp(-logits))
    grown = np.exp(logits - logits.max(axis=0))
    return grown / grown.sum(axis=0)


def _classes(probabilities: np.ndarray, labels: dict[str, Any]) -> np.ndarray:
    if not labels["regions"]:
        return probabilities.argmax(axis=0)
    classes = np.zeros(probabilities.shape[1:], int)
    for region, share in zip(labels["regions"], probabilities):
        classes[share > 0.5] = region["write_class"]
    return classes


def _keep_largest(mask: np.ndarray, inside: np.ndarray, labels: dict[str, Any]) -> None:
    parts, count = ndimage.label(inside, np.ones((3, 3, 3)))
    if count:
        sizes = np.bincount(parts.ravel())[1:]
        mask[inside & ~np.isin(parts, 1 + np.flatnonzero(sizes == sizes.max()))] = labels["values"][0]
