"""DALI pipelines over shards and the loaders around them: whole volumes, and patches for measuring speed.

Training patches are in train_loader.py. The readers shuffle nothing and read only the box that is asked for.

Shapes: N batch, C channels, D H W space. `_x.npy` (C, D, H, W) float32, `_y.npy` (1, D, H, W) uint8.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, pipeline_def
from nvidia.dali.data_node import DataNode
from nvidia.dali.plugin.pytorch import DALIGenericIterator
from nvidia.dali.types import DALIDataType
from torch import Tensor

from data_loading.ahead import one_ahead, pinned
from data_loading.augment.cascade import one_hot
from data_loading.sampling import BatchSpec, CaseShard, Place, Shape, centre_start


def read_patch(files: Sequence[str], start: DataNode, size: DataNode | Shape, dim: int) -> DataNode:
    """The box of each file as (C, D, H, W), or (C, H, W) for dim 2; what lies outside the volume is 0."""
    patch = fn.readers.numpy(
        files=files, roi_start=start, roi_shape=size, roi_axes=[1, 2, 3], out_of_bounds_policy="pad"
    )
    patch = fn.reinterpret(patch, layout="CDHW")
    return fn.squeeze(patch, axes=[1]) if dim == 2 else patch


@pipeline_def
def patch_pipeline(images: Sequence[str], starts: Iterator, *, spec: BatchSpec, device: str) -> DataNode:
    """Image patches (C, *patch) as they are stored; `starts` yields (N, 3) for each batch of files."""
    start = fn.external_source(source=starts, batch=True, dtype=DALIDataType.INT32, ndim=1)
    image = read_patch(images, start, spec.box, len(spec.patch))
    return image.gpu() if device == "gpu" else image


@pipeline_def
def volume_pipeline(images: Sequence[str], *others: Sequence[str]) -> tuple[DataNode, ...]:
    """File name, image (C, D, H, W) and the files of `others`, such as labels (1, D, H, W), on the CPU."""
    image = fn.readers.numpy(files=images, name="image")
    return (fn.get_property(image, key="source_info"), image, *(fn.readers.numpy(files=files) for files in others))


class VolumeLoader:
    """Whole cases {"image": (1, C, D, H, W) float32, "label": (1, 1, D, H, W) uint8, "case": name} on the CPU.

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
        """Yield the cases in order; the name comes from the file that was read.

        For a GPU they are in pinned memory, the next one while this one is worked on.
        """
        place = self._place()
        items = self._items(place)
        yield from items if place.device_id is None else one_ahead(pinned(item) for item in items)

    def _items(self, place: Place) -> Iterator[dict[str, Tensor | str]]:
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
        try:
            for (item,) in DALIGenericIterator([pipeline], ["source", *files], reader_name="image"):
                source = Path(bytes(item.pop("source")[0].numpy()).decode())
                if self._previous_classes:
                    channels = one_hot(item.pop("previous"), self._previous_classes)
                    item["image"] = torch.cat([item["image"], channels], dim=1)
                yield item | {"case": names[source.name]}
        finally:
            release(pipeline)


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
            **resources(self._place(), self._num_threads),
        )  # fmt: skip
        # Speed does not depend on what the first stage found: nothing.
        empty = (self.spec.batch_size, max(self.spec.previous_classes - 1, 0), *self.spec.patch)
        try:
            for (batch,) in DALIGenericIterator([pipeline], ["image"]):
                image = batch["image"]
                yield {"image": torch.cat([image, image.new_zeros(empty)], dim=1) if empty[1] else image}
        finally:
            release(pipeline)


def resources(place: Place, num_threads: int) -> dict[str, int | str | None]:
    """What a pipeline runs on; without a GPU DALI must be told that there is no device."""
    device = "cpu" if place.device_id is None else "gpu"
    return {"device": device, "device_id": place.device_id, "num_threads": num_threads}


def release(pipeline: Pipeline) -> None:
    """Hand back a pipeline's threads and buffers now; batches that it gave stay.

    It refers to itself in Python, so that otherwise they stay until the garbage collector comes by, an epoch's worth
    each time. DALI has no public name for it.
    """
    getattr(pipeline, "_shutdown", gc.collect)()
