"""The installation: what pip is told, and the installed command from another folder."""

from __future__ import annotations

import re
import site
import subprocess
import sys
import tomllib
import venv

import pytest

from tests.conftest import PROJECT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A fresh environment that borrows this one's packages, with the project installed in editable form."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("this setuptools cannot build the project")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (borrowed,) = folder.glob("lib/python*/site-packages")
    (borrowed / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    copy = folder / "checkout"
    # A link to each file: the build writes its egg-info beside setup.py, and the checkout is not for that.
    copy.mkdir()
    for path in PROJECT.iterdir():
        if path.suffix in (".py", ".toml", ".txt", ".md") or (path / "__init__.py").is_file():
            (copy / path.name).symlink_to(path)
    words = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--editable", "."]
    python = folder / "bin/python"
    run = subprocess.run([python, *words], cwd=copy, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.mark.slow
def test_the_command_works_from_another_folder(installed, tmp_path):
    for words, expected in ((["--version"], "nnunet "), (["download", "--help"], "usage: nnunet download")):
        command = [installed / "bin/nnunet", *words]
        output = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=True
        ).stdout
        assert output.startswith(expected)


@pytest.mark.slow
def test_dependencies_are_those_of_the_requirements_file_without_the_test_tools(installed):
    code = "import importlib.metadata as m; print('\\n'.join(m.requires('nnunet-lightning')))"
    output = subprocess.run([installed / "bin/python", "-c", code], capture_output=True, text=True, check=True).stdout
    lines = (PROJECT / "requirements.txt").read_text().splitlines()
    pinned = {line.partition("#")[0].strip() for line in lines} - {""}
    runtime = {line for line in output.split("\n") if line and "extra ==" not in line}
    tools = {line.partition(";")[0] for line in output.split("\n") if line.endswith('extra == "test"')}
    assert runtime | tools == pinned and not runtime & tools
    assert {tool.partition("==")[0] for tool in tools} >= {"pytest", "ruff"}
    assert any(line.startswith("torch==") for line in runtime)
    lines = (PROJECT / "requirements-extras.txt").read_text().splitlines()
    sections = {line[2:].partition(":")[0] for line in lines if re.match("# [a-z0-9]+:", line)}
    named = {line.rpartition("extra == ")[2].strip('"') for line in output.split("\n") if "extra ==" in line}
    assert named == {"test", *sections} and "formats" in sections


def test_every_room_is_packaged():
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {path.parent.name for path in PROJECT.glob("*/__init__.py")} - {"tests"}
    assert rooms <= {pattern.rstrip("*") for pattern in settings["packages"]["find"]["include"]}
    assert set(settings["py-modules"]) == {path.stem for path in PROJECT.glob("*.py")} - {"setup"}


def test_this_python_is_one_that_the_project_takes():
    wanted = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert sys.version_info >= tuple(map(int, wanted.removeprefix(">=").split(".")))
