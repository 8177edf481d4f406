"""Two processes of one run, and how they end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from models import launcher
from models.launcher import first_gone, watch

PROJECT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")

PROGRAM = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import pytorch_lightning as pl, torch
from models.trainer import build_trainer
from utils.config import HardwareConfig
from utils.optim_config import OptimConfig
from utils.errors import run_cli
from utils.runtime import resolve_hardware

NUMBER, TARGET = int(sys.argv[2]), sys.argv[3]
# A shell lets what it starts in the background ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Tiny(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def training_step(self, batch, index):
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        if index == 2 and TARGET == "both":
            os.kill(os.getpid(), NUMBER)
        if index == 2 and rank == 1 and TARGET != "both":
            os.kill(os.getppid() if TARGET == "first" else os.getpid(), NUMBER)
        return (self.weight * batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class Ending(pl.Callback):
    def on_exception(self, trainer, module, error):
        if trainer.is_global_zero:
            print(*(thread.name for thread in threading.enumerate()), flush=True)

def main():
    runtime = resolve_hardware(HardwareConfig(accelerator="cpu", processes=2))
    trainer = build_trainer(runtime, callbacks=[Ending()], optim=OptimConfig(max_epochs=1))
    trainer.fit(Tiny(), torch.utils.data.DataLoader([torch.ones(1)] * 10000, num_workers=0))

if __name__ == "__main__":
    sys.exit(run_cli(main))
"""


def run(tmp_path, number: signal.Signals, target: str) -> subprocess.CompletedProcess:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    words = [str(program), str(PROJECT), str(int(number)), target]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_for_both_processes_ends_with_its_own_status_and_one_message(tmp_path, name):
    number = signal.Signals[name]
    done = run(tmp_path, number, "both")
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.count("interrupted") == 1 and "Traceback" not in done.stderr
    # Lightning's own watcher looks every five seconds, and kills the first process where it finds another one gone.
    assert "child-process-observer" not in done.stdout and "MainThread" in done.stdout


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_with_a_message(tmp_path):
    done = run(tmp_path, signal.SIGKILL, "second")
    assert done.returncode == 2, done.stderr
    assert "error: process 1 of 2 ended with status -9" in done.stderr and "Traceback" not in done.stderr


class Ended:
    """Stands in for a process."""

    def __init__(self, status: int | None) -> None:
        self.returncode, self.killed = status, False

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.killed = True


def test_only_a_process_with_an_error_is_missed():
    assert first_gone([Ended(None), Ended(0)], 0) is None
    assert "process 2 of 3 ended with status 1 " in first_gone([Ended(None), Ended(1)], 0)


def test_a_first_process_that_waits_for_ever_is_ended(monkeypatch, capsys):
    statuses = []
    monkeypatch.setattr(launcher, "POLL_S", 0)
    monkeypatch.setattr(launcher, "GRACE_S", 0)
    ending = threading.Event()
    monkeypatch.setattr(launcher.os, "_exit", lambda status: (statuses.append(status), ending.set()))
    processes = [Ended(1), Ended(None)]
    watch(processes, ending)
    assert statuses == [2] and processes[1].killed
    assert "process 1 of 3" in capsys.readouterr().err


def test_the_watch_ends_with_the_run(monkeypatch):
    monkeypatch.setattr(launcher.os, "_exit", lambda status: pytest.fail("the run has ended by itself"))
    ending = threading.Event()
    ending.set()
    watch([Ended(1)], ending)
