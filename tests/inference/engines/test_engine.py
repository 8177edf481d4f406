"""`--engine`: other runtimes compute what torch computes, from the same model."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from inference.configuration_predictor import ConfigurationPredictor
from inference.engines import agreement, engine
from inference.engines import cache as engine_cache
from inference.engines.conversion import random_windows
from inference.engines.engine import Engine, choose_engine, without_gpu
from inference.predictor import Predictor
from tests.conftest import PROJECT
from tests.inference.engines.made_up import ENGINES, KINDS, ONNX, configuration
from tests.models.builders import make_network, make_plan
from tests.models.checkpoints import save_ours
from utils import cache as user_cache
from utils.config import HardwareConfig
from utils.errors import UserError
from utils.runtime import resolve_hardware

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_torchs_for_any_number_of_windows(kind: str, name: str):
    [network] = Engine(name=name, threads=1).networks(configuration(kind))
    plan, model = KINDS[kind]
    with torch.inference_mode():
        for count in (1, 3):
            windows = random_windows(plan, count, seed=count)
            expected = make_network(plan, model).eval()(windows)
            torch.testing.assert_close(network(windows), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_masks_are_torchs_in_a_stream_of_windows(name: str):
    image = np.random.default_rng(0).normal(size=(19, 12, 13)).astype(np.float32)
    one = configuration()
    by_torch, by_engine = (
        Predictor([ConfigurationPredictor(one, device=CPU, engine=each)])
        for each in (None, Engine(name=name, threads=1))
    )
    expected = by_torch.predict(image, (1.0, 1.0, 1.0))
    assert len(np.unique(expected)) > 1
    assert np.count_nonzero(by_engine.predict(image, (1.0, 1.0, 1.0)) != expected) <= 1
    assert by_engine.weight_bytes == by_torch.weight_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_a_model_is_loaded_with_an_engine_in_python(name: str, tmp_path):
    save_ours(tmp_path / "last.ckpt", make_plan())
    image = np.random.default_rng(0).normal(size=(12, 9, 11)).astype(np.float32)
    predictor = Predictor.load(tmp_path, device="cpu", engine=name)
    assert predictor.configurations[0].engine == Engine(name=name, threads=torch.get_num_threads())
    expected = Predictor.load(tmp_path, device="cpu", engine="torch").predict(image, (1.0, 1.0, 1.0))
    assert len(np.unique(expected)) > 1
    assert np.count_nonzero(predictor.predict(image, (1.0, 1.0, 1.0)) != expected) <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"engine": "onnx"}, "engine must be one of auto, torch, onnxruntime, openvino, got 'onnx'"),
        ({"engine": "openvino", "device": "cuda:1"}, "engine openvino computes on the CPU, and device is 'cuda:1'"),
        ({"engine": "onnxruntime"}, r"needs the package onnx_that_is_nowhere.*pip install -e '.\[onnx\]'"),
    ],
)
def test_what_python_cannot_load_with_is_one_message(words, message, tmp_path, monkeypatch):
    save_ours(tmp_path / "last.ckpt", make_plan())
    monkeypatch.setitem(engine.PACKAGES, "onnxruntime", ("onnx_that_is_nowhere",))
    with pytest.raises(UserError, match=message):
        Predictor.load(tmp_path, **words)


@ONNX
@pytest.mark.slow
def test_a_network_is_converted_and_checked_once_and_a_damaged_file_anew(cache, capsys, monkeypatch):
    one, checks = configuration(seed=77), []
    monkeypatch.setattr(engine, "check_runtime", lambda *a, **k: checks.append(1) or agreement.check_runtime(*a, **k))
    runtime = Engine(name="onnxruntime", threads=1)
    before = set((cache / "networks").glob("*"))
    for _ in range(2):
        runtime.networks(one)
    assert capsys.readouterr().out.count("converting fold_0") == 1 and len(checks) == 1
    [entry] = set((cache / "networks").glob("*")) - before
    content = bytearray((entry / "network.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (entry / "network.onnx").write_bytes(content)
    runtime.networks(one)
    assert capsys.readouterr().out.count("converting fold_0") == 1 and len(checks) == 2
    assert b"test" not in (entry / "network.onnx").read_bytes(), "where the sources lay"
    assert json.loads((entry / "made.json").read_text())["made_from"]["opset"] == "20"


@pytest.fixture
def quick(monkeypatch):
    """Conversions are a file of a few bytes; returns how many there were."""
    made = []
    monkeypatch.setattr(engine_cache, "write_onnx", lambda path, *_: made.append(path) or path.write_bytes(b"network"))
    return made


def test_of_two_processes_that_convert_at_once_both_go_on(cache, quick, monkeypatch):
    one, original = configuration(seed=78), engine_cache._make

    def beaten(folder, *rest):
        original(folder, *rest)
        shutil.copytree(folder, cache / "networks" / key)

    key, _ = engine_cache.network_key(one, one.folds[0])
    monkeypatch.setattr(engine_cache, "_make", beaten)
    with engine_cache.converted_network(one, one.folds[0]) as found:
        assert found.path == cache / "networks" / key / "network.onnx" and found.path.read_bytes() == b"network"
    assert {path.name[:5] for path in (cache / "networks").iterdir()}.isdisjoint({".tmp-"})


def test_a_cache_that_takes_nothing_is_a_warning(quick, monkeypatch, capsys):
    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(engine_cache, "new_folder", refuse)
    one = configuration(seed=79)
    with engine_cache.converted_network(one, one.folds[0]) as found:
        assert found.path.read_bytes() == b"network"
    assert not found.path.exists() and len(quick) == 1
    said = capsys.readouterr().err
    assert "warning: Read-only file system" in said and "fold_0 is converted for this run only" in said


def test_a_network_that_cannot_be_converted_is_an_error_and_tried_once(cache, monkeypatch, capsys):
    tries = []

    def fail(*_):
        tries.append(1)
        raise UserError("torch cannot convert it")

    monkeypatch.setattr(engine_cache, "write_onnx", fail)
    one = configuration(seed=80)
    with pytest.raises(UserError, match="torch cannot convert it"), engine_cache.converted_network(one, one.folds[0]):
        pass
    assert len(tries) == 1 and "warning" not in capsys.readouterr().err


def test_a_cache_of_somebody_else_is_a_warning(quick, monkeypatch, capsys):
    def refuse(_):
        raise UserError("others may write into it")

    monkeypatch.setattr(engine_cache, "cache_folder", refuse)
    one = configuration(seed=81)
    with engine_cache.converted_network(one, one.folds[0]) as found:
        assert found.path.read_bytes() == b"network"
    assert len(quick) == 1 and "warning: others may write into it; fold_0 is converted" in capsys.readouterr().err


def test_old_entries_that_cannot_be_looked_at_discard_no_new_one(cache, quick, monkeypatch, capsys):
    def refuse(folder, **_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(engine_cache, "drop_oldest", refuse)
    one = configuration(seed=82)
    with engine_cache.converted_network(one, one.folds[0]) as found:
        assert found.path.is_relative_to(cache / "networks")
    assert len(quick) == 1 and capsys.readouterr().err == ""


def test_other_weights_or_another_network_are_another_entry():
    keys = {engine_cache.network_key(each, each.folds[0])[0] for each in (
        configuration(), configuration(seed=1), configuration("residual blocks"), configuration("2d")
    )}  # fmt: skip
    assert len(keys) == 4
    assert engine_cache.network_key(configuration(), configuration().folds[0])[0] in keys


def test_a_cache_that_others_may_write_into_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("NNUNET_CACHE", str(tmp_path))
    folder = user_cache.cache_folder("networks")
    assert folder == tmp_path / "networks" and not folder.stat().st_mode & 0o077
    folder.chmod(0o777)
    with pytest.raises(UserError, match="others may write into"):
        user_cache.cache_folder("networks")


def test_the_cache_drops_what_was_used_least_lately(tmp_path):
    for age, name in enumerate(("new", "old", "oldest")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    user_cache.drop_oldest(tmp_path, most_bytes=20, keep=tmp_path / "oldest")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "oldest"}


def test_engines_compute_on_the_cpu_and_say_so(monkeypatch, capsys):
    with pytest.raises(UserError, match=r"--engine openvino computes on the CPU, and --gpus 1"):
        without_gpu("openvino", HardwareConfig(gpus=1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert without_gpu("openvino", HardwareConfig()).gpus == 0
    assert "this machine's GPU stays idle" in capsys.readouterr().err
    without_gpu("openvino", HardwareConfig(accelerator="cpu"))
    assert not capsys.readouterr().err, "the GPU is not wanted"
    assert without_gpu("auto", HardwareConfig()).gpus is None


def test_auto_is_torch_and_a_missing_package_is_one_message(monkeypatch):
    hardware = HardwareConfig(gpus=0)
    runtime = resolve_hardware(hardware)
    assert choose_engine("auto", hardware, runtime, None) is None
    monkeypatch.setitem(engine.PACKAGES, "openvino", ("openvino_that_is_nowhere",))
    with pytest.raises(UserError, match=r"--engine openvino needs .*pip install -e '.\[openvino\]'"):
        choose_engine("openvino", hardware, runtime, None)


def test_what_does_nothing_with_an_engine_is_said(monkeypatch, capsys):
    monkeypatch.setitem(engine.PACKAGES, "onnxruntime", ())
    hardware = HardwareConfig(gpus=0, compile=True)
    chosen = choose_engine("onnxruntime", hardware, resolve_hardware(hardware), torch.bfloat16)
    assert chosen is not None and chosen.amp is None and chosen.threads == torch.get_num_threads()
    said = capsys.readouterr().err
    assert "--compile has no effect" in said and "--amp has no effect" in said


INTERRUPTED = """
import gc, signal, sys
from inference.engines.engine import Engine
from tests.inference.engines.made_up import configuration
from utils.errors import run_cli

def main():
    networks = list(Engine(name=sys.argv[1], threads=1).networks(configuration(folds=2)))
    # In the order in which they were made.
    while networks:
        del networks[0]
        gc.collect()
    signal.raise_signal(signal.SIGTERM)

sys.exit(run_cli(main))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_a_signal_after_an_engine_has_gone_ends_the_command_as_ever(name: str):
    """A runtime may leave the stack for signals pointing at memory that it has freed."""
    words = [sys.executable, "-W", "ignore", "-c", INTERRUPTED, name]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip().splitlines()[-1:]) == (143, ["interrupted by SIGTERM"])
