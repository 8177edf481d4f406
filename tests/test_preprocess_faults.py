"""Bad input to preprocess.py: one clear message, exit status 2, nothing written or lost."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable

import numpy as np
import pytest

import preprocess
from tests.tilted import NOISE, PLANES, save_tilted, tilted
from tests.tiny_task import SHAPE_XYZ, Task, files_of, make_task, write_scan
from utils.errors import EXIT_PARTIAL, EXIT_USAGE, UserError


@pytest.fixture
def task(tmp_path) -> Task:
    return make_task(tmp_path)


def test_failing_case_is_reported_and_the_others_are_written(task, capsys, monkeypatch):
    from data_preprocessing import runner

    write = runner.write_shard

    def fail_for_one(folder, case):
        if case.meta.case == "scan1":
            raise OSError(28, "No space left on device")
        write(folder, case)

    monkeypatch.setattr(runner, "write_shard", fail_for_one)
    assert task.run() == EXIT_PARTIAL
    assert "scan1: OSError: [Errno 28] No space left on device" in capsys.readouterr().err
    folder = task.results / "77_3d"
    assert {path.name for path in folder.glob("*_x.npy")} == {"scan0_x.npy", "scan2_x.npy"}
    assert not (folder / "plan.json").exists()
    assert json.loads((folder / "run.json").read_text())["outcome"]["cases"]["scan1"]["status"] == "failed"
    monkeypatch.undo()
    assert task.run() == 0
    assert "1 written, 2 kept" in capsys.readouterr().out


def test_data_without_labelled_voxels_write_nothing(task, capsys):
    task.describe(modality={"0": "CT"})
    for path in (task.folder / "labelsTr").iterdir():
        write_scan(path, np.zeros(SHAPE_XYZ, np.uint8))
    assert task.run() == EXIT_USAGE
    assert "a single labelled voxel" in capsys.readouterr().err
    assert not task.results.exists()


def break_json(task: Task) -> None:
    (task.folder / "dataset.json").write_text("{")


def leave_folder(task: Task) -> None:
    task.describe(training=[{"image": "../secret.nii.gz", "label": "labelsTr/scan0.nii.gz"}])


def cut_short(task: Task) -> None:
    path = task.folder / "imagesTr/scan1.nii.gz"
    path.write_bytes(path.read_bytes()[:-400])


def other_shape(task: Task) -> None:
    write_scan(task.folder / "labelsTr/scan1.nii.gz", np.zeros((10, 14, 11), np.uint8))


def other_affine(task: Task) -> None:
    affine = np.eye(4)
    affine[0, 3] = 2
    write_scan(task.folder / "labelsTr/scan1.nii.gz", np.zeros(SHAPE_XYZ, np.uint8), affine)


def unknown_label(task: Task) -> None:
    write_scan(task.folder / "labelsTr/scan1.nii.gz", np.full(SHAPE_XYZ, 9, np.uint8))


def not_a_number(task: Task) -> None:
    write_scan(task.folder / "imagesTr/scan1.nii.gz", np.full(SHAPE_XYZ, np.nan, np.float32))


def all_zero(task: Task) -> None:
    write_scan(task.folder / "imagesTr/scan1.nii.gz", np.zeros(SHAPE_XYZ, np.float32))


def two_channels(task: Task) -> None:
    write_scan(task.folder / "imagesTr/scan1.nii.gz", np.ones((*SHAPE_XYZ, 2), np.float32))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda task: task.folder.rename(task.data / "elsewhere"), "no folder Task77"),
        (lambda task: (task.folder / "dataset.json").unlink(), "dataset.json does not exist"),
        (break_json, "cannot be read as JSON"),
        (leave_folder, "leaves the folder"),
        (lambda task: task.describe(training=[]), "no training cases"),
        (cut_short, "scan1.nii.gz is truncated"),
        (other_shape, "has shape (10, 14, 11)"),
        (other_affine, "2 mm away"),
        (unknown_label, "does not name: 9"),
        (not_a_number, "NaN or infinite"),
        (all_zero, "all intensities are zero"),
        (two_channels, "has 2 channels"),
    ],
)
@pytest.mark.slow
def test_bad_input_is_named_and_nothing_is_written(task, capsys, spoil: Callable[[Task], None], message):
    spoil(task)
    assert task.run() == EXIT_USAGE
    assert message in capsys.readouterr().err
    assert not task.results.exists()


def test_all_faulty_cases_are_listed(task, capsys):
    all_zero(task)
    write_scan(task.folder / "labelsTr/scan2.nii.gz", np.full(SHAPE_XYZ, 9, np.uint8))
    assert task.run() == EXIT_USAGE
    printed = capsys.readouterr().err
    assert "2 of 3 cases" in printed
    rows = [line.split() for line in printed.splitlines() if line.startswith("problem")]
    assert [row[1:3] for row in rows] == [["scan1", "intensities"], ["scan2", "labels"]]


def test_faulty_case_leaves_all_files_of_an_earlier_run_but_the_mark_that_it_is_ready(task):
    task.run()
    before = files_of(task.results / "77_3d")
    not_a_number(task)
    assert task.run() == EXIT_USAGE
    after = files_of(task.results / "77_3d")
    # The scan has changed: plan.json would let a training use what was made of the earlier one.
    assert after.pop(".outdated.json") and before.pop("plan.json") and after == before


def test_results_below_a_file_are_refused_before_any_work(task, capsys):
    task.results.write_text("a file")
    assert task.run() == EXIT_USAGE
    captured = capsys.readouterr()
    assert "cannot write" in captured.err
    assert "inspect" not in captured.out


def test_results_inside_the_data_set_are_refused(task, capsys):
    assert task.run("--results", str(task.folder / "out")) == EXIT_USAGE
    assert "only read" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--task", "liver"), ("--n_jobs", "0"), ("--nfolds", "1")])
def test_option_out_of_range_is_a_user_error(flags):
    with pytest.raises(UserError) as caught:
        preprocess.main(["--task", "77", *flags])
    assert flags[0] in str(caught.value)


def test_damaged_middle_of_a_file_is_found(task, capsys):
    path = task.folder / "imagesTr/scan1.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(content)))
    packed[len(packed) // 2] ^= 255
    path.write_bytes(bytes(packed))
    assert task.run() == EXIT_USAGE
    assert "scan1" in capsys.readouterr().err


def test_one_training_case_says_what_to_do(task, capsys):
    task.describe(training=task.description()["training"][:1])
    assert task.run() == 2
    printed = capsys.readouterr().err
    assert "1 training cases: every fold needs" in printed and "warning" not in printed
    assert not task.results.exists()


def test_labels_that_are_all_empty_are_refused(task, capsys):
    for path in (task.folder / "labelsTr").iterdir():
        write_scan(path, np.zeros(SHAPE_XYZ, np.uint8))
    assert task.run() == 2
    assert "none of the 3 training cases has a single labelled voxel" in capsys.readouterr().err


def test_a_scan_that_is_there_twice_is_said(task, capsys):
    shutil.copy(task.folder / "imagesTr/scan0.nii.gz", task.folder / "imagesTr/scan2.nii.gz")
    assert task.run() == 0
    assert "scan0, scan2 have the same voxels" in capsys.readouterr().err


def test_leading_zeros_of_the_task_do_not_matter(task):
    assert task.run("--task", "077") == 0
    assert [path.name for path in task.results.iterdir()] == ["77_3d"]


@pytest.mark.slow
@pytest.mark.parametrize("plane", PLANES, ids=str)
@pytest.mark.parametrize("noise", [NOISE, -NOISE])
def test_near_45_degrees_shards_of_label_and_image_fit(task, plane, noise):
    for index in range(3):
        image = np.random.default_rng(index).uniform(1, 9, (8, 8, 8)).astype(np.float32)
        save_tilted(task.folder / f"imagesTr/scan{index}.nii.gz", image, tilted(plane, noise))
        save_tilted(task.folder / f"labelsTr/scan{index}.nii.gz", (image > 5).astype(np.uint8), tilted(plane, -noise))
    assert task.run() == 0
    image, label = (np.load(task.results / f"77_3d/scan0_{kind}.npy")[0] for kind in "xy")
    assert image[label == 1].min() > image[label == 0].max()
