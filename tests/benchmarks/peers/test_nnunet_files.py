"""A plan in nnU-Net's words, and the rule by which our training is cut to a time."""

from __future__ import annotations

import pytest

from benchmarks.peers.accuracy import planned_epochs, unvalidated
from benchmarks.peers.nnunet_files import CONFIGURATION, architecture, dataset_json, plans_json
from data_preprocessing.dataset.synthetic import benchmark_plan
from utils.files import to_dict

PLAN = to_dict(benchmark_plan("04", 3))


def test_network_has_the_levels_of_the_plan():
    arguments = architecture(PLAN["stage"])["arch_kwargs"]
    assert (arguments["n_stages"], arguments["features_per_stage"]) == (4, [32, 64, 128, 256])
    assert arguments["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]


def test_plans_have_patch_spacing_and_batch():
    configuration = plans_json(PLAN, batch_size=9)["configurations"][CONFIGURATION]
    assert (configuration["patch_size"], configuration["spacing"]) == ([40, 56, 40], [1.0, 1.0, 1.0])
    assert (configuration["batch_size"], configuration["normalization_schemes"]) == (9, ["ZScoreNormalization"])


def test_background_has_the_name_that_nnunet_demands():
    assert dataset_json(PLAN, 3)["labels"] == {"background": 0, "class_1": 1, "class_2": 2}


def test_last_tenth_of_the_epochs_is_validated():
    assert [unvalidated(epochs) for epochs in (1, 2, 10, 25)] == [0, 1, 9, 22]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        # 98 s: 10 to start, 8 epochs of 10 and one validation of 5 make 95; 9 epochs would need 105.
        (100, 8),
        (1, 1),
    ],
)
def test_as_many_epochs_as_fit_are_planned(seconds, expected):
    assert planned_epochs(seconds, start_s=10, epoch_s=10, validation_s=5) == expected
