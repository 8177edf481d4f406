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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_shard_of_one_case_by_another_plan_is_noticed_whichever_it_is(task, capsys):
    path = task.results / "77_3d/scan2.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"plan_stamp": "older"}))
    assert use(task) == EXIT_USAGE
    assert "scan2" in capsys.readouterr().err


@pytest.mark.slow
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


@pytest.mark.slow
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


def spoil(task: Task, case: str) -> None:
    (task.folder / f"imagesTr/{case}.nii.gz").write_bytes(b"no scan")


def add(task: Task, case: str) -> None:
    entry = {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
    for part in ("imagesTr", "labelsTr"):
        shutil.copy(task.folder / f"{part}/scan0.nii.gz", task.folder / f"{part}/{case}.nii.gz")
    task.describe(training=[*task.description()["training"], entry])


def add_spoilt(task: Task) -> None:
    add(task, "scan9")
    spoil(task, "scan9")


def spoil_and_take_out(task: Task) -> None:
    spoil(task, "scan0")
    take_out(task, "scan1")


@pytest.mark.parametrize(
    ("spoiling", "named", "good"),
    [
        (add_spoilt, "scan9: it has no shards yet", "scan1"),
        (lambda task: spoil(task, "scan1"), "scan1: its files have changed since its shards were made", "scan0"),
        (spoil_and_take_out, "scan1: dataset.json has it no longer", "scan2"),
        (lambda task: (task.folder / "labelsTr/scan1.nii.gz").unlink(), "scan1: its files are missing", "scan0"),
        (
            lambda task: task.describe(labels={"0": "background", "2": "organ"}),
            "labels: dataset.json has other",
            "scan0",
        ),
    ],
)
@pytest.mark.slow
def test_rerun_that_fails_before_it_writes_leaves_no_ready_folder_of_old_shards(task, capsys, spoiling, named, good):
    root = task.results / "77_3d"
    before = {path.name: path.read_bytes() for path in root.glob("scan*")}
    spoiling(task)
    assert task.run() == EXIT_USAGE
    assert {path.name: path.read_bytes() for path in root.glob("scan*")} == before
    capsys.readouterr()
    assert use(task) == EXIT_USAGE
    message = capsys.readouterr().err
    assert "is not ready" in message and named in message and good not in message
    assert f"python preprocess.py --task 77 --dim 3 --results {task.results}" in message


def test_rerun_that_fails_for_a_flag_leaves_the_folder_ready(task, capsys):
    before = {path.name: path.read_bytes() for path in (task.results / "77_3d").iterdir() if path.is_file()}
    assert task.run("--splits", str(task.results / "none.json")) == EXIT_USAGE
    assert {path.name: path.read_bytes() for path in (task.results / "77_3d").iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_edited_plan_survives_a_rerun_that_fails_before_it_writes(task, capsys):
    root = task.results / "77_3d"
    content = json.loads((root / "plan.json").read_text())
    content["stage"]["batch_size"] = 7
    (root / "plan.json").write_text(json.dumps(content))
    add_spoilt(task)
    assert task.run() == EXIT_USAGE and not (root / "plan.json").exists()
    shutil.copy(task.folder / "imagesTr/scan0.nii.gz", task.folder / "imagesTr/scan9.nii.gz")
    assert task.run() == 0
    assert json.loads((root / "plan.json").read_text())["stage"]["batch_size"] == 7
    assert not (root / "plan.edited.json").exists() and not (root / ".outdated.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["val", "test"])
def test_rerun_of_val_or_test_that_fails_before_it_writes_names_what_is_outdated(task, capsys, mode):
    path = task.folder / ("imagesTr/scan1.nii.gz" if mode == "val" else "imagesTs/unseen.nii.gz")
    whole = path.read_bytes()
    path.write_bytes(b"no scan")
    assert task.run("--exec_mode", mode) == EXIT_USAGE
    capsys.readouterr()
    assert use(task, "predict", mode) == EXIT_USAGE
    message = capsys.readouterr().err
    assert f"{path.name.split('.')[0]}: its files have changed" in message and f"--exec_mode {mode}" in message
    path.write_bytes(whole)
    assert task.run("--exec_mode", mode) == 0
    assert (task.results / "77_3d" / mode / "cases.json").exists()


@pytest.mark.slow
def test_val_shards_and_a_cascade_of_scans_that_were_preprocessed_again_since_are_refused(task, capsys):
    masks = shutil.copytree(task.folder / "labelsTr", task.results / "masks")
    assert task.run("--cascade", str(masks)) == 0
    [case] = json.loads((task.results / "77_3d/splits.json").read_text())["folds"][0]["val"]
    change(task, case)
    assert task.run() == 0
    capsys.readouterr()
    assert use(task, "predict", "val") == EXIT_USAGE
    message = capsys.readouterr().err
    assert f"{case}: its shard in" in message and "--exec_mode val" in message
    assert use(task, "train", "../77_3d_cascade_fullres") == EXIT_USAGE
    message = capsys.readouterr().err
    assert f"{case}: its shard in" in message and "--cascade MASKS" in message
    assert task.run("--exec_mode", "val") == 0 and task.run("--cascade", str(masks)) == 0
    for mode, folder in (("predict", "val"), ("train", "../77_3d_cascade_fullres")):
        capsys.readouterr()
        assert use(task, mode, folder) == EXIT_USAGE
        assert "nothing.ckpt cannot be read" in capsys.readouterr().err
