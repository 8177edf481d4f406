from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from data_loading.augment import cpu_warp
from data_loading.augment.cpu_warp import warp

LINEAR = np.array([[0.9, 0.3, 0.1], [-0.3, 0.9, 0.2], [0.1, -0.2, 0.95]])
IMAGE = np.random.default_rng(0).normal(size=(2, 9, 10, 11)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 9, size=(3, 9, 10, 11)).astype(np.uint8)


def xyz(linear: np.ndarray, offset: tuple[float, ...]) -> np.ndarray:
    return np.column_stack([linear[::-1, ::-1], offset[::-1]]).astype(np.float32)


def expected(volume: np.ndarray, offset: tuple[float, ...], order: int) -> np.ndarray:
    """Looked up by scipy, which counts positions from the middle of the first voxel."""
    shift = np.array(offset) + LINEAR @ np.full(3, 0.5) - 0.5
    return ndimage.affine_transform(volume, LINEAR, shift, (8, 7, 6), order=order, mode="grid-constant")


@pytest.mark.parametrize("offset", [(0.317, 2.143, -0.709), (5.231, -4.309, 3.117)])
@pytest.mark.parametrize("slab_voxels", [1, 100, 10_000])
def test_slabs_of_any_size_give_what_scipy_gives(monkeypatch, offset, slab_voxels) -> None:
    monkeypatch.setattr(cpu_warp, "SLAB_VOXELS", slab_voxels)
    image, labels = warp(IMAGE, LABELS, xyz(LINEAR, offset), size=(8, 7, 6))
    for channel, volume in zip(image, IMAGE):
        assert channel == pytest.approx(expected(volume, offset, 1), abs=1e-5)
    for channel, volume in zip(labels, LABELS):
        assert np.array_equal(channel, expected(volume, offset, 0))


def test_quarter_turn_moves_voxels_without_mixing_them() -> None:
    """A step along W in the patch is a step along H in the image, and a step along H is one back along W."""
    turn = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    image, labels = warp(IMAGE, LABELS, xyz(turn, (0, 0, 11)), size=(9, 11, 10))
    assert image == pytest.approx(np.rot90(IMAGE, axes=(2, 3)), abs=1e-4)
    assert np.array_equal(labels, np.rot90(LABELS, axes=(2, 3)))


def test_far_outside_are_zeros() -> None:
    image, labels = warp(IMAGE, LABELS, xyz(np.eye(3), (0, -50, 1e6)), size=(4, 4, 4))
    assert not image.any() and not labels.any()
