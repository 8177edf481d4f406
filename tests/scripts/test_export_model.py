"""scripts/export_model.py: what goes into the file, and what is refused."""

from __future__ import annotations

import zipfile

import pytest

from inference.archive import read_archive
from scripts import export_model
from tests.models.builders import make_plan
from tests.models.test_checkpoint import save_ours
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
        (("--output", "m.zip", "--license_note", "nothing.txt"), "--license_note nothing.txt cannot be read"),
    ],
)
def test_wrong_usage_ends_in_status_2(folds, tmp_path, monkeypatch, capsys, words, reason):
    monkeypatch.chdir(tmp_path)
    assert export("--model", folds, *words) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "m.zip").exists()
