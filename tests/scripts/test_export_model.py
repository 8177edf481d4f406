"""scripts/export_model.py: what goes into the file, and what is refused."""

from __future__ import annotations

import json
import zipfile

import pytest

from inference.archive import read_archive
from inference.decided import NETWORKS_KIND
from scripts import export_model, info
from tests.models.builders import make_plan
from tests.models.checkpoints import save_ours
from utils.errors import run_cli


@pytest.fixture
def folds(tmp_path):
    for fold in (0, 1):
        (tmp_path / f"runs/fold_{fold}").mkdir(parents=True)
        save_ours(tmp_path / f"runs/fold_{fold}/last.ckpt", make_plan(), seed=fold)
    return tmp_path / "runs"


def export(*words) -> int:
    return run_cli(lambda: export_model.main([*map(str, words)]))


def test_some_folds_with_a_note(folds, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("for research only")
    words = ["--model", folds, "--output", tmp_path / "new/model.zip", "--folds", "1"]
    assert export(*words, "--license_note", tmp_path / "note.txt") == 0
    assert "fold_1" in capsys.readouterr().out
    [bundle] = read_archive(tmp_path / "new/model.zip").configurations
    assert [fold.fold for fold in bundle.folds] == [1]
    with zipfile.ZipFile(tmp_path / "new/model.zip") as archive:
        assert archive.read("LICENSE_NOTE.txt") == b"for research only"


def test_existing_file_is_kept_unless_overwritten(folds, tmp_path):
    target = tmp_path / "model.zip"
    target.write_bytes(b"mine")
    assert export("--model", folds, "--output", target) == 2
    assert target.read_bytes() == b"mine"
    assert export("--model", folds, "--output", target, "--overwrite") == 0
    assert len(read_archive(target).configurations[0].folds) == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--output", "model.pt"), "must end in .zip"),
        (("--output", "m.zip", "--folds", "5"), "fold_5"),
        (("--output", "m.zip", "--format", "onnx"), "m.zip is called a zip, and --format onnx writes a folder"),
        (("--output", "m.zip", "--license_note", "nothing.txt"), "--license_note nothing.txt cannot be read"),
    ],
)
def test_wrong_usage_ends_in_status_2(folds, tmp_path, monkeypatch, capsys, words, reason):
    monkeypatch.chdir(tmp_path)
    assert export("--model", folds, *words) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "m.zip").exists()


def test_a_folder_that_exists_is_not_said_to_be_overwritten(folds, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    for words in ((), ("--overwrite",)):
        assert export("--model", folds, "--output", tmp_path / "out", "--format", "onnx", *words) == 2
        said = capsys.readouterr().err
        assert "out exists, and folders are not replaced; choose another name" in said and "--overwrite" not in said


@pytest.mark.parametrize("form", ["onnx", "nnunet-v2", "triton"])
def test_a_note_that_no_card_shows_is_said(folds, tmp_path, monkeypatch, capsys, form):
    monkeypatch.setattr(export_model, "FORMATS", {form: lambda *_: None})
    assert export("--model", folds, "--output", tmp_path / "out", "--format", form, "--note", "mine") == 0
    assert f"--note has no effect with --format {form}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["exported", "exported/fold_0.onnx"])
def test_networks_for_other_programs_are_no_model(tmp_path, capsys, name):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/fold_0.onnx").write_bytes(b"network")
    (tmp_path / "exported/model.json").write_text(json.dumps({"version": 1, "kind": NETWORKS_KIND}))
    for command, words in ((export_model, ("--output", tmp_path / "m.zip")), (info, ())):
        flag = ("--model",) if command is export_model else ()
        assert run_cli(lambda c=command, w=(*flag, tmp_path / name, *words): c.main([*map(str, w)])) == 2
        assert f"{name}: networks that export-model wrote for other programs" in capsys.readouterr().err
