"""Validation cases whole, or one patch of each for the epochs between.

Shapes: C channels, D H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_loading.ahead import pinned
from data_loading.augment.cascade import one_hot
from data_loading.dali_loader import VolumeLoader
from data_loading.foreground import ForegroundRows
from data_loading.sampling import BatchSpec, CaseShard, Place, Shape, centre_start


class ValidationLoader:
    """Items {"image": (1, C, D, H, W) float32, "label": (1, 1, D, H, W) uint8, "case": name} on the CPU.

    Args:
        volumes: loads whole cases.
        spec: the patch.
        place: seed and share of the process that asks.
        in_patches: whether the validation that begins is of patches.
    """

    def __init__(
        self, volumes: VolumeLoader, *, spec: BatchSpec, place: Callable[[], Place], in_patches: Callable[[], bool]
    ) -> None:
        self.volumes, self.spec, self._place, self._in_patches = volumes, spec, place, in_patches

    def __len__(self) -> int:
        """Cases of the largest share, the same in all processes."""
        return len(self.volumes)

    def __iter__(self) -> Iterator[dict[str, Tensor | str]]:
        """Yield the cases in order, or the patch of each: the same one in every epoch, so that epochs compare."""
        if not self._in_patches():
            yield from self.volumes
            return
        place, shards = self._place(), self.volumes.shards
        for index in range(place.rank, len(shards), place.world_size):
            start = patch_start(shards[index], self.spec.box, np.random.default_rng([place.seed, index]))
            patch = self._patch(shards[index], start)
            yield patch if place.device_id is None else pinned(patch)

    def _patch(self, shard: CaseShard, start: NDArray[np.integer]) -> dict[str, Tensor | str]:
        assert shard.label is not None, "a validation case has a label"
        image, label = (read_box(path, start, self.spec.box)[None] for path in (shard.image, shard.label))
        if shard.previous is not None:
            previous = read_box(shard.previous, start, self.spec.box)[None]
            image = torch.cat([image, one_hot(previous, self.spec.previous_classes)], dim=1)
        return {"image": image, "label": label, "case": shard.case}


def patch_start(shard: CaseShard, box: Shape, random: np.random.Generator) -> NDArray[np.integer]:
    """First voxel (3,) of a patch around a foreground voxel; in the middle along axes that it covers."""
    shape, size = np.asarray(shard.shape), np.asarray(box)
    middle = centre_start(shard.shape, box)
    if shard.foreground is None:
        return middle
    rows = ForegroundRows(shard.foreground)
    around = np.clip(rows[random.integers(len(rows))] - size // 2, 0, np.maximum(shape - size, 0))
    return np.where(shape > size, around, middle)


def read_box(path: Path, start: Sequence[int] | NDArray[np.integer], box: Shape) -> Tensor:
    """The box of a .npy file (C, D, H, W) as (C, *box); what lies outside the volume is 0. No more is read."""
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    shape = np.asarray(stored.shape[1:])
    low, high = np.maximum(start, 0), np.minimum(np.add(start, box), shape)
    inside = stored[(slice(None), *(slice(first, last) for first, last in zip(low, high)))]
    padding = [(0, 0), *zip(low - start, np.add(start, box) - high)]
    return torch.from_numpy(np.pad(np.array(inside), padding))
