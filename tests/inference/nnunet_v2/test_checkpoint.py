from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from inference.nnunet_v2.checkpoint import load_tensors, read_checkpoint
from tests.inference.nnunet_v2.made_up_models import MODELS, make_checkpoint
from utils.errors import UserError


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def write(path: Path, **more) -> Path:
    content = make_checkpoint(MODELS["isotropic"], {"a": torch.zeros(2)}, 0, "3d_fullres")
    torch.save(content | more, path)
    return path


def test_a_checkpoint_with_numpys_scalars_is_read(tmp_path: Path):
    network = read_checkpoint(write(tmp_path / "a.pth"), "a.pth")
    assert (network.trainer, network.configuration, network.fold) == ("nnUNetTrainer", "3d_fullres", 0)
    assert network.mirror_axes == (0, 2)
    assert network.content["_best_ema"] == np.float32(0.5)


def test_no_axes_mean_no_flips(tmp_path: Path):
    path = write(tmp_path / "a.pth", inference_allowed_mirroring_axes=None)
    assert read_checkpoint(path, "a.pth").mirror_axes == ()


def test_prefixes_of_parallel_training_and_compiling_are_taken_off(tmp_path: Path):
    weights = {"module._orig_mod.encoder.a": torch.ones(1)}
    assert list(read_checkpoint(write(tmp_path / "a.pth", network_weights=weights), "a").weights) == ["encoder.a"]


def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path: Path):
    mark = tmp_path / "ran"
    path = write(tmp_path / "a.pth", logging=Evil(mark))
    with pytest.raises(UserError, match=r"wants to run .*system"):
        load_tensors(path, "a.pth")
    with path.open("rb") as file, pytest.raises(UserError, match=r"wants to run .*system"):
        load_tensors(file, "a.pth")
    assert not mark.exists()


def test_a_class_of_somebody_else_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="pathlib"):
        load_tensors(write(tmp_path / "a.pth", more=Path("x")), "a.pth")


def test_a_truncated_file_is_one_message(tmp_path: Path):
    path = write(tmp_path / "a.pth")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="truncated or damaged"):
        read_checkpoint(path, "a.pth")


def test_tensors_of_something_else_are_no_checkpoint(tmp_path: Path):
    torch.save({"state_dict": {}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="no network_weights"):
        read_checkpoint(tmp_path / "a.pth", "a.pth")
