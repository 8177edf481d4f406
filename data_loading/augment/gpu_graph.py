"""The random changes of a training patch as one DALI graph, for every preset.

On a GPU all of them are in the graph. On the host the graph has the geometry (`Preset.geometry`), and intensities are
changed in the finished batch (host_intensity.py), where torch does it in place and several times faster.

The functions that do the work are in spatial.py and intensity.py. They are traced inside a pipeline with
`enable_conditionals=True`: an `if` on a drawn coin splits the batch, so what is not drawn is not computed, and what a
preset never does is not in the graph. Coins and drawn numbers live on the host, because DALI takes conditions and
named arguments from there; the voxels are where the image is.

Shapes of one sample: image (C, D, H, W) float32, label (1, D, H, W) uint8; in 2D without D.
"""

from __future__ import annotations

from collections.abc import Mapping

from nvidia.dali.data_node import DataNode

from data_loading.augment import gpu_intensity as intensity
from data_loading.augment import spatial
from data_loading.augment.presets import Preset


def augment(
    image: DataNode, label: DataNode, *, drawn: Mapping[str, DataNode], shape: tuple[int, ...], preset: Preset
) -> tuple[DataNode, DataNode]:
    """Bring what was read to the size of the patch, and change it as the preset says.

    Args:
        image: what was read, of any size where it is zoomed or rotated.
        label: the same part of the label.
        drawn: which samples are zoomed or rotated, and how: columns of boxes.py, which come with the preset's changes.
        shape: (C, D, H, W) or (C, H, W) of the image's patch.
        preset: what is done how often.
    """
    if preset.zoom.probability:
        image, label = spatial.zoom(image, label, zoomed=drawn["zoomed"], size=shape[1:], cubic=preset.cubic_zoom)
    if preset.rotation.probability:
        image, label = spatial.rotate(
            image, label, rotated=drawn["rotated"], matrix=drawn["matrix"], shape=shape, in_plane=preset.in_plane
        )
    if preset.flip:
        image, label = spatial.flip(
            image, label, dim=len(shape) - 1, probability=preset.flip, axes=preset.flip_axes
        )  # fmt: skip
    if preset.noise.probability:
        image = intensity.noise(image, preset.noise)
    if preset.blur.probability:
        image = intensity.blur(image, preset.blur, shape=shape)
    if preset.brightness.probability:
        image = intensity.brightness(image, preset.brightness, shape=shape)
    if preset.contrast.probability:
        image = intensity.contrast(image, preset.contrast, shape=shape)
    if preset.low_resolution.probability:
        image = intensity.low_resolution(image, preset.low_resolution, shape=shape, in_plane=preset.in_plane)
    if preset.inverted_gamma.probability:
        image = intensity.gamma(image, preset.inverted_gamma, shape=shape, inverted=True)
    if preset.gamma.probability:
        image = intensity.gamma(image, preset.gamma, shape=shape, inverted=False)
    return image, label
