"""Positions that patches are centred on: read row by row, each class as often as the others."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from data_loading.augment.presets import UNCHANGED
from data_loading.cropping import draw_box
from data_loading.foreground import ForegroundRows
from data_loading.sampling import BatchSpec, Place
from data_loading.train_loader import TrainLoader
from data_preprocessing.shards import sample_foreground
from tests.data_loading.shards import preset_with, write_case
from utils.errors import UserError

ON_FOREGROUND = preset_with(UNCHANGED, foreground=1.0)


def save(folder: Path, rows: np.ndarray) -> Path:
    np.save(folder / "a_fg.npy", rows)
    return folder / "a_fg.npy"


def test_rows_are_those_of_the_file(tmp_path):
    rows = np.arange(30, dtype=np.int32).reshape(10, 3)
    read = ForegroundRows(save(tmp_path, rows))
    assert len(read) == 10
    np.testing.assert_array_equal([read[np.int64(index)] for index in range(10)], rows)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((0, 3), np.int32), np.zeros((4, 3), np.int64), np.zeros((4, 2), np.int32), np.zeros(3, np.int32),
        np.zeros((4, 3), np.int32, order="F"),
    ],
)  # fmt: skip
def test_another_array_is_a_user_error(tmp_path, rows):
    with pytest.raises(UserError, match=r"a_fg\.npy is int.*run preprocess.py again"):
        ForegroundRows(save(tmp_path, rows))


def test_a_file_that_is_gone_or_cut_short_is_a_user_error(tmp_path):
    path = save(tmp_path, np.zeros((4, 3), np.int32))
    rows = ForegroundRows(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert rows[0].tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="was changed while it was in use"):
        rows[3]
    path.unlink()
    with pytest.raises(UserError, match=r"a_fg\.npy cannot be read"):
        ForegroundRows(path)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files")
def test_no_file_stays_open(tmp_path):
    path = save(tmp_path, np.zeros((4, 3), np.int32))
    before = len(os.listdir("/proc/self/fd"))
    rows = [ForegroundRows(path) for _ in range(20)]
    assert [each[1].tolist() for each in rows] == [[0, 0, 0]] * 20
    assert len(os.listdir("/proc/self/fd")) == before


def many_classes(num_classes: int = 104) -> np.ndarray:
    """A label whose classes have 1 to 5,000 voxels each, and 30 % background."""
    shape = (40, 60, 50)
    sizes = np.geomspace(1, 5000, num_classes).astype(int)
    flat = np.zeros(np.prod(shape), np.uint8)
    assert sizes.sum() < 0.7 * flat.size
    flat[: sizes.sum()] = np.repeat(np.arange(1, num_classes + 1), sizes)
    return np.random.default_rng(0).permutation(flat).reshape(shape)


@pytest.mark.slow
def test_training_draws_each_of_104_classes_equally_often(tmp_path):
    label = many_classes()
    rows = ForegroundRows(save(tmp_path, sample_foreground(label, "a", ignore=None)))
    rng = np.random.default_rng(0)
    starts = np.array([draw_box(rng, label.shape, rows, (1, 1, 1), ON_FOREGROUND).start for _ in range(104 * 200)])
    counts = np.bincount(label[tuple(starts.T)], minlength=105)[1:]
    # 200 draws of each, standard deviation 14; by voxels the first class would be drawn never, the last 1,500 times.
    assert counts.min() > 130 and counts.max() < 270
    # Different voxels of a class, too: 200 draws of 1,153 rows are about 183 different ones.
    drawn = starts[label[tuple(starts.T)] == 104]
    assert len(np.unique(drawn, axis=0)) > 150


def test_cases_with_different_numbers_of_rows_share_a_batch(tmp_path):
    shards = []
    for index, size in enumerate((1, 3, 40)):
        label = np.zeros((6, 8, 8))
        label.reshape(-1)[:size] = 1 + index
        shards.append(write_case(tmp_path, f"case{index}", label[None], label))
        np.save(shards[-1].foreground, np.argwhere(label).astype(np.int32, order="C"))
    spec = BatchSpec(patch=(1, 1, 1), channels=1, cases_per_batch=3)
    loader = TrainLoader(shards, spec=spec, place=lambda: Place(seed=1), num_threads=1, preset=ON_FOREGROUND)
    [batch] = loader
    assert sorted(batch["label"].flatten().tolist()) == [1, 2, 3]
    [again] = TrainLoader(shards, spec=spec, place=lambda: Place(seed=1), num_threads=1, preset=ON_FOREGROUND)
    assert batch["label"].equal(again["label"]) and batch["image"].equal(again["image"])
