from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage

from data_loading.augment import gpu_intensity
from data_loading.augment.cpu_intensity import change_intensities
from data_loading.augment.presets import NNUNET, REFERENCE, UNCHANGED, RandomChange
from tests.data_loading.graph import IMAGE, SHAPE, run
from tests.data_loading.shards import changes_of, preset_with

REFERENCE_ALWAYS = preset_with(REFERENCE, **changes_of(REFERENCE, 1.0))
NNUNET_ALWAYS = preset_with(NNUNET, **changes_of(NNUNET, 1.0))
BOTH = (REFERENCE_ALWAYS, NNUNET_ALWAYS)
SPACE = (1, 2, 3)
CONSTANT = np.full(SHAPE, 0.3, np.float32)
HALF = RandomChange(probability=1.0, bounds=(0.5, 0.501))


def in_graph(
    name: str, change: RandomChange, *, image: np.ndarray = IMAGE, count: int = 8, in_plane: bool = False
) -> np.ndarray:
    """`count` samples of the same image (C, ...), changed by DALI."""
    shape = image.shape
    calls = {
        "noise": lambda x: gpu_intensity.noise(x, change),
        "blur": lambda x: gpu_intensity.blur(x, change, shape=shape),
        "brightness": lambda x: gpu_intensity.brightness(x, change, shape=shape),
        "contrast": lambda x: gpu_intensity.contrast(x, change, shape=shape),
        "low_resolution": lambda x: gpu_intensity.low_resolution(x, change, shape=shape, in_plane=in_plane),
        "inverted_gamma": lambda x: gpu_intensity.gamma(x, change, shape=shape, inverted=True),
        "gamma": lambda x: gpu_intensity.gamma(x, change, shape=shape, inverted=False),
    }
    call = calls[name]
    return run(lambda x, label: (call(x), label), image=image, label=image[:1].astype(np.uint8), count=count)[0]


def on_cpu(
    name: str, change: RandomChange, *, image: np.ndarray = IMAGE, count: int = 8, in_plane: bool = False
) -> np.ndarray:
    """The same by torch."""
    batch = torch.from_numpy(np.stack([image] * count))
    preset = dataclasses.replace(UNCHANGED, in_plane=in_plane, **{name: change})
    change_intensities(batch, preset, torch.Generator().manual_seed(5))
    return batch.numpy()


@pytest.fixture(params=[in_graph, on_cpu])
def changed(request: pytest.FixtureRequest) -> Callable[..., np.ndarray]:
    """Both ways to change an image keep the same rules."""
    return request.param


@pytest.mark.slow
def test_noise_is_centred_and_at_most_a_third_wide(changed) -> None:
    images = changed("noise", REFERENCE_ALWAYS.noise, image=np.zeros((1, 20, 20, 20), np.float32), count=64)
    stds = images.std(axis=(1, 2, 3, 4))
    assert abs(images.mean()) < 0.01
    assert stds.min() < 0.1 and 0.25 < stds.max() < 0.34


def test_noise_is_normal_and_every_voxel_has_its_own(changed) -> None:
    one = RandomChange(probability=1.0, bounds=(1.0, 1.0001))
    first, second = changed("noise", one, image=np.zeros((2, 40, 40, 40), np.float32), count=2)
    for sample in (first, second):
        assert sample.std() == pytest.approx(1, abs=0.02)
        shares = [np.mean(np.abs(sample) < width) for width in (1, 2, 3)]
        assert shares == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.005)
    # Neither channels, samples nor neighbours repeat each other.
    for one, other in [(first[0], first[1]), (first, second), (first[:, 1:], first[:, :-1])]:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


def test_noise_of_nnunet_has_a_uniform_deviation_up_to_a_tenth(changed) -> None:
    images = changed("noise", NNUNET_ALWAYS.noise, image=np.zeros((1, 20, 20, 20), np.float32), count=256)
    deviations = images.std(axis=(1, 2, 3, 4))
    assert deviations.max() < 0.105 and np.mean(deviations) == pytest.approx(0.05, abs=0.008)
    assert np.quantile(deviations, [0.25, 0.75]) == pytest.approx([0.025, 0.075], abs=0.012)


def test_blur_of_the_reference_is_one_gaussian_for_all_axes_and_channels(changed) -> None:
    impulse = np.zeros((2, 15, 15, 15), np.float32)
    impulse[:, 7, 7, 7] = 1
    for sample in changed("blur", REFERENCE_ALWAYS.blur, image=impulse):
        sigmas = widths(sample)
        assert np.ptp(sigmas) < 1e-4 and sigmas.min() > 0.45 and sigmas.max() < 1.55
        assert sample.sum() == pytest.approx(2, abs=1e-4)


def widths(impulse: np.ndarray) -> np.ndarray:
    """(C, 3) standard deviation along each axis of an impulse in the middle of (C, 15, 15, 15) that was smoothed."""
    lines = np.stack([impulse.sum(axis=tuple(a for a in SPACE if a != axis)) for axis in SPACE], axis=1)
    return np.sqrt(np.sum(lines * (np.arange(15) - 7) ** 2, axis=2))


def test_blur_of_nnunet_has_its_own_width_for_each_axis_and_spares_half_of_the_channels(changed) -> None:
    impulse = np.zeros((2, 15, 15, 15), np.float32)
    impulse[:, 7, 7, 7] = 1
    samples = changed("blur", NNUNET_ALWAYS.blur, image=impulse, count=64)
    sigmas = np.array([widths(sample) for sample in samples]).reshape(-1, 3)
    spared = np.array(
        [np.allclose(channel, impulse[0], rtol=0, atol=1e-20) for sample in samples for channel in sample]
    )
    assert 40 < spared.sum() < 88
    assert sigmas[~spared].min() > 0.45 and sigmas[~spared].max() < 1.01
    assert np.ptp(sigmas[~spared], axis=1).min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("preset", BOTH)
def test_blur_equals_scipy_with_the_widths_that_were_drawn(changed, preset) -> None:
    impulse = np.zeros((1, 15, 15, 15), np.float32)
    impulse[0, 7, 7, 7] = 1
    # What is drawn depends on the seed and not on the image: noise is smoothed as the impulse was.
    noise = np.random.default_rng(3).normal(size=(1, 15, 15, 15)).astype(np.float32)
    both = np.concatenate([impulse, impulse])
    noisy = changed("blur", preset.blur, image=np.concatenate([noise, noise]))
    for smoothed, drawn in zip(noisy, changed("blur", preset.blur, image=both)):
        for channel in range(2):
            lines = [drawn[channel].sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
            expected = noise[0].astype(np.float64)
            for axis, line in enumerate(lines):
                expected = ndimage.convolve1d(expected, line, axis=axis, mode="mirror")
            assert smoothed[channel] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("preset", BOTH)
@pytest.mark.parametrize("size", [(2, 3, 16), (1, 2, 9)])
def test_blur_takes_patches_thinner_than_its_window(changed, preset, size) -> None:
    images = changed("blur", preset.blur, image=np.ones((2, *size), np.float32))
    assert images == pytest.approx(1, abs=1e-5)


def test_blur_mirrors_a_thin_patch_again_and_again() -> None:
    """Both ways agree where the window is several times as wide as the patch."""
    wide = RandomChange(probability=1.0, bounds=(1.5, 1.50001), shared=True)
    image = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    assert on_cpu("blur", wide, image=image) == pytest.approx(in_graph("blur", wide, image=image), abs=1e-3)


def test_blur_of_slices_keeps_their_shape(changed) -> None:
    images = changed("blur", NNUNET_ALWAYS.blur, image=IMAGE[:, 0])
    assert images.shape == (8, 2, 8, 10) and np.isfinite(images).all()


@pytest.mark.parametrize("preset, low, high", [(REFERENCE_ALWAYS, 0.7, 1.3), (NNUNET_ALWAYS, 0.75, 1.25)])
def test_brightness_multiplies_each_channel_by_its_own_factor(changed, preset, low, high) -> None:
    factors = changed("brightness", preset.brightness) / IMAGE
    per_channel = factors.mean(axis=(2, 3, 4), keepdims=True)
    assert factors == pytest.approx(np.broadcast_to(per_channel, factors.shape), rel=1e-4)
    assert per_channel.min() >= low - 1e-5 and per_channel.max() <= high + 1e-5
    assert np.unique(per_channel.round(4)).size == per_channel.size


@pytest.mark.slow
@pytest.mark.parametrize("preset, low, high", [(REFERENCE_ALWAYS, 0.65, 1.5), (NNUNET_ALWAYS, 0.75, 1.25)])
def test_contrast_stretches_about_the_mean_within_the_values_that_were_there(changed, preset, low, high) -> None:
    mean, least, greatest = (f(IMAGE, axis=SPACE, keepdims=True) for f in (np.mean, np.min, np.max))
    for sample in changed("contrast", preset.contrast):
        factor = np.median((sample - mean) / (IMAGE - mean), axis=SPACE, keepdims=True)
        assert np.all((factor >= low - 1e-3) & (factor <= high + 1e-3))
        assert sample == pytest.approx(np.clip((IMAGE - mean) * factor + mean, least, greatest), abs=1e-4)


@pytest.mark.slow
def test_factors_about_one_weaken_as_often_as_they_strengthen(changed) -> None:
    ones = np.ones(SHAPE, np.float32)
    factors = changed("brightness", NNUNET_ALWAYS.brightness, image=ones, count=128)[:, :, 0, 0, 0]
    assert 0.4 < (factors < 1).mean() < 0.6
    drawn = gamma_exponents(changed, 128)
    assert 0.4 < (drawn < 1).mean() < 0.6 and drawn.min() >= 0.69 and drawn.max() <= 1.51
    # Evenly between the bounds 5 of 8 would be above 1.
    assert (drawn > 1.25).mean() == pytest.approx(0.25, abs=0.08)


def gamma_exponents(changed: Callable, count: int) -> np.ndarray:
    """Exponents that `gamma` drew, from three voxels of a ramp: mean and deviation cancel in the ratio."""
    ramp = np.broadcast_to(np.linspace(0, 1, 10, dtype=np.float32), SHAPE).copy()
    rows = changed("gamma", NNUNET_ALWAYS.gamma, image=ramp, count=count)[:, :, 0, 0].astype(np.float64)
    shares = (rows[..., 3] - rows[..., 0]) / (rows[..., 9] - rows[..., 0])
    return np.log(shares) / np.log(3 / 9)


@pytest.mark.parametrize("name, sign", [("gamma", 1), ("inverted_gamma", -1)])
def test_gamma_is_a_power_of_the_intensities_that_keeps_mean_and_deviation(changed, name, sign) -> None:
    for sample in changed(name, getattr(NNUNET_ALWAYS, name)):
        assert sample.mean(axis=SPACE) == pytest.approx(IMAGE.mean(axis=SPACE), abs=1e-4)
        assert sample.std(axis=SPACE) == pytest.approx(IMAGE.std(axis=SPACE), rel=1e-4)
        for before, after in zip(sign * IMAGE.astype(np.float64), sign * sample.astype(np.float64)):
            base = (before - before.min()) / np.ptp(before)
            shares = (after - after.min()) / np.ptp(after)
            exponent = np.median(np.log(shares[(base > 0.1) & (base < 1)]) / np.log(base[(base > 0.1) & (base < 1)]))
            assert 0.69 < exponent < 1.51
            assert shares == pytest.approx(base**exponent, abs=1e-3)


@pytest.mark.parametrize("name", ["contrast", "gamma", "inverted_gamma"])
def test_a_constant_image_keeps_its_values(changed, name) -> None:
    assert changed(name, getattr(NNUNET_ALWAYS, name), image=CONSTANT) == pytest.approx(CONSTANT[0, 0, 0, 0], abs=1e-6)


def torch_low_resolution(image: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """(C, ...) brought to `kept` voxels by nearest and back by linear interpolation."""
    linear = {2: "bilinear", 3: "trilinear"}[len(kept)]
    small = torch.nn.functional.interpolate(torch.from_numpy(image)[None], kept, mode="nearest-exact")
    return torch.nn.functional.interpolate(small, image.shape[1:], mode=linear)[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    "in_plane, kept, image", [(False, (3, 4, 5), IMAGE), (True, (6, 4, 5), IMAGE), (True, (4, 5), IMAGE[:, 0])]
)
def test_low_resolution_equals_torch(changed, in_plane, kept, image) -> None:
    images = changed("low_resolution", HALF, image=image, count=2, in_plane=in_plane)
    assert images[0] == pytest.approx(torch_low_resolution(image, kept), abs=1e-5)


def test_low_resolution_spares_half_of_the_channels(changed) -> None:
    images = changed("low_resolution", NNUNET_ALWAYS.low_resolution, count=64)
    spared = [np.array_equal(channel, before) for sample in images for channel, before in zip(sample, IMAGE)]
    # A share close to 1 keeps all of the few voxels here, which is sparing too.
    assert 0.4 < np.mean(spared) < 0.75


@pytest.mark.parametrize("name", ["noise", "blur", "brightness", "contrast"])
def test_samples_that_are_not_drawn_stay_bit_for_bit(changed, name) -> None:
    images = changed(name, getattr(REFERENCE, name), count=64)
    untouched = [np.array_equal(sample, IMAGE) for sample in images]
    assert 40 <= sum(untouched) <= 63
