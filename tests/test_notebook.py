"""The notebook: from generated scans to masks, executed as a reader would execute it."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import PROJECT

NOTEBOOK = PROJECT / "notebooks" / "custom_dataset.ipynb"


def read_notebook():
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    return notebook


def find_project():
    """The notebook's own function, taken out of its cell."""
    sources = [cell.source for cell in read_notebook().cells if "def find_project" in cell.source]
    function = next(node for node in ast.parse(sources[0]).body if getattr(node, "name", "") == "find_project")
    names = {"os": os, "Path": Path}
    exec(compile(ast.Module([function], []), str(NOTEBOOK), "exec"), names)
    return names["find_project"]


@pytest.fixture
def anywhere(tmp_path, monkeypatch):
    """A working folder outside the project, with Jupyter's own files and temporary files beside it."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("NNUNET_PROJECT", raising=False)
    for name in ("temporary", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def test_notebook_is_stored_without_outputs():
    notebook = read_notebook()
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert sum(cell.source.startswith("# REPLACE") for cell in code) == 2


def test_project_is_found_from_its_folders(anywhere, monkeypatch):
    for folder in (PROJECT, NOTEBOOK.parent):
        monkeypatch.chdir(folder)
        assert find_project()() == PROJECT


def test_project_is_found_from_elsewhere_by_variable_or_notebook(anywhere, monkeypatch):
    with pytest.raises(FileNotFoundError, match="NNUNET_PROJECT"):
        find_project()()
    monkeypatch.setenv("JPY_SESSION_NAME", str(NOTEBOOK))
    assert find_project()() == PROJECT
    monkeypatch.delenv("JPY_SESSION_NAME")
    monkeypatch.setenv("NNUNET_PROJECT", str(PROJECT))
    assert find_project()() == PROJECT


@pytest.mark.slow
def test_notebook_leads_from_scans_to_masks(anywhere, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("NNUNET_PROJECT", str(PROJECT))
    # Tests run on the CPU; a spare thread would only wait for the others.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read_notebook()
    working_folder = anywhere / "elsewhere"
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(working_folder)}})
    client.execute()

    (work,) = (anywhere / "temporary").glob("nnunet-custom-*")
    study = {folder.name: folder for folder in (work / "study").iterdir()}
    check_masks(work / "results/80_3d_fullres/out_of_fold", study, expected=10)
    check_masks(work / "masks", study, expected=2)
    for name in ("model.zip", "overlay.png", "scores.csv", "results/80_best/decision.json"):
        assert (work / name).stat().st_size > 0
    assert not list(working_folder.iterdir())
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3


def check_masks(masks: Path, study: dict[str, Path], *, expected: int) -> None:
    paths = sorted(masks.glob("*.nii.gz"))
    assert len(paths) == expected
    for path in paths:
        mask, scan = nib.load(path), nib.load(study[path.name.removesuffix(".nii.gz")] / "scan.nii.gz")
        assert mask.shape == scan.shape and mask.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(mask.affine, scan.affine)
        values = np.unique(np.asanyarray(mask.dataobj))
        assert set(values) <= {0, 1, 2} and values.size > 1
