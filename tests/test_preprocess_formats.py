"""Data sets in NRRD, MetaImage and PNG: the shards of the same data set in NIfTI, and 2D ones of colour pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest

import evaluate
from data_preprocessing.dataset.builder import Sources, collect, write_dataset
from data_preprocessing.dataset.checks import check_case, read_case
from data_preprocessing.dataset.description_file import load_dataset
from data_preprocessing.dataset.repair import copy_file
from tests.tiny_task import Task, make_task
from utils.errors import run_cli
from utils.nifti import read_image, read_label, write_mask, write_volume
from utils.scan_names import scan_stem

sitk = pytest.importorskip("SimpleITK", reason="the extra `formats` is not installed")


@pytest.mark.slow
def test_shards_of_other_formats_are_those_of_nifti(tmp_path):
    nifti = make_task(tmp_path / "nifti")
    other = make_task(tmp_path / "other")
    for path in sorted(other.folder.glob("*T[rs]/*.nii.gz")):
        volume = read_label(path) if "labels" in str(path) else read_image([path])
        array = volume.array.astype(np.uint8) if volume.array.ndim == 3 else volume.array[0]
        write_volume(
            path.with_name(scan_stem(path) + (".mha" if "scan1" in path.name else ".nrrd")), array, volume.geometry
        )
        path.unlink()
    text = (other.folder / "dataset.json").read_text().replace("scan1.nii.gz", "scan1.mha").replace(".nii.gz", ".nrrd")
    (other.folder / "dataset.json").write_text(text)
    assert nifti.run("--nfolds", "3") == 0 and other.run("--nfolds", "3") == 0
    for path in sorted((nifti.results / "77_3d").glob("*.npy")):
        assert path.read_bytes() == (other.results / "77_3d" / path.name).read_bytes(), path.name
    assert len(list((other.results / "77_3d").glob("*_x.npy"))) == 3


@pytest.fixture
def pictures(tmp_path) -> Task:
    """A data set of nnU-Net v2's form: colour pictures and grey labels."""
    task = Task(tmp_path / "data", tmp_path / "results")
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (task.folder / name).mkdir(parents=True)
    for index in range(4):
        colours = rng.integers(1, 255, (24, 30, 3), dtype=np.uint8)
        label = np.zeros((24, 30), np.uint8)
        label[4:12, 6 : 12 + index] = 1
        sitk.WriteImage(
            sitk.GetImageFromArray(colours, isVector=True), str(task.folder / f"imagesTr/p{index}_0000.png")
        )
        sitk.WriteImage(sitk.GetImageFromArray(label), str(task.folder / f"labelsTr/p{index}.png"))
    content = {
        "channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "road": 1}, "numTraining": 4,
        "file_ending": ".png",
    }  # fmt: skip
    (task.folder / "dataset.json").write_text(json.dumps(content))
    return task


def test_colour_pictures_are_cases_of_three_channels(pictures):
    dataset = load_dataset(pictures.data, "77")
    assert [case.case for case in dataset.training] == ["p0", "p1", "p2", "p3"]
    image, label, findings = read_case(dataset.training[0])
    assert image.array.shape == (3, 1, 24, 30) and label.array.sum() == 8 * 6
    assert not findings + check_case(dataset.training[0], image, label, dataset)


@pytest.mark.slow
def test_pictures_are_prepared_for_2d_and_their_masks_are_scored(pictures, tmp_path):
    assert pictures.run("--dim", "2", "--nfolds", "2") == 0
    assert np.load(pictures.results / "77_2d/p0_x.npy").shape[:2] == (3, 1)
    (tmp_path / "preds").mkdir()
    for path in sorted((pictures.folder / "labelsTr").iterdir()):
        volume = read_label(path)
        write_mask(tmp_path / "preds" / path.name, volume.array.astype(np.uint8), volume.geometry)
    words = ["--preds", str(tmp_path / "preds"), "--lbls", str(pictures.folder / "labelsTr")]
    assert run_cli(lambda: evaluate.main(words)) == 0
    assert json.loads((tmp_path / "preds/summary.json").read_text())["mean_dice"] == 1.0


def test_a_header_with_its_voxels_elsewhere_becomes_one_file_of_a_new_data_set(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        for case in "ab":
            array = rng.integers(0, 2, (4, 5, 6), dtype=np.uint8)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name / f"{case}.mhd"))
    found = collect(Sources(images=(str(tmp_path / "images"),), labels=(str(tmp_path / "labels"),)), ["MRI"])
    write_dataset(tmp_path / "Task77_New", found, ["MRI"], {0: "background", 1: "x"}, link=True)
    dataset = load_dataset(tmp_path, "77")
    assert [path.name for case in dataset.training for path in case.images] == ["a.mha", "b.mha"]
    copy_file(tmp_path / "images/a.mhd", tmp_path, tmp_path / "repaired")
    copied, before = (read_image([tmp_path / f"{place}images/a.mhd"]) for place in ("repaired/", ""))
    np.testing.assert_array_equal(copied.array, before.array)
    for name in "ab":
        before, after = (read_image([tmp_path / p]) for p in (f"images/{name}.mhd", f"Task77_New/imagesTr/{name}.mha"))
        np.testing.assert_array_equal(before.array, after.array)
