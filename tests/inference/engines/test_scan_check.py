"""`export-model --check_scan`: networks that were written make torch's mask of a scan, or nothing is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from inference.engines import export
from inference.engines.agreement import Agreement
from inference.engines.cache import plain_network
from inference.engines.export import export_networks
from inference.engines.scan_check import ScanAgreement
from inference.preparing import as_volume
from scripts import export_model
from tests.inference.engines.made_up import one_model
from tests.models.builders import make_plan
from tests.models.checkpoints import save_ours
from tests.scripts.trained import write_scans
from utils.errors import UserError, run_cli

SCAN = as_volume(np.random.default_rng(0).normal(size=(12, 9, 11)).astype(np.float32), (1.0, 1.0, 1.0)), "the scan"


@pytest.fixture
def in_place_of_files(monkeypatch):
    """Exports write empty files; in place of each network computes what the test says, in turn."""

    def use(*runs) -> None:
        rest = iter(runs)
        form = export._Form(
            suffix=".x", packages=("torch",), write=lambda path, *_: path.write_bytes(b""), load=lambda _: next(rest)
        )
        monkeypatch.setattr(export, "FORMS", {"onnx": form})

    return use


def networks(model) -> list:
    [one] = model.configurations
    return [torch.inference_mode()(plain_network(one, fold)) for fold in one.folds]


@pytest.mark.slow
def test_each_fold_computes_the_scan_in_its_place(tmp_path, in_place_of_files):
    model, used = one_model(folds=2), []
    in_place_of_files(*(
        lambda windows, k=k, run=run: used.append(k) or run(windows) for k, run in enumerate(networks(model))
    ))  # fmt: skip
    lines = export_networks(tmp_path / "out", model, "onnx", license_note="", scan=SCAN)
    assert len(lines) == 3 and lines[2].startswith("the scan: 0 of 1188 voxels differ (")
    found = json.loads((tmp_path / "out/model.json").read_text())["agreement_on_a_scan"]
    assert found["differing"] == 0 and 0 < found["foreground"] <= found["voxels"] == 1188
    # Beside one and two random windows each.
    assert used.count(0) == used.count(1) > 2


def test_what_only_a_scan_shows_leaves_no_folder(tmp_path, in_place_of_files, monkeypatch):
    monkeypatch.setattr(export, "check_runtime", lambda *_, **__: Agreement(voxels=1, differing=0, largest=0.0))
    model = one_model()
    [right] = networks(model)
    in_place_of_files(lambda windows: right(windows).flip(1))
    with pytest.raises(UserError, match=r"another mask of the scan than torch: [1-9]\d+ of 1188 .* nothing was kept"):
        export_networks(tmp_path / "new/out", model, "onnx", license_note="", scan=SCAN)
    assert not list(tmp_path.iterdir())


def test_a_scan_of_other_channels_is_refused_before_anything_is_written(tmp_path, in_place_of_files):
    in_place_of_files()
    scan = as_volume(np.ones((2, 8, 8, 8)), (1.0, 1.0, 1.0)), "the scan"
    with pytest.raises(UserError, match="the scan has 2 channels; the plan was made for 1"):
        export_networks(tmp_path / "out", one_model(), "onnx", license_note="", scan=scan)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("foreground", "differing", "holds"), [(0, 1, True), (0, 2, False), (30_000, 3, True), (30_000, 4, False)]
)
def test_one_voxel_in_ten_thousand_of_the_foreground_is_tolerated(foreground, differing, holds):
    assert ScanAgreement(voxels=10**8, foreground=foreground, differing=differing).holds is holds


def test_a_scan_of_nothing_says_little_and_that_is_said(tmp_path, in_place_of_files, monkeypatch, capsys):
    model = one_model()
    [fold] = model.configurations[0].folds
    bias = next(name for name in reversed(fold.state_dict) if name.endswith("bias"))
    fold.state_dict[bias][0] = 100.0
    in_place_of_files(*networks(model))
    export_networks(tmp_path / "out", model, "onnx", license_note="", scan=SCAN)
    assert "the scan is background alone to this model" in capsys.readouterr().err


def test_the_flag_takes_a_scan_and_is_refused_where_nothing_is_compared(tmp_path, in_place_of_files, capsys):
    save_ours(tmp_path / "last.ckpt", make_plan())
    scans, model = write_scans(tmp_path / "scans"), tmp_path / "last.ckpt"

    def export_to(name: str, *words) -> int:
        line = ["--model", model, "--output", tmp_path / name, *words]
        return run_cli(lambda: export_model.main([*map(str, line)]))

    in_place_of_files(lambda windows: windows.new_zeros(len(windows), 3, 8, 8, 8))
    assert export_to("m.zip", "--check_scan", scans / "a.nii.gz") == 2
    assert "--check_scan is for --format onnx, torch-export, aot-inductor, got --format zip" in capsys.readouterr().err
    assert export_to("out", "--format", "onnx", "--check_scan", scans / "none.nii.gz") == 2
    assert "none.nii.gz" in capsys.readouterr().err
    assert export_to("out", "--format", "onnx", "--check_scan", scans) == 2
    assert "holds 2 scans, not one" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "scans"}
