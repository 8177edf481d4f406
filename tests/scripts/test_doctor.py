"""The doctor: a report also where something is missing, and a status that says whether all works."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from scripts import doctor
from tests.conftest import PROJECT
from utils import machine, self_check


@pytest.fixture
def without_checks(monkeypatch):
    """Every part works, at no cost."""
    for name in ("try_network", "try_dali"):
        monkeypatch.setattr(self_check, name, lambda device: "works")
    monkeypatch.setattr(self_check, "torch_text", lambda: "works")
    monkeypatch.setattr(self_check, "gpu_facts", lambda: [])


def test_where_all_works_the_status_is_0_and_the_report_fits_a_screen(without_checks, capsys):
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "all needed parts work" and len(lines) <= 40
    assert any(line.split()[:1] == ["cores"] for line in lines)


def test_a_part_that_fails_is_named_and_the_status_is_1(without_checks, monkeypatch, capsys):
    def fail(device):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(self_check, "try_dali", fail)
    assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert "NOT OK  DALI on the CPU" in output and "RuntimeError: no such operator\n" in output
    assert output.endswith("NOT OK: DALI on the CPU\n")


def test_a_gpu_brings_its_own_checks(without_checks, monkeypatch, capsys):
    monkeypatch.setattr(self_check, "gpu_facts", lambda: ["H100, 80 GB, capability 9.0"])
    assert doctor.main(["--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["GPUs"]["text"] == "H100, 80 GB, capability 9.0"
    assert {"network on the GPU", "DALI on the GPU"} <= checks.keys()


def test_json_holds_the_machine_and_every_check(without_checks, capsys):
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True and {"program", "python", "cpu", "cores", "memory"} <= report["machine"].keys()
    assert {check["state"] for check in report["checks"]} <= {"ok", "absent", "broken"}


def test_a_python_without_any_package_gets_a_report_and_no_traceback():
    run = subprocess.run([sys.executable, "-S", "-E", "scripts/doctor.py"], cwd=PROJECT, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr == ""
    assert "not installed: numpy" in run.stdout and "ModuleNotFoundError: No module named 'torch'" in run.stdout


def test_without_a_temporary_folder_there_is_a_report_too(without_checks, monkeypatch, capsys):
    def fail(*ignored, **named):
        raise FileNotFoundError(2, "No usable temporary directory found")

    for name in ("gettempdir", "TemporaryDirectory"):
        monkeypatch.setattr(self_check.tempfile, name, fail)
    assert doctor.main([]) == 1
    assert capsys.readouterr().out.endswith("NOT OK: NIfTI files\n")


def test_parts_work_here():
    assert "float32" in self_check.try_network("cpu")
    assert self_check.try_dali("cpu") and self_check.try_nifti() == "written and read"
    assert self_check.torch_text().startswith("2")


@pytest.mark.gpu
def test_parts_work_on_a_gpu():
    assert "float16" in self_check.try_network("cuda") and self_check.try_dali("gpu") and self_check.gpu_facts()


def test_a_network_whose_gradients_are_not_finite_is_found(monkeypatch):
    import torch

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda logits, target: logits.sum() * float("nan"))
    with pytest.raises(ArithmeticError, match="float32"):
        self_check.try_network("cpu")


def test_vector_units_are_read_from_the_first_processor(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f sse\n\nflags : amx_bf16\n")
    assert machine.cpu_flags(tmp_path / "cpuinfo") == ("avx2", "avx512f")
    assert machine.cpu_flags(tmp_path / "missing") == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n\nprocessor\t: 1\n",
         ("AuthenticAMD", 25)),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\n\nvendor_id\t: Other\ncpu family\t: 7\n", ("GenuineIntel", 6)),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_family_of_a_cpu_is_that_of_the_first_processor(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert machine.cpu_family(tmp_path / "cpuinfo") == expected
    assert machine.cpu_family(tmp_path / "missing") is None


def test_free_disk_of_a_folder_that_is_not_made_yet_is_that_of_its_parent(tmp_path):
    assert "not made yet" in machine.free_disk(tmp_path / "a/b")
    assert machine.free_disk(tmp_path).endswith(f"({tmp_path})")


def test_facts_that_cannot_be_had_are_words(tmp_path):
    def fail():
        raise ValueError("no such file")

    assert machine.machine_facts({"data": tmp_path}, fail)["memory"] == "unknown (no such file)"
    assert machine.package_version("no-such-package") == "not installed"
    assert not machine.is_importable("no_such_package")
