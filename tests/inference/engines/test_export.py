"""`export-model --format onnx` and torch-export: networks in other forms, with everything around them."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from inference.engines import conversion, export
from inference.engines.conversion import random_windows
from inference.engines.export import export_networks, trtexec_commands
from scripts import export_model
from tests.inference.engines.made_up import KINDS, one_model
from tests.models.builders import make_network
from tests.scripts.trained import ORGAN_ONLY, decide, train, write_scans
from utils.errors import UserError, run_cli
from utils.files import from_dict
from utils.schema import Plan


def command(*words) -> int:
    return run_cli(lambda: export_model.main([*map(str, words)]))


@pytest.fixture
def empty_files(monkeypatch):
    """Converting takes seconds for each network; test_alone.py has networks that were converted."""
    made = {}

    def write(path, network, plan):
        path.write_bytes(b"")
        made[path] = network

    form = export._Form(suffix=".onnx", packages=("torch",), write=write, load=made.__getitem__)
    monkeypatch.setattr(export, "FORMS", {"onnx": form})


@pytest.mark.slow
def test_a_best_ensemble_becomes_files_and_their_description(tmp_path, capsys, empty_files):
    train(tmp_path, "2d", "3d_lowres", "3d_cascade_fullres", folds=(0,))
    best = decide(tmp_path, "2d", "3d_cascade_fullres", post=ORGAN_ONLY)
    out = tmp_path / "new/onnx"
    scan = write_scans(tmp_path / "scans") / "a.nii.gz"
    assert command("--model", best, "--output", out, "--format", "onnx", "--check_scan", scan) == 0
    said = capsys.readouterr().out
    assert f"trtexec --onnx={out}/2d/fold_0.onnx" in said and "--maxShapes=image:4x3x8x8x8" in said
    assert f"{scan}: 0 of 1680 voxels differ" in said
    description = json.loads((out / "model.json").read_text())
    assert description["post_processing"] == {"foreground": True, "classes": ["anterior", "posterior"]}
    flat, cascade = description["configurations"]
    assert from_dict(Plan, cascade["plan"], source="model.json").previous_stage == "3d_lowres"
    assert cascade["previous"]["networks"][0]["file"] == "3d_cascade_fullres/previous/fold_0.onnx"
    assert flat["input"]["shape"] == ["windows", 1, 8, 8] and description["window"]["overlap"] == 0.5
    files = {str(path.relative_to(out)) for path in out.rglob("*.onnx")}
    assert files == {each["networks"][0]["file"] for each in (flat, cascade, cascade["previous"])}


@pytest.mark.parametrize("form", export.FORMS)
def test_a_network_that_computes_something_else_leaves_no_folder(form, tmp_path, monkeypatch):
    wrong = export._Form(
        suffix=".x", packages=("torch",), write=lambda path, *_: path.write_bytes(b"x"),
        load=lambda _: lambda windows: torch.ones(len(windows), 3, 8, 8, 8),
    )  # fmt: skip
    monkeypatch.setattr(export, "FORMS", {form: wrong})
    with pytest.raises(UserError, match=r"fold_0.x does not compute what torch computes"):
        export_networks(tmp_path / "new/out", one_model(), form, license_note="")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_message(tmp_path, monkeypatch):
    missing = {"onnx": export.dataclasses.replace(export.FORMS["onnx"], packages=("onnx_that_is_nowhere",))}
    monkeypatch.setattr(export, "FORMS", missing)
    with pytest.raises(UserError, match=r"--format onnx needs .*pip install -e '.\[onnx\]'"):
        export_networks(tmp_path / "out", one_model(), "onnx", license_note="")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["2d", "residual encoder"])
def test_torchs_exported_program_is_loaded_without_pickle_and_equal(kind, tmp_path):
    export_networks(tmp_path / "out", one_model(kind), "torch-export", license_note="mine")
    path = tmp_path / "out/fold_0.pt2"
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    # What torch pickles are the example and odd tensors; there are none.
    assert not [name for name, data in content.items() if name.endswith(".pt") and data]
    assert not any(b'"use_pickle": true' in data or str(Path.cwd()).encode() in data for data in content.values())
    plan, model = KINDS[kind]
    with torch.inference_mode():
        windows = random_windows(plan, 3)
        found = torch.export.load(path).module()(windows)
        # With a single thread its heads are torch's own, where a network here asks oneDNN.
        torch.testing.assert_close(found, make_network(plan, model).eval()(windows), rtol=1e-5, atol=1e-5)
    assert json.loads((tmp_path / "out/model.json").read_text())["license_note"] == "mine"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor compiles, and there is no g++")
def test_aot_inductor_gives_native_code_that_agrees(tmp_path):
    [line] = export_networks(tmp_path / "out", one_model("2d"), "aot-inductor", license_note="")
    assert line.startswith("fold_0.pt2") and "0 of 128 voxels differ" in line


def test_no_compiler_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="finds no C\\+\\+ compiler"):
        export_networks(tmp_path / "out", one_model(), "aot-inductor", license_note="")


@pytest.mark.slow
@pytest.mark.parametrize("output", ["x.cpp:1\nx.cpp:2: fatal error: omp.h: No such file", ""])
def test_a_compiler_that_fails_is_one_message(tmp_path, monkeypatch, output):
    from torch._inductor import exc

    def fail(*_, **__):
        raise exc.InductorError(exc.CppCompileError(["g++", "x.cpp"], output), None)

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    monkeypatch.setattr(conversion, "trace_network", lambda *_: None)
    monkeypatch.setenv("CXX", sys.executable)
    expected = "fatal error: omp.h" if output else "it says nothing"
    with pytest.raises(UserError, match=f"the C\\+\\+ compiler fails: .*{expected}.*set CXX"):
        export_networks(tmp_path / "out", one_model("2d"), "aot-inductor", license_note="")
    assert not list(tmp_path.iterdir())


def test_trtexec_gets_shapes_from_the_plan():
    [first, second] = trtexec_commands(Path("out"), one_model("regions of two channels", folds=2))
    assert first == (
        "trtexec --onnx=out/fold_0.onnx --saveEngine=out/fold_0.engine --minShapes=image:1x2x8x8x8 "
        "--optShapes=image:4x2x8x8x8 --maxShapes=image:4x2x8x8x8"
    )
    assert "fold_1.onnx" in second
    assert "'--onnx=my model/fold_0.onnx'" in trtexec_commands(Path("my model"), one_model())[0]
