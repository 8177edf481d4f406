"""The numbers in the arrays that preprocess.py writes, and that they are those of raw inference."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from data_preprocessing.planning.plan_file import read_plan
from data_preprocessing.shards import read_meta
from inference.predictor import Predictor
from inference.preparing import prepare_scan, read_scan
from tests.data_preprocessing.builders import nearest, stripped, zscore
from tests.models.checkpoints import save_ours
from tests.tiny_task import Task, make_task, write_scan
from utils.errors import EXIT_USAGE
from utils.files import read_json
from utils.schema import Plan

SHAPE = (20, 24, 22)


@pytest.fixture
def skull_stripped(tmp_path) -> Task:
    """Scans whose background is 0, three at the target spacing and two that have to be resampled."""
    task = make_task(tmp_path, num_cases=5, shape=SHAPE)
    for index, spacing_mm in enumerate(((1.0,) * 3, (1.0,) * 3, (1.25,) * 3, (1.0,) * 3, (0.8, 0.8, 0.9))):
        affine = np.diag([*spacing_mm, 1.0])
        write_scan(task.folder / f"imagesTr/scan{index}.nii.gz", stripped(SHAPE, seed=index), affine)
        label = np.zeros(SHAPE, np.uint8)
        label[8:12, 9:14, 7:11] = 1
        write_scan(task.folder / f"labelsTr/scan{index}.nii.gz", label, affine)
    return task


def case_arrays(task: Task) -> dict[str, np.ndarray]:
    return {
        f"scan{i}": np.load(task.results / f"77_3d/scan{i}_x.npy") for i in range(len(task.description()["training"]))
    }


def test_scans_with_a_background_of_zeros_are_alike_whether_resampled_or_not(skull_stripped):
    task = skull_stripped
    assert task.run() == 0
    folder = task.results / "77_3d"
    for case, image in case_arrays(task).items():
        native = nib.load(task.folder / f"imagesTr/{case}.nii.gz").get_fdata().astype(np.float32).transpose(2, 1, 0)
        meta = read_meta(folder, case)
        inner = tuple(slice(low, low + n) for low, n in zip(meta.pad_low, meta.resampled_shape))
        volume, background = image[0][inner], nearest(native, meta.resampled_shape) == 0
        assert not volume[background].any()
        if meta.resampled_shape == native.shape:
            np.testing.assert_allclose(volume, zscore(native), atol=1e-5)
        else:
            # Interpolation takes a little of the noise away, and mixes the rim with the 0 outside.
            tissue = volume[~background]
            assert abs(tissue.mean()) < 0.02 and 0.8 < tissue.std() < 1
        outside = np.ones(image[0].shape, bool)
        outside[inner] = False
        assert not image[0][outside].any()
    assert {read_meta(folder, case).resampled_shape for case in ("scan2", "scan4")} == {(28, 30, 25), (20, 19, 16)}


@pytest.mark.slow
def test_raw_inference_prepares_scans_bit_for_bit_as_preprocess_does(skull_stripped, tmp_path):
    task = skull_stripped
    assert task.run("--ohe") == 0
    plan = read_plan(task.results / "77_3d")
    assert plan.normalize_first
    (tmp_path / "fold_0").mkdir()
    save_ours(tmp_path / "fold_0/last.ckpt", plan)
    predictor = Predictor.load(tmp_path, device="cpu")
    for case, image in case_arrays(task).items():
        volume, name = read_scan(task.folder / f"imagesTr/{case}.nii.gz")
        [prepared] = predictor.prepare(volume, name)
        np.testing.assert_array_equal(prepared.image, image)
        np.testing.assert_array_equal(prepare_scan(volume, plan, name).image, image)


def test_a_model_of_an_earlier_version_prepares_scans_in_the_old_order(skull_stripped):
    task = skull_stripped
    task.run()
    content = json.loads((task.results / "77_3d/plan.json").read_text())
    del content["normalize_first"]
    (task.results / "old.json").write_text(json.dumps(content))
    old, new = (read_json(Plan, task.results / name) for name in ("old.json", "77_3d/plan.json"))
    for case, differs in (("scan0", False), ("scan2", True)):
        volume, name = read_scan(task.folder / f"imagesTr/{case}.nii.gz")
        images = [prepare_scan(volume, plan, name).image for plan in (old, new)]
        assert np.array_equal(*images) != differs


@pytest.mark.slow
def test_shards_of_an_earlier_version_are_made_anew(skull_stripped, monkeypatch):
    task = skull_stripped
    with monkeypatch.context() as patched:
        patched.setattr("data_preprocessing.shards.FORMAT", 1)
        task.run()
    assert task.run() == 0
    record = json.loads((task.results / "77_3d/run.json").read_text())
    assert {case["status"] for case in record["outcome"]["cases"].values()} == {"written"}
    task.run()
    record = json.loads((task.results / "77_3d/run.json").read_text())
    assert {case["status"] for case in record["outcome"]["cases"].values()} == {"kept"}


def test_a_label_that_becomes_ignored_makes_the_shards_anew(tmp_path):
    task = make_task(tmp_path)
    for index in range(3):
        label = np.zeros((10, 14, 12), np.uint8)
        label[2:4, 3:7, 2:5], label[6:8, 3:7, 2:5] = 1, 2
        write_scan(task.folder / f"labelsTr/scan{index}.nii.gz", label)
    task.describe(labels={"background": 0, "organ": 1, "rim": 2})
    assert task.run() == 0
    label = np.load(task.results / "77_3d/scan0_y.npy")[0]
    rows = np.load(task.results / "77_3d/scan0_fg.npy")
    assert set(label[tuple(rows.T)]) == {1, 2}
    # The classes of the label file stay the same; patches must not be centred on what is ignored.
    task.describe(labels={"background": 0, "organ": 1, "ignore": 2})
    assert task.run() == 0
    rows = np.load(task.results / "77_3d/scan0_fg.npy")
    assert set(label[tuple(rows.T)]) == {1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NoNorm", lambda x: x),
        ("rescale_TO_0_1", lambda x: (x - x.min()) / (x.max() - x.min())),
        ("RGB_to_0_1", lambda x: x / 255),
        ("zScore", zscore),
    ],
)
def test_the_channels_name_chooses_how_shards_are_normalised(tmp_path, capsys, name, expected):
    task = make_task(tmp_path, num_cases=2)
    image = np.random.default_rng(0).uniform(0, 255, (10, 14, 12)).astype(np.float32)
    for index in range(2):
        write_scan(task.folder / f"imagesTr/scan{index}.nii.gz", image)
    task.describe(modality={"0": name})
    assert task.run() == 0
    native = image.transpose(2, 1, 0)
    inner = np.load(task.results / "77_3d/scan0_x.npy")[0][:, :14, :10]
    assert inner.shape == native.shape
    np.testing.assert_allclose(inner, expected(native), atol=1e-5)
    assert "as for every name but" not in capsys.readouterr().out


def test_ct_is_clipped_to_the_percentiles_and_scaled_by_the_foreground(tmp_path):
    # 10,000 labelled voxels, all of which count.
    task = make_task(tmp_path, num_cases=2, shape=(20, 25, 20))
    image = np.random.default_rng(0).normal(50, 300, (20, 25, 20)).round().astype(np.float32)
    for index in range(2):
        write_scan(task.folder / f"imagesTr/scan{index}.nii.gz", image)
        write_scan(task.folder / f"labelsTr/scan{index}.nii.gz", np.ones((20, 25, 20), np.uint8))
    task.describe(modality={"0": "Ct"})
    assert task.run() == 0
    channel = read_plan(task.results / "77_3d").channels[0]
    low, high = np.percentile(image, (0.5, 99.5))
    assert (channel.lower, channel.upper) == pytest.approx((low, high), abs=1e-3)
    expected = (np.clip(image, low, high) - image.mean()) / image.std()
    written = np.load(task.results / "77_3d/scan0_x.npy")[0]
    inner = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(written.shape, (20, 25, 20)))
    np.testing.assert_allclose(written[inner], expected.transpose(2, 1, 0), atol=1e-5)


def test_an_unknown_name_is_z_scored_with_a_remark(tmp_path, capsys):
    task = make_task(tmp_path, num_cases=2)
    task.describe(modality={"0": "T1"})
    assert task.run() == 0
    assert "as for every name but CT, noNorm, rescale_to_0_1, rgb_to_0_1" in " ".join(capsys.readouterr().out.split())


def test_intensities_that_are_no_rgb_stop_the_run_before_anything_is_written(tmp_path, capsys):
    task = make_task(tmp_path, num_cases=2)
    write_scan(task.folder / "imagesTr/scan1.nii.gz", np.full((10, 14, 12), 300, np.float32))
    task.describe(modality={"0": "rgb_to_0_1"})
    assert task.run() == EXIT_USAGE
    assert "channel 0 (rgb_to_0_1) holds 300 .. 300, and rgb_to_0_1 is for 0 .. 255" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not list(task.results.glob("**/*.npy"))
