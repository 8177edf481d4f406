from __future__ import annotations

from pathlib import Path

import pytest

from inference.archive import read_archive
from scripts.export_model import main as export_model
from scripts.import_model import main as import_model
from tests.inference.nnunet_v2.made_up_models import MODELS, write_model
from utils.errors import UserError


def test_a_folder_becomes_a_zip_and_a_folder_again(tmp_path: Path, capsys):
    folder = write_model(tmp_path / "m", MODELS["isotropic"])
    assert import_model([str(folder), str(tmp_path / "model.zip"), "--folds", "1"]) == 0
    assert [fold.fold for fold in read_archive(tmp_path / "model.zip").configurations[0].folds] == [1]
    words = ["--model", str(tmp_path / "model.zip"), "--output", str(tmp_path / "out"), "--format", "nnunet-v2"]
    assert export_model(words) == 0
    target = tmp_path / "out" / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    assert (target / "fold_1" / "checkpoint_final.pth").is_file()
    assert f"nnUNetv2_predict_from_modelfolder -i FOLDER -o FOLDER -m {target}" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists"):
        export_model(words)


def test_something_else_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"no model of nnU-Net v2: it holds no plans\.json"):
        import_model([str(tmp_path), str(tmp_path / "model.zip")])
    with pytest.raises(UserError, match="it does not exist"):
        import_model([str(tmp_path / "none"), str(tmp_path / "model.zip")])
    with pytest.raises(UserError, match=r"must end in \.zip"):
        import_model([str(tmp_path), str(tmp_path / "model")])
