from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from nvidia.dali import fn, types
from nvidia.dali.data_node import DataNode
from scipy import ndimage

from data_loading.augment import spatial
from tests.data_loading.graph import IMAGE, LABEL, SHAPE, run

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


def constant_matrix(linear: np.ndarray) -> DataNode:
    """A matrix in W, H, D order from one in D, H, W order."""
    matrix = xyz(linear)
    return fn.constant(fdata=matrix.ravel().tolist(), shape=list(matrix.shape))


def xyz(linear: np.ndarray) -> np.ndarray:
    offset = np.array(SHIFT[-len(linear) :])
    return np.column_stack([linear[::-1, ::-1], offset[::-1]]).astype(np.float32)


def turned(
    look_up: Callable, linear: np.ndarray, *, image: np.ndarray = IMAGE, label: np.ndarray = LABEL, size: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of the same image and label, looked up at `size` positions."""
    shape, in_plane = (len(image), *size), len(linear) == 2

    def change(x, y):
        return look_up(x, y, matrix=constant_matrix(linear), shape=shape, in_plane=in_plane)

    return run(change, image=image, label=label, count=2)


both_ways = pytest.mark.parametrize("look_up", [spatial.look_up_on_host, spatial.look_up_on_gpu])


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


@pytest.mark.parametrize("axes", [(), (0,), (2,), (0, 1)])
def test_flips_keep_to_the_axes_that_they_are_given(axes) -> None:
    def change(x, y):
        return spatial.flip(x, y, dim=3, probability=0.5, axes=axes)

    images, labels = run(change, count=64)
    of_images = [mirrored(IMAGE)[sample.tobytes()] for sample in images]
    assert of_images == [mirrored(LABEL)[sample.tobytes()] for sample in labels]
    wanted = {1 + axis for axis in axes}
    assert set(of_images) == {subset for subset in mirrored(IMAGE).values() if wanted.issuperset(subset)}


def test_flips_of_slices_keep_to_the_axes_that_they_are_given() -> None:
    image, label = IMAGE[:, 0], LABEL[:, 0]
    images, _ = run(
        lambda x, y: spatial.flip(x, y, dim=2, probability=1.0, axes=(0,)), image=image, label=label, count=2
    )
    assert {mirrored(image)[sample.tobytes()] for sample in images} == {(1,)}


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


@both_ways
def test_rotation_in_space_equals_scipy(look_up) -> None:
    images, labels = turned(look_up, SPACE, size=(4, 7, 5))
    for channel in range(2):
        assert images[0, channel] == pytest.approx(expected(IMAGE[channel], SPACE, (4, 7, 5), 1), abs=1e-5)
    assert np.array_equal(labels[1, 0], expected(LABEL[0], SPACE, (4, 7, 5), 0))


@both_ways
def test_rotation_in_plane_equals_scipy_slice_by_slice(look_up) -> None:
    images, labels = turned(look_up, PLANE, size=(6, 5, 7))
    for d in range(6):
        for channel in range(2):
            assert images[0, channel, d] == pytest.approx(expected(IMAGE[channel, d], PLANE, (5, 7), 1), abs=1e-5)
        assert np.array_equal(labels[1, 0, d], expected(LABEL[0, d], PLANE, (5, 7), 0))


@both_ways
def test_rotation_of_slices_equals_scipy(look_up) -> None:
    images, labels = turned(look_up, PLANE, image=IMAGE[:, 0], label=LABEL[:, 0], size=(5, 7))
    assert images[0, 1] == pytest.approx(expected(IMAGE[1, 0], PLANE, (5, 7), 1), abs=1e-5)
    assert np.array_equal(labels[1, 0], expected(LABEL[0, 0], PLANE, (5, 7), 0))


def test_only_drawn_samples_are_rotated() -> None:
    def rotate(image, label):
        drawn = fn.random.coin_flip(probability=0.5, dtype=types.BOOL)
        matrix = constant_matrix(SPACE)
        return spatial.rotate(image, label, rotated=drawn, matrix=matrix, shape=SHAPE, in_plane=False)

    images, labels = run(rotate, count=16)
    stayed = [np.array_equal(image, IMAGE) for image in images]
    assert 2 <= sum(stayed) <= 14
    assert stayed == [np.array_equal(label, LABEL) for label in labels]
