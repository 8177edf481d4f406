from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def, types
from scipy import ndimage

from data_loading import augmentations

SHAPE = (2, 6, 8, 10)
IMAGE = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
LABEL = np.random.default_rng(1).choice([0, 3, 7], size=(1, *SHAPE[1:])).astype(np.uint8)
PER_CHANNEL = (2, 1, 1, 1)


@pipeline_def(enable_conditionals=True, num_threads=1, device_id=None)
def changed(images, labels, change, layout):
    image = fn.external_source(source=images, layout=layout)
    label = fn.external_source(source=labels, layout=layout)
    return change(image, label)


def run(
    change: Callable, *, image: np.ndarray = IMAGE, label: np.ndarray = LABEL, count: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """`count` samples of the same image and label, changed: (count, C, ...), (count, 1, ...)."""
    layout = "CDHW" if image.ndim == 4 else "CHW"
    batches = [[np.stack([array] * count)] for array in (image, label)]
    outputs = changed(*batches, change, layout, batch_size=count, seed=5).run()
    return tuple(np.stack([np.array(sample) for sample in output]) for output in outputs)


def flip(image, label):
    return augmentations.flip(image, label, dim=3, probability=0.5)


def flip_2d(image, label):
    return augmentations.flip(image, label, dim=2, probability=0.5)


def always_noise(image, label):
    return augmentations.noise(image, probability=1.0), label


def always_blur(image, label):
    return augmentations.blur(image, probability=1.0), label


def always_brightness(image, label):
    return augmentations.brightness(image, shape=PER_CHANNEL, probability=1.0), label


def always_contrast(image, label):
    return augmentations.contrast(image, shape=PER_CHANNEL, probability=1.0), label


def zoom_to_double(image, label):
    zoomed = fn.random.coin_flip(probability=1.0, dtype=types.BOOL)
    return augmentations.zoom(image, label, zoomed=zoomed, size=(12, 16, 20))


def seldom_noise(image, label):
    return augmentations.noise(image, probability=0.15), label


def mirrored(array: np.ndarray) -> dict[bytes, tuple[int, ...]]:
    """Every mirror image of (C, ...) by its bytes."""
    axes = range(1, array.ndim)
    subsets = [tuple(a for a in axes if code >> a & 1) for code in range(0, 2**array.ndim, 2)]
    return {np.flip(array, subset).tobytes(): subset for subset in subsets}


@pytest.mark.parametrize("change, image, label", [(flip, IMAGE, LABEL), (flip_2d, IMAGE[:, 0], LABEL[:, 0])])
def test_flips_mirror_image_and_label_alike_along_every_axis(change, image, label) -> None:
    images, labels = run(change, image=image, label=label, count=64)
    of_images = [mirrored(image)[sample.tobytes()] for sample in images]
    of_labels = [mirrored(label)[sample.tobytes()] for sample in labels]
    assert of_images == of_labels
    assert set(of_images) == set(mirrored(image).values())


def test_noise_is_centred_and_at_most_a_third_wide() -> None:
    images, labels = run(always_noise, image=np.zeros((1, 20, 20, 20), np.float32), count=32)
    stds = images.std(axis=(1, 2, 3, 4))
    assert abs(images.mean()) < 0.01
    assert stds.min() < 0.1 and 0.25 < stds.max() < 0.34
    assert np.array_equal(labels[0], LABEL)


def test_blur_is_a_gaussian_of_half_to_one_and_a_half_voxels() -> None:
    impulse = np.zeros((1, 15, 15, 15), np.float32)
    impulse[0, 7, 7, 7] = 1
    for sample in run(always_blur, image=impulse)[0]:
        line = sample[0].sum(axis=(0, 1))
        sigma = np.sqrt(np.sum(line * (np.arange(15) - 7) ** 2))
        assert 0.45 < sigma < 1.55
        assert sample.sum() == pytest.approx(1, abs=1e-4)


def test_blur_equals_scipy() -> None:
    sample = run(always_blur, image=IMAGE[:1], count=1)[0][0, 0]
    sigmas = np.linspace(0.5, 1.5, 401)
    errors = [
        np.abs(
            ndimage.gaussian_filter(IMAGE[0].astype(np.float64), s, mode="mirror", radius=int(np.ceil(3 * s))) - sample
        ).max()
        for s in sigmas
    ]
    assert min(errors) < 5e-3


def test_blur_takes_patches_thinner_than_its_window() -> None:
    images, _ = run(always_blur, image=np.ones((1, 2, 3, 16), np.float32))
    assert images == pytest.approx(1, abs=1e-5)


def test_brightness_multiplies_each_channel_by_its_own_factor() -> None:
    factors = run(always_brightness)[0] / IMAGE
    per_channel = factors.mean(axis=(2, 3, 4), keepdims=True)
    assert factors == pytest.approx(np.broadcast_to(per_channel, factors.shape), rel=1e-4)
    assert per_channel.min() >= 0.7 and per_channel.max() <= 1.3
    assert np.unique(per_channel.round(4)).size == per_channel.size


def test_contrast_stretches_about_the_mean_within_the_values_that_were_there() -> None:
    mean = IMAGE.mean(axis=(1, 2, 3), keepdims=True)
    low, high = IMAGE.min(axis=(1, 2, 3), keepdims=True), IMAGE.max(axis=(1, 2, 3), keepdims=True)
    for sample in run(always_contrast)[0]:
        middle = np.abs(IMAGE - mean).argmin(axis=None)
        factor = np.median((sample - mean) / (IMAGE - mean), axis=(1, 2, 3), keepdims=True)
        assert np.all((factor >= 0.649) & (factor <= 1.501))
        assert sample == pytest.approx(np.clip((IMAGE - mean) * factor + mean, low, high), abs=1e-4)
        assert sample.flat[middle] == pytest.approx(IMAGE.flat[middle], abs=1e-3)


def test_contrast_leaves_a_constant_image_alone() -> None:
    constant = np.full(SHAPE, 0.3, np.float32)
    assert np.all(run(always_contrast, image=constant)[0] == constant)


def test_zoom_invents_no_label_value_and_keeps_label_on_image() -> None:
    cubes = np.zeros((1, 6, 8, 10), np.uint8)
    cubes[0, 1:4, 2:6, 3:8] = 7
    images, labels = run(zoom_to_double, image=np.repeat(cubes, 2, 0).astype(np.float32), label=cubes)
    assert images.shape[1:] == (2, 12, 16, 20)
    assert np.array_equal(labels[0], cubes.repeat(2, 1).repeat(2, 2).repeat(2, 3))
    assert np.array_equal(images[0, :1] > 3.5, labels[0] == 7)


def test_zoom_of_random_labels_invents_no_value() -> None:
    assert set(np.unique(run(zoom_to_double)[1])) == {0, 3, 7}


def test_samples_that_are_not_drawn_stay_bit_for_bit() -> None:
    images, _ = run(seldom_noise, count=64)
    untouched = [np.array_equal(sample, IMAGE) for sample in images]
    assert 40 <= sum(untouched) <= 63
