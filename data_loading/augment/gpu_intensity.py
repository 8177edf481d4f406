"""Changes of a patch's intensities as DALI graph functions: noise, blur, brightness, contrast, resolution, gamma.

Each takes an image (C, D, H, W) or (C, H, W) float32 (`shape`) and a `RandomChange` that says how often and how
strongly; what is not drawn is not computed. These are for pipelines on a GPU; on the CPU cpu_intensity.py does the same
faster.
"""

from __future__ import annotations

from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode
from nvidia.dali.types import DALIDataType, DALIInterpType

from data_loading.augment.presets import SMALLEST_RANGE, RandomChange
from data_loading.augment.spatial import resize

NO_BLUR_SIGMA_VOXELS = 0.1
"""So narrow that DALI's kernel is the identity, in single precision; it takes no 0."""


def noise(image: DataNode, change: RandomChange) -> DataNode:
    """Add normal noise of one standard deviation per patch; every voxel of every channel has its own."""
    if _drawn(change.probability):
        image = fn.noise.gaussian(image, stddev=_strength(change))
    return image


def blur(image: DataNode, change: RandomChange, *, shape: tuple[int, ...]) -> DataNode:
    """Smooth with a Gaussian, of one width for all or of its own for each channel and axis; borders are mirrored."""
    if _drawn(change.probability):
        image = _smooth(image, change, shape)
    return image


def brightness(image: DataNode, change: RandomChange, *, shape: tuple[int, ...]) -> DataNode:
    """Multiply each channel by its own factor."""
    if _drawn(change.probability):
        image = image * _per_channel(change, shape, image.device)
    return image


def contrast(image: DataNode, change: RandomChange, *, shape: tuple[int, ...]) -> DataNode:
    """Stretch each channel about its mean by its own factor, within the values that the patch had.

    The reference scales about zero, which is brightness once more; the mean is nnU-Net's centre.
    """
    if _drawn(change.probability):
        low, high, mean = _least(image, shape), _greatest(image, shape), _mean(image, shape)
        stretched = (image - mean) * _per_channel(change, shape, image.device) + mean
        image = math.clamp(stretched, low, high)
    return image


def low_resolution(image: DataNode, change: RandomChange, *, shape: tuple[int, ...], in_plane: bool) -> DataNode:
    """Keep a share of a channel's voxels along each axis (in plane: not the first of three), and interpolate the rest.

    Every channel has its own coin and share; nearest voxels are kept, and interpolation is linear.
    """
    if _drawn(change.probability):
        # DALI's resize has one size for all channels of a sample. Where a slice begins is said by name: otherwise it
        # is a constant on the GPU, which has to be waited for to read it.
        coarse = [
            _coarsen(fn.slice(image, start=[channel], shape=[1], axes=[0]), change, shape[1:], in_plane)
            for channel in range(shape[0])
        ]
        image = fn.cat(*coarse, axis=0)
    return image


def gamma(image: DataNode, change: RandomChange, *, shape: tuple[int, ...], inverted: bool) -> DataNode:
    """Raise each channel, brought to 0..1, to a power of its own; mean and standard deviation stay as they were.

    `inverted` counts from the brightest voxel down, so that an exponent stretches the bright end in place of the dark.
    """
    if _drawn(change.probability):
        low, high, mean = _least(image, shape), _greatest(image, shape), _mean(image, shape)
        extent = math.max(high - low, SMALLEST_RANGE)
        base = (high - image) / extent if inverted else (image - low) / extent
        curved = math.pow(base, _per_channel(change, shape, image.device))
        middle = _mean(curved, shape)
        spread = _deviation(image, mean, shape) / math.max(_deviation(curved, middle, shape), SMALLEST_RANGE)
        image = mean - (curved - middle) * spread if inverted else mean + (curved - middle) * spread
    return image


def _smooth(image: DataNode, change: RandomChange, shape: tuple[int, ...]) -> DataNode:
    if change.shared:
        return fn.gaussian_blur(image, sigma=_strength(change))
    chosen = fn.random.coin_flip(probability=change.channel_probability, shape=(shape[0], 1))
    drawn = fn.random.uniform(range=change.bounds, shape=(shape[0], len(shape) - 1))
    sigma = chosen * drawn + (1 - chosen) * NO_BLUR_SIGMA_VOXELS
    # Only a sequence may have a width for each of its frames.
    frames = fn.reinterpret(image, layout="FDHW" if len(shape) == 4 else "FHW")
    frames = fn.gaussian_blur(frames, sigma=fn.per_frame(sigma))
    return fn.reinterpret(frames, layout="CDHW" if len(shape) == 4 else "CHW")


def _coarsen(channel: DataNode, change: RandomChange, size: tuple[int, ...], in_plane: bool) -> DataNode:
    if _drawn(change.channel_probability):
        share = fn.random.uniform(range=change.bounds)
        kept = [size[0]] if in_plane and len(size) == 3 else []
        coarse = [math.max(math.floor(share * float(n) + 0.5), 1.0) for n in size[len(kept) :]]
        small = fn.stack(*(types.Constant(float(n), device="cpu") for n in kept), *coarse)
        channel = resize(channel, small, DALIInterpType.INTERP_NN)
        channel = resize(channel, size, DALIInterpType.INTERP_LINEAR)
    return channel


def _drawn(probability: float) -> DataNode:
    return fn.random.coin_flip(probability=probability, dtype=DALIDataType.BOOL)


def _strength(change: RandomChange, shape: tuple[int, ...] = ()) -> DataNode:
    """Drawn numbers of that shape, on the CPU."""
    if change.draw == "about_one":
        lower = fn.random.uniform(range=(change.bounds[0], 1.0), shape=shape)
        upper = fn.random.uniform(range=(1.0, change.bounds[1]), shape=shape)
        weaker = fn.random.coin_flip(probability=0.5, shape=shape)
        return weaker * lower + (1 - weaker) * upper
    return fn.random.uniform(range=change.bounds, shape=shape)


def _per_channel(change: RandomChange, shape: tuple[int, ...], device: str) -> DataNode:
    """A number for each channel, (C, 1, 1[, 1]), where the voxels are."""
    numbers = _strength(change, (shape[0], *(1 for _ in shape[1:])))
    return numbers.gpu() if device == "gpu" else numbers


def _space(shape: tuple[int, ...]) -> list[int]:
    return list(range(1, len(shape)))


def _least(image: DataNode, shape: tuple[int, ...]) -> DataNode:
    return fn.reductions.min(image, axes=_space(shape), keep_dims=True)


def _greatest(image: DataNode, shape: tuple[int, ...]) -> DataNode:
    return fn.reductions.max(image, axes=_space(shape), keep_dims=True)


def _mean(image: DataNode, shape: tuple[int, ...]) -> DataNode:
    return fn.reductions.mean(image, axes=_space(shape), keep_dims=True)


def _deviation(image: DataNode, mean: DataNode, shape: tuple[int, ...]) -> DataNode:
    return fn.reductions.std_dev(image, mean, axes=_space(shape), keep_dims=True)
