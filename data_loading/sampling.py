"""Which cases an epoch holds, and in which order: pure functions of numbers.

Everything random here comes from `stream_seed(seed, epoch, rank)`, so an epoch can be replayed from these three
numbers alone and a resumed run needs no state of the loader.

Spatial tuples are in D, H, W order.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.axes import triple

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseShard:
    """The files of one preprocessed case and the shape (D, H, W) of its volumes."""

    case: str
    image: Path
    label: Path | None
    foreground: Path | None
    shape: Shape
    previous: Path | None = None
    """Class indices of a cascade's first stage (1, D, H, W) uint8."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a loader stands: the run's seed, process `rank` of `world_size`, the epoch, and the GPU to load to."""

    seed: int
    rank: int = 0
    world_size: int = 1
    epoch: int = 0
    device_id: int | None = None
    """Index of a CUDA device; None loads to the CPU."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """What a batch is made of: `cases_per_batch` cases that give `patches_per_case` patches each, side by side.

    `patch` is (D, H, W), or (H, W) for slices; `channels` is C of the images, of which the last `mask_channels` hold 0
    and 1 only. An epoch has `per_epoch` batches, or (0) as many as hold every case once. `previous_classes` is K of the
    first stage of a cascade, or 0: its K - 1 channels come after those of the image.
    """

    patch: tuple[int, ...]
    channels: int
    cases_per_batch: int
    patches_per_case: int = 1
    per_epoch: int = 0
    mask_channels: int = 0
    previous_classes: int = 0

    @property
    def box(self) -> Shape:
        """The patch as a box of a volume: a 2D patch is one slice, (1, H, W)."""
        return triple((1, *self.patch) if len(self.patch) == 2 else self.patch)

    @property
    def batch_size(self) -> int:
        """N, patches in a full batch."""
        return self.cases_per_batch * self.patches_per_case


def stream_seed(seed: int, epoch: int, rank: int | None = None) -> int:
    """A 63-bit number for one epoch: of one process, or common to all of them (`rank` None)."""
    key = (epoch,) if rank is None else (epoch, rank)
    # DALI takes signed 64-bit seeds and understands -1 as "choose one".
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> 1)


def num_batches(num_cases: int, world_size: int, cases_per_batch: int) -> int:
    """Batches an epoch, the same number in every process; the last one may be partial, none is empty."""
    per_rank = -(-num_cases // world_size)
    return -(-per_rank // cases_per_batch)


def rank_cases(num_cases: int, cases_per_batch: int, place: Place, per_epoch: int = 0) -> NDArray[np.int64]:
    """Case numbers of one process in this epoch, in their order.

    Together the processes hold every case once. Only where a process would have a batch less than the others it
    repeats one case, because gradients are averaged over processes batch by batch.
    With `per_epoch` each process gets that many full batches: epochs and processes share one endless row of cases, each
    pass over them shuffled anew, so at no time has a case been seen two times more than another.
    """
    if per_epoch:
        share = per_epoch * cases_per_batch
        places = place.epoch * share * place.world_size + np.arange(share) * place.world_size + place.rank
        first, last = (int(number) for number in places[[0, -1]] // num_cases)
        passes = [
            np.random.default_rng(stream_seed(place.seed, number)).permutation(num_cases)
            for number in range(first, last + 1)
        ]
        return np.concatenate(passes)[places - first * num_cases]
    order = np.random.default_rng(stream_seed(place.seed, place.epoch)).permutation(num_cases)
    mine = order[place.rank :: place.world_size]
    fewest = (num_batches(num_cases, place.world_size, cases_per_batch) - 1) * cases_per_batch + 1
    # Shares differ by one case at most, so at most one is missing.
    return np.append(mine, order[: max(fewest - len(mine), 0)])


def centre_start(shape: Shape, patch: Shape) -> NDArray[np.integer]:
    """Start (3,) of the box in the middle of a volume."""
    return (np.asarray(shape) - np.asarray(patch)) // 2
