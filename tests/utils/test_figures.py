from __future__ import annotations

import io
import math

import matplotlib.image
import numpy as np
import pytest
import torch

from utils.figures import EpochRecord, foreground_slices, progress_figure, write_overlay, write_progress
from utils.files import from_dict, to_dict


def record(epoch, **changes):
    values = {"train_loss": 1.0, "val_loss": 0.9, "val_dice": (0.5, math.nan), "mean_dice": 0.5}
    return EpochRecord(epoch=epoch, learning_rate=1e-3, seconds=2.0, **(values | changes))


def pixels(path):
    return matplotlib.image.imread(path)


def test_a_record_with_nan_survives_a_checkpoint():
    file = io.BytesIO()
    torch.save({"history": [to_dict(record(0, mean_dice=math.nan)), to_dict(record(1, val_loss=None))]}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)["history"]
    first, second = (from_dict(EpochRecord, one, source="checkpoint") for one in stored)
    assert math.isnan(first.mean_dice) and math.isnan(first.val_dice[1]) and first.val_dice[0] == 0.5
    assert second.val_loss is None and second.epoch == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "history",
    [
        [],
        [record(0)],
        [record(0, val_loss=None, val_dice=(), mean_dice=None), record(1)],
        [record(0, train_loss=math.nan, mean_dice=math.nan, val_dice=(math.nan, math.nan))],
        [record(epoch) for epoch in range(120)],
    ],
)
def test_progress_is_drawn_for_any_history(tmp_path, history):
    write_progress(tmp_path / "progress.png", history, ("anterior", "posterior"))
    assert pixels(tmp_path / "progress.png").shape[:2] > (500, 500)
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]


def test_progress_counts_epochs_from_one():
    figure = progress_figure([record(0), record(1), record(2, val_loss=None)], ("anterior", "posterior"))
    training, validation = figure.axes[0].get_lines()
    assert list(training.get_xdata()) == [1, 2, 3] and list(validation.get_xdata()) == [1, 2]


@pytest.mark.slow
def test_progress_leaves_pyplot_alone(tmp_path):
    import matplotlib.pyplot as plt

    write_progress(tmp_path / "progress.png", [record(0)], ("a", "b"))
    assert plt.get_fignums() == []


def test_the_slice_with_most_foreground_is_shown():
    mask = np.zeros((4, 6, 8), np.uint8)
    mask[3, 1:4, 5] = 1
    mask[3, 2, 5:8] = 2
    mask[0, 0, 0] = 1
    assert foreground_slices(mask) == (3, 2, 5)


def test_without_foreground_the_middle_is_shown():
    assert foreground_slices(np.zeros((4, 6, 9))) == (2, 3, 4)


@pytest.mark.slow
def test_prediction_is_filled_and_label_outlined(tmp_path):
    image = np.random.default_rng(0).normal(size=(6, 8, 10))
    prediction = np.zeros(image.shape, np.uint8)
    prediction[2:4, 3:6, 4:7] = 1
    nothing = np.zeros_like(prediction)
    coloured = {}
    for name, label, predicted in [("both", prediction, prediction), ("filled", None, prediction),
                                   ("outlined", prediction, nothing), ("neither", nothing, nothing)]:  # fmt: skip
        write_overlay(tmp_path / f"{name}.png", image, label, predicted)
        picture = pixels(tmp_path / f"{name}.png")[..., :3]
        coloured[name] = int((np.ptp(picture, axis=-1) > 0.1).sum())
    assert coloured["neither"] == 0
    assert 0 < coloured["outlined"] < coloured["filled"] < coloured["both"]


@pytest.mark.parametrize("shape", [(1, 5, 5), (5, 1, 5), (5, 5, 1), (1, 1, 1)])
def test_thin_and_constant_volumes_are_drawn(tmp_path, shape):
    ones = np.ones(shape, np.uint8)
    write_overlay(tmp_path / "thin.png", np.zeros(shape), ones, ones, spacing_mm=(5.0, 1.0, 1.0))
    assert (tmp_path / "thin.png").stat().st_size > 0
