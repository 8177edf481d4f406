from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from models.trainer import SrunEnvironment, build_trainer, cluster_environment
from utils.config import HardwareConfig
from utils.runtime import resolve_hardware

BATCH = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train.sh", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
BATCH |= {"SLURM_NODEID": "0", "SLURM_NTASKS": "4"}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")] + [
        "RANK",
        "LOCAL_RANK",
        "TORCHELASTIC_RUN_ID",
    ]:
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_python_in_a_batch_script_with_several_tasks_is_one_process(monkeypatch):
    set_all(monkeypatch, BATCH)
    trainer = build_trainer(resolve_hardware(HardwareConfig(accelerator="cpu")), callbacks=[])
    assert trainer.world_size == 1 and trainer.is_global_zero


def test_processes_of_srun_know_each_other_without_ntasks_per_node(monkeypatch):
    set_all(monkeypatch, BATCH | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"})
    environment = cluster_environment()
    assert isinstance(environment, SrunEnvironment) and not environment.auto_requeue
    assert (environment.world_size(), environment.global_rank()) == (2, 1)
    environment.validate_settings(num_devices=2, num_nodes=1)


def test_without_slurm_lightning_or_torchrun_starts_the_processes(monkeypatch):
    assert type(cluster_environment()) is LightningEnvironment
    set_all(monkeypatch, {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"})
    assert type(cluster_environment()) is TorchElasticEnvironment


def test_an_srun_that_is_not_used_is_no_reason_to_warn(monkeypatch, tmp_path):
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = build_trainer(resolve_hardware(HardwareConfig(accelerator="cpu")), callbacks=[])
        # What Lightning asks at the start of every training.
        trainer._checkpoint_connector._parse_ckpt_path(
            trainer.state.fn or _Fit, None, model_provided=True, model_connected=True
        )
    assert not [w for w in caught if "srun" in str(w.message)]


class _Fit:
    value = "fit"


def test_lightning_takes_no_checkpoint_from_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    set_all(monkeypatch, BATCH)
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    trainer = build_trainer(resolve_hardware(HardwareConfig(accelerator="cpu")), callbacks=[])
    assert trainer._checkpoint_connector._hpc_resume_path is None


INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import pytorch_lightning as pl, torch
from models.trainer import build_trainer
from utils.config import HardwareConfig
from utils.optim_config import OptimConfig
from utils.errors import run_cli
from utils.runtime import resolve_hardware

class Tiny(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def training_step(self, batch, index):
        os.kill(os.getpid(), signal.SIGTERM)
        print("the step goes on", flush=True)
        return (self.weight * batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def main():
    runtime = resolve_hardware(HardwareConfig(accelerator="cpu"))
    trainer = build_trainer(runtime, callbacks=[], optim=OptimConfig(max_epochs=1))
    trainer.fit(Tiny(), torch.utils.data.DataLoader([torch.ones(1)] * 3, num_workers=0))

sys.exit(run_cli(main))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_sigterm_ends_a_training_at_once_with_143(tmp_path):
    project = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "ignore", "-c", INTERRUPTED, str(project)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout.strip()) == (143, ""), done.stderr
    assert done.stderr.strip().endswith("interrupted by SIGTERM")
