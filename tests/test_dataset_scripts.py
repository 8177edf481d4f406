"""scripts/init_dataset.py and scripts/verify_dataset.py from the command line to preprocess.py."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from scripts import init_dataset, verify_dataset
from tests.tiny_task import SHAPE_XYZ, Task, make_task, write_scan
from utils.errors import EXIT_OK, EXIT_PARTIAL, EXIT_USAGE, run_cli


def init(*flags: object) -> int:
    return run_cli(lambda: init_dataset.main([*map(str, flags), "--n_jobs", "1"]))


def verify(*flags: object) -> int:
    return run_cli(lambda: verify_dataset.main([*map(str, flags), "--n_jobs", "1"]))


@pytest.fixture
def task(tmp_path) -> Task:
    made = make_task(tmp_path)
    write_scan(made.folder / "imagesTs/unseen.nii.gz", np.full(SHAPE_XYZ, 7.5, np.float32) + np.eye(10, 14)[..., None])
    return made


@pytest.fixture
def scans(tmp_path) -> Path:
    """Folders scans and masks with CT of two cases, and one more scan."""
    rng = np.random.default_rng(0)
    for case in ("p1", "p2"):
        label = np.zeros(SHAPE_XYZ, np.uint8)
        label[2:6, 3:8, 4:8] = 2
        write_scan(tmp_path / f"scans/{case}_ct.nii.gz", rng.integers(-1000, 500, SHAPE_XYZ).astype(np.int16))
        write_scan(tmp_path / f"masks/{case}_seg.nii", label)
    write_scan(tmp_path / "unseen/p3_ct.nii.gz", rng.integers(-1000, 500, SHAPE_XYZ).astype(np.int16))
    return tmp_path


def flags_of(scans: Path) -> list[object]:
    return ["--images", scans / "scans", "--labels", scans / "masks", "--output", scans / "data/Liver"]


def description(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def test_two_folders_become_a_task_that_is_sound_and_can_be_preprocessed(scans, capsys):
    assert init(*flags_of(scans), "--test_images", scans / "unseen") == EXIT_OK
    folder = scans / "data/Task11_Liver"
    assert description(folder) == {
        "name": "Liver", "tensorImageSize": "3D", "modality": {"0": "CT"},
        "labels": {"0": "background", "2": "label_2"}, "numTraining": 2, "numTest": 1,
        "training": [
            {"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii"} for c in ("p1", "p2")
        ],
        "test": ["./imagesTs/p3.nii.gz"],
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "channel 0 is CT: 3 of 3 images" in printed and f"preprocess.py --task 11 --data {scans}/data" in printed
    assert verify("--data", folder) == EXIT_OK
    assert "0 problems, 0 remarks" in capsys.readouterr().out
    for mode in ("training", "test"):
        assert Task(scans / "data", scans / "out").run("--task", "11", "--exec_mode", mode) == EXIT_OK


def test_links_point_to_the_scans_and_preprocessing_follows_them(scans):
    assert init(*flags_of(scans), "--link") == EXIT_OK
    link = scans / "data/Task11_Liver/imagesTr/p1.nii.gz"
    assert link.is_symlink() and os.readlink(link) == str(scans / "scans/p1_ct.nii.gz")
    assert Task(scans / "data", scans / "out").run("--task", "11") == EXIT_OK


def test_a_file_for_each_channel_and_names_for_everything(tmp_path):
    rng = np.random.default_rng(0)
    for case in ("p1", "p2"):
        for channel in ("flair", "t1"):
            write_scan(tmp_path / f"brain/{case}/{case}_{channel}.nii.gz", rng.uniform(1, 9, SHAPE_XYZ))
        write_scan(tmp_path / f"brain/{case}/{case}_seg.nii.gz", (rng.uniform(size=SHAPE_XYZ) > 0.5).astype(np.float32))
    words = ["--images", tmp_path / "brain", "--labels", f"{tmp_path}/brain/*/*_seg.nii.gz"]
    words += ["--channels", "T1", "FLAIR", "--label_names", "background", "lesion", "--output", tmp_path / "Task500_MS"]
    assert init(*words) == EXIT_OK
    content = description(tmp_path / "Task500_MS")
    assert content["modality"] == {"0": "T1", "1": "FLAIR"} and content["labels"]["1"] == "lesion"
    assert content["training"][0]["image"] == ["./imagesTr/p1_0000.nii.gz", "./imagesTr/p1_0001.nii.gz"]
    source = tmp_path / "brain/p1/p1_t1.nii.gz"
    assert (tmp_path / "Task500_MS/imagesTr/p1_0000.nii.gz").read_bytes() == source.read_bytes()
    assert verify("--data", tmp_path / "Task500_MS") == EXIT_OK


def test_faulty_scans_are_listed_at_once_and_nothing_is_written(scans, capsys):
    write_scan(scans / "masks/p1_seg.nii", np.zeros((2, 3, 4), np.uint8))
    (scans / "scans/p2_ct.nii.gz").write_bytes(b"no scan")
    assert init(*flags_of(scans), "--channels", "a", "b") == EXIT_USAGE
    printed = capsys.readouterr().err
    for words in ("has shape (2, 3, 4)", "p2_ct.nii.gz", "2 names of channels"):
        assert words in printed
    assert not (scans / "data").exists()


def test_faulty_scans_can_be_written_to_be_repaired(scans, capsys):
    affine = np.diag([1, 1, 3, 1])
    write_scan(scans / "masks/p1_seg.nii", np.full(SHAPE_XYZ, 2, np.uint8), affine)
    assert init(*flags_of(scans)) == EXIT_USAGE
    assert "--allow_problems" in capsys.readouterr().err
    assert init(*flags_of(scans), "--allow_problems") == EXIT_OK
    assert verify("--task", "11", "--data", scans / "data", "--fix", scans / "fixed") == EXIT_PARTIAL
    assert verify("--task", "11", "--data", scans / "fixed") == EXIT_OK


def test_init_with_a_full_disk_leaves_nothing(scans, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    assert init(*flags_of(scans)) == EXIT_USAGE
    assert not (scans / "data").exists()


def test_verify_counts_problems_and_remarks_and_reports(task, tmp_path, capsys):
    write_scan(task.folder / "imagesTr/scan1.nii.gz", np.full(SHAPE_XYZ, np.nan, np.float32))
    (task.folder / "labelsTr/scan2.nii.gz").unlink()
    task.describe(training=[*task.description()["training"], {"image": "../x.nii", "label": "labelsTr/x.nii"}])
    assert verify("--task", "77", "--data", task.data, "--json", tmp_path / "report.json") == EXIT_PARTIAL
    printed = capsys.readouterr().out
    for words in (
        "leaves the folder",
        "labelsTr/scan2.nii.gz does not exist",
        "NaN or infinite",
        "3 problems",
        "--fix",
    ):
        assert words in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_problems"] == 3
    assert [case["case"] for case in report["cases"]] == ["scan0", "scan1", "scan2", "unseen"]
    assert report["cases"][0]["scan"]["shape"] == list(SHAPE_XYZ[::-1])
    assert report["cases"][0]["label_counts"] == {"0": 10 * 14 * 12 - 36, "1": 36}


def test_remarks_alone_are_no_failure(task, capsys):
    task.describe(labels={"0": "background", "1": "organ", "2": "vessel"})
    assert verify("--data", task.folder) == EXIT_OK
    assert "0 problems, 1 remarks" in capsys.readouterr().out


def test_preprocess_shows_the_same_table_and_the_way_to_a_repaired_copy(task, tmp_path, capsys):
    image = np.full(SHAPE_XYZ, 5, np.float32) + np.eye(10, 14, dtype=np.float32)[..., None]
    image[0, 0, 0] = np.nan
    write_scan(task.folder / "imagesTr/scan1.nii.gz", image)
    assert task.run() == EXIT_USAGE
    row = "problem  scan1  intensities  imagesTr/scan1.nii.gz has 1 NaN or infinite intensities"
    printed = capsys.readouterr().err
    assert row in printed and "verify_dataset.py" in printed
    assert verify("--data", task.folder, "--fix", tmp_path / "fixed") == EXIT_PARTIAL
    printed = capsys.readouterr().out
    assert row in printed and "scan1: image: 1 NaN or infinite intensities set to 0" in printed
    assert "3 cases copied, 1 repaired, 0 left out" in printed
    assert Task(tmp_path / "fixed", tmp_path / "out").run() == EXIT_OK


def test_the_copy_is_never_in_place_nor_in_a_folder_with_something_in_it(task, tmp_path, capsys):
    assert verify("--data", task.folder, "--fix", task.folder / "fixed") == EXIT_USAGE
    assert "only read" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert verify("--data", task.folder, "--fix", tmp_path / "full") == EXIT_USAGE
    assert verify("--data", task.folder, "--fix", task.folder) == EXIT_USAGE
    assert verify("--data", task.folder, "--fix", tmp_path / "Task78_Sound") == EXIT_OK
    assert (tmp_path / "Task78_Sound/dataset.json").is_file()


@pytest.mark.parametrize(
    "flags", [("--task", "liver"), ("--tolerance_mm", "-1"), ("--n_jobs", "0"), ("--json", "/nowhere/x.json"), ()]
)
def test_an_unusable_description_or_option_is_a_user_error(task, flags, tmp_path):
    (task.folder / "dataset.json").write_text("{}")
    folder = ["--data", task.folder] if not flags else ["--task", "77", "--data", task.data]
    assert verify(*folder, *flags) == EXIT_USAGE
    assert verify("--data", tmp_path) == EXIT_USAGE


@pytest.mark.slow
def test_real_scans_make_a_task_from_their_folders(real_data, tmp_path):
    folder = real_data / "Task51_SarcomaCT"
    words = ["--images", folder / "imagesTr", "--labels", folder / "labelsTr", "--output", tmp_path / "Sarcoma"]
    assert init(*words, "--link") == EXIT_OK
    content = description(tmp_path / "Task11_Sarcoma")
    assert content["modality"] == {"0": "CT"} and content["numTraining"] == 9


def test_a_link_to_itself_is_a_finding_and_no_traceback(tmp_path, capsys):
    task = make_task(tmp_path)
    for name in ("imagesTr/scan0.nii.gz", "imagesTs/unseen.nii.gz"):
        (task.folder / name).unlink()
        (task.folder / name).symlink_to(Path(name).name)
    argv = ["--data", str(task.folder), "--n_jobs", "1"]
    assert run_cli(lambda: verify_dataset.main(argv)) == 1
    assert run_cli(lambda: verify_dataset.main([*argv, "--fix", str(tmp_path / "fixed")])) == 1
    assert "scan0" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dataset.json", "labelsTr/p1.nii"])
def test_a_report_is_not_written_over_the_data_set(name, scans, capsys):
    assert init(*flags_of(scans)) == EXIT_OK
    folder = scans / "data/Task11_Liver"
    before = (folder / name).read_bytes()
    assert verify("--data", folder, "--json", folder / name) == EXIT_USAGE
    assert f"--json {folder / name} is read here" in capsys.readouterr().err
    assert (folder / name).read_bytes() == before
