"""Doubt beside the masks of inference.py: a file for each scan, a table of all, and what travels with a model."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

from inference.archive import load_model, write_archive
from inference.configuration import read_configuration
from inference.doubt import calibrate
from inference.input_check import reference_of
from inference.model import single_model
from models.unet import build_network
from tests.inference.looks import calibrated, plain_look
from tests.models.builders import make_plan, make_stage
from tests.models.checkpoints import SUPERVISED, save_ours
from tests.scripts.trained import decide, masks, predict, train, write_scans
from tests.tiny_task import write_scan
from utils.certainty import Certainty, DoubtRecord
from utils.config import ModelConfig
from utils.errors import UserError
from utils.files import read_json, to_dict, write_json

PLAN = make_plan(make_stage((8, 8, 8), (4, 8)))


def image(seed: int) -> np.ndarray:
    """Two bright cubes in noise, the second one brighter."""
    scan = np.random.default_rng(seed).uniform(0.5, 1.5, (16, 16, 16)).astype(np.float32)
    scan[3:8, 3:8, 3:13] += 3
    scan[9:14, 9:14, 3:13] += 6
    return scan


def learn(seed: int) -> torch.nn.Module:
    """A network that tells the cubes apart, after some steps on one scan."""
    torch.manual_seed(seed)
    scan = torch.from_numpy(image(seed))[None]
    label = (scan[0] > 2).long() + (scan[0] > 5)
    scan = (scan - scan.mean()) / scan.std()
    network = build_network(PLAN.stage, in_channels=1, num_outputs=3, model=ModelConfig())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(150):
        starts = torch.randint(0, 9, (3,), generator=generator).tolist()
        part = tuple(slice(start, start + 8) for start in starts)
        loss = torch.nn.functional.cross_entropy(network(scan[(slice(None), *part)][None]), label[part][None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@pytest.mark.slow
def test_an_inverted_scan_is_more_doubtful_than_the_scan_itself(tmp_path):
    for fold in range(2):
        network, folder = learn(fold), tmp_path / f"04_3d_fullres/fold_{fold}"
        folder.mkdir(parents=True)
        state = {f"network.{name}": value for name, value in network.state_dict().items()}
        options = {"format_version": 1, "plan": to_dict(PLAN), "model": to_dict(ModelConfig())}
        torch.save({"state_dict": state, "hyper_parameters": options, "epoch": 1}, folder / "last.ckpt")
    clean = image(9)
    write_scan(tmp_path / "scans/clean.nii.gz", clean)
    write_scan(tmp_path / "scans/inverted.nii.gz", clean.max() + clean.min() - clean)
    words = ["--input", tmp_path / "scans", "--model", tmp_path / "04_3d_fullres", "--output", tmp_path / "masks"]
    assert predict(*words) == 0
    rows = {row["case"]: row for row in csv.DictReader((tmp_path / "masks/doubt.csv").read_text().splitlines())}
    # The most doubtful one comes first.
    assert list(rows) == ["inverted", "clean"]
    assert float(rows["inverted"]["doubt"]) > float(rows["clean"]["doubt"]) + 0.1
    assert rows["clean"]["doubtful"] == "" and "no verdict" in rows["clean"]["words"]


@pytest.mark.slow
def test_verdicts_and_remarks_stand_beside_the_masks(tmp_path, capsys):
    train(tmp_path, "3d_fullres")
    scans = write_scans(tmp_path / "scans")
    write_json(calibrated(inputs=reference_of([plain_look()], [])), tmp_path / "04_3d_fullres/doubt.json")
    words = ["--input", scans, "--model", tmp_path / "04_3d_fullres", "--output", tmp_path / "masks"]
    assert predict(*words) == 0
    # Networks of random weights are sure of nothing.
    assert "doubt: 2 of 2 scans are doubtful; 2 with something that training never saw" in capsys.readouterr().out
    record = read_json(DoubtRecord, tmp_path / "masks/a.doubt.json")
    assert record.doubtful and record.calibrated and record.certainties["3d_fullres"].members == 2
    assert any("field of view" in remark for remark in record.remarks)
    assert sorted(json.loads((tmp_path / "masks/run.json").read_text())["outcome"]["doubtful"]) == ["a", "b"]
    # A scan that is kept is judged by what the calibration is now.
    write_json(calibrated(tuple(np.linspace(0, 0.1, 5).tolist())), tmp_path / "04_3d_fullres/doubt.json")
    before = masks(tmp_path / "masks")
    assert predict(*words) == 0
    assert "2 kept" in capsys.readouterr().out
    again = read_json(DoubtRecord, tmp_path / "masks/a.doubt.json")
    assert "less sure than 0% of 5 cases" in again.words and again.score < record.score - 1
    # What is strange about the scan itself still counts.
    assert again.remarks == record.remarks and "7 things that training never saw" in again.words
    assert list(before) == list(masks(tmp_path / "masks"))
    # Of a mask that a person has changed there is no verdict, and none of a mask that was taken away.
    kept = (tmp_path / "masks/b.nii.gz").read_bytes()
    (tmp_path / "masks/b.nii.gz").write_bytes((tmp_path / "masks/a.nii.gz").read_bytes())
    assert predict(*words) == 0
    record = read_json(DoubtRecord, tmp_path / "masks/b.doubt.json")
    assert record.doubtful is None and record.words.startswith("the mask was edited since")
    (tmp_path / "masks/b.nii.gz").unlink()
    assert predict("--input", scans / "a.nii.gz", *words[2:]) == 0
    assert "\nb," not in (tmp_path / "masks/doubt.csv").read_text()
    (tmp_path / "masks/b.nii.gz").write_bytes(kept)
    # The table is of the folder, whichever scans a run is about; and a record that cannot be read is named.
    assert predict("--input", scans / "b.nii.gz", *words[2:]) == 0
    rows = csv.DictReader((tmp_path / "masks/doubt.csv").read_text().splitlines())
    assert sorted(row["case"] for row in rows) == ["a", "b"] and "no doubt of" not in capsys.readouterr().err
    record = json.loads((tmp_path / "masks/a.doubt.json").read_text())
    for damaged in ("{", json.dumps(record | {"certainties": {}})):
        (tmp_path / "masks/a.doubt.json").write_text(damaged)
        assert predict(*words) == 0 and "no doubt of a: predicted by" in capsys.readouterr().err


@pytest.mark.slow
def test_each_configuration_of_an_ensemble_has_its_certainty(tmp_path):
    train(tmp_path, "2d", "3d_fullres", folds=(0,))
    scans = write_scans(tmp_path / "scans")
    words = ["--input", scans, "--model", decide(tmp_path, "2d", "3d_fullres"), "--output", tmp_path / "masks"]
    assert predict(*words, "--tta") == 0
    record = read_json(DoubtRecord, tmp_path / "masks/a.doubt.json")
    assert list(record.certainties) == ["2d", "3d_fullres"]
    assert all(each.members == 1 and each.flips for each in record.certainties.values())
    # What two networks of random weights find is not the same.
    assert len(record.between) == 2 and all(value is None or 0 <= value < 1 for value in record.between)


def test_the_calibration_of_a_folder_goes_into_its_archive_and_comes_back(tmp_path):
    for fold in range(2):
        (tmp_path / f"runs/fold_{fold}").mkdir(parents=True)
        save_ours(tmp_path / f"runs/fold_{fold}/last.ckpt", make_plan(), SUPERVISED, seed=fold)
    assert read_configuration(tmp_path / "runs").calibration is None
    found = calibrated(inputs=reference_of([plain_look()], [{"anterior from posterior": (1.0, 2.0, 3.0)}] * 2))
    write_json(found, tmp_path / "runs/doubt.json")
    write_archive(tmp_path / "model.zip", single_model(read_configuration(tmp_path / "runs")))
    assert load_model(tmp_path / "model.zip").configurations[0].calibration == found
    # A fold by itself is measured by the cross-validation that it is of.
    assert read_configuration(tmp_path / "runs/fold_0").calibration == found
    # One of other targets is none of this model's.
    other = calibrate("2d", ["organ"], [(Certainty(
        members=1, voxels=(1.0,), confidence=(0.5,), overlap=(0.5,), agreement=(None,)), (0.5,))] * 3)  # fmt: skip
    write_json(other, tmp_path / "runs/doubt.json")
    model = read_configuration(tmp_path / "runs")
    assert model.calibration is None
    (tmp_path / "runs/doubt.json").write_text("{")
    with pytest.raises(UserError, match=r"doubt\.json.*cross_validate\.py again"):
        read_configuration(tmp_path / "runs")
    write_archive(tmp_path / "model.zip", single_model(dataclasses.replace(model, calibration=other)))
    assert load_model(tmp_path / "model.zip").configurations[0].calibration is None
