"""Shards that are made anew while a run reads them."""

from __future__ import annotations

import os

import pytest

from data_preprocessing.shards import list_cases, shard_paths, shard_stamps
from tests.tiny_task import make_task
from training.shard_watch import ShardWatch
from utils.errors import UserError
from utils.runs import ShardFolder


@pytest.fixture
def task(tmp_path):
    made = make_task(tmp_path)
    assert made.run("--nfolds", "2") == 0
    assert made.run("--exec_mode", "val") == 0
    return made


def watch(root, sub=""):
    shards = ShardFolder(root=root, cases=root / sub)
    return ShardWatch(shards, shard_stamps(shards.cases, list_cases(shards.cases), previous=True))


@pytest.mark.parametrize("sub", ["", "val"])
def test_the_same_shards_made_again_count_as_the_same(task, sub):
    found = watch(task.results / "77_3d", sub)
    assert found.changes() == []
    assert task.run("--nfolds", "2", *(("--exec_mode", "val") if sub else ()), "--overwrite") == 0
    assert found.changes() == []
    found.require_same("nothing")


@pytest.mark.parametrize("sub", ["", "val"])
def test_shards_of_another_scan_are_named(task, sub):
    found = watch(task.results / "77_3d", sub)
    assert found.changes() == []
    os.utime(task.folder / "imagesTr/scan1.nii.gz", ns=(1, 1))
    assert task.run("--nfolds", "2", *(("--exec_mode", "val") if sub else ())) == 0
    with pytest.raises(UserError, match=r"(?s)what was scored.*scan1: its shard is missing or another one now"):
        found.require_same("what was scored")


def test_a_shard_that_is_just_made_anew_is_named(task):
    root = task.results / "77_3d"
    found = watch(root)
    (root / "plan.json").unlink()
    # The plan goes first; nothing has been replaced yet.
    assert found.changes() == []
    shard_paths(root, "scan2").meta.unlink()
    assert [line.split(":")[0] for line in found.changes()] == ["scan2"]


def test_an_unchanged_folder_is_not_read_again(task, monkeypatch):
    found = watch(task.results / "77_3d")
    assert found.changes() == []
    monkeypatch.setattr("training.shard_watch.shard_stamps", lambda *_, **__: pytest.fail("read again"))
    assert found.changes() == []
