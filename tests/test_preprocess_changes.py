"""preprocess.py on data sets that changed, and killed or failed in between: nothing old passes for the new."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import main
from data_preprocessing import folders, runner
from data_preprocessing.shards import list_cases, read_meta
from tests.tiny_task import Task, make_task, write_scan
from utils.errors import EXIT_INTERRUPTED, EXIT_PARTIAL, EXIT_USAGE, run_cli
from utils.locks import folder_lock


@pytest.fixture
def task(tmp_path) -> Task:
    """Preprocessed: training, val and test."""
    task = make_task(tmp_path)
    for mode in ("training", "val", "test"):
        assert task.run("--exec_mode", mode) == 0
    return task


def change(task: Task, case: str) -> None:
    path = task.folder / f"imagesTr/{case}.nii.gz"
    write_scan(path, np.asarray(nib.load(path).dataobj) + 7)


def take_out(task: Task, case: str) -> None:
    task.describe(training=[entry for entry in task.description()["training"] if f"/{case}." not in entry["image"]])


def use(task: Task, mode: str = "train", folder: str = "") -> int:
    """Status of main.py on the shards; the checkpoint is none, so it never comes to work."""
    nothing = task.results / "nothing.ckpt"
    nothing.write_text("")
    data = task.results / "77_3d" / folder
    words = ["--exec_mode", mode, "--data", str(data), "--results", str(task.results / "run"), "--gpus", "0"]
    return run_cli(lambda: main.main([*words, "--ckpt_path", str(nothing)]))


def test_cases_that_are_gone_leave_every_folder(task, capsys):
    take_out(task, "scan1")
    task.describe(test=[])
    task.describe(test=["./imagesTs/other.nii.gz"])
    shutil.copy(task.folder / "imagesTs/unseen.nii.gz", task.folder / "imagesTs/other.nii.gz")
    root = task.results / "77_3d"
    for mode, folder, gone, left in (
        ("training", root, "scan1", ("scan0", "scan2")),
        ("val", root / "val", "scan1", ("scan0", "scan2")),
        ("test", root / "test", "unseen", ("other",)),
    ):
        capsys.readouterr()
        assert task.run("--exec_mode", mode) == 0
        assert f"cases that the data set has no longer (1): {gone}" in capsys.readouterr().out
        assert list_cases(folder) == left and not list(folder.glob(f"{gone}*"))
    assert {case for fold in json.loads((root / "splits.json").read_text())["folds"] for case in fold["val"]} == {
        "scan0", "scan2"
    }  # fmt: skip
    assert json.loads((root / "test/cases.json").read_text())["cases"] == ["other"]


def test_gone_cases_leave_the_second_stage_of_a_cascade_and_their_masks_are_not_demanded(task, capsys):
    masks = shutil.copytree(task.folder / "labelsTr", task.results / "masks")
    assert task.run("--cascade", str(masks)) == 0
    take_out(task, "scan1")
    assert task.run() == 0
    (masks / "scan1.nii.gz").unlink()
    capsys.readouterr()
    assert task.run("--cascade", str(masks)) == 0
    folder = task.results / "77_3d_cascade_fullres"
    assert "scan1" in capsys.readouterr().out and not list(folder.glob("scan1*"))
    assert list_cases(folder) == ("scan0", "scan2")


@pytest.mark.parametrize(("mode", "folder"), [("training", ""), ("val", "val")])
def test_failed_rerun_leaves_a_folder_that_names_what_is_missing(task, capsys, monkeypatch, mode, folder):
    change(task, "scan1")
    with monkeypatch.context() as patched:
        patched.setattr(runner, "preprocess_case", lambda *_: (_ for _ in ()).throw(MemoryError()))
        assert task.run("--exec_mode", mode) == EXIT_PARTIAL
    assert (task.results / "77_3d" / folder / "scan1_x.npy").is_file()
    capsys.readouterr()
    assert use(task, "train" if mode == "training" else "evaluate", folder) == EXIT_USAGE
    message = capsys.readouterr().err
    assert "is not ready" in message and "scan0" not in message
    assert ("scan1 are missing" in message) if mode == "training" else ("--exec_mode val" in message)
    assert task.run("--exec_mode", mode) == 0
    assert use(task, "evaluate", folder) == EXIT_USAGE
    assert "nothing.ckpt cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["remove_gone", "_write", "update_sources", "mark"])
@pytest.mark.parametrize("mode", ["training", "val"])
def test_run_that_is_killed_at_any_step_after_a_source_has_changed_is_not_ready(task, monkeypatch, mode, step):
    change(task, "scan1")
    take_out(task, "scan2")
    if step == "mark":
        owner, step = (folders.plan_file, "store_plan") if mode == "training" else (folders, "mark_ready")
    else:
        owner = folders
    with monkeypatch.context() as patched:
        patched.setattr(owner, step, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert task.run("--exec_mode", mode) == EXIT_INTERRUPTED
    ready = "plan.json" if mode == "training" else "val/cases.json"
    assert not (task.results / "77_3d" / ready).exists()
    assert task.run("--exec_mode", mode) == 0
    assert (task.results / "77_3d" / ready).exists()


def test_killed_overwrite_keeps_no_old_shard_for_the_next_run(task, monkeypatch, capsys):
    write = runner.write_shard

    def die_at_the_second(folder, case):
        if case.meta.case == "scan1":
            raise KeyboardInterrupt
        write(folder, case)

    with monkeypatch.context() as patched:
        patched.setattr(runner, "write_shard", die_at_the_second)
        assert task.run("--overwrite") == EXIT_INTERRUPTED
    assert list_cases(task.results / "77_3d") == ("scan0",)
    capsys.readouterr()
    assert task.run() == 0
    assert "2 written, 1 kept" in capsys.readouterr().out


def test_test_shards_of_an_older_plan_are_refused_with_the_command_that_renews_them(task, capsys):
    assert task.run("--ohe") == 0
    capsys.readouterr()
    assert use(task, "predict", "test") == EXIT_USAGE
    message = capsys.readouterr().err
    assert "unseen: its shards were made by another plan" in message
    assert f"preprocess.py --task 77 --dim 3 --exec_mode test --results {task.results}" in message
    assert task.run("--exec_mode", "test") == 0
    assert use(task, "predict", "test") == EXIT_USAGE
    assert "nothing.ckpt cannot be read" in capsys.readouterr().err


def test_shard_of_one_case_by_another_plan_is_noticed_whichever_it_is(task, capsys):
    path = task.results / "77_3d/scan2.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"plan_stamp": "older"}))
    assert use(task) == EXIT_USAGE
    assert "scan2" in capsys.readouterr().err


def test_moved_data_set_is_the_same_and_its_shards_say_where_it_is_now(task, capsys):
    root = task.results / "77_3d"
    before = {path.name: path.stat().st_mtime_ns for path in root.glob("*.npy")}
    elsewhere = Task(task.data.rename(task.data.with_name("elsewhere")), task.results)
    masks = shutil.copytree(elsewhere.folder / "labelsTr", task.results / "masks")
    assert elsewhere.run("--cascade", str(masks)) == 0
    for mode, kept in (("training", 3), ("val", 3), ("test", 1)):
        capsys.readouterr()
        assert elsewhere.run("--exec_mode", mode) == 0
        printed = capsys.readouterr().out
        assert f"0 written, {kept} kept" in printed and "inspect" not in printed
    assert {path.name: path.stat().st_mtime_ns for path in root.glob("*.npy")} == before
    meta = read_meta(root, "scan1")
    assert Path(meta.image).is_file() and Path(meta.label).is_file()
    assert elsewhere.run("--cascade", str(masks)) == 0
    assert "0 written, 3 kept" in capsys.readouterr().out
    assert read_meta(task.results / "77_3d_cascade_fullres", "scan1") == meta


def test_second_run_in_a_folder_waits_for_the_first_and_keeps_what_it_made(tmp_path, capsys):
    task = make_task(tmp_path)
    folder = task.results / "77_3d"
    folder.mkdir(parents=True)
    statuses = []
    with folder_lock(folder):
        second = threading.Thread(target=lambda: statuses.append(task.run()))
        second.start()
        while second.is_alive() and "waiting for another run" not in capsys.readouterr().err:
            second.join(0.02)
        assert second.is_alive() and not list(folder.glob("*.npy"))
    second.join()
    assert statuses == [0] and list_cases(folder) == ("scan0", "scan1", "scan2")
