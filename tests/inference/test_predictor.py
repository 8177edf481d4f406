"""The Python API: arrays and files in, masks out, the same as those of the stages one by one."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from data_preprocessing.restoration import restore_mask, restore_probabilities
from inference.archive import write_archive
from inference.configuration import read_configuration
from inference.configuration_predictor import window_batch
from inference.model import single_model
from inference.predictor import Predictor
from inference.preparing import as_volume, read_scan
from models.inferer import InferenceSettings, to_probabilities
from models.sliding_window import predict_volume
from tests.models.builders import BRATS, TWO_CLASSES, make_plan, make_stage, with_spacing
from tests.models.checkpoints import save_ours
from utils.errors import UserError

SPACING = (1.5, 1.0, 0.7)


def scan(shape=(13, 10, 15), channels=None, seed=0):
    image = np.random.default_rng(seed).uniform(1, 9, shape if channels is None else (channels, *shape))
    image[..., :2] = 0
    return image


def predictor_of(folder, plan, seeds=(1,), **options):
    for seed in seeds:
        (folder / f"fold_{seed}").mkdir(parents=True)
        save_ours(folder / f"fold_{seed}/last.ckpt", plan, seed=seed)
    return Predictor.load(folder, device="cpu", **options)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [TWO_CLASSES, BRATS], ids=["classes", "regions"])
@pytest.mark.parametrize("stage", [make_stage((8, 8, 8)), make_stage((8, 8))], ids=["3d", "2d"])
def test_mask_is_that_of_the_stages_one_by_one(tmp_path, stage, labels):
    plan = with_spacing(make_plan(stage, labels), (1.2,) * stage.dim)
    predictor = predictor_of(tmp_path, plan)
    mask = predictor.predict(scan(), SPACING)
    [prepared], [one] = predictor.prepare(as_volume(scan(), SPACING)), predictor.configurations
    logits = predict_volume(
        torch.from_numpy(prepared.image)[None],
        one.ensemble.networks[0],
        num_outputs=labels.num_outputs,
        stage=stage,
        settings=predictor.settings,
    )
    probabilities = to_probabilities(logits, labels)[0].numpy()
    assert mask.dtype == np.uint8 and mask.shape == (13, 10, 15) and len(np.unique(mask)) > 1
    np.testing.assert_array_equal(mask, restore_mask(probabilities, prepared.meta, plan))
    np.testing.assert_allclose(
        predictor.predict_probabilities(scan(), SPACING),
        restore_probabilities(probabilities, prepared.meta, plan),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


@pytest.mark.slow
def test_folds_are_averaged(tmp_path):
    plan = make_plan()
    both = predictor_of(tmp_path, plan, seeds=(1, 2))
    singles = [Predictor.load(tmp_path, folds=[fold], device="cpu") for fold in (1, 2)]
    each = [predictor.predict_probabilities(scan(), SPACING) for predictor in singles]
    np.testing.assert_allclose(both.predict_probabilities(scan(), SPACING), sum(each) / 2, rtol=1e-5, atol=1e-6)
    assert both.weight_bytes == 2 * singles[0].weight_bytes


def test_channel_axis_may_be_left_out_for_one_channel(tmp_path):
    predictor = predictor_of(tmp_path, make_plan())
    np.testing.assert_array_equal(predictor.predict(scan()[None], SPACING), predictor.predict(scan(), SPACING))


@pytest.mark.slow
def test_file_in_any_orientation_gives_the_mask_of_its_array(tmp_path):
    predictor = predictor_of(tmp_path / "model", make_plan(num_channels=2))
    image = scan(channels=2)
    # Stored as (x, y, z, c) with x running from right to left.
    stored = image.transpose(3, 2, 1, 0)[::-1].astype(np.float32)
    affine = np.diag([-SPACING[2], SPACING[1], SPACING[0], 1.0])
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "both.nii.gz")
    for channel in range(2):
        nib.save(nib.Nifti1Image(stored[..., channel], affine), tmp_path / f"a_000{channel}.nii.gz")
    expected = predictor.predict(image, SPACING)
    prediction = predictor.predict_file(tmp_path / "both.nii.gz")
    assert prediction.geometry.shape_xyz == (15, 10, 13)
    np.testing.assert_array_equal(prediction.mask, expected)
    split = predictor.predict_file([tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"])
    np.testing.assert_array_equal(split.mask, expected)


@pytest.mark.slow
def test_exported_model_predicts_the_same(tmp_path):
    predictor = predictor_of(tmp_path / "runs", make_plan(), seeds=(1, 2))
    write_archive(tmp_path / "model.zip", single_model(read_configuration(tmp_path / "runs")))
    np.testing.assert_array_equal(
        Predictor.load(tmp_path / "model.zip", device="cpu").predict(scan(), SPACING),
        predictor.predict(scan(), SPACING),
    )


def test_image_in_memory_is_left_alone(tmp_path):
    image = scan().astype(np.float32)
    before = image.copy()
    predictor_of(tmp_path, make_plan()).predict(image, SPACING)
    np.testing.assert_array_equal(image, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "spacing", "reason"),
    [
        (np.ones((3, 4)), SPACING, "shape"),
        (np.ones((3, 4, 5)), (1, 1), "voxel sizes"),
        (np.ones((3, 4, 5)), (1, 1, 0), "voxel sizes"),
        (np.ones((2, 3, 4, 5)), SPACING, "2 channels"),
        (np.zeros((3, 4, 5)), SPACING, "zero"),
        (np.full((3, 4, 5), np.nan), SPACING, "NaN or infinite"),
        (np.full((3, 4, 5), np.inf), SPACING, "NaN or infinite"),
    ],
)
def test_unfit_images_are_refused(tmp_path, image, spacing, reason):
    with pytest.raises(UserError, match=reason):
        predictor_of(tmp_path, make_plan()).predict(image, spacing)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cuda:99", "gpu"])
def test_devices_that_are_not_there_are_refused(tmp_path, device):
    save_ours(tmp_path / "last.ckpt", make_plan())
    with pytest.raises(UserError):
        Predictor.load(tmp_path, device=device)


def test_large_feature_maps_and_logits_go_through_one_window_at_a_time(monkeypatch):
    large, small = make_stage((128, 128, 128), filters=(32, 64, 128)), make_stage((8, 8, 8))
    wide, cpu = make_stage((64, 64, 64)), torch.device("cpu")
    assert window_batch(large, cpu, num_outputs=3, tta=False) == 1
    assert window_batch(small, cpu, num_outputs=3, tta=False) == window_batch(wide, cpu, num_outputs=3, tta=True) == 4
    # 105 classes of 64 ** 3 voxels are 110 MB, three of them while flips are summed up.
    assert window_batch(wide, cpu, num_outputs=105, tta=True) == 3
    free_bytes = 10**11
    monkeypatch.setattr("inference.configuration_predictor.free_device_bytes", lambda device: free_bytes)
    assert window_batch(large, torch.device("cuda"), num_outputs=3, tta=False) == 4
    free_bytes = 10**9
    assert window_batch(large, torch.device("cuda"), num_outputs=3, tta=False) == 1


def test_settings_are_the_callers(tmp_path):
    settings = InferenceSettings(tta=True, window_batch=3)
    assert predictor_of(tmp_path, make_plan(), settings=settings).settings == settings


def test_programs_that_import_it_from_its_old_place_go_on_working():
    import inference
    from scripts import predictor

    assert predictor.Predictor is inference.Predictor is Predictor and predictor.as_volume is as_volume


@pytest.mark.parametrize(
    ("image", "spacing_mm"),
    [(np.zeros((4, 4, 4)), None), (np.zeros((4, 4, 4), complex), (1, 1, 1)), ("scan", (1, 1, 1))],
)
def test_what_is_no_image_is_refused(image, spacing_mm):
    with pytest.raises(UserError, match="real numbers with three positive voxel sizes"):
        as_volume(image, spacing_mm)


def test_no_file_is_no_scan():
    with pytest.raises(UserError, match="no file was given"):
        read_scan([])
