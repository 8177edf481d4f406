from __future__ import annotations

import numpy as np
import pytest
from nvidia.dali import fn, types
from scipy import ndimage

from data_loading import spatial
from tests.data_loading.graph import IMAGE, LABEL, run

ANGLE = np.radians(20.0)
SHIFT = (0.3, 1.6, -0.7)
"""D, H, W."""
PLANE = np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]]) * 0.9
SPACE = np.array([[1.1, 0.1, -0.3], [0.2, 0.9, 0.2], [0.1, -0.2, 0.8]])


def flip(image, label):
    return spatial.flip(image, label, dim=3, probability=0.5)


def flip_2d(image, label):
    return spatial.flip(image, label, dim=2, probability=0.5)


def always():
    return fn.random.coin_flip(probability=1.0, dtype=types.BOOL)


def zoom_to_double(image, label):
    return spatial.zoom(image, label, zoomed=always(), size=(12, 16, 20), cubic=True)


def shrink(image, label):
    return spatial.zoom(image, label, zoomed=always(), size=(3, 4, 5), cubic=False)


def constant_matrix(linear: np.ndarray) -> types.ScalarConstant:
    """A matrix in W, H, D order from one in D, H, W order."""
    return types.Constant(xyz(linear), device="cpu")


def xyz(linear: np.ndarray) -> np.ndarray:
    offset = np.array(SHIFT[-len(linear) :])
    return np.column_stack([linear[::-1, ::-1], offset[::-1]]).astype(np.float32)


def rotate(image, label):
    matrix = constant_matrix(SPACE)
    return spatial.rotate(image, label, rotated=always(), matrix=matrix, shape=(2, 4, 7, 5), in_plane=False)


def rotate_in_plane(image, label):
    matrix = constant_matrix(PLANE)
    return spatial.rotate(image, label, rotated=always(), matrix=matrix, shape=(2, 6, 5, 7), in_plane=True)


def rotate_2d(image, label):
    matrix = constant_matrix(PLANE)
    return spatial.rotate(image, label, rotated=always(), matrix=matrix, shape=(2, 5, 7), in_plane=True)


def expected(volume: np.ndarray, linear: np.ndarray, size: tuple[int, ...], order: int) -> np.ndarray:
    """Looked up by scipy, which counts positions from the middle of the first voxel."""
    offset = np.array(SHIFT[-len(linear) :]) + linear @ np.full(len(linear), 0.5) - 0.5
    return ndimage.affine_transform(volume, linear, offset=offset, output_shape=size, order=order, mode="grid-constant")


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


def test_zoom_invents_no_label_value_and_keeps_label_on_image() -> None:
    cubes = np.zeros((1, 6, 8, 10), np.uint8)
    cubes[0, 1:4, 2:6, 3:8] = 7
    images, labels = run(zoom_to_double, image=np.repeat(cubes, 2, 0).astype(np.float32), label=cubes)
    assert images.shape[1:] == (2, 12, 16, 20)
    assert np.array_equal(labels[0], cubes.repeat(2, 1).repeat(2, 2).repeat(2, 3))
    assert np.array_equal(images[0, :1] > 3.5, labels[0] == 7)


def test_zoom_of_random_labels_invents_no_value() -> None:
    assert set(np.unique(run(zoom_to_double)[1])) == {0, 3, 7}


def test_shrinking_to_half_averages_neighbours_and_keeps_label_values() -> None:
    """Half-way between two voxels along each axis linear interpolation is the mean of eight."""
    images, labels = run(shrink)
    blocks = IMAGE.reshape(2, 3, 2, 4, 2, 5, 2).mean(axis=(2, 4, 6))
    assert images[0] == pytest.approx(blocks, abs=1e-5)
    assert set(np.unique(labels)) <= {0, 3, 7}


def test_rotation_in_space_equals_scipy() -> None:
    images, labels = run(rotate, count=2)
    for channel in range(2):
        assert images[0, channel] == pytest.approx(expected(IMAGE[channel], SPACE, (4, 7, 5), 1), abs=1e-5)
    assert np.array_equal(labels[1, 0], expected(LABEL[0], SPACE, (4, 7, 5), 0))


def test_rotation_in_plane_equals_scipy_slice_by_slice() -> None:
    images, labels = run(rotate_in_plane, count=2)
    for d in range(6):
        for channel in range(2):
            assert images[0, channel, d] == pytest.approx(expected(IMAGE[channel, d], PLANE, (5, 7), 1), abs=1e-5)
        assert np.array_equal(labels[1, 0, d], expected(LABEL[0, d], PLANE, (5, 7), 0))


def test_rotation_of_slices_equals_scipy() -> None:
    images, labels = run(rotate_2d, image=IMAGE[:, 0], label=LABEL[:, 0], count=2)
    assert images[0, 1] == pytest.approx(expected(IMAGE[1, 0], PLANE, (5, 7), 1), abs=1e-5)
    assert np.array_equal(labels[1, 0], expected(LABEL[0, 0], PLANE, (5, 7), 0))
