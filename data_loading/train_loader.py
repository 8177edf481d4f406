"""Training patches: the DALI pipeline of an epoch and the loader that goes from epoch to epoch.

Order comes from sampling.py and boxes from cropping.py. A pipeline is built anew for each epoch, so that an epoch is a
function of (seed, rank, epoch) and nothing else; the next one is built while the last batches of an epoch are used, so
that nobody waits for it.

Shapes: N batch, C channels, D H W space. `_x.npy` (C, D, H, W) float32, `_y.npy` (1, D, H, W) uint8.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def
from nvidia.dali.data_node import DataNode
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from nvidia.dali.types import DALIDataType
from torch import Tensor

from data_loading.ahead import one_ahead
from data_loading.augment.cascade import degrade, one_hot
from data_loading.augment.cpu_intensity import change_intensities
from data_loading.augment.elastic import deform
from data_loading.augment.gpu_graph import augment
from data_loading.augment.presets import Preset
from data_loading.cropping import Box, box_batches, columns_for, draw_box
from data_loading.dali_loader import read_patch, release, resources
from data_loading.foreground import ForegroundRows
from data_loading.sampling import BatchSpec, CaseShard, Place, num_batches, rank_cases, stream_seed

BATCHES_AHEAD = 8
"""Batches before the end of an epoch at which the next one is begun: its building takes 0.01 to 0.3 s."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchFiles:
    """The files of the patches of an epoch, in their order; without a cascade `previous` is empty."""

    images: Sequence[str]
    labels: Sequence[str]
    previous: Sequence[str] = ()


@pipeline_def(enable_conditionals=True)
def training_pipeline(
    files: PatchFiles, boxes: Iterator, *, spec: BatchSpec, preset: Preset, device: str
) -> tuple[DataNode, DataNode]:
    """Augmented patches: image (C, *patch) float32 and classes (L, *patch) uint8 on `device`, "cpu" or "gpu".

    The first of the classes is the label. Then come, as they move along with it, the previous stage's classes and the
    image's mask channels, which are not in the image any more (see `join_channels`).
    `boxes` yields the columns of each batch of files (cropping.py, `box_batches`).
    """
    names = columns_for(preset)
    kinds = {"start": (DALIDataType.INT32, 1), "size": (DALIDataType.INT32, 1), "zoomed": (DALIDataType.BOOL, 0)}
    kinds |= {"rotated": (DALIDataType.BOOL, 0), "matrix": (DALIDataType.FLOAT, 2)}
    dtypes, ndims = zip(*(kinds[name] for name in names))
    nodes = fn.external_source(source=boxes, num_outputs=len(names), batch=True, dtype=list(dtypes), ndim=list(ndims))
    drawn = dict(zip(names, nodes))
    read = functools.partial(read_patch, start=drawn["start"], size=drawn["size"], dim=len(spec.patch))
    image, classes = read(files.images), [read(files.labels)]
    if files.previous:
        classes.append(read(files.previous))
    num_intensities = spec.channels - spec.mask_channels
    if spec.mask_channels:
        masks = fn.slice(image, start=[num_intensities], shape=[spec.mask_channels], axes=[0])
        classes.append(fn.cast(masks, dtype=DALIDataType.UINT8))
        image = fn.slice(image, start=[0], shape=[num_intensities], axes=[0])
    label = fn.cat(*classes, axis=0) if len(classes) > 1 else classes[0]
    if device == "gpu":
        image, label = image.gpu(), label.gpu()
    return augment(image, label, drawn=drawn, shape=(num_intensities, *spec.patch), preset=preset)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Epoch:
    """An epoch whose pipeline works on its first batches."""

    place: Place
    pipeline: Pipeline
    batches: DALIGenericIterator
    samples: int
    """Patches that are wanted; the last batch of the pipeline may have more."""
    generator: torch.Generator
    """Of the changes that are not in the pipeline."""
    worsen: np.random.Generator | None


class TrainLoader:
    """Batches {"image": (N, C, *patch) float32, "label": (N, 1, *patch) uint8} of one epoch.

    The epoch is the one in which iteration starts; the same place gives the same batches. The last batch may be
    smaller. With `benchmark_batches` the epoch is repeated or cut to that many full batches. `last_epoch` says after
    which one no other comes, where that is known. `close` ends what was begun for an epoch that does not come.
    """

    def __init__(
        self, shards: Sequence[CaseShard], *, spec: BatchSpec, preset: Preset, place: Callable[[], Place],
        num_threads: int, benchmark_batches: int = 0, last_epoch: Callable[[], int | None] = lambda: None,
    ) -> None:  # fmt: skip
        self.shards, self.spec, self.preset = tuple(shards), spec, preset
        self._place, self._num_threads, self._benchmark_batches = place, num_threads, benchmark_batches
        self._foreground = [_foreground_of(shard) for shard in self.shards]
        self._last_epoch = last_epoch
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="next_epoch")
        self._next: tuple[Place, Future[_Epoch]] | None = None

    def __len__(self) -> int:
        """Batches an epoch, equal in all processes."""
        spec, world_size = self.spec, self._place().world_size
        each_once = num_batches(len(self.shards), world_size, spec.cases_per_batch)
        return self._benchmark_batches or spec.per_epoch or each_once

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Read, augment and yield the epoch's batches."""
        # A generator, so the place is asked for at the first batch: Lightning makes iterators before it counts epochs.
        place, length = self._place(), len(self)
        epoch = self._begun(place) or self._begin(place, length)
        batches = self._batches_of(epoch, length)
        # scipy makes the masks of a cascade worse, on the CPU: the training goes on meanwhile.
        is_slow = epoch.worsen is not None and self.spec.previous_classes > 0
        try:
            yield from one_ahead(batches, place.device_id) if is_slow else batches
        finally:
            release(epoch.pipeline)

    def _batches_of(self, epoch: _Epoch, length: int) -> Generator[dict[str, Tensor], None, None]:
        place, remaining = epoch.place, epoch.samples
        for number, (batch,) in enumerate(epoch.batches):
            if number == max(length - BATCHES_AHEAD, 0) and not self._is_last(place.epoch):
                following = dataclasses.replace(place, epoch=place.epoch + 1)
                self._next = following, self._builder.submit(self._begin, following, length)
            image, label = batch["image"][:remaining], batch["label"][:remaining]
            if place.device_id is None:
                change_intensities(image, self.preset, epoch.generator)
            if self.preset.elastic.probability:
                image, label = deform(
                    image, label, self.preset.elastic, in_plane=self.preset.in_plane, generator=epoch.generator
                )
            yield {"image": join_channels(image, label, self.spec, epoch.worsen), "label": label[:, :1]}
            remaining -= self.spec.batch_size

    def close(self) -> None:
        """Release the epoch that was begun and never came; the loader can be iterated again."""
        self._drop(self._next)
        self._next = None

    def _is_last(self, epoch: int) -> bool:
        # A benchmark has one epoch.
        return bool(self._benchmark_batches) or epoch == self._last_epoch()

    def _begun(self, place: Place) -> _Epoch | None:
        """The epoch of this place where it is the one that was begun ahead; another one is released."""
        begun, self._next = self._next, None
        if begun is not None and begun[0] == place:
            return begun[1].result()
        self._drop(begun)
        return None

    @staticmethod
    def _drop(begun: tuple[Place, Future[_Epoch]] | None) -> None:
        # A fault of an epoch that nobody wants is nobody's.
        if begun is not None and not begun[1].cancel() and begun[1].exception() is None:
            release(begun[1].result().pipeline)

    def _begin(self, place: Place, length: int) -> _Epoch:
        """Build the pipeline of the epoch of `length` batches and let it begin."""
        on_cpu, spec = place.device_id is None, self.spec
        if not on_cpu:
            # A thread of its own would take the first GPU.
            torch.cuda.set_device(place.device_id)
        cases = rank_cases(len(self.shards), spec.cases_per_batch, place, spec.per_epoch)
        samples = np.repeat(cases, spec.patches_per_case)
        # Readers know full batches only; what is read beyond the epoch's end is cut off later.
        batches = np.resize(samples, (length, spec.batch_size))
        stream = stream_seed(place.seed, place.epoch, place.rank)
        files = [self.shards[case] for case in batches.flat]
        pipeline = training_pipeline(
            PatchFiles(
                images=[str(shard.image) for shard in files],
                labels=[str(shard.label) for shard in files],
                previous=[str(shard.previous) for shard in files] if spec.previous_classes else (),
            ),
            box_batches(batches, self._box_drawer(np.random.default_rng(stream)), spec.box, self.preset),
            spec=spec, preset=self.preset.geometry() if on_cpu else self.preset,
            batch_size=spec.batch_size, seed=stream, **resources(place, self._num_threads),
        )  # fmt: skip
        return _Epoch(
            place=place,
            pipeline=pipeline,
            batches=DALIGenericIterator([pipeline], ["image", "label"]),
            samples=batches.size if self._benchmark_batches else len(samples),
            generator=torch.Generator().manual_seed(stream),
            # `--augment none` shows the first stage's masks as they are.
            worsen=np.random.default_rng((stream, 1)) if self.preset.degraded else None,
        )

    def _box_drawer(self, rng: np.random.Generator) -> Callable[[int], Box]:
        return lambda case: draw_box(rng, self.shards[case].shape, self._foreground[case], self.spec.box, self.preset)


def join_channels(image: Tensor, classes: Tensor, spec: BatchSpec, worsen: np.random.Generator | None = None) -> Tensor:
    """What the network sees (N, C, *patch): the image, its mask channels, the previous stage's foreground classes.

    Args:
        image: (N, C without masks, *patch) float32.
        classes: (N, L, *patch) uint8: label, previous stage's classes if any, masks.
        spec: how many there are.
        worsen: source of the random numbers with which the previous stage's classes are made worse, or None.
    """
    first_mask = classes.shape[1] - spec.mask_channels
    parts = [image, classes[:, first_mask:].to(image.dtype)] if spec.mask_channels else [image]
    if spec.previous_classes:
        previous = classes[:, 1:2]
        if worsen is not None:
            previous = degrade(previous, spec.previous_classes, worsen)
        parts.append(one_hot(previous, spec.previous_classes))
    return torch.cat(parts, dim=1) if len(parts) > 1 else image


def _foreground_of(shard: CaseShard) -> ForegroundRows:
    assert shard.foreground is not None, f"{shard.case} is no training case"
    return ForegroundRows(shard.foreground)
