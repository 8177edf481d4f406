from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from data_preprocessing import shards
from data_preprocessing.preprocessor import preprocess_case
from data_preprocessing.shards import (
    FOREGROUND_PER_CLASS,
    MOST_FOREGROUND,
    is_current,
    list_cases,
    read_meta,
    sample_foreground,
    shard_paths,
    stamp_plan,
    stamp_sources,
    write_shard,
)
from tests.data_preprocessing.builders import LABELS, make_case, make_plan, random_image
from utils.errors import UserError
from utils.schema import LabelScheme


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


def rows_by_class(label: np.ndarray, rows: np.ndarray) -> dict[int, np.ndarray]:
    classes = label[tuple(rows.T)]
    return {int(k): rows[classes == k] for k in np.unique(classes)}


def test_each_class_has_as_many_rows_whatever_its_size():
    label = np.zeros((6, 10, 10), dtype=np.uint8)
    label[:3], label[4, 1, 2], label[5, 0, :2] = 1, 2, 4
    rows = sample_foreground(label, "case", ignore=None)
    assert rows.shape == (3 * 300, 3) and rows.dtype == np.int32
    classes = label[tuple(rows.T)]
    assert np.bincount(classes).tolist() == [0, 300, 300, 0, 300]
    # Class by class, as the docstring says.
    assert (np.diff(classes.astype(int)) >= 0).all()


def test_rows_of_a_class_are_all_of_its_voxels_equally_often():
    label = np.zeros((4, 2, 2), dtype=np.uint8)
    label[1, 0, 1], label[3], label[2] = 1, 1, 2
    label[0] = 3
    label[0, 0, 0] = 0
    rows = rows_by_class(label, sample_foreground(label, "case", ignore=None))
    for k, voxels in ((1, 5), (2, 4), (3, 3)):
        _, counts = np.unique(rows[k], axis=0, return_counts=True)
        assert len(counts) == voxels and counts.sum() == 5 and counts.max() - counts.min() <= 1


def test_a_large_class_has_so_many_different_voxels_spread_over_all_of_it():
    label = np.ones((40, 60, 50), dtype=np.uint8)
    rows = sample_foreground(label, "case", ignore=None)
    assert rows.shape == (FOREGROUND_PER_CLASS, 3) and len(np.unique(rows, axis=0)) == FOREGROUND_PER_CLASS
    # Means of 10,000 draws: of 0..39, 0..59 and 0..49, with deviations of the mean below 0.2.
    np.testing.assert_allclose(rows.mean(axis=0), (19.5, 29.5, 24.5), atol=1)


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "each"), [(104, 1153), (254, 472)])
def test_many_classes_share_the_room_of_a_file(num_classes, each):
    # One class fills most of the volume, one has three voxels, the others 2,000 each.
    label = np.full((254 * 8 + 200, 25, 10), num_classes, dtype=np.uint8)
    for k in range(1, num_classes):
        label[8 * k : 8 * k + 8] = k
    label[8:16] = 0
    label[8, 0, :3] = 1
    rows = sample_foreground(label, "case", ignore=None)
    assert len(rows) <= MOST_FOREGROUND and rows.nbytes <= 1_440_000
    by_class = rows_by_class(label, rows)
    assert sorted(by_class) == list(range(1, num_classes + 1))
    for k, found in by_class.items():
        assert len(found) == each and len(np.unique(found, axis=0)) == (3 if k == 1 else each)


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


@pytest.mark.parametrize(
    "foreground",
    [
        np.zeros((0, 3), np.int32),
        np.zeros((MOST_FOREGROUND + 1, 3), np.int32),
        np.zeros((4, 4), np.int32),
        np.zeros((4, 3), np.int64),
        np.zeros(12, np.int32),
    ],
)
def test_positions_of_another_kind_make_the_case_stale(tmp_path, case, foreground):
    write_shard(tmp_path, case)
    np.save(shard_paths(tmp_path, "case").foreground, foreground)
    assert not is_current(tmp_path, "case", "s", "p")


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


@pytest.mark.parametrize(
    "changed",
    [
        make_plan(normalize_first=False),
        make_plan(channels=("none",)),
        make_plan(patch=(4, 4, 8)),
        make_plan(labels=dataclasses.replace(LABELS, values=(0, 1, 3))),
        make_plan(labels=dataclasses.replace(LABELS, values=(0, 2, 1))),
        make_plan(labels=dataclasses.replace(LABELS, ignore_value=3)),
        make_plan(labels=LabelScheme(names=LABELS.names[:2], values=(0, 1), ignore_value=2)),
    ],
)
def test_plan_stamp_follows_what_shards_depend_on(changed):
    assert stamp_plan(changed) != stamp_plan(make_plan())


def test_shards_of_another_format_are_stale(monkeypatch):
    before = stamp_plan(make_plan())
    monkeypatch.setattr(shards, "FORMAT", shards.FORMAT + 1)
    assert stamp_plan(make_plan()) != before
