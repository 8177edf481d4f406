"""Noise for benchmarks: sizes that can be counted, the same bytes from the same seed."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from data_preprocessing.dataset.checks import check_case
from data_preprocessing.dataset.description_file import load_dataset
from data_preprocessing.dataset.synthetic import NoiseShape, benchmark_plan, volume_shape, write_benchmark_shards
from data_preprocessing.dataset.synthetic_scans import scan_shape, write_benchmark_scans
from utils.errors import UserError
from utils.nifti import read_image, read_label

TINY = NoiseShape(patch_size=(8, 16, 16), channels=2)


def test_axes_double_in_turn():
    plan = benchmark_plan("04", 3, TINY)
    shapes = [volume_shape(plan, scale) for scale in (1, 2, 4, 8)]
    assert shapes == [(10, 20, 20), (20, 20, 20), (20, 40, 20), (20, 40, 40)]


@pytest.mark.parametrize("dim", [2, 3])
def test_scans_grow_as_shards_do(dim):
    plan = benchmark_plan("04", dim)
    one, *others = (math.prod(scan_shape(plan, scale)) for scale in (1, 2, 4, 8))
    assert others == [2 * one, 4 * one, 8 * one]


def test_patch_and_channels_replace_those_of_the_task(tmp_path):
    folder = write_benchmark_shards(tmp_path, task="01", dim=3, noise=TINY)
    plan = benchmark_plan("01", 3, TINY)
    assert (plan.stage.patch_size, plan.image_channels, plan.labels.num_classes) == ((8, 16, 16), 2, 4)
    assert np.load(folder / "noise_0_x.npy").shape == (2, 10, 20, 20)


@pytest.mark.parametrize(("task", "channels"), [("04", None), ("10", 2)])
def test_scans_are_a_task_that_can_be_read(tmp_path, task, channels):
    plan = benchmark_plan(task, 3, NoiseShape(patch_size=(8, 16, 16), channels=channels))
    folder = write_benchmark_scans(tmp_path, plan, num_scans=2, scale=2)
    dataset = load_dataset(tmp_path, task)
    assert (dataset.folder, len(dataset.training), dataset.channels[0]) == (folder, 2, plan.channels[0].name)
    case = dataset.training[0]
    image, label = read_image(case.images), read_label(case.label)
    assert (
        image.array.shape == (channels or 1, *scan_shape(plan, 2)) and label.array.shape[-3:] == image.array.shape[1:]
    )
    assert image.spacing_mm == pytest.approx([0.8 * size for size in plan.stage.spacing_mm])
    assert set(np.unique(label.array)) == set(range(plan.labels.num_classes))
    # Corners lie outside the ellipsoid.
    assert image.array[0, 0, 0, 0] == (-1000 if plan.channels[0].scheme == "ct" else 0)


@pytest.mark.parametrize("scheme", ["none", "rescale_to_0_1", "rgb_to_0_1"])
def test_scans_suit_the_normalisation_of_a_plan(tmp_path, scheme):
    plan = benchmark_plan("04", 3, TINY)
    channels = tuple(dataclasses.replace(channel, name=scheme, scheme=scheme) for channel in plan.channels)
    write_benchmark_scans(tmp_path, dataclasses.replace(plan, channels=channels), num_scans=1)
    dataset = load_dataset(tmp_path, "04")
    image = read_image(dataset.training[0].images)
    assert check_case(dataset.training[0], image, None, dataset) == [] and len(np.unique(image.array)) > 20


def test_the_same_seed_writes_the_same_scans(tmp_path):
    plan = benchmark_plan("04", 3, TINY)
    first, second = (write_benchmark_scans(tmp_path / name, plan, num_scans=1) for name in "ab")
    for path in (path for path in first.rglob("*") if path.is_file()):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


@pytest.mark.parametrize("wrong", [{"scale": 3}, {"scale": 0}, {"channels": 0}, {"patch_size": (8, 0, 8)}])
def test_impossible_noise_is_refused(wrong):
    with pytest.raises(UserError, match=r"--scale|--channels"):
        NoiseShape(**wrong)


def test_a_patch_of_another_dimension_is_refused():
    with pytest.raises(UserError, match="--patch_size needs 2 numbers"):
        benchmark_plan("04", 2, TINY)
