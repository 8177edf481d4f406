"""The laws that hold the project together: who imports whom, file sizes, no unsafe loading."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("utils", "data_preprocessing", "data_loading", "models")
ENTRY_FILES = ("main.py", "preprocess.py", "download.py", "evaluate.py")
PRODUCT = sorted(
    path for root in (*PACKAGES, "scripts", *ENTRY_FILES) for path in
    ([PROJECT / root] if root.endswith(".py") else (PROJECT / root).rglob("*.py"))
)  # fmt: skip
MAY_IMPORT = {package: {package, "utils"} for package in PACKAGES}
UNSAFE_MODULES = {"pickle", "dill", "shelve", "joblib", "cloudpickle"}
UNSAFE_ARGUMENTS = {"shell": True, "allow_pickle": True, "weights_only": False}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_utils_and_themselves(package):
    ours = {*PACKAGES, "scripts", *(name.removesuffix(".py") for name in ENTRY_FILES)}
    for path in (PROJECT / package).rglob("*.py"):
        assert _imports(path) & ours <= MAY_IMPORT[package], path


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(PROJECT)))
def test_file_is_small_and_safe(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert not _imports(path) & UNSAFE_MODULES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            arguments = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            assert not any(arguments.get(name) is value for name, value in UNSAFE_ARGUMENTS.items()), ast.unparse(node)


def test_no_folder_shadows_an_importable_package():
    folders = {path.name for path in PROJECT.iterdir() if path.is_dir()}
    assert not folders & {"triton", "onnx", "lightning", "torch", "monai", "nvidia", "nibabel"}
