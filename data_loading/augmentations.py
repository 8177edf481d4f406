"""Random changes of training patches as DALI graph functions, the same on CPU and GPU.

The list, its probabilities (order.py) and its ranges are the NVIDIA reference's (PyTorch/Segmentation/nnUNet,
data_loading/dali_loader.py); where they differ from nnU-Net the function says so. Each function is traced inside
a pipeline with `enable_conditionals=True`: its `if` splits the batch, so what is not drawn is not computed. Coins
and drawn numbers live on the host, because DALI takes conditions and named arguments from there; the voxels are
where the image is.

Shapes of one sample: image (C, D, H, W) float32, label (1, D, H, W) uint8; in 2D without D.
"""

from __future__ import annotations

from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode

from data_loading.order import Odds

NOISE_STD = (0.0, 0.33)
BLUR_SIGMA_VOXELS = (0.5, 1.5)
BRIGHTNESS_FACTOR = (0.7, 1.3)
CONTRAST_FACTOR = (0.65, 1.5)


def augment(
    image: DataNode, label: DataNode, *, zoomed: DataNode, size: tuple[int, ...], channels: int, odds: Odds
) -> tuple[DataNode, DataNode]:
    """All changes in the reference's order; `size` is the patch, (D, H, W) or (H, W)."""
    image, label = zoom(image, label, zoomed=zoomed, size=size)
    image, label = flip(image, label, dim=len(size), probability=odds.flip)
    image = noise(image, probability=odds.noise)
    image = blur(image, probability=odds.blur)
    per_channel = (channels, *(1 for _ in size))
    image = brightness(image, shape=per_channel, probability=odds.brightness)
    image = contrast(image, shape=per_channel, probability=odds.contrast)
    return image, label


def zoom(image: DataNode, label: DataNode, *, zoomed: DataNode, size: tuple[int, ...]) -> tuple[DataNode, DataNode]:
    """Enlarge to `size` where `zoomed`: cubic for the image, nearest for the label, which so gets no new value.

    What is enlarged is the smaller box that was read (order.py). Samples that are not zoomed have that size already.
    """
    if zoomed:
        image = fn.resize(image, size=size, interp_type=types.INTERP_CUBIC)
        label = fn.resize(label, size=size, interp_type=types.INTERP_NN)
    return image, label


def flip(image: DataNode, label: DataNode, *, dim: int, probability: float) -> tuple[DataNode, DataNode]:
    """Mirror image and label together along each spatial axis with that probability."""
    axes = ("horizontal", "vertical", "depthwise")[:dim]
    flags = {axis: fn.random.coin_flip(probability=probability) for axis in axes}
    if sum(flags.values()) > 0:
        image = fn.flip(image, **flags)
        label = fn.flip(label, **flags)
    return image, label


def noise(image: DataNode, *, probability: float) -> DataNode:
    """Add normal noise of one standard deviation per patch.

    nnU-Net draws the variance from (0, 0.1), that is deviations up to 0.32 with more weight on the strong ones; the
    reference draws the deviation itself over about the same range.
    """
    if _drawn(probability):
        image = fn.noise.gaussian(image, stddev=fn.random.uniform(range=NOISE_STD))
    return image


def blur(image: DataNode, *, probability: float) -> DataNode:
    """Smooth with a Gaussian of one width per patch, the same along every axis; borders are mirrored."""
    if _drawn(probability):
        image = fn.gaussian_blur(image, sigma=fn.random.uniform(range=BLUR_SIGMA_VOXELS))
    return image


def brightness(image: DataNode, *, shape: tuple[int, ...], probability: float) -> DataNode:
    """Multiply each channel by its own factor; `shape` is (C, 1, 1[, 1])."""
    if _drawn(probability):
        image = image * _factors(BRIGHTNESS_FACTOR, shape, image.device)
    return image


def contrast(image: DataNode, *, shape: tuple[int, ...], probability: float) -> DataNode:
    """Stretch each channel about its mean by its own factor, within the values that the patch had; `shape` as above.

    The reference scales about zero, which is brightness once more; the mean is nnU-Net's centre.
    """
    if _drawn(probability):
        space = list(range(1, len(shape)))
        low = fn.reductions.min(image, axes=space, keep_dims=True)
        high = fn.reductions.max(image, axes=space, keep_dims=True)
        mean = fn.reductions.mean(image, axes=space, keep_dims=True)
        stretched = (image - mean) * _factors(CONTRAST_FACTOR, shape, image.device) + mean
        image = math.clamp(stretched, low, high)
    return image


def _drawn(probability: float) -> DataNode:
    return fn.random.coin_flip(probability=probability, dtype=types.BOOL)


def _factors(bounds: tuple[float, float], shape: tuple[int, ...], device: str) -> DataNode:
    """Drawn on the host on every device, so that CPU and GPU pipelines of one seed agree."""
    factors = fn.random.uniform(range=bounds, shape=shape)
    return factors.gpu() if device == "gpu" else factors
