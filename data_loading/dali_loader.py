"""DALI pipelines over shards and the loaders around them: training patches, whole volumes, benchmark patches.

Order comes from order.py and boxes from boxes.py; the readers shuffle nothing and read only the box that is asked for.
A pipeline is built anew for each epoch (0.01 to 0.3 s of CPU, by the preset), so that an epoch is a function of (seed,
rank, epoch) and nothing else.

Shapes: N batch, C channels, D H W space. `_x.npy` (C, D, H, W) float32, `_y.npy` (1, D, H, W) uint8.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from torch import Tensor

from data_loading.augmentations import augment
from data_loading.boxes import Box, box_batches, columns_for, draw_box
from data_loading.elastic import deform
from data_loading.order import (
    BatchSpec,
    CaseShard,
    Place,
    Shape,
    centre_start,
    num_batches,
    rank_cases,
    stream_seed,
)
from data_loading.presets import Preset
from data_loading.previous_stage import degrade, one_hot


def _read_patch(files: Sequence[str], start: DataNode, size: DataNode | Shape, dim: int) -> DataNode:
    """The box of each file as (C, D, H, W), or (C, H, W) for dim 2; what lies outside the volume is 0."""
    patch = fn.readers.numpy(
        files=files, roi_start=start, roi_shape=size, roi_axes=[1, 2, 3], out_of_bounds_policy="pad"
    )
    patch = fn.reinterpret(patch, layout="CDHW")
    return fn.squeeze(patch, axes=[1]) if dim == 2 else patch


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
    `boxes` yields the columns of each batch of files (boxes.py, `box_batches`).
    """
    names = columns_for(preset)
    kinds = {"start": (types.INT32, 1), "size": (types.INT32, 1), "zoomed": (types.BOOL, 0)}
    kinds |= {"rotated": (types.BOOL, 0), "matrix": (types.FLOAT, 2)}
    dtypes, ndims = zip(*(kinds[name] for name in names))
    nodes = fn.external_source(source=boxes, num_outputs=len(names), batch=True, dtype=list(dtypes), ndim=list(ndims))
    drawn = dict(zip(names, nodes))
    read = functools.partial(_read_patch, start=drawn["start"], size=drawn["size"], dim=len(spec.patch))
    image, classes = read(files.images), [read(files.labels)]
    if files.previous:
        classes.append(read(files.previous))
    num_intensities = spec.channels - spec.mask_channels
    if spec.mask_channels:
        masks = fn.slice(image, start=[num_intensities], shape=[spec.mask_channels], axes=[0])
        classes.append(fn.cast(masks, dtype=types.UINT8))
        image = fn.slice(image, start=[0], shape=[num_intensities], axes=[0])
    label = fn.cat(*classes, axis=0) if len(classes) > 1 else classes[0]
    if device == "gpu":
        image, label = image.gpu(), label.gpu()
    return augment(image, label, drawn=drawn, shape=(num_intensities, *spec.patch), preset=preset)


@pipeline_def
def patch_pipeline(images: Sequence[str], starts: Iterator, *, spec: BatchSpec, device: str) -> DataNode:
    """Image patches (C, *patch) as they are stored; `starts` yields (N, 3) for each batch of files."""
    start = fn.external_source(source=starts, batch=True, dtype=types.INT32, ndim=1)
    image = _read_patch(images, start, spec.box, len(spec.patch))
    return image.gpu() if device == "gpu" else image


@pipeline_def
def volume_pipeline(images: Sequence[str], *others: Sequence[str]) -> tuple[DataNode, ...]:
    """File name, image (C, D, H, W) and the files of `others`, such as labels (1, D, H, W), on the host."""
    image = fn.readers.numpy(files=images, name="image")
    return (fn.get_property(image, key="source_info"), image, *(fn.readers.numpy(files=files) for files in others))


class TrainLoader:
    """Batches {"image": (N, C, *patch) float32, "label": (N, 1, *patch) uint8} of one epoch.

    The epoch is the one in which iteration starts; the same place gives the same batches. The last batch may be
    smaller. With `benchmark_batches` the epoch is repeated or cut to that many full batches.
    """

    def __init__(
        self, shards: Sequence[CaseShard], *, spec: BatchSpec, preset: Preset, place: Callable[[], Place],
        num_threads: int, benchmark_batches: int = 0,
    ) -> None:  # fmt: skip
        self.shards, self.spec, self.preset = tuple(shards), spec, preset
        self._place, self._num_threads, self._benchmark_batches = place, num_threads, benchmark_batches
        # 12 KiB a case, read once.
        self._foreground = [np.load(shard.foreground) for shard in self.shards]

    def __len__(self) -> int:
        """Batches an epoch, equal in all processes."""
        spec, world_size = self.spec, self._place().world_size
        each_once = num_batches(len(self.shards), world_size, spec.cases_per_batch)
        return self._benchmark_batches or spec.per_epoch or each_once

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Read, augment and yield the epoch's batches."""
        # A generator, so the place is asked for at the first batch: Lightning makes iterators before it counts epochs.
        place, spec = self._place(), self.spec
        cases = rank_cases(len(self.shards), spec.cases_per_batch, place, spec.per_epoch)
        samples = np.repeat(cases, spec.patches_per_case)
        # Readers know full batches only; what is read beyond the epoch's end is cut off below.
        batches = np.resize(samples, (len(self), spec.batch_size))
        remaining = batches.size if self._benchmark_batches else len(samples)
        stream = stream_seed(place.seed, place.epoch, place.rank)
        files = [self.shards[case] for case in batches.flat]
        pipeline = training_pipeline(
            PatchFiles(
                images=[str(shard.image) for shard in files],
                labels=[str(shard.label) for shard in files],
                previous=[str(shard.previous) for shard in files] if spec.previous_classes else (),
            ),
            box_batches(batches, self._box_drawer(np.random.default_rng(stream)), spec.box, self.preset),
            spec=spec, preset=self.preset, batch_size=spec.batch_size, seed=stream,
            **_resources(place, self._num_threads),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(stream)
        # `--augment none` shows the first stage's masks as they are.
        worsen = np.random.default_rng((stream, 1)) if self.preset.degraded else None
        for (batch,) in DALIGenericIterator([pipeline], ["image", "label"]):
            image, label = batch["image"][:remaining], batch["label"][:remaining]
            if self.preset.elastic.probability:
                image, label = deform(
                    image, label, self.preset.elastic, in_plane=self.preset.in_plane, generator=generator
                )
            yield {"image": join_channels(image, label, spec, worsen), "label": label[:, :1]}
            remaining -= spec.batch_size

    def _box_drawer(self, rng: np.random.Generator) -> Callable[[int], Box]:
        return lambda case: draw_box(rng, self.shards[case].shape, self._foreground[case], self.spec.box, self.preset)


class VolumeLoader:
    """Whole cases {"image": (1, C, D, H, W) float32, "label": (1, 1, D, H, W) uint8, "case": name} on the host.

    Each process gets its share, nothing twice and nothing to fill up, so shares may differ by one case. The label
    is there when every shard has one.
    """

    def __init__(
        self, shards: Sequence[CaseShard], *, place: Callable[[], Place], num_threads: int, previous_classes: int = 0
    ) -> None:
        self.shards, self._place, self._num_threads = tuple(shards), place, num_threads
        self._previous_classes = previous_classes

    def __len__(self) -> int:
        """Cases of the largest share, the same in all processes.

        Lightning leaves out validation, and with it the sums over processes that the others wait for, in a process
        whose loader has length 0; a loader that ends early is fine.
        """
        return -(-len(self.shards) // self._place().world_size)

    def __iter__(self) -> Iterator[dict[str, Tensor | str]]:
        """Yield the cases in order; the name comes from the file that was read."""
        place = self._place()
        share = self.shards[place.rank :: place.world_size]
        if not share:
            return
        names = {shard.image.name: shard.case for shard in share}
        files = {"image": [str(shard.image) for shard in share]}
        if all(shard.label is not None for shard in share):
            files["label"] = [str(shard.label) for shard in share]
        if self._previous_classes:
            files["previous"] = [str(shard.previous) for shard in share]
        pipeline = volume_pipeline(*files.values(), batch_size=1, num_threads=self._num_threads, device_id=None)
        for (item,) in DALIGenericIterator([pipeline], ["source", *files], reader_name="image"):
            source = Path(bytes(item.pop("source")[0].numpy()).decode())
            if self._previous_classes:
                channels = one_hot(item.pop("previous"), self._previous_classes)
                item["image"] = torch.cat([item["image"], channels], dim=1)
            yield item | {"case": names[source.name]}


class CentrePatchLoader:
    """`count` batches {"image": (N, C, *patch) float32} of the middles of volumes, for measuring prediction."""

    def __init__(
        self, shards: Sequence[CaseShard], *, spec: BatchSpec, place: Callable[[], Place], num_threads: int, count: int
    ) -> None:
        self.shards, self.spec, self._place = tuple(shards), spec, place
        self._num_threads, self._count = num_threads, count

    def __len__(self) -> int:
        """Batches, by default as many as hold every case once."""
        return self._count or -(-len(self.shards) // self.spec.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the patches in the order of the cases, over and over."""
        batches = np.resize(np.arange(len(self.shards)), (len(self), self.spec.batch_size))
        starts = np.array([centre_start(shard.shape, self.spec.box) for shard in self.shards], np.int32)
        pipeline = patch_pipeline(
            [str(self.shards[case].image) for case in batches.flat],
            iter(starts[batches]),
            spec=self.spec, batch_size=self.spec.batch_size,
            **_resources(self._place(), self._num_threads),
        )  # fmt: skip
        # Speed does not depend on what the first stage found: nothing.
        empty = (self.spec.batch_size, max(self.spec.previous_classes - 1, 0), *self.spec.patch)
        for (batch,) in DALIGenericIterator([pipeline], ["image"]):
            image = batch["image"]
            yield {"image": torch.cat([image, image.new_zeros(empty)], dim=1) if empty[1] else image}


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


def _resources(place: Place, num_threads: int) -> dict[str, int | str | None]:
    """What a pipeline runs on; without a GPU DALI must be told that there is no device."""
    device = "cpu" if place.device_id is None else "gpu"
    return {"device": device, "device_id": place.device_id, "num_threads": num_threads}
