"""The notebooks: what is stored in them, and each executed as a reader would execute it, from scans to masks."""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import socket
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import PROJECT

CUSTOM, BRATS = (PROJECT / "notebooks" / name for name in ("custom_dataset.ipynb", "brats.ipynb"))
NOTEBOOKS = [pytest.param(path, id=path.stem) for path in (CUSTOM, BRATS)]
REPLACED = {CUSTOM: 2, BRATS: 3}
"""Cells in which readers put something of their own."""
LARGEST_BYTES, LARGEST_PICTURE_BYTES = 1_500_000, 150_000
SHOWS = re.compile(r"^(print|run|Image|show_patient|overlay)\(|^    print\(", re.MULTILINE)
ABSOLUTE = re.compile(r"(?<![\w.:~/-])/(?:[\w.+-]+/)+[\w.+-]*")


def read_notebook(path: Path):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(cell) -> str:
    """What a cell printed, and the text in place of pictures."""
    streams = [output.get("text", "") for output in cell.outputs]
    return "\n".join(streams + [output.get("data", {}).get("text/plain", "") for output in cell.outputs])


def pictures_of(notebook) -> list[bytes]:
    data = [output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs]
    return [base64.b64decode(content["image/png"]) for content in data if "image/png" in content]


def commands_of(notebook) -> list[str]:
    """The commands that were run, as they were printed."""
    printed = "\n".join(texts_of(cell) for cell in code_cells(notebook))
    return re.findall(r"^\$ .*", printed, re.MULTILINE)


def functions_of(path: Path) -> dict[str, ast.FunctionDef]:
    """The functions of the first code cell."""
    first = code_cells(read_notebook(path))[0]
    return {node.name: node for node in ast.parse(first.source).body if isinstance(node, ast.FunctionDef)}


def find_project():
    """The notebooks' own function, taken out of its cell."""
    names = {"os": os, "Path": Path}
    exec(compile(ast.Module([functions_of(CUSTOM)["find_project"]], []), str(CUSTOM), "exec"), names)
    return names["find_project"]


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_outputs_of_all_cells_are_stored_in_order(path):
    notebook = read_notebook(path)
    assert notebook.metadata.kernelspec.name == "python3"
    code = code_cells(notebook)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    # The first cell only defines what prints.
    assert not [cell.source for cell in code[1:] if SHOWS.search(cell.source) and not cell.outputs]
    assert sum(cell.source.startswith("# REPLACE") for cell in code) == REPLACED[path]


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_stored_outputs_tell_nothing_of_the_machine(path):
    for cell in code_cells(read_notebook(path)):
        assert all(output.output_type != "error" and output.get("name") != "stderr" for output in cell.outputs)
        # They predict with flips, and cross-validate without, to be short: that this makes verdicts rougher is true.
        text = "".join(line for line in texts_of(cell).splitlines(keepends=True) if "doubt is compared" not in line)
        assert not ABSOLUTE.findall(text)
        assert socket.gethostname() not in text and "warning" not in text.lower()


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_notebooks_and_their_pictures_are_small(path):
    assert path.stat().st_size < LARGEST_BYTES
    pictures = pictures_of(read_notebook(path))
    assert len(pictures) == 3 and max(map(len, pictures)) < LARGEST_PICTURE_BYTES


def test_both_notebooks_find_the_project_and_run_commands_alike():
    first, second = (functions_of(path) for path in (CUSTOM, BRATS))
    assert {name: ast.dump(node) for name, node in first.items()} == {n: ast.dump(node) for n, node in second.items()}


def test_project_is_found_from_its_folders(monkeypatch):
    monkeypatch.delenv("NNUNET_PROJECT", raising=False)
    for folder in (PROJECT, CUSTOM.parent):
        monkeypatch.chdir(folder)
        assert find_project()() == PROJECT


def test_project_is_found_from_elsewhere_by_variable_or_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NNUNET_PROJECT", raising=False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    with pytest.raises(FileNotFoundError, match="NNUNET_PROJECT"):
        find_project()()
    monkeypatch.setenv("JPY_SESSION_NAME", str(CUSTOM))
    assert find_project()() == PROJECT
    monkeypatch.delenv("JPY_SESSION_NAME")
    monkeypatch.setenv("NNUNET_PROJECT", str(PROJECT))
    assert find_project()() == PROJECT


@pytest.mark.slow
def test_custom_dataset_leads_from_scans_to_masks(tmp_path):
    work = executed(CUSTOM, tmp_path)
    study = {folder.name: folder / "scan.nii.gz" for folder in (work / "study").iterdir()}
    check_masks(work / "results/80_3d_fullres/out_of_fold", study, expected=10, values={0, 1, 2})
    check_masks(work / "masks", study, expected=2, values={0, 1, 2})
    for name in ("model.zip", "overlay.png", "scores.csv", "results/80_best/decision.json"):
        assert (work / name).stat().st_size > 0
    page = (work / "report.html").read_text(encoding="utf-8")
    assert "80_3d_fullres" in page and "patient_00" in page


@pytest.mark.slow
def test_brats_leads_from_the_download_to_masks_that_can_be_submitted(tmp_path):
    work = executed(BRATS, tmp_path)
    plan = json.loads((work / "shards/11_3d/plan.json").read_text(encoding="utf-8"))
    assert [region["name"] for region in plan["labels"]["regions"]] == ["WT", "TC", "ET"]
    assert plan["mask_channel"] and plan["labels"]["values"] == [0, 1, 2, 4]
    folders = sorted((work / "download").glob("BraTS2021_*/BraTS2021_*/"))
    scans = {folder.name: folder / f"{folder.name}_flair.nii.gz" for folder in folders}
    check_masks(work / "results/11_3d_fullres/out_of_fold", scans, expected=8, values={0, 1, 2, 4})
    check_masks(work / "submission", scans, expected=2, values={0, 1, 2, 4})
    scores = json.loads((work / "submission/summary.json").read_text(encoding="utf-8"))
    assert scores["targets"] == ["WT", "TC", "ET"]


def executed(path: Path, folder: Path) -> Path:
    """Execute a notebook; it must write nothing outside its temporary folder, which is returned.

    What is stored in the repository must have been printed by the same commands.
    """
    from notebooks.execute import execute

    notebook = execute(path, folder)
    (work,) = (folder / "temporary").glob("nnunet-*")
    assert not list((folder / "elsewhere").iterdir())
    assert commands_of(notebook) == commands_of(read_notebook(path)) and len(commands_of(notebook)) >= 7
    assert len(pictures_of(notebook)) == len(pictures_of(read_notebook(path)))
    return work


def check_masks(masks: Path, scans: dict[str, Path], *, expected: int, values: set[int]) -> None:
    paths = sorted(masks.glob("*.nii.gz"))
    assert len(paths) == expected
    for path in paths:
        mask, scan = nib.load(path), nib.load(scans[path.name.removesuffix(".nii.gz")])
        assert mask.shape == scan.shape and mask.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(mask.affine, scan.affine)
        found = np.unique(np.asanyarray(mask.dataobj))
        assert set(found) <= values and found.size > 1
