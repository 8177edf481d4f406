from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from data_loading import intensity
from data_loading.presets import NNUNET, REFERENCE, Change
from tests.data_loading.graph import IMAGE, LABEL, SHAPE, run
from tests.data_loading.shards import changes_of, preset_with

REFERENCE_ALWAYS = preset_with(REFERENCE, **changes_of(REFERENCE, 1.0))
NNUNET_ALWAYS = preset_with(NNUNET, **changes_of(NNUNET, 1.0))
SPACE = (1, 2, 3)
CONSTANT = np.full(SHAPE, 0.3, np.float32)


def reference_noise(image, label):
    return intensity.noise(image, REFERENCE_ALWAYS.noise), label


def nnunet_noise(image, label):
    return intensity.noise(image, NNUNET_ALWAYS.noise), label


def reference_blur(image, label):
    return intensity.blur(image, REFERENCE_ALWAYS.blur, shape=SHAPE), label


def nnunet_blur(image, label):
    return intensity.blur(image, NNUNET_ALWAYS.blur, shape=SHAPE), label


def nnunet_blur_2d(image, label):
    return intensity.blur(image, NNUNET_ALWAYS.blur, shape=(2, 8, 10)), label


def reference_brightness(image, label):
    return intensity.brightness(image, REFERENCE_ALWAYS.brightness, shape=SHAPE), label


def nnunet_brightness(image, label):
    return intensity.brightness(image, NNUNET_ALWAYS.brightness, shape=SHAPE), label


def reference_contrast(image, label):
    return intensity.contrast(image, REFERENCE_ALWAYS.contrast, shape=SHAPE), label


def nnunet_contrast(image, label):
    return intensity.contrast(image, NNUNET_ALWAYS.contrast, shape=SHAPE), label


def low_resolution(image, label):
    return intensity.low_resolution(image, NNUNET_ALWAYS.low_resolution, shape=SHAPE, in_plane=False), label


def half_resolution(image, label):
    change = Change(probability=1.0, bounds=(0.5, 0.501))
    return intensity.low_resolution(image, change, shape=SHAPE, in_plane=False), label


def half_resolution_in_plane(image, label):
    change = Change(probability=1.0, bounds=(0.5, 0.501))
    return intensity.low_resolution(image, change, shape=SHAPE, in_plane=True), label


def half_resolution_2d(image, label):
    change = Change(probability=1.0, bounds=(0.5, 0.501))
    return intensity.low_resolution(image, change, shape=(2, 8, 10), in_plane=True), label


def gamma(image, label):
    return intensity.gamma(image, NNUNET_ALWAYS.gamma, shape=SHAPE, inverted=False), label


def inverted_gamma(image, label):
    return intensity.gamma(image, NNUNET_ALWAYS.inverted_gamma, shape=SHAPE, inverted=True), label


def seldom_noise(image, label):
    return intensity.noise(image, REFERENCE.noise), label


@pytest.mark.parametrize("change", [reference_noise, nnunet_noise])
def test_noise_is_centred_and_at_most_a_third_wide(change) -> None:
    images, labels = run(change, image=np.zeros((1, 20, 20, 20), np.float32), count=64)
    stds = images.std(axis=(1, 2, 3, 4))
    assert abs(images.mean()) < 0.01
    assert stds.min() < 0.1 and 0.25 < stds.max() < 0.34
    assert np.array_equal(labels[0], LABEL)


def test_noise_of_nnunet_has_a_uniform_variance_up_to_a_tenth() -> None:
    images, _ = run(nnunet_noise, image=np.zeros((1, 20, 20, 20), np.float32), count=256)
    variances = images.var(axis=(1, 2, 3, 4))
    assert variances.max() < 0.105 and np.mean(variances) == pytest.approx(0.05, abs=0.008)
    assert np.quantile(variances, [0.25, 0.75]) == pytest.approx([0.025, 0.075], abs=0.012)


def test_blur_of_the_reference_is_one_gaussian_for_all_axes_and_channels() -> None:
    impulse = np.zeros((2, 15, 15, 15), np.float32)
    impulse[:, 7, 7, 7] = 1
    for sample in run(reference_blur, image=impulse)[0]:
        sigmas = widths(sample)
        assert np.ptp(sigmas) < 1e-4 and sigmas.min() > 0.45 and sigmas.max() < 1.55
        assert sample.sum() == pytest.approx(2, abs=1e-4)


def widths(impulse: np.ndarray) -> np.ndarray:
    """(C, 3) standard deviation along each axis of an impulse in the middle of (C, 15, 15, 15) that was smoothed."""
    lines = np.stack([impulse.sum(axis=tuple(a for a in SPACE if a != axis)) for axis in SPACE], axis=1)
    return np.sqrt(np.sum(lines * (np.arange(15) - 7) ** 2, axis=2))


def test_blur_of_nnunet_has_its_own_width_for_each_axis_and_spares_half_of_the_channels() -> None:
    impulse = np.zeros((2, 15, 15, 15), np.float32)
    impulse[:, 7, 7, 7] = 1
    samples, _ = run(nnunet_blur, image=impulse, count=64)
    sigmas = np.array([widths(sample) for sample in samples]).reshape(-1, 3)
    spared = np.array(
        [np.allclose(channel, impulse[0], rtol=0, atol=1e-20) for sample in samples for channel in sample]
    )
    assert 40 < spared.sum() < 88
    assert sigmas[~spared].min() > 0.45 and sigmas[~spared].max() < 1.01
    assert np.ptp(sigmas[~spared], axis=1).min() > 1e-3


@pytest.mark.parametrize("change", [reference_blur, nnunet_blur])
def test_blur_equals_scipy_with_the_widths_that_were_drawn(change) -> None:
    impulse = np.zeros((1, 15, 15, 15), np.float32)
    impulse[0, 7, 7, 7] = 1
    # What is drawn depends on the seed and not on the image: noise is smoothed as the impulse was.
    noise = np.random.default_rng(3).normal(size=(1, 15, 15, 15)).astype(np.float32)
    both = np.concatenate([impulse, impulse])
    for smoothed, drawn in zip(run(change, image=np.concatenate([noise, noise]))[0], run(change, image=both)[0]):
        for channel in range(2):
            lines = [drawn[channel].sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
            expected = noise[0].astype(np.float64)
            for axis, line in enumerate(lines):
                expected = ndimage.convolve1d(expected, line, axis=axis, mode="mirror")
            assert smoothed[channel] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("change", [reference_blur, nnunet_blur])
def test_blur_takes_patches_thinner_than_its_window(change) -> None:
    images, _ = run(change, image=np.ones((2, 2, 3, 16), np.float32))
    assert images == pytest.approx(1, abs=1e-5)


def test_blur_of_slices_keeps_their_shape() -> None:
    images, _ = run(nnunet_blur_2d, image=IMAGE[:, 0], label=LABEL[:, 0])
    assert images.shape == (8, 2, 8, 10) and np.isfinite(images).all()


@pytest.mark.parametrize("change, low, high", [(reference_brightness, 0.7, 1.3), (nnunet_brightness, 0.75, 1.25)])
def test_brightness_multiplies_each_channel_by_its_own_factor(change, low, high) -> None:
    factors = run(change)[0] / IMAGE
    per_channel = factors.mean(axis=(2, 3, 4), keepdims=True)
    assert factors == pytest.approx(np.broadcast_to(per_channel, factors.shape), rel=1e-4)
    assert per_channel.min() >= low - 1e-5 and per_channel.max() <= high + 1e-5
    assert np.unique(per_channel.round(4)).size == per_channel.size


@pytest.mark.parametrize("change, low, high", [(reference_contrast, 0.65, 1.5), (nnunet_contrast, 0.75, 1.25)])
def test_contrast_stretches_about_the_mean_within_the_values_that_were_there(change, low, high) -> None:
    mean, least, greatest = (f(IMAGE, axis=SPACE, keepdims=True) for f in (np.mean, np.min, np.max))
    for sample in run(change)[0]:
        factor = np.median((sample - mean) / (IMAGE - mean), axis=SPACE, keepdims=True)
        assert np.all((factor >= low - 1e-3) & (factor <= high + 1e-3))
        assert sample == pytest.approx(np.clip((IMAGE - mean) * factor + mean, least, greatest), abs=1e-4)


def test_factors_about_one_weaken_as_often_as_they_strengthen() -> None:
    ones = np.ones(SHAPE, np.float32)
    factors = run(nnunet_brightness, image=ones, count=128)[0][:, :, 0, 0, 0]
    assert 0.4 < (factors < 1).mean() < 0.6
    drawn = gamma_exponents(128)
    assert 0.4 < (drawn < 1).mean() < 0.6 and drawn.min() >= 0.69 and drawn.max() <= 1.51
    # Evenly between the bounds 5 of 8 would be above 1.
    assert (drawn > 1.25).mean() == pytest.approx(0.25, abs=0.08)


def gamma_exponents(count: int) -> np.ndarray:
    """Exponents that `gamma` drew, from three voxels of a ramp: mean and deviation cancel in the ratio."""
    ramp = np.broadcast_to(np.linspace(0, 1, 10, dtype=np.float32), SHAPE).copy()
    rows = run(gamma, image=ramp, count=count)[0][:, :, 0, 0].astype(np.float64)
    shares = (rows[..., 3] - rows[..., 0]) / (rows[..., 9] - rows[..., 0])
    return np.log(shares) / np.log(3 / 9)


@pytest.mark.parametrize("change, sign", [(gamma, 1), (inverted_gamma, -1)])
def test_gamma_is_a_power_of_the_intensities_that_keeps_mean_and_deviation(change, sign) -> None:
    for sample in run(change)[0]:
        assert sample.mean(axis=SPACE) == pytest.approx(IMAGE.mean(axis=SPACE), abs=1e-4)
        assert sample.std(axis=SPACE) == pytest.approx(IMAGE.std(axis=SPACE), rel=1e-4)
        for before, after in zip(sign * IMAGE.astype(np.float64), sign * sample.astype(np.float64)):
            base = (before - before.min()) / np.ptp(before)
            shares = (after - after.min()) / np.ptp(after)
            exponent = np.median(np.log(shares[(base > 0.1) & (base < 1)]) / np.log(base[(base > 0.1) & (base < 1)]))
            assert 0.69 < exponent < 1.51
            assert shares == pytest.approx(base**exponent, abs=1e-3)


@pytest.mark.parametrize("change", [reference_contrast, nnunet_contrast, gamma, inverted_gamma])
def test_a_constant_image_keeps_its_values(change) -> None:
    assert run(change, image=CONSTANT)[0] == pytest.approx(CONSTANT[0, 0, 0, 0], abs=1e-6)


def torch_low_resolution(image: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """(C, ...) brought to `kept` voxels by nearest and back by linear interpolation."""
    linear = {2: "bilinear", 3: "trilinear"}[len(kept)]
    small = torch.nn.functional.interpolate(torch.from_numpy(image)[None], kept, mode="nearest-exact")
    return torch.nn.functional.interpolate(small, image.shape[1:], mode=linear)[0].numpy()


@pytest.mark.parametrize(
    "change, kept, image, label",
    [
        (half_resolution, (3, 4, 5), IMAGE, LABEL),
        (half_resolution_in_plane, (6, 4, 5), IMAGE, LABEL),
        (half_resolution_2d, (4, 5), IMAGE[:, 0], LABEL[:, 0]),
    ],
)
def test_low_resolution_equals_torch(change, kept, image, label) -> None:
    images, labels = run(change, image=image, label=label, count=2)
    assert images[0] == pytest.approx(torch_low_resolution(image, kept), abs=1e-5)
    assert np.array_equal(labels[1], label)


def test_low_resolution_spares_half_of_the_channels() -> None:
    images, _ = run(low_resolution, count=64)
    spared = [np.array_equal(channel, before) for sample in images for channel, before in zip(sample, IMAGE)]
    # A share close to 1 keeps all of the few voxels here, which is sparing too.
    assert 0.4 < np.mean(spared) < 0.75


def test_samples_that_are_not_drawn_stay_bit_for_bit() -> None:
    images, _ = run(seldom_noise, count=64)
    untouched = [np.array_equal(sample, IMAGE) for sample in images]
    assert 40 <= sum(untouched) <= 63
