"""What a folder of shards says of itself."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_preprocessing.preprocessor import preprocess_case
from data_preprocessing.readiness import (
    gone_cases,
    mark_ready,
    preprocess_command,
    ready_cases,
    remove_gone,
    require_current,
    withdraw_mark,
)
from data_preprocessing.shards import corrected_labels, list_cases, read_meta, stamp_plan, stamp_sources, write_shard
from tests.data_preprocessing.builders import make_case, make_plan, random_image
from tests.tiny_task import make_task, write_scan
from utils.errors import UserError
from utils.files import read_json, write_json
from utils.schema import Plan

PLAN = make_plan()


def write(folder: Path, *names: str, plan_stamp: str | None = None) -> None:
    label = np.zeros((4, 5, 6), np.uint8)
    label[1] = 1
    case = preprocess_case(make_case(random_image((1, 4, 5, 6)), label), PLAN)
    for name in names:
        meta = dataclasses.replace(case.meta, case=name, plan_stamp=plan_stamp or stamp_plan(PLAN))
        write_shard(folder, dataclasses.replace(case, meta=meta))


def test_every_case_is_compared_with_the_plan_and_not_the_first_one_only(tmp_path):
    write(tmp_path, "a", "b")
    require_current(tmp_path, ["a", "b"], PLAN, "make")
    write(tmp_path, "c", plan_stamp="older")
    (tmp_path / "b.json").unlink()
    with pytest.raises(UserError) as error:
        require_current(tmp_path, ["a", "b", "c"], PLAN, "make them")
    message = str(error.value)
    assert "2 of 3" in message and "b: its shards are incomplete" in message and "c: its shards were made" in message
    assert "a:" not in message and message.endswith("make them")


def test_all_files_of_gone_cases_are_removed_and_no_other(tmp_path, capsys):
    # Names that begin and end like the files of each other.
    write(tmp_path, "a", "a_x", "b")
    for name in ("a_p.npy", "a_p.stamp.json", "plan.json", "torn_fg.npy"):
        (tmp_path / name).write_bytes(b"")
    gone = gone_cases(tmp_path, ["a_x", "b"])
    assert gone == ("a", "torn")
    remove_gone(tmp_path, gone)
    assert list_cases(tmp_path) == ("a_x", "b")
    left = {f"{case}{end}" for case in ("a_x", "b") for end in ("_x.npy", "_y.npy", "_fg.npy", ".json")}
    assert {path.name for path in tmp_path.iterdir()} == left | {"plan.json"}
    assert "removed the shards of cases that the data set has no longer (2): a, torn" in capsys.readouterr().out


def test_folder_without_its_mark_is_not_ready(tmp_path):
    mark_ready(tmp_path, ["b", "a"])
    assert ready_cases(tmp_path, "make") == ("a", "b")
    withdraw_mark(tmp_path)
    with pytest.raises(UserError, match=r"is not ready.*run: make"):
        ready_cases(tmp_path, "make")


def test_command_names_task_stage_and_mode():
    root = Path("data/42_3d_lowres")
    lowres = dataclasses.replace(PLAN, stage=dataclasses.replace(PLAN.stage, name="3d_lowres"))
    words = preprocess_command(root, lowres, root / "test")
    assert words.endswith("--dim 3 --lowres --exec_mode test --results data")


class TestSourceStamp:
    """A data set that was moved or mounted elsewhere is the same data set; any other change makes it another one."""

    def files(self, folder: Path, image: str = "imagesTr/a.nii.gz", label: str = "labelsTr/a.nii.gz") -> list[Path]:
        for name in (image, label):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"abc")
            os.utime(path, ns=(5, 5))
        return [folder / image, folder / label]

    def test_moved_copied_and_linked_data_are_the_same(self, tmp_path, monkeypatch):
        first = self.files(tmp_path / "here/Task01_A")
        shutil.copytree(tmp_path / "here", tmp_path / "there")
        (tmp_path / "link").symlink_to(tmp_path / "there/Task01_A")
        for folder in ("there/Task01_A", "link"):
            assert stamp_sources([tmp_path / folder / path.parent.name / path.name for path in first]) == stamp_sources(
                first
            )
        monkeypatch.chdir(tmp_path / "here")
        assert stamp_sources([path.relative_to(tmp_path / "here") for path in first]) == stamp_sources(first)

    def test_other_names_and_folders_within_the_data_set_are_others(self, tmp_path):
        stamps = {
            stamp_sources(self.files(tmp_path, *names))
            for names in (
                ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz"),
                ("imagesTr/b.nii.gz", "labelsTr/b.nii.gz"),
                ("imagesTr/a.nii.gz", "labelsTr_v2/a.nii.gz"),
                ("labelsTr/a.nii.gz", "imagesTr/a.nii.gz"),
            )
        }
        assert len(stamps) == 4

    def test_missing_file_is_a_user_error(self, tmp_path):
        with pytest.raises(UserError, match=r"nobody\.nii\.gz cannot be read"):
            stamp_sources([tmp_path / "nobody.nii.gz"])


def test_raw_data_that_may_not_be_read_do_not_matter_to_shards(tmp_path, monkeypatch):
    task = make_task(tmp_path)
    assert task.run("--nfolds", "2") == 0
    root = task.results / "77_3d"
    plan = read_json(Plan, root / "plan.json")
    assert f"--data {task.folder}" in preprocess_command(root, plan)
    os.utime(task.folder / "labelsTr/scan0.nii.gz", ns=(1, 1))

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(root), "is_file", refuse)
    assert "--data" not in preprocess_command(root, plan)
    monkeypatch.undo()
    monkeypatch.setattr("data_preprocessing.shards.file_digest", refuse)
    assert corrected_labels(root, ["scan0", "scan1"]) == []


def test_labels_of_shards_of_an_earlier_version_are_looked_at_where_they_are_younger(tmp_path):
    task = make_task(tmp_path)
    assert task.run("--nfolds", "2") == 0
    root, label = task.results / "77_3d", task.folder / "labelsTr/scan0.nii.gz"
    meta = dataclasses.replace(read_meta(root, "scan0"), label_stat=None)
    write_json(meta, root / "scan0.json")
    array = np.zeros((10, 14, 12), np.uint8)
    array[1, 1, 1] = 1
    write_scan(label, array)
    os.utime(label, ns=(1, 1))
    assert corrected_labels(root, ["scan0"]) == []
    os.utime(label)
    assert [line.split(":")[0] for line in corrected_labels(root, ["scan0"])] == ["scan0"]
