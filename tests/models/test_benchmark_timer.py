"""A benchmark's batches: what they take, and what of it is waiting for data."""

from __future__ import annotations

import time
import warnings
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.demos.boring_classes import BoringModel, RandomDataset

from models.benchmark_timer import BenchmarkTimer
from models.trainer import build_trainer
from utils.config import HardwareConfig
from utils.runtime import resolve_hardware
from utils.throughput import LatencyRecorder


def test_waiting_for_data_counts_as_latency():
    recorder = LatencyRecorder(items_per_batch=1, warmup=1)
    timer = BenchmarkTimer(recorder)
    module = SimpleNamespace(device=torch.device("cpu"))
    timer.on_train_epoch_start(None, module)
    for _ in range(3):
        time.sleep(0.01)  # Between the end of one batch and the end of the next: loading, then the step.
        timer.on_train_batch_end(None, module)
    assert len(recorder.latencies_s) == 2 and min(recorder.latencies_s) >= 0.01


@pytest.mark.parametrize("phase", ["train", "predict"])
def test_the_time_until_a_batch_is_there_is_waiting(monkeypatch, phase):
    """Clock: an epoch begins at 0 s, its batch arrives after 3 s and is done at 4 s."""
    monkeypatch.setattr(time, "perf_counter", iter((0.0, 3.0, 4.0)).__next__)
    recorder = LatencyRecorder(items_per_batch=1, warmup=0)
    timer, module = BenchmarkTimer(recorder), SimpleNamespace(device=torch.device("cpu"))
    for event in ("epoch_start", "batch_start", "batch_end"):
        getattr(timer, f"on_{phase}_{event}")(None, module)
    assert (recorder.latencies_s, recorder.summary().data_wait_share) == ((4.0,), 0.75)


@pytest.mark.parametrize("phase", ["train", "predict"])
def test_what_lies_between_two_batches_is_no_waiting_for_data(monkeypatch, phase):
    """Clock: an epoch begins at 0 s, its batch is asked for at 1 s, arrives after 3 s and is done at 5 s."""
    monkeypatch.setattr(time, "perf_counter", iter((0.0, 1.0, 3.0, 5.0)).__next__)
    recorder = LatencyRecorder(items_per_batch=1, warmup=0)
    timer, module = BenchmarkTimer(recorder), SimpleNamespace(device=torch.device("cpu"))
    getattr(timer, f"on_{phase}_epoch_start")(None, module)
    timer.profiler.start("[_Loop].train_dataloader_next" if phase == "train" else "[_Loop].predict_next")
    timer.profiler.start("run_training_batch")
    for event in ("batch_start", "batch_end"):
        getattr(timer, f"on_{phase}_{event}")(None, module)
    assert (recorder.latencies_s, recorder.summary().data_wait_share) == ((5.0,), 0.4)


class Slow(Callback):
    """Takes its time between two batches."""

    def on_train_batch_end(self, *_) -> None:
        time.sleep(0.05)

    def on_predict_batch_end(self, *_) -> None:
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["fit", "predict"])
def test_lightning_says_when_it_asks_for_a_batch(phase):
    recorder = LatencyRecorder(items_per_batch=1, warmup=1)
    timer = BenchmarkTimer(recorder)
    if phase == "predict":
        trainer = build_trainer(resolve_hardware(HardwareConfig(gpus=0)), callbacks=[timer, Slow()])
    else:
        # Callbacks of ours want a network of ours.
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=1, callbacks=[timer, Slow()], profiler=timer.profiler, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
    data = torch.utils.data.DataLoader(RandomDataset(32, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(trainer, phase)(BoringModel(), data)
    assert len(recorder.latencies_s) == 5 and recorder.summary().data_wait_share < 0.5
