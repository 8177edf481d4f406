"""Shards of four tiny cases in two folds, for the modules that read them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny_task import make_task


@pytest.fixture(scope="session")
def made_shards(tmp_path_factory) -> Path:
    """`data` and `results/77_3d`, which no test may change."""
    root = tmp_path_factory.mktemp("cross_validation")
    assert make_task(root, num_cases=4).run("--nfolds", "2") == 0
    return root


@pytest.fixture
def data(made_shards, tmp_path) -> Path:
    """A copy of the preprocessed data, with a low-resolution stage that looks like full resolution."""
    for name in ("77_3d", "77_3d_lowres"):
        shutil.copytree(made_shards / "results/77_3d", tmp_path / "data" / name)
    return tmp_path / "data"
