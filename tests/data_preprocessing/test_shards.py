from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from data_preprocessing.preprocessor import preprocess_case
from data_preprocessing.shards import (
    NUM_FOREGROUND,
    is_current,
    list_cases,
    read_meta,
    remove_strays,
    sample_foreground,
    shard_paths,
    stamp_plan,
    stamp_sources,
    write_shard,
)
from tests.data_preprocessing.test_preprocessor import make_case, make_plan, random_image
from utils.errors import UserError


@pytest.fixture
def case():
    label = np.zeros((4, 5, 6), dtype=np.uint8)
    label[1, 2, 3] = 1
    return preprocess_case(make_case(random_image((1, 4, 5, 6)), label), make_plan())


def test_arrays_are_c_ordered_npy_version_1(tmp_path, case):
    write_shard(tmp_path, case)
    paths = shard_paths(tmp_path, "case")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case.json", "case_fg.npy", "case_x.npy", "case_y.npy"]
    for path, dtype in ((paths.image, "<f4"), (paths.label, "|u1"), (paths.foreground, "<i4")):
        with path.open("rb") as file:
            assert np.lib.format.read_magic(file) == (1, 0)
            _, fortran, kind = np.lib.format.read_array_header_1_0(file)
        assert (fortran, kind) == (False, np.dtype(dtype))
    np.testing.assert_array_equal(np.load(paths.image, allow_pickle=False), case.image)
    np.testing.assert_array_equal(np.load(paths.label, allow_pickle=False), case.label)
    assert read_meta(tmp_path, "case") == case.meta


def test_a_written_case_is_current_until_source_or_plan_changes(tmp_path, case):
    assert not is_current(tmp_path, "case", "s", "p")
    write_shard(tmp_path, case)
    assert is_current(tmp_path, "case", "s", "p")
    assert not is_current(tmp_path, "case", "other", "p")
    assert not is_current(tmp_path, "case", "s", "other")


@pytest.mark.parametrize("suffix", ["_x.npy", "_y.npy", "_fg.npy", ".json"])
def test_a_missing_or_cut_file_makes_the_case_stale(tmp_path, case, suffix):
    write_shard(tmp_path, case)
    path = tmp_path / f"case{suffix}"
    path.write_bytes(path.read_bytes()[:-1] if suffix != ".json" else b"{")
    assert not is_current(tmp_path, "case", "s", "p")
    path.unlink()
    assert not is_current(tmp_path, "case", "s", "p")


def test_a_case_killed_while_it_is_rewritten_is_stale(tmp_path, case, monkeypatch):
    write_shard(tmp_path, case)

    def die(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np.lib.format, "write_array", die)
    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, case)
    assert not is_current(tmp_path, "case", "s", "p")
    assert list_cases(tmp_path) == ()


def test_a_case_without_label_has_neither_label_nor_foreground(tmp_path, case):
    write_shard(tmp_path, case)
    meta = dataclasses.replace(case.meta, label=None)
    write_shard(tmp_path, dataclasses.replace(case, label=None, meta=meta))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case.json", "case_x.npy"]
    assert is_current(tmp_path, "case", "s", "p")


def test_list_cases_names_the_complete_ones_only(tmp_path, case):
    for name in ("b", "a", "a_x"):
        write_shard(tmp_path, dataclasses.replace(case, meta=dataclasses.replace(case.meta, case=name)))
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "torn_x.npy").write_bytes(b"")
    assert list_cases(tmp_path) == ("a", "a_x", "b")


def test_an_unknown_case_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"nobody\.json"):
        read_meta(tmp_path, "nobody")


def test_each_class_has_as_many_rows_whatever_its_size():
    label = np.zeros((6, 10, 10), dtype=np.uint8)
    label[:3], label[4, 1, 2], label[5, 0, :2] = 1, 2, 4
    rows = sample_foreground(label, "case", ignore=None)
    assert rows.shape == (NUM_FOREGROUND, 3) and rows.dtype == np.int32
    counts = np.bincount(label[tuple(rows.T)], minlength=5)
    assert counts[0] == 0 and sorted(counts[[1, 2, 4]]) == [341, 341, 342]


def test_rows_are_uniform_over_the_voxels_of_a_class():
    label = np.zeros((4, 2, 2), dtype=np.uint8)
    label[1, 0, 1], label[3] = 1, 1
    rows = sample_foreground(label, "case", ignore=None)
    _, counts = np.unique(rows, axis=0, return_counts=True)
    # 1024 / 5 voxels = 205, standard deviation 13.
    assert len(counts) == 5 and abs(counts - 205).max() < 60


def test_rows_are_shuffled():
    label = np.arange(3, dtype=np.uint8).repeat(8).reshape(3, 2, 4)
    first = sample_foreground(label, "case", ignore=None)[:200]
    assert set(label[tuple(first.T)]) == {1, 2}


def test_ignored_voxels_are_no_foreground():
    label = np.full((2, 3, 3), 2, dtype=np.uint8)
    label[0, 0, 0] = 1
    assert not sample_foreground(label, "case", ignore=2).any()


def test_without_foreground_rows_cover_the_volume():
    rows = sample_foreground(np.zeros((2, 3, 4), dtype=np.uint8), "case", ignore=None)
    assert len(np.unique(rows, axis=0)) == 24


def test_rows_depend_on_the_case_name_alone():
    label = np.ones((4, 4, 4), dtype=np.uint8)
    same = [sample_foreground(label, "case", ignore=None) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert (sample_foreground(label, "other", ignore=None) != same[0]).any()


def test_source_stamp_follows_size_and_time(tmp_path):
    path = tmp_path / "case.nii.gz"
    path.write_bytes(b"abc")
    before = stamp_sources([path])
    assert stamp_sources([path]) == before
    os.utime(path, ns=(1, 1))
    assert stamp_sources([path]) != before


def test_plan_stamp_ignores_what_shards_do_not_depend_on():
    plan = make_plan()
    assert stamp_plan(dataclasses.replace(plan, stage=dataclasses.replace(plan.stage, batch_size=9))) == stamp_plan(
        plan
    )
    assert stamp_plan(dataclasses.replace(plan, axes=(1, 0, 2))) != stamp_plan(plan)
    assert stamp_plan(make_plan(spacing=(1.0, 1.0, 2.0))) != stamp_plan(plan)
    assert stamp_plan(make_plan(mask_channel=True)) != stamp_plan(plan)


def test_strays_of_a_killed_run_are_removed(tmp_path, case):
    write_shard(tmp_path, case)
    (tmp_path / ".tmp-abc.npy").write_bytes(b"half")
    remove_strays(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
