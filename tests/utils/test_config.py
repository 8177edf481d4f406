from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from utils import config
from utils.config import HardwareConfig, InferenceConfig, LoaderConfig, ModelConfig, RunConfig
from utils.errors import UserError
from utils.optim_config import OptimConfig

GROUPS = [HardwareConfig, InferenceConfig, LoaderConfig, ModelConfig, OptimConfig, RunConfig]


@pytest.mark.parametrize("group", GROUPS)
def test_defaults_are_legal(group):
    assert dataclasses.is_dataclass(group())


@pytest.mark.parametrize("group", GROUPS)
def test_options_are_given_by_name_only(group):
    with pytest.raises(TypeError):
        group(1)


def test_no_option_is_in_two_groups():
    names = [field.name for group in GROUPS for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("group", "legal", "illegal"),
    [
        (RunConfig, {"fold": 7}, {"fold": -1}),
        (RunConfig, {"nfolds": 2}, {"nfolds": 1}),
        (RunConfig, {"task": "004"}, {"task": "4d"}),
        (RunConfig, {"seed": 0}, {"seed": -1}),
        (HardwareConfig, {"gpus": 0}, {"gpus": -1}),
        (HardwareConfig, {"processes": 1}, {"processes": 0}),
        (LoaderConfig, {"oversampling": 0.0}, {"oversampling": -0.01}),
        (LoaderConfig, {"oversampling": 1.0}, {"oversampling": 1.01}),
        (LoaderConfig, {"elastic_probability": 1.0}, {"elastic_probability": 1.01}),
        (ModelConfig, {"negative_slope": 0.0}, {"negative_slope": 1.0}),
        (ModelConfig, {"filters": (1,)}, {"filters": (0,)}),
        (OptimConfig, {"momentum": 0.0}, {"momentum": 1.0}),
        (OptimConfig, {"scheduler": "multistep", "steps": (1,)}, {"scheduler": "multistep"}),
        (OptimConfig, {"min_epochs": 0}, {"min_epochs": -1}),
        (OptimConfig, {"patience": 0}, {"patience": -1}),
        (ModelConfig, {"deep_supr_num": 0}, {"deep_supr_num": -1}),
        (InferenceConfig, {"overlap": 0.0}, {"overlap": 1.0}),
    ],
)
def test_a_value_out_of_range_dies_at_birth_and_is_named(group, legal, illegal):
    group(**legal)
    with pytest.raises(UserError, match=f"--{next(iter(illegal))}"):
        group(**illegal)


def test_a_fold_must_be_one_of_the_folds():
    assert RunConfig(fold=7, nfolds=8).fold == 7
    with pytest.raises(UserError, match=r"--fold must lie in 0\.\.2, got 3"):
        RunConfig(fold=3, nfolds=3)


def test_folders_are_local_unless_the_container_mounts_them(monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda path: str(path) == "/data")
    assert config.default_root("data") == Path("/data")
    assert config.default_root("results") == Path("results")
