"""A cross-validation finds out what doubt means: from what each fold's network said of the cases it had not seen."""

from __future__ import annotations

import dataclasses

import pytest

from cross_validation.doubt import calibration_of, input_reference
from cross_validation.out_of_fold import score_cases
from cross_validation.records import CaseRecord, FoldRecord
from data_preprocessing.planning.plan_file import read_plan
from tests.tiny_task import write_scan
from utils.certainty import Certainty
from utils.files import read_json, write_json
from utils.nifti import read_label


def case(name: str, value: float | None, dice: float | None = 0.5) -> CaseRecord:
    said = Certainty(members=1, voxels=(9.0,), confidence=(value,), overlap=(value,), agreement=(None,))
    return CaseRecord(case=name, mask="", dice=() if dice is None else (dice,), certainty=said)


def record(*cases: CaseRecord) -> FoldRecord:
    return FoldRecord(
        version=1, request="", configuration="3d_fullres", fold=0, num_folds=1, targets=("organ",), epochs=1,
        train_s=1.0, seconds=1.0, cases=cases,
    )  # fmt: skip


def test_cases_with_a_label_and_a_certainty_make_the_calibration(tmp_path):
    cases = [case("a", 0.9), case("b", 0.8), case("c", 0.7)]
    unknown = [case("d", 0.1, None), dataclasses.replace(case("e", 0.1), certainty=None)]
    found = calibration_of("3d_fullres", tmp_path, [record(*cases[:2]), record(cases[2], *unknown)], tmp_path)
    assert found is not None and (found.cases, found.inputs) == (3, None)
    assert found.signals["overlap"][0].median == pytest.approx(0.8)
    assert calibration_of("3d_fullres", tmp_path, [record(*cases[:2], *unknown)], tmp_path) is None


def test_what_training_scans_look_like_comes_from_their_shards(data):
    known = input_reference(data / "77_3d", [case(f"scan{number}", 0.9) for number in range(4)])
    assert known is not None and known.cases == 4
    assert known.orientations == ("RAS",) and known.spacing_mm[0].least == known.spacing_mm[0].most == 1.0
    # Uniform noise: the dark end of the z-score is that of a box.
    assert known.channels[0]["low"].most == pytest.approx(-1.7, abs=0.1)
    assert input_reference(data / "77_3d", [case("other", 0.9)]) is None


def test_what_a_network_said_is_recorded_with_its_score(data, made_shards, tmp_path):
    label = made_shards / "data/Task77_Tiny/labelsTr/scan0.nii.gz"
    volume = read_label(label)
    write_scan(tmp_path / "predictions/scan0.nii.gz", volume.array.T)
    said = Certainty(members=1, voxels=(9.0,), confidence=(0.5,), overlap=(0.25,), agreement=(None,))
    write_json(said, tmp_path / "predictions/scan0.certainty.json")
    [found] = score_cases(data / "77_3d", tmp_path / "predictions", ["scan0"], read_plan(data / "77_3d"))
    assert found.certainty == said and found.dice == (1.0,)
    # Voxels 3:6, 3:7, 2:5 of (10, 14, 12) are the organ; S is z.
    assert found.sides == {"organ from the middle": (3 - 5.5, 4.5 - 6.5, 4 - 4.5)}
    write_json(found, tmp_path / "record.json")
    assert read_json(CaseRecord, tmp_path / "record.json") == found
