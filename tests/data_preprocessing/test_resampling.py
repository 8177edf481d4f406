from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from data_preprocessing import resampling
from data_preprocessing.resampling import (
    coarse_axis,
    cubic_map,
    linear_map,
    make_maps,
    nearest_map,
    nonzero_box,
    resample_axis,
    resample_image,
    resample_label,
    resample_slab,
    resampled_shape,
)


def _image(volume, shape, *, coarse=None, cubic=True):
    out = np.empty(shape, dtype=np.float32)
    resample_image(volume, make_maps(volume.shape, shape, cubic=cubic, coarse=coarse), out, coarse=coarse)
    return out


def _label(label, shape, *, coarse=None):
    out = np.full(shape, 255, dtype=np.uint8)
    resample_label(label, make_maps(label.shape, shape, cubic=False, coarse=coarse), out)
    return out


def _zoom(volume, shape, order):
    factors = [m / n for n, m in zip(volume.shape, shape)]
    return ndimage.zoom(volume.astype(np.float64), factors, order=order, mode="nearest", grid_mode=True)


def _random(shape, seed=0):
    return np.random.default_rng(seed).normal(100, 30, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "new_shape"),
    [((9, 14, 11), (13, 10, 17)), ((1, 5, 2), (3, 2, 7)), ((70, 8, 90), (150, 9, 40)), ((6, 7, 8), (1, 1, 1))],
)
def test_cubic_equals_scipys_edge_aligned_spline_within_the_input_range(shape, new_shape):
    volume = _random(shape)
    expected = np.clip(_zoom(volume, new_shape, order=3), volume.min(), volume.max())
    np.testing.assert_allclose(_image(volume, new_shape), expected, rtol=1e-4)


def test_anisotropic_images_are_cubic_in_each_slice_and_copied_across_slices():
    volume = _random((4, 12, 10))
    planes = [np.clip(_zoom(plane, (9, 14), order=3), plane.min(), plane.max()) for plane in volume]
    expected = np.stack(planes)[[0, 1, 1, 2, 3, 3]]
    np.testing.assert_array_equal(nearest_map(4, 6).first, [0, 1, 1, 2, 3, 3])
    np.testing.assert_allclose(_image(volume, (6, 9, 14), coarse=0), expected, rtol=1e-4)


@pytest.mark.parametrize("coarse", [0, 1, 2])
def test_the_coarse_axis_may_be_any_axis(coarse):
    volume = _random((5, 6, 7))
    shape = (7, 9, 4)
    turned = np.moveaxis(volume, coarse, 0)
    expected = _image(turned, (shape[coarse], *(n for axis, n in enumerate(shape) if axis != coarse)), coarse=0)
    np.testing.assert_allclose(_image(volume, shape, coarse=coarse), np.moveaxis(expected, 0, coarse), rtol=1e-5)


def test_slabs_and_blocks_do_not_change_the_result(monkeypatch):
    volume = _random((20, 17, 15))
    whole = _image(volume, (31, 25, 40))
    monkeypatch.setattr(resampling, "_SLAB_VOXELS", 3 * 25 * 40)
    monkeypatch.setattr(resampling, "_BLOCK", 4)
    np.testing.assert_allclose(_image(volume, (31, 25, 40)), whole, rtol=1e-5)


def test_flipped_and_permuted_views_are_resampled_as_they_look():
    volume = _random((8, 9, 10)).transpose(2, 0, 1)[::-1, :, ::-1]
    np.testing.assert_array_equal(_image(volume, (7, 12, 5)), _image(volume.copy(), (7, 12, 5)))


def test_a_volume_keeps_its_outer_faces():
    ramp = np.arange(4, dtype=np.float32).reshape(1, 1, 4)
    # Centres of 2 voxels over 4: on the faces 0.5|1.5 -> positions 0.5 and 2.5.
    np.testing.assert_allclose(resample_axis(ramp, linear_map(4, 2), 2)[0, 0], [0.5, 2.5])
    # Twice as many: quarter positions, the outermost held at the edge voxel.
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    np.testing.assert_allclose(resample_axis(ramp, linear_map(4, 8), 2)[0, 0], expected)


@pytest.mark.parametrize("make", [linear_map, cubic_map])
@pytest.mark.parametrize(("n", "m"), [(1, 5), (5, 1), (40, 61), (300, 77)])
def test_weights_of_a_voxel_sum_to_one(make, n, m):
    np.testing.assert_allclose(make(n, m).weights.sum(axis=1), 1, atol=1e-6)


def test_each_of_two_thin_slices_is_repeated_in_order():
    np.testing.assert_array_equal(nearest_map(2, 5).first, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(nearest_map(2, 4).first, [0, 0, 1, 1])
    label = np.stack([np.full((3, 3), 1), np.full((3, 3), 2)]).astype(np.uint8)
    np.testing.assert_array_equal(_label(label, (4, 3, 3), coarse=0)[:, 0, 0], [1, 1, 2, 2])


def test_no_hole_opens_where_three_classes_meet():
    """Defect 22: thresholds of one half leave background at a junction without any."""
    label = np.full((1, 13, 13), 1, dtype=np.uint8)
    label[:, :6, 6:], label[:, 6:, 6:] = 2, 3
    out = _label(label, (1, 31, 29))
    assert set(np.unique(out)) == {1, 2, 3}


def test_no_hole_opens_among_random_classes():
    label = np.random.default_rng(3).integers(1, 5, (13, 13, 13)).astype(np.uint8)
    assert _label(label, (17, 17, 17)).min() == 1


def test_label_classes_are_the_largest_interpolated_share():
    label = np.random.default_rng(4).integers(0, 4, (8, 9, 10)).astype(np.uint8)
    shares = np.stack([_zoom(label == k, (11, 6, 13), order=1) for k in range(4)])
    top = np.sort(shares, axis=0)
    clear = top[-1] - top[-2] > 1e-3
    out = _label(label, (11, 6, 13))
    np.testing.assert_array_equal(out[clear], shares.argmax(axis=0)[clear])


def test_an_even_share_goes_to_the_higher_class():
    label = np.array([[[0, 1]]], dtype=np.uint8)
    assert _label(label, (1, 1, 1)).item() == 1


def test_a_small_box_in_a_large_background_is_found_in_every_slab(monkeypatch):
    label = np.zeros((12, 20, 20), dtype=np.uint8)
    label[5:9, 3:7, 10:16] = 2
    expected = _label(label, (24, 40, 40))
    monkeypatch.setattr(resampling, "_SLAB_VOXELS", 40 * 40)
    out = _label(label, (24, 40, 40))
    np.testing.assert_array_equal(out, expected)
    # Twice the box, but for its 8 corners, which are 0.75 ** 3 < 1/2 inside.
    assert (out == 2).sum() == (out[10:18, 6:14, 20:32] == 2).sum() == 8 * 8 * 12 - 8


def test_labels_of_an_unchanged_grid_are_exact():
    label = np.random.default_rng(5).integers(0, 4, (4, 5, 6)).astype(np.uint8)
    np.testing.assert_array_equal(_label(label, (4, 5, 6)), label)


@pytest.mark.parametrize(
    ("spacing", "target", "axis"),
    [
        ((1, 1, 1), (1, 1, 1), None),
        ((3, 1, 1), (1, 1, 1), None),
        ((3.1, 1, 1), (1, 1, 1), 0),
        ((1, 1, 1), (0.5, 5, 0.5), 1),
        ((1, 1, 17), (5, 1, 1), 2),
        ((5, 5, 1), (1, 1, 1), None),
    ],
)
def test_the_coarse_axis_is_the_one_with_the_largest_spacing(spacing, target, axis):
    assert coarse_axis(spacing, target) == axis


def test_shapes_are_rounded_and_never_zero():
    """Defect 24: truncation makes 39 of 40 x 0.999999 and 0 of 2 x 0.3."""
    assert resampled_shape((40, 2, 62), (0.999999, 0.3, 1.0), (1, 1, 1)) == (40, 1, 62)
    assert resampled_shape((1, 3, 3), (0.3, 1.0, 1.6), (1, 1, 1)) == (1, 3, 5)


def test_a_slab_is_a_part_of_the_whole():
    volume = _random((6, 7, 8))
    maps = make_maps(volume.shape, (9, 5, 10), cubic=False, coarse=None)
    whole = resample_slab(volume, maps, slice(0, 9))
    np.testing.assert_allclose(resample_slab(volume, maps, slice(4, 6)), whole[4:6], rtol=1e-6)
    np.testing.assert_allclose(whole, _zoom(volume, (9, 5, 10), order=1), rtol=1e-5)


def test_nonzero_box_looks_at_all_channels_and_at_negative_values():
    image = np.zeros((2, 5, 6, 7), dtype=np.float32)
    image[0, 1, 2, 3], image[1, 3, 4, 2] = -1000, 5
    assert nonzero_box(image) == ((1, 4), (2, 5), (2, 4))
    assert nonzero_box(np.zeros((2, 2, 2))) is None


def test_voxels_are_rounded_from_the_ratio_where_the_rule_says_so():
    # 10 * 0.6 / 0.8 is 7.5; 0.6 / 0.8 is a little less than 3/4.
    assert resampled_shape((10,) * 3, (0.6,) * 3, (0.8,) * 3) == (8,) * 3
    assert resampled_shape((10,) * 3, (0.6,) * 3, (0.8,) * 3, rule="ratio") == (7,) * 3
