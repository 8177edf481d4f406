from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_loading.augment.presets import NNUNET, REFERENCE, UNCHANGED, Preset, choose_preset
from data_loading.cropping import Box, box_batches, columns_for, draw_box, looked_up_box, rotation_matrix
from tests.data_loading.shards import changes_of, preset_with

POINT = np.array([[0, 5, 9]])


def moving(patch: tuple[int, ...], *, foreground: float = 0.0, **probabilities: float) -> Preset:
    preset = choose_preset("nnunet", patch, foreground=foreground)
    return preset_with(preset, **changes_of(preset, 0.0) | probabilities)


def corners(*args) -> tuple[np.ndarray, np.ndarray]:
    box = draw_box(*args)
    assert box.matrix is None
    return box.start, box.size


@pytest.mark.parametrize("zoom", [0.0, 1.0])
def test_foreground_box_holds_the_voxel_and_stays_inside(zoom: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        start, size = corners(rng, (6, 8, 10), POINT, (4, 4, 6), preset_with(REFERENCE, foreground=1.0, zoom=zoom))
        assert np.all(start <= POINT[0]) and np.all(POINT[0] < start + size)
        assert np.all(start >= 0) and np.all(start + size <= (6, 8, 10))


def test_uniform_boxes_reach_both_ends() -> None:
    rng = np.random.default_rng(0)
    starts = {draw_box(rng, (4, 6, 6), POINT, (4, 4, 5), UNCHANGED).start.tobytes() for _ in range(200)}
    assert len(starts) == 1 * 3 * 2


@pytest.mark.parametrize("name, low, high", [("reference", 70, 100), ("nnunet", 70, 140)])
def test_zoomed_box_is_an_even_share_of_the_patch(name, low, high) -> None:
    rng, preset = np.random.default_rng(0), preset_with(choose_preset(name, (100,) * 3), zoom=1.0, rotation=0.0)
    sizes = np.array([corners(rng, (200,) * 3, POINT, (100, 100, 100), preset)[1] for _ in range(200)])
    assert low <= sizes.min() <= low + 2 and high - 2 <= sizes.max() <= high
    assert np.mean(sizes) == pytest.approx((low + high) / 2, abs=3)
    assert np.ptp(sizes, axis=1).max() == 0


@pytest.mark.parametrize("name, patch", [("reference", (8, 8)), ("nnunet", (8, 8)), ("nnunet", (2, 8, 8))])
def test_in_plane_boxes_keep_their_thickness_when_zoomed(name, patch) -> None:
    rng, preset = np.random.default_rng(0), preset_with(choose_preset(name, patch), zoom=1.0, rotation=0.5)
    box = (1, *patch) if len(patch) == 2 else patch
    assert {draw_box(rng, (9, 9, 9), POINT // 2, box, preset).size[0] for _ in range(50)} == {box[0]}


def test_small_volume_lies_in_the_middle() -> None:
    start, size = corners(np.random.default_rng(0), (2, 4, 4), POINT * 0, (4, 4, 4), preset_with(foreground=1.0))
    assert start.tolist() == [-1, 0, 0] and size.tolist() == [4, 4, 4]


def test_draws_take_the_same_numbers_whatever_comes_of_them() -> None:
    states = set()
    for preset in (UNCHANGED, preset_with(REFERENCE, foreground=1.0, zoom=1.0), preset_with(NNUNET, rotation=1.0)):
        rng = np.random.default_rng(0)
        draw_box(rng, (8, 8, 8), POINT * 0, (4, 4, 4), preset)
        states.add(rng.random())
    assert len(states) == 1


def test_rotations_keep_lengths_and_handedness() -> None:
    matrix = rotation_matrix(np.array([10.0, -20.0, 30.0]), in_plane=False)
    assert matrix @ matrix.T == pytest.approx(np.eye(3))
    assert np.linalg.det(matrix) == pytest.approx(1)


def test_quarter_turn_in_plane_takes_h_to_w() -> None:
    matrix = rotation_matrix(np.array([90.0, 45.0, 45.0]), in_plane=True)
    assert matrix == pytest.approx(np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]), abs=1e-9)


@pytest.mark.parametrize("patch", [(6, 7, 8), (2, 9, 8), (1, 7, 8)])
@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_rotated_box_holds_all_neighbours_of_the_patch_and_little_more(patch, foreground) -> None:
    rng = np.random.default_rng(0)
    preset = moving(patch if patch[0] > 1 else patch[1:], rotation=1.0, zoom=0.5, foreground=foreground)
    voxels = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in patch), indexing="ij")).reshape(3, -1)
    for _ in range(50):
        box = draw_box(rng, (20, 22, 24), POINT, patch, preset)
        positions = box.matrix[:, :3] @ voxels + box.matrix[:, 3:]
        # Between the centres of the first and the last voxel; one voxel along an axis is its own neighbour.
        assert np.all(positions.min(axis=1) >= 0.5 - 1e-9)
        assert np.all(positions.max(axis=1) <= box.size - 0.5 + 1e-9)
        assert np.all(positions.min(axis=1) < 1.6) and np.all(positions.max(axis=1) > box.size - 1.6)


@pytest.mark.parametrize("patch", [(6, 6, 6), (1, 8, 8), (2, 9, 9)])
def test_rotated_patch_has_the_foreground_voxel_in_the_middle_of_one_of_its_own(patch) -> None:
    rng = np.random.default_rng(0)
    preset = moving(patch if patch[0] > 1 else patch[1:], rotation=1.0, zoom=0.5, foreground=1.0)
    for _ in range(50):
        box = draw_box(rng, (10, 10, 10), POINT, patch, preset)
        wanted = POINT[0] + 0.5 - box.start
        shown_at = np.linalg.solve(box.matrix[:, :3], wanted - box.matrix[:, 3])
        assert np.all((shown_at > 0) & (shown_at < patch))
        assert shown_at % 1 == pytest.approx(0.5, abs=1e-6)


def test_an_unrotated_looked_up_box_is_the_patch_and_its_neighbours() -> None:
    box = looked_up_box(np.array([5.0, 6.0, 7.0]), np.eye(3), (4, 4, 4), in_plane=False)
    assert box.start.tolist() == [2, 3, 4] and box.size.tolist() == [6, 6, 6]
    assert box.matrix.tolist() == [[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]]


def boxes_of(case: int) -> Box:
    matrix = np.arange(12.0).reshape(3, 4) if case == 2 else None
    return Box(start=np.zeros(3, int), size=np.array([(4, 4, 4), (3, 4, 4), (5, 6, 7)][case]), matrix=matrix)


def test_box_batches_say_what_is_zoomed_and_what_is_rotated() -> None:
    [(start, size, zoomed, rotated, matrix)] = box_batches(np.array([[0, 1, 2]]), boxes_of, (4, 4, 4), NNUNET)
    assert start.shape == size.shape == (3, 3) and start.dtype == size.dtype == np.int32
    assert zoomed.tolist() == [False, True, False] and rotated.tolist() == [False, False, True]
    assert matrix.dtype == np.float32
    assert matrix[2].tolist() == [[10, 9, 8, 11], [6, 5, 4, 7], [2, 1, 0, 3]]


def test_matrices_in_plane_leave_out_the_first_axis() -> None:
    preset = dataclasses.replace(NNUNET, in_plane=True)
    [(*_, matrix)] = box_batches(np.array([[0, 2]]), boxes_of, (4, 4, 4), preset)
    assert matrix.tolist() == [[[1, 0, 0], [0, 1, 0]], [[10, 9, 11], [6, 5, 7]]]


def test_only_what_a_preset_needs_is_sent() -> None:
    assert columns_for(UNCHANGED) == ("start", "size")
    assert columns_for(REFERENCE) == ("start", "size", "zoomed")
    assert columns_for(NNUNET) == ("start", "size", "zoomed", "rotated", "matrix")
