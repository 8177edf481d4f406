"""The build of Dockerfile.cpu without docker: its RUN lines in a fresh virtual environment. `make build-test` runs it.

It downloads some 2 GB and takes minutes, and so is skipped unless NNUNET_BUILD is set: `as-written`, or `own-index` for
pip's own index in place of PyTorch's (which some networks do not reach).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
import yaml

from tests.conftest import PROJECT
from tests.dockerfiles import steps

VARIABLE = "NNUNET_BUILD"
WANTED = os.environ.get(VARIABLE)
PACKAGES = {"serve": "fastapi", "formats": "SimpleITK", "dicom": "highdicom"}
"""Extra -> a module that shows that it is there."""


def extras() -> list[str]:
    """Those that compose.yaml builds its service with."""
    content = yaml.safe_load((PROJECT / "compose.yaml").read_text())
    return content["services"]["serve"]["build"]["args"]["EXTRAS"].split()


def commands(folder: Path, *, own_index: bool) -> list[str]:
    """What the stage `program` runs, with /tmp in `folder`; downloads may be kept for the next time."""
    found = []
    for step, rest in steps("Dockerfile.cpu"):
        if step == "FROM" and found:
            break
        if step == "RUN":
            rest = rest.replace("/tmp/", f"{folder}/").replace("--no-cache-dir ", "")
            found.append(re.sub(r"--index-url \S+ ", "", rest) if own_index else rest)
    return found


def test_the_lines_are_those_of_the_dockerfile(tmp_path):
    install, program = commands(tmp_path, own_index=True)
    assert "$EXTRAS" in install and '"$(sed -n' in install and "--index-url" not in install
    assert program == "pip install --no-deps --editable ."
    assert "--index-url https://download.pytorch.org/whl/cpu " in commands(tmp_path, own_index=False)[0]
    assert set(extras()) == set(PACKAGES)


def test_the_lines_install_the_pinned_packages_of_the_extras_and_nothing_for_tests(tmp_path):
    """The shell runs them with a pip that only writes down what it is asked for."""
    (tmp_path / "pip").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nfor word in "$@"; do\n'
        f'case "$word" in */requirements.txt) cp "$word" {tmp_path}/packages;; esac; done\n'
    )
    (tmp_path / "pip").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "EXTRAS": " ".join(extras())}
    for line in commands(tmp_path, own_index=True):
        subprocess.run(["sh", "-ec", line], cwd=PROJECT, env=environment, check=True)
    torch, rest, program = (tmp_path / "asked").read_text().splitlines()
    assert torch.startswith("install torch==") and rest == f"install --requirement {tmp_path}/requirements.txt"
    assert program == "install --no-deps --editable ."
    names = {re.split(r"[=\[]", line)[0] for line in (tmp_path / "packages").read_text().splitlines() if line[0] != "#"}
    assert {"numpy", "torch", "fastapi", "SimpleITK", "highdicom"} <= names
    assert names.isdisjoint({"pytest", "mypy", "onnx", "wandb", "tritonclient"})


@pytest.mark.slow
@pytest.mark.skipif(WANTED is None, reason=f"downloads 2 GB: {VARIABLE}=as-written or own-index, or make build-test")
def test_a_fresh_environment_has_all_that_the_image_has(tmp_path):
    assert WANTED in ("as-written", "own-index"), f"{VARIABLE}={WANTED}"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (tmp_path / "program" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / "program" / name)
    venv.create(tmp_path / "venv", with_pip=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment = clean | {
        "PATH": f"{tmp_path / 'venv/bin'}:{os.environ['PATH']}", "EXTRAS": " ".join(extras()), "HOME": str(tmp_path),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
    }  # fmt: skip

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path / "program", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    for line in commands(tmp_path, own_index=WANTED == "own-index"):
        run("sh", "-ec", line)
    assert "No broken requirements found" in run("pip", "check")
    run("python", "-c", f"import torch, nvidia.dali, {', '.join(PACKAGES.values())}")
    run("nnunet", "doctor")
    assert "--host" in run("nnunet", "serve", "--help")
