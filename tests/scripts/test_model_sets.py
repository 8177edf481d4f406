"""Cascades, ensembles of configurations and post-processing: the masks of the steps done one by one."""

from __future__ import annotations

import dataclasses
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from data_preprocessing.cascade import previous_classes
from data_preprocessing.restoration import restore_mask
from inference import predictor as predictor_module
from inference.archive import read_archive
from inference.configuration import build_networks, read_configuration
from inference.decision import PostProcessing
from inference.model import folder_model
from inference.postprocessing import keep_largest
from inference.predictor import Predictor
from inference.preparing import as_volume
from models.inferer import InferenceSettings, to_probabilities
from models.sliding_window import predict_volume
from scripts import export_model
from tests.models.builders import TWO_CLASSES, make_network, make_plan
from tests.models.checkpoints import save_ours
from tests.scripts.trained import (
    FULL,
    LOW,
    ORGAN_ONLY,
    PLANS,
    SECOND,
    SPACING,
    decide,
    masks,
    predict,
    scan,
    train,
    write_scans,
)
from tests.tiny_task import write_scan
from utils.errors import UserError
from utils.nifti import Volume
from utils.schema import ChannelPlan, LabelScheme, Plan


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path / "scans")


@pytest.mark.slow
def test_a_cascade_is_its_two_stages_one_by_one(tmp_path):
    train(tmp_path, "3d_lowres", "3d_cascade_fullres")
    predictor = Predictor.load(tmp_path / "04_3d_cascade_fullres", device="cpu")
    [cascade] = predictor.configurations
    first = Predictor.load(tmp_path / "04_3d_lowres", device="cpu")
    volume = as_volume(scan(), SPACING)
    mask = Volume(array=first.predict(scan(), SPACING), spacing_mm=SPACING, geometry=volume.geometry)
    prepared = cascade.prepare(volume, "scan")
    [classes] = previous_classes(mask, prepared.meta, SECOND)
    assert len(np.unique(classes)) > 1
    image = np.concatenate([prepared.image, np.stack([classes == 1, classes == 2])]).astype(np.float32)
    np.testing.assert_array_equal(cascade._with_previous(prepared), image)
    networks = build_networks(read_configuration(tmp_path / "04_3d_cascade_fullres"), torch.device("cpu"))
    tensor = torch.from_numpy(image)[None]
    logits = [
        predict_volume(tensor, each, num_outputs=3, stage=SECOND.stage, settings=cascade.settings) for each in networks
    ]
    probabilities = sum(to_probabilities(each, TWO_CLASSES)[0].numpy() for each in logits) / 2
    by_hand = restore_mask(probabilities, prepared.meta, SECOND)
    assert len(np.unique(by_hand)) > 1
    np.testing.assert_array_equal(predictor.predict(scan(), SPACING), by_hand)
    assert cascade.weight_bytes > first.weight_bytes
    settings = InferenceSettings(window_batch=3)
    [chosen] = Predictor.load(tmp_path / "04_3d_cascade_fullres", device="cpu", settings=settings).configurations
    assert chosen.previous.settings == chosen.settings == settings


@pytest.mark.slow
def test_the_first_stage_changes_what_the_second_says(tmp_path):
    train(tmp_path, "3d_lowres", "3d_cascade_fullres")
    before = Predictor.load(tmp_path / "04_3d_cascade_fullres", device="cpu").predict_probabilities(scan(), SPACING)
    save_ours(tmp_path / "04_3d_lowres/fold_0/checkpoints/last.ckpt", LOW, seed=99)
    after = Predictor.load(tmp_path / "04_3d_cascade_fullres", device="cpu").predict_probabilities(scan(), SPACING)
    assert not np.allclose(before, after)


@pytest.mark.slow
def test_an_ensemble_is_the_mean_of_its_members(tmp_path):
    train(tmp_path, "2d", "3d_fullres")
    both = Predictor.load(decide(tmp_path, "2d", "3d_fullres"), device="cpu")
    assert len(both.configurations) == 2 and both.adds_up
    each = [Predictor.load(tmp_path / f"04_{name}", device="cpu") for name in ("2d", "3d_fullres")]
    mean = sum(predictor.predict_probabilities(scan(), SPACING) for predictor in each) / 2
    np.testing.assert_allclose(both.predict_probabilities(scan(), SPACING), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(both.predict(scan(), SPACING), mean.argmax(0))
    assert both.weight_bytes == sum(predictor.weight_bytes for predictor in each)


@pytest.mark.slow
def test_an_ensemble_speaks_of_odd_intensities_once(tmp_path, capsys):
    train(tmp_path, "2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
    best = decide(tmp_path, "2d", "3d_fullres", "3d_cascade_fullres")
    image = scan().astype(np.float32)
    image[0, 0, 0] = np.nan
    for name in "ab":
        write_scan(tmp_path / f"scans/{name}.nii.gz", image)
    assert predict("--input", tmp_path / "scans", "--output", tmp_path / "masks", "--model", best) == 0
    assert capsys.readouterr().err.count("1 NaN or infinite intensities") == 2
    Predictor.load(best, device="cpu").predict(image, SPACING)
    assert capsys.readouterr().err.count("1 NaN or infinite intensities") == 1


@pytest.mark.slow
def test_an_ensemble_holds_no_volume_of_probabilities(tmp_path, monkeypatch):
    train(tmp_path, "2d", "3d_fullres")
    both = Predictor.load(decide(tmp_path, "2d", "3d_fullres"), device="cpu")
    expected = both.predict_probabilities(scan(), SPACING).argmax(0)
    held, collect = [], Predictor.collect

    def watch(self, slabs, stored=None):
        held.append(type(stored))
        return collect(self, slabs, stored)

    monkeypatch.setattr(Predictor, "collect", watch)
    monkeypatch.setattr(predictor_module, "SLAB_VALUES", 1)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    np.testing.assert_array_equal(both.predict(scan(), SPACING), expected)
    # All of them lie in a file, which is gone afterwards.
    assert held == [np.memmap] and not list(tmp_path.glob("nnunet-*"))


@pytest.mark.slow
def test_post_processing_is_applied_unless_it_is_switched_off(tmp_path, scans, capsys):
    train(tmp_path, "3d_fullres")
    plain = Predictor.load(tmp_path / "04_3d_fullres", device="cpu")
    decided = Predictor.load(decide(tmp_path, "3d_fullres", post=ORGAN_ONLY), device="cpu")
    mask = plain.predict(scan(), SPACING)
    expected = keep_largest(mask, TWO_CLASSES, ORGAN_ONLY)
    assert not np.array_equal(mask, expected)
    np.testing.assert_array_equal(decided.predict(scan(), SPACING), expected)
    words = ["--input", scans, "--model", tmp_path / "04_best"]
    assert predict(*words, "--output", tmp_path / "with") == 0
    assert "largest component of all foreground, anterior, posterior" in capsys.readouterr().out
    assert predict(*words, "--output", tmp_path / "without", "--no-postprocessing") == 0
    for name, mask in masks(tmp_path / "without").items():
        processed = masks(tmp_path / "with")[name]
        np.testing.assert_array_equal(processed.T, keep_largest(mask.T, TWO_CLASSES, ORGAN_ONLY))
    assert predict("--input", scans, "--model", tmp_path / "04_3d_fullres", "--output", tmp_path / "x",
                   "--no-postprocessing") == 0  # fmt: skip
    assert "--no-postprocessing has no effect" in capsys.readouterr().err


@pytest.mark.slow
def test_an_exported_ensemble_gives_the_same_bytes_from_one_file_in_an_empty_folder(tmp_path, scans, monkeypatch):
    train(tmp_path / "here", "2d", "3d_lowres", "3d_cascade_fullres")
    best = decide(tmp_path / "here", "2d", "3d_cascade_fullres", post=ORGAN_ONLY)
    words = ["--input", scans, "--folds", "1"]
    assert predict(*words, "--model", best, "--output", tmp_path / "one") == 0
    assert export_model.main(["--model", str(best), "--output", str(tmp_path / "model.zip")]) == 0
    for path in (tmp_path / "here").rglob("*.ckpt"):
        path.unlink()
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert "members/3d_cascade_fullres/previous/fold_1.safetensors" in archive.namelist()
    # Whatever the file is called.
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.zip").rename(tmp_path / "empty/model.bin")
    monkeypatch.chdir(tmp_path / "empty")
    assert predict(*words, "--model", "model.bin", "--output", "masks") == 0
    for name in ("a.nii.gz", "b.nii.gz"):
        assert (tmp_path / "one" / name).read_bytes() == Path("masks", name).read_bytes()
    models = read_archive(Path("model.bin"))
    assert models.post_processing == ORGAN_ONLY and models.decision.scores == {"2d": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("members/2d/../x.safetensors", "not safe to read"),
        ("members/a b/plan.json", "not safe to read"),
        ("members/2d/code.py", "not safe to read"),
        ("members/other/plan.json", "belongs to none of its models"),
        ("plan.json", "belongs to none of its models"),
    ],
)
def test_strange_members_of_an_archive_are_refused(tmp_path, name, reason):
    train(tmp_path, "2d", "3d_fullres")
    best = decide(tmp_path, "2d", "3d_fullres")
    assert export_model.main(["--model", str(best), "--output", str(tmp_path / "model.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "model.zip", "a") as archive:
        archive.writestr(name, b"{}")
    with pytest.raises(UserError, match=reason):
        read_archive(tmp_path / "model.zip")


def test_a_cascade_without_its_first_stage_is_refused_with_the_way_out(tmp_path):
    train(tmp_path, "3d_cascade_fullres")
    with pytest.raises(UserError, match="04_3d_lowres, is in no folder above"):
        folder_model(tmp_path / "04_3d_cascade_fullres")


def other_labels() -> Plan:
    return dataclasses.replace(FULL, labels=LabelScheme(names=("background", "x"), values=(0, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (other_labels(), "different label schemes"),
        (make_plan(num_channels=2), "channels of a scan: MRI 0; MRI 0, MRI 1"),
        (dataclasses.replace(FULL, channels=(ChannelPlan(name="CT", scheme="zscore"),)), "of a scan: MRI 0; CT"),
    ],
)
def test_models_that_do_not_belong_together_are_refused_with_both_names(tmp_path, plan, reason, monkeypatch):
    monkeypatch.setitem(PLANS, "3d_fullres", plan)
    train(tmp_path, "2d", "3d_fullres")
    with pytest.raises(UserError, match=reason) as error:
        folder_model(decide(tmp_path, "2d", "3d_fullres"))
    assert "04_2d" in str(error.value) and "04_3d_fullres" in str(error.value)


def test_a_first_stage_of_another_kind_is_refused_with_both_names(tmp_path):
    train(tmp_path, "2d", "3d_cascade_fullres")
    folder = decide(tmp_path, "3d_cascade_fullres")
    text = (folder / "decision.json").read_text()
    (folder / "decision.json").write_text(text.replace("../04_3d_lowres", "../04_2d"))
    with pytest.raises(UserError, match=r"04_3d_cascade_fullres.* comes after 3d_lowres, but .*04_2d is 2d"):
        folder_model(folder)


def test_the_first_stage_is_found_from_inside_the_second(tmp_path, monkeypatch):
    train(tmp_path, "3d_lowres", "3d_cascade_fullres")
    monkeypatch.chdir(tmp_path / "04_3d_cascade_fullres/fold_0")
    for path in (".", "..", "checkpoints/last.ckpt"):
        [member] = folder_model(Path(path)).configurations
        assert member.previous.source == tmp_path / "04_3d_lowres"


def test_post_processing_of_classes_that_are_not_there_is_refused(tmp_path):
    train(tmp_path, "3d_fullres")
    best = decide(tmp_path, "3d_fullres", post=PostProcessing(classes=("anterior", "liver")))
    with pytest.raises(UserError, match=r"names liver; the classes of .* are anterior, posterior"):
        folder_model(best)


@pytest.mark.slow
@pytest.mark.parametrize("through_zip", [False, True])
def test_flips_that_were_never_trained_are_warned_of(tmp_path, scans, capsys, through_zip):
    folder = train(tmp_path, "3d_fullres") / "04_3d_fullres"
    for path in folder.rglob("last.ckpt"):
        content = torch.load(path, weights_only=True)
        content["hyper_parameters"]["mirrored"] = False
        torch.save(content, path)
    assert not read_configuration(folder).mirrored
    if through_zip:
        export_model.main(["--model", str(folder), "--output", str(tmp_path / "model.zip")])
        folder = tmp_path / "model.zip"
    words = ["--input", scans, "--model", folder]
    assert predict(*words, "--output", tmp_path / "plain") == 0
    assert "flips" not in capsys.readouterr().err
    assert predict(*words, "--output", tmp_path / "flipped", "--tta") == 0
    assert "was trained without flips; --tta makes its masks worse" in capsys.readouterr().err
    Predictor.load(folder, device="cpu", settings=InferenceSettings(tta=True))
    assert "was trained without flips" in capsys.readouterr().err


def test_the_network_of_a_second_stage_takes_the_classes_too():
    assert make_network(SECOND)(torch.zeros(1, 3, 8, 8, 8)).shape == (1, 3, 8, 8, 8)
