"""Anonymous names: nothing that is said or recorded of a scan holds the name of its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference.naming import HIDDEN, name_anonymously, recorded_command, recorded_options, without_paths
from inference.scans import Scan
from utils.errors import UserError
from utils.runs import write_run_record


def scan(name: str, problem: str | None = None) -> Scan:
    return Scan(case=name, images=(Path(f"/in/{name}.nii.gz"),), problem=problem)


def test_names_follow_the_order_and_messages_use_them():
    first, second = name_anonymously([scan("anna"), scan("ben", "/in/ben.nii.gz has the channels _0001 of ben")], None)
    assert (first.case, first.title, second.case) == ("scan_0001", "scan_0001", "scan_0002")
    assert second.problem == "scan_0002 has the channels _0001 of scan_0002"
    text = "/in/anna.nii.gz is truncated; see /in/anna.nii.gz, or anna.nii.gz in /in"
    assert without_paths(text, first) == "scan_0001 is truncated; see scan_0001, or scan_0001 in scan_0001"


def test_a_map_keeps_the_names_and_its_numbers(tmp_path):
    record = tmp_path / "names.json"
    name_anonymously([scan("b")], record)
    assert [each.case for each in name_anonymously([scan("a"), scan("b")], record)] == ["scan_0002", "scan_0001"]
    assert json.loads(record.read_text()) == {"a": "scan_0002", "b": "scan_0001"}
    for content in ("[]", "no JSON"):
        record.write_text(content)
        with pytest.raises(UserError, match=r"--anonymous_map .*choose another file"):
            name_anonymously([scan("a")], record)


def test_the_record_hides_where_scans_came_from(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x/inference.py", "--input", "anna", "--anonymous-map=anna.json", "--tta"])
    assert recorded_command(True) == ["inference.py", "--input", HIDDEN, f"--anonymous-map={HIDDEN}", "--tta"]
    assert recorded_command(False)[2] == "anna"
    monkeypatch.setattr(
        "sys.argv", ["x", "--dicom_channels", "anna t1", "anna*", "--tta", "--dicom-channels=a.csv", "b"]
    )
    hidden = ["x", "--dicom_channels", HIDDEN, HIDDEN, "--tta", f"--dicom-channels={HIDDEN}", HIDDEN]
    assert recorded_command(True) == hidden
    options = {"input": "anna", "anonymous_map": "anna.json", "unpacked": "x", "anonymous": True, "output": "out"}
    shown = {"anonymous": True, "output": "out", "dicom_channels": ()}
    assert recorded_options(options) == {"input": HIDDEN, "anonymous_map": None, **shown}
    assert recorded_options(options | {"dicom_channels": ("anna*",)})["dicom_channels"] == HIDDEN
    assert recorded_options(options | {"anonymous": False})["input"] == "anna"


def test_the_folder_that_the_command_is_typed_in_is_hidden_too(monkeypatch, tmp_path):
    (tmp_path / "patients/anna").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "patients/anna")
    options = {"input": ".", "anonymous_map": None, "unpacked": None, "anonymous": True, "model": Path("../../m.zip")}
    assert recorded_options(options)["model"] == tmp_path / "m.zip"
    assert recorded_options(options | {"model": Path("m.zip")})["model"] == Path("m.zip")
    write_run_record(tmp_path / "run.json", options={}, environment={}, outcome={}, command=["x"], named=False)
    assert "anna" not in (tmp_path / "run.json").read_text(encoding="utf-8")
