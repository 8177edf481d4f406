"""Validation in patches: which box is shown, and when."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_loading.data_module import ValidationSettings
from data_loading.validation_loader import patch_start, read_box
from tests.data_loading.shards import make_module, write_case

PATCH = (4, 4, 4)


def numbered(shape: tuple[int, int, int]) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)


def dot(shape: tuple[int, int, int], *voxel: int) -> np.ndarray:
    label = np.zeros(shape)
    label[voxel] = 1
    return label


def module_of(folder, *, epoch: int, sanity: bool = False, **schedule):
    module = make_module(
        folder, PATCH, train=("a",), val=("b", "c"), validation=ValidationSettings(max_epochs=6, **schedule)
    )
    module.trainer = SimpleNamespace(
        sanity_checking=sanity, current_epoch=epoch, max_epochs=6, global_rank=0, world_size=1
    )
    return module


@pytest.fixture
def cases(tmp_path):
    for name, voxel in (("a", (1, 1, 1)), ("b", (8, 9, 0)), ("c", (0, 0, 11))):
        write_case(tmp_path, name, numbered((9, 10, 12)), dot((9, 10, 12), *voxel))
    return tmp_path


def test_a_box_is_read_with_zeros_around_the_volume(tmp_path):
    volume = numbered((2, 3, 4))
    np.save(tmp_path / "x.npy", volume)
    box = read_box(tmp_path / "x.npy", (-1, 1, 2), (4, 2, 3)).numpy()
    assert np.array_equal(box, np.pad(volume, ((0, 0), (1, 1), (0, 0), (0, 1)))[:, :, 1:3, 2:5])


def test_a_patch_holds_a_foreground_voxel_and_stays_inside(cases):
    module = module_of(cases, epoch=0, every=3)
    items = list(module.val_dataloader())
    assert [item["case"] for item in items] == ["b", "c"]
    # (8, 9, 0) lies at the upper end of two axes and at the lower of one.
    assert torch.equal(items[0]["image"][0, 0], torch.from_numpy(numbered((9, 10, 12))[0, 5:, 6:, :4]))
    assert all(item["label"].sum() == 1 and item["image"].shape == (1, 1, *PATCH) for item in items)


def test_epochs_show_the_same_patches(tmp_path):
    label = np.ones((20, 20, 20))
    for name in "abc":
        write_case(tmp_path, name, numbered((20, 20, 20)), label)
    shown = [[item["image"] for item in module_of(tmp_path, epoch=e, every=3).val_dataloader()] for e in (0, 1)]
    assert all(torch.equal(one, two) for one, two in zip(*shown))
    assert not torch.equal(*shown[0])


def test_a_small_volume_is_padded_on_both_sides(tmp_path):
    shard = write_case(tmp_path, "a", numbered((2, 9, 9)), dot((2, 9, 9), 0, 4, 4))
    start = patch_start(shard, PATCH, np.random.default_rng(0))
    assert start.tolist() == [-1, 2, 2]


@pytest.mark.parametrize(
    ("epoch", "sanity", "whole"), [(0, False, False), (2, False, True), (5, False, True), (0, True, True)]
)
def test_whole_cases_come_when_the_schedule_has_them_and_before_the_first_epoch(cases, epoch, sanity, whole):
    shapes = {
        item["image"].shape[2:] for item in module_of(cases, epoch=epoch, sanity=sanity, every=3).val_dataloader()
    }
    assert shapes == {(9, 10, 12)} if whole else shapes == {PATCH}


def test_how_often_follows_from_windows_and_patches(cases):
    # Two cases of 4 x 4 x 5 windows against the patches of one batch of two.
    assert module_of(cases, epoch=0).schedule.every == 160 // 2
    assert module_of(cases, epoch=0, every=2).schedule.every == 2
