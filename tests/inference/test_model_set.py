"""Several models, described by a JSON file, whose masks are merged by name into one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from inference import Predictor
from inference.memory import forecast_predictor
from inference.merging import Merge
from inference.model_set import ModelSet, load_model_or_set
from inference.preparing import as_volume
from tests.conftest import PROJECT
from tests.inference.nnunet_v2.made_up_models import MODELS, Scan, make_dataset, write_model, write_scans
from tests.scripts.trained import predict
from utils.errors import UserError
from utils.files import from_dict
from utils.nifti import read_label, to_working

SCANS = (
    Scan(shape=(26, 30, 22), spacing_mm=(1.3, 1.0, 1.1)),
    Scan(shape=(25, 24, 28), spacing_mm=(1, 0.9, 1.2), codes="PIR"),
)
ORGANS = dataclasses.replace(
    MODELS["old"], transpose=(0, 1, 2), patch=(12, 12, 12), spacing_mm=(1.5, 1.5, 1.5), scans=SCANS,
    labels={"background": 0, "liver": 1, "tumour": 2},
)  # fmt: skip
"""As TotalSegmentator's: plans of the old format, no mirroring, SimpleITKIO."""
BONES = dataclasses.replace(ORGANS, filters=(4, 8, 16), labels={"background": 0, "rib": 1, "hip": 2, "skull": 3})
PARTS = {"organs": ORGANS, "bones": BONES}
LABELS = {"liver": 7, "hip": 3, "rib": 200, "tumour_": 1}
CLASSES: dict[str, dict[int, int]] = {"organs": {1: 7, 2: 1}, "bones": {1: 200, 2: 3}}
CONTENT = {
    "version": 1, "orientation": "stored", "labels": LABELS,
    "parts": [
        {"model": "organs", "classes": {"liver": "liver", "tumour": "tumour_"}},
        {"model": "bones", "classes": {"hip": "hip", "rib": "rib"}},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    for name, model in PARTS.items():
        write_model(folder / name, model)
    (folder / "scans").mkdir()
    write_scans(folder / "scans", ORGANS)
    return folder


def write_set(models: Path, **changed: Any) -> Path:
    path = models / "set.json"
    path.write_text(json.dumps(CONTENT | changed))
    return path


def merged_by_hand(models: Path, scan: Path) -> np.ndarray:
    masks = {name: Predictor.load(models / name, device="cpu").predict_file(scan).mask for name in PARTS}
    merged = np.zeros_like(masks["organs"])
    for name, mask in masks.items():
        for own, value in CLASSES[name].items():
            merged[mask == own] = value
    assert {7, 200} < set(np.unique(merged))
    return merged


@pytest.mark.slow
@pytest.mark.parametrize("scan", ["scan0", "scan1"])
def test_the_last_model_counts_where_several_say_more_than_background(models: Path, scan: str):
    file = models / "scans" / f"{scan}_0000.nii.gz"
    prediction = Predictor.load(write_set(models), device="cpu").predict_file(file)
    assert np.array_equal(prediction.mask, merged_by_hand(models, file))
    backwards = write_set(models, parts=CONTENT["parts"][::-1])
    assert not np.array_equal(Predictor.load(backwards, device="cpu").predict_file(file).mask, prediction.mask)


@pytest.mark.slow
@pytest.mark.parametrize(("order", "said"), [(1, {}), (3, {"order": 3})])
def test_scans_are_turned_and_resampled_and_masks_brought_back(models: Path, tmp_path: Path, order, said):
    """One command for all scans; here one that lies in PIR and has other voxels."""
    scan = models / "scans" / "scan1_0000.nii.gz"
    path = write_set(models, orientation="ras", spacing_mm=[1.7, 1.5, 1.5], **said)
    assert predict("--input", scan, "--output", tmp_path, "--model", path) == 0
    image = nib.load(scan)
    turned = np.asarray(to_working(image.get_fdata(dtype=np.float32), image.affine))
    sizes, grid_mm = np.array([0.9, 1.0, 1.2]), np.array([1.7, 1.5, 1.5])
    shape = np.round(turned.shape * sizes / grid_mm).astype(int)
    coarse = ndimage.zoom(turned, shape / turned.shape, order=order, mode="nearest", grid_mode=True)
    coarse = np.clip(coarse, turned.min(), turned.max())
    file = tmp_path / "coarse.nii.gz"
    nib.save(nib.Nifti1Image(coarse.transpose(2, 1, 0), np.diag([*grid_mm[::-1], 1])), file)
    index = [(np.arange(n) + 0.5) * m / n for n, m in zip(turned.shape, shape)]
    expected = merged_by_hand(models, file)[np.ix_(*(each.astype(int) for each in index))]
    mask = read_label(tmp_path / "scan1.nii.gz").array
    assert mask.shape == turned.shape and np.mean(mask != expected) < 1e-3
    assert np.array_equal(nib.load(tmp_path / "scan1.nii.gz").affine, image.affine)


@pytest.mark.slow
def test_axes_stay_as_stored_where_the_set_says_so(models: Path):
    scan = models / "scans" / "scan1_0000.nii.gz"
    ras, stored = (
        Predictor.load(write_set(models, orientation=name, spacing_mm=[1.5, 1.5, 1.5]), device="cpu").predict_file(scan)
        for name in ("ras", "stored")
    )
    assert ras.mask.shape == stored.mask.shape and not np.array_equal(ras.mask, stored.mask)
    merge = load_model_or_set(write_set(models, spacing_mm=[1.5, 1.5, 1.5])).merge
    assert merge is not None
    volume = dataclasses.replace(as_volume(np.zeros((24, 25, 28)), (0.9, 1, 1.2)), geometry=stored.geometry)
    geometry = merge.on_grid(volume).geometry
    assert nib.aff2axcodes(geometry.affine) == ("P", "I", "R")
    assert nib.affines.voxel_sizes(np.array(geometry.affine)).tolist() == [1.5] * 3


def test_all_classes_are_taken_where_none_are_named(models: Path):
    path = write_set(models, parts=[{"model": "bones"}], labels={"rib": 5, "hip": 6, "skull": 7, "more": 8})
    merge = load_model_or_set(path).merge
    assert merge is not None and merge.values == ({1: 5, 2: 6, 3: 7},)


def test_regions_go_by_the_value_that_is_written_for_them(models: Path, tmp_path: Path):
    write_model(tmp_path / "regions", MODELS["regions"])
    path = tmp_path / "set.json"
    parts = [{"model": "regions", "classes": {"core": "tumour"}}]
    path.write_text(json.dumps(CONTENT | {"labels": {"tumour": 9}, "parts": parts}))
    merge = load_model_or_set(path).merge
    assert merge is not None and merge.values == ({3: 9},)


@pytest.mark.slow
def test_masks_of_another_set_are_predicted_again(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--input", models / "scans" / "scan0_0000.nii.gz", "--output", tmp_path, "--model"]
    assert predict(*words, write_set(models)) == 0
    assert predict(*words, write_set(models)) == 0
    assert "1 of 1 scans have been predicted before" in capsys.readouterr().out
    assert predict(*words, write_set(models, labels=LABELS | {"liver": 8})) == 0
    assert "1 predicted again (the set of models was 4 classes" in capsys.readouterr().out
    assert 8 in read_label(tmp_path / "scan0.nii.gz").array


def test_the_forecast_counts_scan_and_grid(models: Path):
    apart = Predictor.load(write_set(models), device="cpu")
    finer = Predictor(apart.configurations, merge=dataclasses.replace(apart.merge, spacing_mm=(0.5, 0.5, 0.5)))
    own, large = (forecast_predictor(each, (40, 40, 40), (1.5, 1.5, 1.5)) for each in (apart, finer))
    assert own.prepared_bytes == 2 * 4 * 40**3
    alone = forecast_predictor(Predictor(apart.configurations[:1]), (120, 120, 120), (0.5, 0.5, 0.5))
    assert large.predict_bytes >= alone.predict_bytes + 120**3 and large.prepare_bytes > alone.prepare_bytes


def test_the_example_of_the_documentation_holds():
    page = (PROJECT / "docs/how-to/nnunet-v2.md").read_text(encoding="utf-8")
    content = json.loads(page.partition("```json")[2].partition("```")[0])
    chosen = from_dict(ModelSet, content, source="the example")
    named = [name for part in chosen.parts for name in part.classes or ()]
    assert len(chosen.parts) == 5 and named == list(chosen.labels)


PART = CONTENT["parts"][0]
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing model": ({"parts": [{"model": "nowhere"}]}, "there is no .*nowhere"),
    "unknown class": ({"parts": [{"model": "organs", "classes": {"lver": "liver"}}]}, "has no class lver; it has"),
    "unknown name": ({"parts": [{"model": "organs", "classes": {"liver": "lver"}}]}, "no value for lver"),
    "one name of two models": (
        {"parts": [PART, {"model": "bones", "classes": {"hip": "liver"}}]}, "liver comes from both organs and bones",
    ),
    "two names of a value": ({"labels": LABELS | {"hip": 7}}, "liver, hip have the same value 7"),
    "too large": ({"labels": LABELS | {"hip": 256}}, "1..255.*hip = 256"),
    "background": ({"labels": LABELS | {"hip": 0}}, "1..255.*hip = 0"),
    "no parts": ({"parts": []}, "needs parts and labels"),
    "no classes": ({"parts": [{"model": "organs", "classes": {}}]}, "classes is empty"),
    "unknown key": ({"spacing": 1.5}, "spacing"),
    "spacing": ({"spacing_mm": [1.5, 0, 1.5]}, "must be positive"),
    "orientation": ({"orientation": "lps"}, "expected one of ras, stored"),
    "order": ({"order": 2}, "expected one of 1, 3"),
    "version": ({"version": 99}, "99"),
    "a set in a set": ({"parts": [{"model": "other.json"}]}, "a set of models is only predicted with"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_message(models: Path, name: str):
    changed, message = FAULTS[name]
    (models / "other.json").write_text(json.dumps(CONTENT))
    with pytest.raises(UserError, match=message):
        load_model_or_set(write_set(models, **changed))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 1, "labels": {"a": 1, "a": 2}}', "a stands twice in one mapping"),
        ("{", "cannot be read as the JSON"),
        ('{"epochs": 3}', 'lacks "version": 1'),
        ("[]", "expected a mapping"),
    ],
)
def test_other_files_are_one_message(tmp_path: Path, text: str, message: str):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_model_or_set(tmp_path / "set.json")


def test_models_see_the_same_channels(models: Path, tmp_path: Path):
    write_model(models / "two", dataclasses.replace(BONES, channels=("ZScoreNormalization",) * 2))
    assert len(make_dataset(BONES)["modality"]) == 1
    parts = [PART, {"model": "two"}]
    with pytest.raises(UserError, match="organs and two see different channels of a scan"):
        load_model_or_set(write_set(models, parts=parts))


def test_what_has_no_place_in_a_set_is_refused(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_set(models)
    words = ["--input", models / "scans", "--output", tmp_path / "out", "--model", path]
    assert predict(*words, "--save_probabilities") == 2
    assert "--save_probabilities" in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="a set of models gives masks only"):
        Predictor.load(path, device="cpu").predict_probabilities(np.ones((8, 8, 8)), (1, 1, 1))


def test_the_way_back_takes_the_nearest_voxel():
    merge = Merge(labels={"a": 1}, values=({1: 1},), orientation="ras", spacing_mm=(2, 1, 1))
    geometry = as_volume(np.zeros((4, 2, 3)), (1, 1, 1)).geometry
    mask = np.zeros((2, 2, 3), np.uint8)
    mask[1] = 1
    back = merge.back(merge.add(None, 0, mask), geometry)
    assert back.shape == (4, 2, 3) and back[:, 0, 0].tolist() == [0, 0, 1, 1]
