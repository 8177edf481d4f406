"""evaluate.py: masks and probabilities against labels, tables and files, every bad input one message."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import evaluate
from tests.tilted import NOISE, PLANES, save_tilted, tilted
from utils.errors import run_cli

LAS = np.diag([-2.0, 1.0, 3.0, 1.0])
LABELS = {"0": "background", "4": "anterior", "7": "posterior"}
# x, y, z = 3, 2, 2; the label has two voxels of 4 and one of 7.
LABEL = np.zeros((3, 2, 2), np.uint8)
LABEL[0, 0], LABEL[2, 1, 1] = 4, 7


def save(path: Path, mask: np.ndarray, affine: np.ndarray = LAS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(mask, affine), path)


@pytest.fixture
def task(tmp_path) -> Path:
    save(tmp_path / "task" / "labelsTr" / "a.nii.gz", LABEL)
    (tmp_path / "task" / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    (tmp_path / "preds").mkdir()
    return tmp_path


def run(task: Path, *flags: str) -> int:
    argv = ["--preds", str(task / "preds"), "--lbls", str(task / "task" / "labelsTr"), *flags]
    return run_cli(lambda: evaluate.main(argv))


def summary(task: Path) -> dict:
    return json.loads((task / "preds" / "summary.json").read_text())


def test_mask_is_scored_by_file_values(task, capsys):
    mask = LABEL.copy()
    mask[0, 0, 0] = 7
    save(task / "preds" / "a.nii.gz", mask)
    assert run(task) == 0
    result = summary(task)
    # anterior: TP 1, FN 1; posterior: TP 1, FP 1.
    assert result["targets"] == ["anterior", "posterior"]
    assert result["dice"] == pytest.approx([2 / 3, 2 / 3]) and result["mean_dice"] == pytest.approx(2 / 3)
    assert "anterior     0.6667" in capsys.readouterr().out


def test_csv_has_a_row_per_case_and_target(task):
    save(task / "preds" / "a.nii.gz", LABEL)
    assert run(task, "--hd95", "--nsd", "--csv", str(task / "each.csv"), "--json", str(task / "all.json")) == 0
    with open(task / "each.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["target"], row["dice"], row["tp"]) for row in rows] == [
        ("a", "anterior", "1.0", "2"),
        ("a", "posterior", "1.0", "1"),
    ]
    assert (rows[0]["hd95_mm"], rows[0]["nsd"]) == ("0.0", "1.0")
    assert json.loads((task / "all.json").read_text())["nsd_tolerance_mm"] == 1.0
    assert not (task / "preds" / "summary.json").exists()


def test_distances_are_in_mm_of_the_file(task):
    label, mask = np.zeros((3, 1, 1), np.uint8), np.zeros((3, 1, 1), np.uint8)
    label[0], mask[2] = 4, 4
    save(task / "task" / "labelsTr" / "a.nii.gz", label)
    save(task / "preds" / "a.nii.gz", mask)
    assert run(task, "--hd95") == 0
    assert summary(task)["hd95_mm"] == [4.0, None]


def test_case_with_one_empty_mask_is_counted_as_missed(task, capsys):
    save(task / "preds" / "a.nii.gz", np.where(LABEL == 7, 0, LABEL))
    assert run(task, "--hd95") == 0
    assert summary(task)["unbounded"] == [0, 1] and summary(task)["hd95_mm"] == [0.0, None]
    assert "missed" in capsys.readouterr().out


def test_class_in_neither_mask_is_left_out(task):
    only_4 = np.where(LABEL == 7, 0, LABEL)
    save(task / "task" / "labelsTr" / "a.nii.gz", only_4)
    save(task / "preds" / "a.nii.gz", only_4)
    assert run(task) == 0
    assert summary(task)["dice"] == [1.0, None] and summary(task)["mean_dice"] == 1.0


def test_probabilities_in_the_file_s_voxel_order(task):
    classes = np.searchsorted([0, 4, 7], LABEL)
    probabilities = np.eye(3, dtype=np.float32)[classes].transpose(3, 2, 1, 0)
    assert probabilities.shape == (3, 2, 2, 3)
    np.save(task / "preds" / "a.npy", probabilities)
    assert run(task) == 0
    assert summary(task)["dice"] == [1.0, 1.0]


def test_mask_array_in_the_file_s_voxel_order(task):
    np.save(task / "preds" / "a.npy", LABEL.T)
    assert run(task) == 0
    assert summary(task)["dice"] == [1.0, 1.0]


def test_nifti_wins_over_the_array_beside_it(task):
    save(task / "preds" / "a.nii.gz", LABEL)
    np.save(task / "preds" / "a.npy", np.zeros((2, 2, 3), np.uint8))
    assert run(task) == 0
    assert summary(task)["num_cases"] == 1 and summary(task)["mean_dice"] == 1.0


BRATS = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}


def test_brats_regions_of_masks(task):
    (task / "task" / "dataset.json").write_text(json.dumps({"labels": BRATS}))
    save(task / "task" / "labelsTr" / "a.nii.gz", np.array([[[0, 1, 2, 3]]], np.uint8))
    save(task / "preds" / "a.nii.gz", np.array([[[0, 1, 1, 1]]], np.uint8))
    assert run(task, "--brats") == 0
    assert summary(task)["targets"] == ["WT", "TC", "ET"] and summary(task)["dice"] == [1.0, 0.0, 0.0]


def test_brats_regions_of_sigmoid_probabilities(task):
    (task / "task" / "dataset.json").write_text(json.dumps({"labels": BRATS}))
    label = np.array([[[0, 1, 2, 3]]], np.uint8)
    save(task / "task" / "labelsTr" / "a.nii.gz", label)
    regions = np.stack([label.T > 0, label.T > 1, label.T > 2]).astype(np.float32)
    np.save(task / "preds" / "a.npy", regions)
    assert run(task, "--brats") == 0
    assert summary(task)["dice"] == [1.0, 1.0, 1.0]


def test_ignored_voxels_enter_no_score(task):
    (task / "task" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "anterior": 4, "ignore": 7}}))
    mask = np.where(LABEL == 7, 4, LABEL)
    save(task / "preds" / "a.nii.gz", mask)
    assert run(task, "--hd95") == 0
    assert summary(task)["dice"] == [1.0] and summary(task)["hd95_mm"] == [0.0]


def test_without_dataset_json_the_values_are_the_classes(task):
    (task / "task" / "dataset.json").unlink()
    save(task / "preds" / "a.nii.gz", LABEL)
    assert run(task) == 0
    assert summary(task)["targets"] == ["4", "7"] and summary(task)["dice"] == [1.0, 1.0]


def assert_refused(task: Path, capsys, *words: str, flags: tuple[str, ...] = ()) -> None:
    assert run(task, *flags) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not list((task / "preds").glob("*.json")) and not list((task / "preds").glob("*.csv"))


def test_no_prediction_is_refused(task, capsys):
    assert_refused(task, capsys, "no predictions")


def test_missing_folder_is_refused(task, capsys):
    assert run_cli(lambda: evaluate.main(["--preds", str(task / "nowhere"), "--lbls", str(task)])) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_all_predictions_without_a_label_are_listed(task, capsys):
    for case in "abc":
        save(task / "preds" / f"{case}.nii.gz", LABEL)
    assert_refused(task, capsys, "b.nii.gz: no label of b", "c.nii.gz: no label of c")


def test_all_predictions_that_do_not_fit_are_listed(task, capsys):
    for case in "abcd":
        save(task / "task" / "labelsTr" / f"{case}.nii.gz", LABEL)
    save(task / "preds" / "a.nii.gz", LABEL[:2])
    save(task / "preds" / "b.nii.gz", LABEL + np.uint8(90))
    save(task / "preds" / "c.nii.gz", LABEL, np.eye(4))
    np.save(task / "preds" / "d.npy", np.zeros((5, 2, 2, 3), np.float32))
    assert_refused(
        task, capsys, "4 of 4", "shape (2, 2, 2), its label (3, 2, 2)", "no label: 90, 94, 97", "mm off its label",
        "d.npy has 5 channels",
    )  # fmt: skip


def test_truncated_prediction_is_refused(task, capsys):
    save(task / "preds" / "a.nii.gz", LABEL)
    content = (task / "preds" / "a.nii.gz").read_bytes()
    (task / "preds" / "a.nii.gz").write_bytes(content[: len(content) // 2])
    assert_refused(task, capsys, "a.nii.gz")


def test_pickled_array_is_refused(task, capsys):
    np.save(task / "preds" / "a.npy", np.array([{}]), allow_pickle=True)
    assert_refused(task, capsys, "a.npy cannot be read")


def test_malformed_label_names_are_refused(task, capsys):
    save(task / "preds" / "a.nii.gz", LABEL)
    (task / "task" / "dataset.json").write_text("{")
    assert_refused(task, capsys, "dataset.json cannot be read as JSON")


def test_output_folder_must_exist(task, capsys):
    save(task / "preds" / "a.nii.gz", LABEL)
    assert_refused(task, capsys, "nowhere is not a folder", flags=("--csv", str(task / "nowhere" / "x.csv")))


@pytest.mark.parametrize("plane", PLANES, ids=str)
@pytest.mark.parametrize("noise", [NOISE, -NOISE])
def test_near_45_degrees_a_mask_is_compared_voxel_by_voxel(tmp_path, plane, noise):
    label = (np.random.default_rng(0).uniform(size=(6, 6, 6)) > 0.5).astype(np.uint8)
    save_tilted(tmp_path / "task/labelsTr/a.nii.gz", label, tilted(plane, noise))
    save_tilted(tmp_path / "preds/a.nii.gz", label, tilted(plane, -noise))
    assert run(tmp_path) == 0
    assert summary(tmp_path)["mean_dice"] == 1


def test_endings_in_capitals_are_scored_and_sub_folders_named(task, capsys):
    save(task / "preds/a.nii.gz", LABEL * 0)
    (task / "preds/a.nii.gz").rename(task / "preds/a.NII.GZ")
    save(task / "preds/fold_1/b.nii.gz", LABEL)
    assert run(task) == 0
    assert summary(task)["mean_dice"] == 0
    assert "left out of --preds" in (printed := capsys.readouterr().err) and "fold_1/" in printed


def test_two_masks_of_one_case_are_refused(task, capsys):
    for name in ("a.nii", "a.nii.gz"):
        save(task / "preds" / name, LABEL)
    assert run(task) == 2
    assert "several files for one case" in capsys.readouterr().err


def test_a_link_that_leads_nowhere_is_refused(task, capsys):
    (task / "preds/a.nii.gz").symlink_to(task / "gone.nii.gz")
    assert run(task) == 2
    assert "a link to" in capsys.readouterr().err


def test_a_dataset_json_with_a_mark_of_its_encoding_names_the_labels(task):
    path = task / "task/dataset.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    save(task / "preds/a.nii.gz", LABEL)
    assert run(task) == 0 and summary(task)["targets"] == ["anterior", "posterior"]


def test_a_name_in_another_encoding_is_scored(task):
    name = os.fsdecode(b"caf\xe9.nii.gz")
    for folder in ("preds", "task/labelsTr"):
        save(task / folder / "x.nii.gz", LABEL)
        (task / folder / "x.nii.gz").rename(task / folder / name)
    assert run(task) == 0
    assert b"caf\xe9,anterior" in (task / "preds/scores.csv").read_bytes()


def test_lesions_are_counted_over_all_cases(task, capsys):
    # Two lesions of `anterior`, 3 voxels apart; the mask finds one and invents one of `posterior`.
    label, mask = np.zeros((9, 1, 1), np.uint8), np.zeros((9, 1, 1), np.uint8)
    label[[0, 1, 4]], mask[[1, 7]] = 4, [[[4]], [[7]]]
    for case in ("a", "b"):
        save(task / "task" / "labelsTr" / f"{case}.nii.gz", label)
    save(task / "preds" / "a.nii.gz", mask)
    save(task / "preds" / "b.nii.gz", label)
    assert run(task, "--lesions") == 0
    found = summary(task)
    assert found["lesions"] == [
        {"true": 4, "found": 3, "claimed": 3, "false": 0}, {"true": 0, "found": 0, "claimed": 1, "false": 1},
    ]  # fmt: skip
    assert found["lesion_sensitivity"] == [0.75, None] and found["lesion_precision"] == [1.0, 0.0]
    assert found["lesion_f1"] == pytest.approx([6 / 7, 0.0])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["target", "Dice", "lesions", "found", "false", "F1"]
    assert printed[1].split()[2:] == ["4", "3", "0", "0.8571"] and printed[3].split()[2:] == ["4", "3", "1", "0.4286"]
    with open(task / "preds" / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    columns = ("lesions", "lesions_found", "lesions_claimed", "lesions_false")
    assert [tuple(row[name] for name in columns) for row in rows[:2]] == [("2", "1", "1", "0"), ("0", "0", "1", "1")]
    page = (task / "preds" / "report.html").read_text()
    assert "1 of 2" in page and "false lesions posterior" in page and "lesion F1" in page


def test_parts_of_a_mask_are_whole_where_the_label_is_ignored(task):
    (task / "task" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "anterior": 4, "ignore": 7}}))
    label, mask = np.zeros((9, 1, 1), np.uint8), np.zeros((9, 1, 1), np.uint8)
    label[0], label[1:3], label[7], mask[:4], mask[7] = 4, 7, 7, 4, 4
    save(task / "task" / "labelsTr" / "a.nii.gz", label)
    save(task / "preds" / "a.nii.gz", mask)
    assert run(task, "--lesions", "--hd95") == 0
    # One part meets the lesion and goes on beyond; the other lies in what is ignored. Voxels are 2 mm apart.
    found = summary(task)
    assert found["lesions"] == [{"true": 1, "found": 1, "claimed": 1, "false": 0}]
    assert found["dice"] == pytest.approx([2 / 3]) and 0 < found["hd95_mm"][0] <= 6


@pytest.mark.parametrize(
    "array",
    [
        np.full((2, 2, 3), np.nan, np.float32), np.full((3, 2, 2, 3), np.inf, np.float32), np.array(1.0),
        np.array(["a"]), np.zeros((2, 2, 3), np.complex64),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("described", [True, False])
def test_an_array_that_is_no_mask_and_no_probabilities_is_refused(array, described, task, capsys):
    if not described:
        (task / "task" / "dataset.json").unlink()
    np.save(task / "preds" / "a.npy", array)
    assert_refused(task, capsys, "a.npy holds")


@pytest.mark.parametrize("flag", ["--csv", "--json"])
@pytest.mark.parametrize("target", ["preds/a.nii.gz", "task/labelsTr/a.nii.gz", "task/dataset.json"])
def test_what_is_read_is_not_written_over(flag, target, task, capsys):
    save(task / "preds" / "a.nii.gz", LABEL)
    before = (task / target).read_bytes()
    assert_refused(task, capsys, f"{flag} {task / target} is read here", flags=(flag, str(task / target)))
    assert (task / target).read_bytes() == before
