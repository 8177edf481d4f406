from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from data_preprocessing.normalization import normalize_channel
from data_preprocessing.preprocessor import (
    CaseInput,
    native_label_classes,
    preprocess_case,
)
from data_preprocessing.resampling import make_maps, resample_image
from data_preprocessing.restoration import restore_mask, restore_probabilities
from tests.data_preprocessing.builders import (
    CT,
    LABELS,
    make_case,
    make_plan,
    make_volume,
    nearest,
    random_image,
    stripped,
    zscore,
)
from utils.errors import UserError
from utils.nifti import read_image, read_label
from utils.schema import LabelScheme, Region


def one_hot(label, number=3):
    return np.stack([label == k for k in range(number)]).astype(np.float32)


@pytest.mark.slow
def test_isotropic_mr_equals_monai(real_data):
    """The reference's own steps on a hippocampus scan: crop to non-zero, z-score over non-zero voxels."""
    transforms = pytest.importorskip("monai.transforms")
    folder = real_data / "Task04_Hippocampus"
    path = sorted((folder / "imagesTr").glob("*.nii.gz"))[0]
    image, label = read_image([path]), read_label(folder / "labelsTr" / path.name)
    files = CaseInput(
        case="h", image=image, label=label, image_path=str(path), label_path="l", source_stamp="s", plan_stamp="p"
    )
    shard = preprocess_case(files, make_plan(patch=(40, 56, 40)))

    crop = transforms.CropForegroundd(keys=["x", "y"], source_key="x", select_fn=lambda x: x != 0, allow_smaller=True)
    cropped = crop({"x": image.array, "y": label.array[None]})
    expected = transforms.NormalizeIntensity(nonzero=True, channel_wise=True)(cropped["x"])
    pad = transforms.SpatialPad(np.maximum(expected.shape[1:], (40, 56, 40)))
    np.testing.assert_allclose(shard.image, np.asarray(pad(expected)), atol=1e-4)
    np.testing.assert_array_equal(shard.label, np.asarray(pad(cropped["y"])))
    assert shard.image.dtype == np.float32 and shard.label.dtype == np.uint8


def test_crop_keeps_negative_intensities_and_is_recorded():
    """Defect 19: cropping at > 0 cuts tissue of negative HU."""
    image = np.zeros((1, 8, 8, 8), dtype=np.float32)
    image[0, 1:7, 2:8, 0:5] = -50
    shard = preprocess_case(make_case(image), make_plan(channels=("ct",)))
    assert shard.meta.crop_box == ((1, 7), (2, 8), (0, 5))
    assert shard.image.shape == (1, 6, 6, 5)
    np.testing.assert_array_equal(shard.image, -4)


def test_an_empty_image_is_an_error_that_names_the_file():
    with pytest.raises(UserError, match=r"/data/case\.nii\.gz: every voxel is zero"):
        preprocess_case(make_case(np.zeros((1, 3, 3, 3), dtype=np.float32)), make_plan())


def test_channels_have_their_own_schemes_and_stay_float32():
    """Defects 20 and 25: one CT channel beside others; no float64 under NumPy 2."""
    image = np.stack([np.full((4, 4, 4), 100.0), random_image((4, 4, 4))]).astype(np.float32)
    out = preprocess_case(make_case(image), make_plan(channels=("ct", "zscore"))).image
    assert out.dtype == np.float32 and out.flags.c_contiguous
    np.testing.assert_array_equal(out[0], 2)
    assert abs(out[1].mean()) < 1e-6 and abs(out[1].std() - 1) < 1e-6


def test_a_small_scan_is_padded_around_its_centre():
    image, label = np.ones((1, 2, 3, 5), dtype=np.float32), np.full((2, 3, 5), 2)
    shard = preprocess_case(make_case(image, label), make_plan(patch=(4, 6, 4), channels=("ct",)))
    assert shard.meta.padded_shape == (4, 6, 5) and shard.meta.pad_low == (1, 1, 0)
    assert shard.label[0, 1:3, 1:4].all() and shard.label.sum() == 2 * 2 * 3 * 5
    assert np.count_nonzero(shard.image) == 2 * 3 * 5


def test_2d_pads_and_resamples_in_plane_only_and_keeps_all_of_the_slice():
    """Defects 6 and 7: no centre crop, and the planned in-plane spacing is reached."""
    image = random_image((1, 3, 10, 6))
    plan = make_plan(patch=(4, 8), spacing=(2.0, 1.0))
    shard = preprocess_case(make_case(image, spacing=(5.0, 1.0, 1.0)), plan)
    assert shard.meta.resampled_shape == (3, 5, 6) and shard.image.shape == (1, 3, 5, 8)


def test_the_mask_channel_marks_the_nonzero_voxels_of_the_scan():
    """Defect 17: taken from the normalised image, it would mark only the brighter half."""
    image = random_image((2, 6, 6, 6))
    image[:, 2:4, 2:4, 2:4] = 0
    image[1, 0] = 0
    out = preprocess_case(make_case(image), make_plan(channels=("zscore",) * 2, mask_channel=True)).image
    np.testing.assert_array_equal(out[2], (image != 0).any(axis=0))
    plain = preprocess_case(make_case(image), make_plan(channels=("zscore",) * 2)).image
    np.testing.assert_array_equal(out[:2], plain)


def test_the_mask_channel_is_resampled_with_the_image():
    image = np.ones((1, 2, 4, 4), dtype=np.float32)
    image[0, :, 1, 1] = 0
    plan = make_plan(patch=(2, 8, 10), spacing=(1.0, 0.5, 0.5), mask_channel=True)
    mask = preprocess_case(make_case(image), plan).image[1]
    assert not mask[:, 2:4, 3:5].any() and not mask[:, :, [0, 9]].any()
    assert mask.sum() == 2 * (64 - 4)


def test_axes_permute_image_label_spacing_and_come_back():
    image, label = random_image((1, 4, 5, 6)), np.random.default_rng(1).integers(0, 3, (4, 5, 6))
    plan = make_plan(axes=(2, 0, 1), spacing=(3.0, 1.0, 2.0))
    shard = preprocess_case(make_case(image, label, spacing=(1.0, 2.0, 3.0)), plan)
    assert shard.meta.spacing_mm == (3.0, 1.0, 2.0) and shard.meta.original_shape == (6, 4, 5)
    np.testing.assert_array_equal(shard.label[0], label.transpose(2, 0, 1))
    np.testing.assert_array_equal(restore_mask(one_hot(shard.label[0]), shard.meta, plan), label)


def test_without_resampling_the_mask_comes_back_exactly():
    image, label = np.zeros((1, 7, 6, 5), dtype=np.float32), np.zeros((7, 6, 5), dtype=np.int16)
    image[0, 2:5, 1:5, 0:3] = 3
    label[2:5, 1:4, 0:2] = np.random.default_rng(2).integers(0, 3, (3, 3, 2))
    labels = LabelScheme(names=("background", "a", "b"), values=(0, 7, 200))
    plan = make_plan(labels=labels)
    stored = np.array(labels.values)[label]
    shard = preprocess_case(make_case(image, stored), plan)
    mask = restore_mask(one_hot(shard.label[0]), shard.meta, plan)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, stored)


def test_outside_the_crop_is_background_with_certainty():
    """Defect 9: logit 0 there would make every class equally likely."""
    image = np.zeros((1, 4, 4, 6), dtype=np.float32)
    image[..., 2:] = 1
    plan = make_plan()
    shard = preprocess_case(make_case(image), plan)
    probabilities = np.zeros((3, *shard.meta.padded_shape), dtype=np.float32)
    probabilities[1] = 1
    native = restore_probabilities(probabilities, shard.meta, plan)
    assert native.shape == (3, 4, 4, 6) and native.dtype == np.float32
    assert (native[0, ..., :2] == 1).all() and (native[1, ..., 2:] == 1).all()
    np.testing.assert_array_equal(native.sum(axis=0), 1)


def test_regions_come_back_in_order_with_nothing_outside():
    regions = (Region(name="whole", classes=(1, 2), write_class=1), Region(name="core", classes=(2,), write_class=2))
    plan = make_plan(patch=(2, 2, 2), labels=dataclasses.replace(LABELS, values=(0, 1, 4), regions=regions))
    image = np.ones((1, 2, 2, 4), dtype=np.float32)
    image[..., 0] = 0
    meta = preprocess_case(make_case(image), plan).meta
    whole, core = [0.6, 0.6, 0.5], [0.4, 0.6, 0.0]
    probabilities = np.broadcast_to(np.array([whole, core], dtype=np.float32)[:, None, None], (2, 2, 2, 3))
    np.testing.assert_array_equal(restore_mask(probabilities, meta, plan)[0, 0], [0, 1, 4, 0])
    assert not restore_probabilities(probabilities, meta, plan)[..., 0].any()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 1.0, 1.0), (1.0, 1.0, 5.0)])
def test_a_block_survives_resampling_there_and_back(spacing):
    image, label = random_image((1, 12, 12, 12)), np.zeros((12, 12, 12), dtype=np.uint8)
    label[3:9, 3:9, 2:10] = 1
    label[5:7, 3:9, 2:10] = 2
    plan = make_plan(spacing=tuple(mm * 0.5 for mm in spacing))
    shard = preprocess_case(make_case(image, label, spacing), plan)
    assert shard.image.shape == (1, 24, 24, 24)
    back = restore_mask(one_hot(shard.label[0]), shard.meta, plan)
    assert (back == label).mean() > 0.99


def test_mask_and_probabilities_agree():
    """Defect 8: what is scored and what is written come from one map."""
    image = random_image((1, 6, 10, 9))
    plan = make_plan(spacing=(2.0, 1.3, 0.8))
    meta = preprocess_case(make_case(image, spacing=(3.0, 1.0, 1.0)), plan).meta
    probabilities = np.random.default_rng(5).dirichlet((1, 1, 1), meta.padded_shape).astype(np.float32)
    probabilities = np.moveaxis(probabilities, -1, 0)
    native = restore_probabilities(probabilities, meta, plan)
    np.testing.assert_array_equal(restore_mask(probabilities, meta, plan), native.argmax(axis=0))
    np.testing.assert_allclose(native.sum(axis=0), 1, atol=1e-5)


def test_slices_that_were_not_mixed_come_back_unmixed():
    image, label = random_image((1, 4, 6, 6)), np.zeros((4, 6, 6), dtype=np.uint8)
    label[1], label[2] = 1, 2
    plan = make_plan(spacing=(2.0, 0.5, 0.5))
    shard = preprocess_case(make_case(image, label, (5.0, 0.5, 0.5)), plan)
    assert shard.meta.resampled_shape == (10, 6, 6)
    np.testing.assert_array_equal(restore_mask(one_hot(shard.label[0]), shard.meta, plan), label)


def test_file_values_become_class_indices_and_ignored_voxels_k():
    plan = make_plan(labels=LabelScheme(names=("background", "a"), values=(0, 9), ignore_value=255))
    label = make_volume(np.array([0, 9, 255]).reshape(1, 1, 3))
    np.testing.assert_array_equal(native_label_classes(label, plan).ravel(), [0, 1, 2])


def test_unknown_label_values_are_all_named():
    """Defect 21: a cast to uint8 would turn 256 into background and -1 into 255."""
    image, label = np.ones((1, 2, 2, 2), dtype=np.float32), np.zeros((2, 2, 2), dtype=np.int64)
    label[0, 0, 0], label[1, 1, 1], label[1, 0, 0] = 256, -1, 5
    with pytest.raises(UserError, match=r"label\.nii\.gz holds the values \[-1, 5, 256\]"):
        preprocess_case(make_case(image, label), make_plan())


def test_wrong_channels_and_label_shapes_are_errors():
    image = np.ones((1, 2, 2, 2), dtype=np.float32)
    with pytest.raises(UserError, match="has 1 channels; the plan was made for 2"):
        preprocess_case(make_case(image), make_plan(channels=("zscore",) * 2))
    with pytest.raises(UserError, match="one grid"):
        preprocess_case(make_case(image, np.zeros((2, 2, 3), dtype=np.uint8)), make_plan())


def cubic(volume, shape):
    """scipy's spline on edge-aligned grids, cut to the range of the volume."""
    zoom = [m / n for n, m in zip(volume.shape, shape)]
    return np.clip(
        ndimage.zoom(volume, zoom, order=3, mode="nearest", grid_mode=True), volume.min(), volume.max()
    )  # fmt: skip


def test_zscores_are_taken_before_resampling_and_what_is_outside_stays_0():
    image = stripped((20, 24, 22))
    shard = preprocess_case(make_case(image[None].copy(), spacing=(1.25,) * 3), make_plan())
    shape = (25, 30, 28)
    assert shard.image.shape == (1, *shape)
    outside = nearest(image, shape) == 0
    assert outside.mean() > 0.5 and not shard.image[0][outside].any()
    expected = np.where(outside, 0, cubic(zscore(image), shape))
    np.testing.assert_allclose(shard.image[0], expected, atol=2e-5)
    # After resampling a third of the background would count as tissue, and this be 0.5 and 0.4.
    inside = ~nearest(ndimage.binary_dilation(image == 0, iterations=2), shape)
    assert abs(shard.image[0][inside].mean()) < 0.2 and 0.8 < shard.image[0][inside].std() < 1.1


def test_a_ct_and_a_stripped_channel_of_a_turned_anisotropic_scan_that_is_padded():
    # Stored (S, A, R) with sagittal slices 5 mm apart, which come first on the plan's axes.
    stripped_channel = stripped((9, 16, 14))
    ct = np.random.default_rng(3).normal(0, 150, (9, 16, 14)).astype(np.float32)
    ct[4, 6:10, 5:9] = 900
    image = np.stack([ct, stripped_channel]).transpose(0, 2, 3, 1)
    before = image.copy()
    plan = make_plan(channels=("ct", "zscore"), axes=(2, 0, 1), spacing=(4.0, 1.0, 1.0), patch=(4, 24, 16))
    shard = preprocess_case(make_case(image, spacing=(1.3, 0.8, 5.0)), plan)
    np.testing.assert_array_equal(image, before)
    shape = (11, 21, 11)
    assert shard.meta.resampled_shape == shape and shard.image.shape == (2, 11, 24, 16)

    def by_slice(volume):
        """Cubic in plane, each slice cut to its own range, and the nearest slice across."""
        planes = np.stack([cubic(plane, shape[1:]) for plane in volume])
        return nearest(planes, shape)

    expected = np.zeros_like(shard.image)
    expected[0, :, 1:22, 2:13] = by_slice((np.clip(ct, CT.lower, CT.upper) - CT.mean) / CT.std)
    expected[1, :, 1:22, 2:13] = np.where(nearest(stripped_channel, shape) == 0, 0, by_slice(zscore(stripped_channel)))
    np.testing.assert_allclose(shard.image, expected, atol=2e-5)


def test_a_plan_of_an_earlier_version_normalises_after_resampling():
    image, shape = stripped((20, 24, 22)), (25, 30, 28)
    plan = make_plan(normalize_first=False)
    out = preprocess_case(make_case(image[None], spacing=(1.25,) * 3), plan).image[0]
    expected = np.empty(shape, dtype=np.float32)
    resample_image(image, make_maps(image.shape, shape, cubic=True, coarse=None), expected, coarse=None)
    normalize_channel(expected, plan.channels[0])
    np.testing.assert_array_equal(out, expected)
    assert out[nearest(image, shape) != 0].mean() > 0.3


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("scheme", ["zscore", "ct", "none", "rescale_to_0_1"])
def test_order_makes_no_difference_where_nothing_is_resampled(scheme, first):
    image = np.stack([stripped((6, 8, 7))])
    out = preprocess_case(make_case(image), make_plan(channels=(scheme,), normalize_first=first)).image
    volume = image[0].copy()
    normalize_channel(volume, make_plan(channels=(scheme,)).channels[0])
    np.testing.assert_array_equal(out[0], volume)
    if scheme == "zscore":
        np.testing.assert_allclose(out[0], zscore(image[0]), atol=1e-5)


def test_mask_channel_and_resampled_background_agree():
    image = stripped((12, 14, 13))
    plan = make_plan(mask_channel=True, spacing=(0.7, 0.8, 0.9))
    out, mask = preprocess_case(make_case(image[None]), plan).image
    assert not out[mask == 0].any() and (out[mask == 1] != 0).mean() > 0.99


def test_ct_is_clipped_before_the_spline_sees_it():
    # Metal of 3000 HU beside water: a spline over it, clipped afterwards, would be at the limit further out.
    image = np.ones((1, 4, 4, 12), dtype=np.float32)
    image[..., 6:8] = 3000
    plan = make_plan(channels=("ct",), spacing=(1.0, 1.0, 0.5))
    out = preprocess_case(make_case(image), plan).image[0, 2, 2]
    clipped = (np.clip(image[0, 0, 0], CT.lower, CT.upper) - CT.mean) / CT.std
    np.testing.assert_allclose(out, cubic(clipped.astype(np.float64), (24,)), atol=2e-5)


@pytest.mark.parametrize(("value", "shown"), [(-1.0, "-1 .. 9"), (256.0, "1 .. 256")])
def test_intensities_that_are_no_rgb_are_a_user_error(value, shown):
    image = np.stack([random_image((3, 3, 3)).round()] * 2)
    image[1].flat[:3] = 1, 9, value
    with pytest.raises(UserError, match=rf"/data/case\.nii\.gz: channel 1 \(m1\) holds {shown}, and rgb_to_0_1"):
        preprocess_case(make_case(image), make_plan(channels=("rgb_to_0_1",) * 2))


def test_a_channel_that_is_not_normalised_is_only_resampled():
    image = np.random.default_rng(0).uniform(0, 1, (8, 8, 8)).astype(np.float32)
    out = preprocess_case(make_case(image[None], spacing=(2.0,) * 3), make_plan(channels=("none",))).image[0]
    np.testing.assert_allclose(out, cubic(image.astype(np.float64), (16, 16, 16)), atol=1e-5)


@pytest.mark.parametrize("scheme", ["zscore_crop", "zscore_mask"])
def test_zscores_of_nnunet_come_before_resampling_and_keep_the_ripples_of_the_spline(scheme):
    image = np.stack([stripped((20, 24, 22)), stripped((20, 24, 22))])
    image[1, 8:10, 8:10, 8:10] = 0
    image[0, 8:10, 8:10, 8:10] = 0
    out = preprocess_case(make_case(image, spacing=(1.25,) * 3), make_plan(channels=(scheme,) * 2)).image
    inside = ndimage.binary_fill_holes((image != 0).any(axis=0))
    assert inside[8, 8, 8] and not inside.all()
    chosen = inside if scheme == "zscore_mask" else np.ones_like(inside)
    for channel, source in zip(out, image):
        normal = np.where(chosen, (source - source[chosen].mean()) / source[chosen].std(), 0)
        expected = np.empty((25, 30, 28), dtype=np.float32)
        maps = make_maps(source.shape, expected.shape, cubic=True, coarse=None)
        resample_image(normal.astype(np.float32), maps, expected, coarse=None)
        np.testing.assert_allclose(channel, expected, atol=1e-4)


def test_a_masked_zscore_where_nothing_is_resampled_or_normalised_first():
    image = stripped((12, 14, 13))[None]
    inside = image[0] != 0
    expected = np.where(inside, (image[0] - image[0][inside].mean()) / image[0][inside].std(), 0)
    np.testing.assert_allclose(
        preprocess_case(make_case(image), make_plan(channels=("zscore_mask",))).image[0], expected, atol=1e-4
    )
    more = np.zeros(inside.shape, np.uint8)
    more[4:6, :3, :3] = 2
    larger = inside | (more != 0)
    assert larger.sum() > inside.sum()
    expected = np.where(larger, (image[0] - image[0][larger].mean()) / image[0][larger].std(), 0)
    again = preprocess_case(make_case(image), make_plan(channels=("zscore_mask",)), also_inside=more)
    np.testing.assert_allclose(again.image[0], expected, atol=1e-4)
    late = make_plan(channels=("zscore_mask",), normalize_first=False, spacing=(0.5, 0.5, 0.5))
    assert not preprocess_case(make_case(image), late).image[0][nearest(image[0], (24, 28, 26)) == 0].any()
