"""Which epochs are validated: counted by hand."""

from __future__ import annotations

import pytest

from models.inferer import InferenceSettings
from models.windows import window_layout
from tests.data_loading.shards import make_plan
from utils.validation_schedule import ValidationSchedule, affordable_interval, count_windows


def kinds(epochs: int, **schedule: int) -> list[str]:
    each = ValidationSchedule(last_epoch=epochs - 1, **schedule)
    return [each.kind(epoch) for epoch in range(epochs)]


def test_every_third_epoch_and_the_last_one_show_whole_cases():
    assert kinds(8, every=3) == ["patches", "patches", "whole", "patches", "patches", "whole", "patches", "whole"]


def test_the_first_epochs_may_show_nothing():
    assert kinds(5, every=2, skipped=2) == ["none", "none", "patches", "whole", "whole"]
    assert ValidationSchedule(last_epoch=4, skipped=5).is_empty and not ValidationSchedule(last_epoch=4).is_empty


def test_without_a_number_every_epoch_shows_whole_cases():
    assert kinds(3) == ["whole"] * 3


@pytest.mark.parametrize(
    ("windows", "patches", "interval"),
    [
        (20, 40, 1),  # 20 of 140 units.
        (40, 40, 1),  # 40 of 160: a quarter.
        (41, 40, 2),
        (400, 40, 10),  # 400 of 10 * 120 + 400.
        (0, 40, 1),
    ],
)
def test_validation_takes_a_quarter_of_the_time_at_most(windows, patches, interval):
    assert affordable_interval(windows, patches) == interval
    share = windows / (3 * patches * interval + windows)
    assert share <= 0.25
    assert interval == 1 or windows / (3 * patches * (interval - 1) + windows) > 0.25


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize("patch", [(8, 12, 8), (12, 8)])
def test_windows_are_counted_as_they_are_predicted(patch, overlap):
    shapes = [(7, 12, 9), (31, 20, 8), (8, 12, 8)]
    settings = InferenceSettings(overlap=overlap)
    laid_out = sum(window_layout(shape, make_plan(patch).stage, settings).num_windows for shape in shapes)
    assert count_windows(shapes, patch, overlap) == laid_out
