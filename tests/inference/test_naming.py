"""Anonymous names: nothing that is said or recorded of a scan holds the name of its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inference.naming import (
    HIDDEN,
    describe_anonymously,
    name_anonymously,
    naming_nobody,
    recorded_command,
    recorded_options,
)
from inference.opening import opened
from inference.scan_run import ScanJob, list_scans
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
    said = "scan_0001 is truncated; see scan_0001, or scan_0001 in scan_0001"
    assert describe_anonymously(UserError(text), first) == said


@pytest.mark.parametrize("folder", ["/in", "in", "..", "."])
def test_what_is_wrong_with_a_file_that_a_header_names_is_said_without_its_name(folder):
    header, voxels = Path(folder, "anna.nhdr"), Path(folder, "anna.nhdr Doe 2.raw.gz")
    scan = Scan(case="scan_0001", images=(header,), shown="scan_0001")
    short = "is truncated: it unpacks to 5 bytes, and its header says 10; copy or download it again"
    gone = f"{header} names a file of voxels, {voxels}, that does not exist"
    for text, said in (
        (f"{voxels} {short}", f"scan_0001 {short}"),
        (gone, "scan_0001 names a file of voxels, scan_0001, that does not exist"),
        (f'{header} is no .nhdr file (cannot open "./Jane" or "Doe" now); see ...',
         f"scan_0001 is no .nhdr file (cannot open {HIDDEN} now); see ..."),
    ):  # fmt: skip
        assert describe_anonymously(UserError(text, files=[voxels]), scan) == said


def test_a_file_in_the_folder_of_one_dot_is_named_nowhere(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.extras.importlib.import_module", missing)
    Path("Doe Jane.nrrd").write_bytes(b"x")
    job = ScanJob(
        input=Path(), output=tmp_path / "out", model=Path("m"), folds=None, save_probabilities=False, overwrite=False,
        memory_gb=None, anonymous=True,
    )  # fmt: skip
    with pytest.raises(UserError) as error, opened(job) as there:
        list_scans(there, 1)
    assert HIDDEN in str(error.value) and "Doe" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "text", "said"),
    [(".", "--input . holds no scan (.nii, .nrrd) ...", "--input . holds no scan (.nii, .nrrd) ..."),
     ("..", "--input .. holds ../Doe Jane.nii", f"--input .. holds {HIDDEN}"),
     ("/", "one / two and/or /Doe Jane.nii", f"one {HIDDEN}"),
     ("in", "--input in holds in/Doe Jane.nii", f"--input {HIDDEN} holds {HIDDEN}"),
     ("/a.b", "/a.b and /a.b.c hold /a.b/Doe Jane", f"{HIDDEN} and {HIDDEN}.c hold {HIDDEN}")],
)  # fmt: skip
def test_of_a_place_only_what_names_somebody_is_hidden(place, text, said):
    with pytest.raises(UserError) as error, naming_nobody(True, [Path(place)]):
        raise UserError(text)
    assert str(error.value) == said


def test_the_folder_that_a_name_of_one_dot_means_is_hidden(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error, naming_nobody(True, [Path()]):
        raise UserError(f"{tmp_path}/Doe is wrong, and so is its link", files=[Path("its link")])
    assert str(error.value) == HIDDEN
    with pytest.raises(UserError) as error, naming_nobody(True, [Path()]):
        raise UserError("what Doe 2.nii leads to is wrong", files=[Path("Doe 2.nii")])
    assert str(error.value) == f"what {HIDDEN} leads to is wrong"


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
