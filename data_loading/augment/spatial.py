"""Changes of a patch's geometry as DALI graph functions: zoom, rotation, mirroring.

Image and label are moved together. The image is interpolated; the label takes the nearest voxel's value, so no value
is invented. Where a patch sticks out of the volume both are 0. Shapes as in augmentations.py.
"""

from __future__ import annotations

import functools
from typing import Any

from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode

from data_loading.augment.cpu_warp import warp


def zoom(
    image: DataNode, label: DataNode, *, zoomed: DataNode, size: tuple[int, ...], cubic: bool
) -> tuple[DataNode, DataNode]:
    """Enlarge or shrink to `size` where `zoomed`; other samples have that size already, or are rotated."""
    if zoomed:
        kind = types.INTERP_CUBIC if cubic else types.INTERP_LINEAR
        # As in a rotation: nothing is smoothed before it is shrunk.
        image = fn.resize(image, size=size, interp_type=kind, antialias=False)
        label = fn.resize(label, size=size, interp_type=types.INTERP_NN)
    return image, label


def rotate(
    image: DataNode, label: DataNode, *, rotated: DataNode, matrix: DataNode, shape: tuple[int, ...], in_plane: bool
) -> tuple[DataNode, DataNode]:
    """Rotate, and zoom in the same step, where `rotated`: linear for the image, nearest for the label.

    `shape` is (C, D, H, W) or (C, H, W) of the patch; `matrix` is (2, 3) in plane, else (3, 4) (boxes.py).
    """
    look_up = look_up_on_gpu if image.device == "gpu" else look_up_on_host
    if rotated:
        image, label = look_up(image, label, matrix=matrix, shape=shape, in_plane=in_plane)
    return image, label


def look_up_on_host(
    image: DataNode, label: DataNode, *, matrix: DataNode, shape: tuple[int, ...], in_plane: bool
) -> tuple[DataNode, DataNode]:
    """Patches from the positions of the box that the matrix gives, by torch."""
    layout = "CDHW" if len(shape) == 4 else "CHW"
    image, label = fn.python_function(
        image, label, matrix,
        function=functools.partial(warp, size=shape[1:]), num_outputs=2, output_layouts=[layout, layout],
    )  # fmt: skip
    return image, label


def look_up_on_gpu(
    image: DataNode, label: DataNode, *, matrix: DataNode, shape: tuple[int, ...], in_plane: bool
) -> tuple[DataNode, DataNode]:
    """Patches from the positions of the box that the matrix gives, by DALI, which can do it on the host too."""
    image = _look_up(image, matrix, shape, in_plane, types.INTERP_LINEAR)
    label = _look_up(label, matrix, (-1, *shape[1:]), in_plane, types.INTERP_NN)
    return image, label


def flip(
    image: DataNode, label: DataNode, *, dim: int, probability: float, axes: tuple[int, ...] | None = None
) -> tuple[DataNode, DataNode]:
    """Mirror image and label together along each spatial axis, or some `axes` (0 is the first), with that probability.

    Patches without a flip are copied: they are one in eight, and parting the batch would cost more.
    """
    names = ("horizontal", "vertical", "depthwise")[:dim]
    # DALI counts from the last axis, and flips along that one where it is told nothing.
    chosen = {name for index, name in enumerate(names) if axes is None or dim - 1 - index in axes}
    if not chosen:
        return image, label
    flags: dict[str, Any] = {
        name: fn.random.coin_flip(probability=probability) if name in chosen else 0 for name in names
    }
    return fn.flip(image, **flags), fn.flip(label, **flags)


def _look_up(
    voxels: DataNode, matrix: DataNode, shape: tuple[int, ...], in_plane: bool, interpolation: types.DALIInterpType
) -> DataNode:
    """Patch voxels from the positions of the box that the matrix gives.

    DALI warps no channels-first array, so channels (in plane: and slices) become frames of one channel.
    """
    if in_plane and len(shape) == 4:
        frames = fn.reshape(voxels, src_dims=[0, 2, 3], rel_shape=[-1, 1, 1], layout="FHW")
    else:
        frames = fn.reinterpret(voxels, layout="FDHW" if len(shape) == 4 else "FHW")
    size = shape[-2:] if in_plane else shape[-3:]
    frames = fn.expand_dims(frames, axes=[len(size) + 1], new_axis_names="C")
    frames = fn.warp_affine(frames, matrix=matrix, size=size, fill_value=0, interp_type=interpolation)
    return fn.reshape(frames, shape=shape, layout="CDHW" if len(shape) == 4 else "CHW")
