"""What a decision says of new scans, and which models a folder holds."""

from __future__ import annotations

import json
import re
import zipfile

import pytest

from inference.card import CARD, LICENSE_NOTE, NOTE, license_note, read_card
from inference.decided import refuse_folder_of_models, scored_settings, stored_decision
from inference.decision import Decision, DecisionMember, PostProcessing
from report.sources import plan_of_model
from utils.errors import UserError
from utils.files import to_dict, write_json

DECISION = Decision(
    version=1, task="04", dataset="Task04", members=(DecisionMember(configuration="2d", folder="../04_2d"),),
    post_processing=PostProcessing(), scores={}, command="", tta=True, overlap=0.25,
)  # fmt: skip


@pytest.fixture
def best(tmp_path):
    (tmp_path / "04_best").mkdir()
    write_json(DECISION, tmp_path / "04_best/decision.json")
    return tmp_path / "04_best"


def test_new_scans_are_predicted_as_the_decision_was_scored_unless_the_user_says_otherwise(best, capsys):
    assert scored_settings(best, tta=None, overlap=None) == (True, 0.25)
    assert capsys.readouterr().out.startswith("--tta --overlap 0.25: so ")
    assert scored_settings(best, tta=False, overlap=0.5) == (False, 0.5)
    assert scored_settings(best / "decision.json", tta=None, overlap=0.75) == (True, 0.75)


def test_a_decision_of_an_earlier_version_says_nothing(best, capsys):
    old = {key: value for key, value in to_dict(DECISION).items() if key not in ("tta", "overlap")}
    (best / "decision.json").write_text(json.dumps(old))
    assert scored_settings(best, tta=None, overlap=None) == (False, 0.5)
    assert capsys.readouterr().out == ""


def test_a_model_without_decision_takes_the_usual(tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"weights")
    for model in (tmp_path, tmp_path / "last.ckpt", tmp_path / "missing"):
        assert scored_settings(model, tta=None, overlap=None) == (False, 0.5)


def test_an_exported_zip_has_its_decision(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("decision.json", json.dumps(to_dict(DECISION)))
    assert stored_decision(tmp_path / "m.zip") == DECISION


@pytest.mark.parametrize("fault", ["damaged", "password"])
def test_a_member_that_cannot_be_unpacked_is_left_to_who_loads_the_model(tmp_path, fault):
    path, names = tmp_path / "m.zip", ("decision.json", CARD, NOTE, "plan.json")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, "abcdefgh" * 1000)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            begin = info.header_offset + 30 + len(info.filename)
            if fault == "damaged":
                content[begin : begin + info.compress_size] = b"\xff" * info.compress_size
    if fault == "password":
        for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            for found in re.finditer(re.escape(mark), bytes(content)):
                content[found.start() + place] |= 1
    path.write_bytes(content)
    assert stored_decision(path) is None
    assert license_note(path) == LICENSE_NOTE
    assert plan_of_model(path) is None
    if fault == "damaged":
        assert read_card(path) is None
    else:
        with pytest.raises(UserError, match=r"cannot be read: .*password"):
            read_card(path)


def test_a_folder_of_models_names_them(best):
    results = best.parent
    (results / "04_2d/fold_0/checkpoints").mkdir(parents=True)
    (results / "checkpoints").mkdir()
    (results / "logs").mkdir()
    with pytest.raises(UserError) as error:
        refuse_folder_of_models(results)
    message = str(error.value)
    assert f"- {results / '04_2d'}\n" in message and f"- {best}\n" in message and "logs" not in message
    (results / "checkpoints/last.ckpt").touch()
    # Now it is a model itself, as are those in it.
    for folder in (results, best, results / "04_2d", results / "04_2d/fold_0"):
        refuse_folder_of_models(folder)
