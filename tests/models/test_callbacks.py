"""What happens around epochs and batches, without a Trainer."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.callbacks import AtomicCheckpointIO, BenchmarkTimer, EpochReport, PredictionSink, SkipFirstValidations
from models.metrics import DiceAccumulator
from models.nn_unet import ValidationResult
from tests.models.builders import TWO_CLASSES
from utils.logger import NullLogger
from utils.throughput import LatencyRecorder

TARGETS = ("anterior", "posterior")


def fake_trainer(epoch: int) -> SimpleNamespace:
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    return SimpleNamespace(current_epoch=epoch, is_global_zero=True, optimizers=[optimizer])


def fake_module(loss: float, validation: ValidationResult | None) -> SimpleNamespace:
    return SimpleNamespace(mean_train_loss=lambda: loss, last_validation=validation, reduce_sum=lambda value: value)


def validation(dice: float) -> ValidationResult:
    return ValidationResult(dice=(dice, dice), mean_dice=dice, loss=1.0)


@pytest.mark.slow
def test_summary_names_the_best_epoch_and_history_survives_a_checkpoint(tmp_path):
    report = EpochReport(NullLogger(), tmp_path / "progress.png", TARGETS)
    for epoch, result in enumerate((None, validation(0.7), validation(0.6))):
        report.on_train_epoch_end(fake_trainer(epoch), fake_module(1.0, result))
    again = EpochReport(NullLogger(), tmp_path / "progress.png", TARGETS)
    again.load_state_dict(report.state_dict())
    assert again.history == report.history
    summary = again.summary()
    assert (summary["epochs"], summary["best_epoch"], summary["best_dice_posterior"]) == (3, 1, 0.7)


def test_half_written_checkpoint_does_not_replace_a_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def save_half(contents, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="disk full"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_code_in_a_checkpoint_is_refused(tmp_path):
    torch.save({"surprise": threading.Thread}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match="weights_only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "bad.ckpt")


def test_validation_is_off_for_the_first_epochs_only():
    skip = SkipFirstValidations(2)
    trainer = SimpleNamespace(current_epoch=0, limit_val_batches=1.0)
    limits = []
    for trainer.current_epoch in range(4):
        skip.on_train_epoch_start(trainer, None)
        limits.append(trainer.limit_val_batches)
    assert limits == [0.0, 0.0, 1.0, 1.0]


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


class TestPredictionSink:
    def run(self, consume, cases):
        sink = PredictionSink(consume, DiceAccumulator(TWO_CLASSES))
        module = fake_module(0.0, None)
        for case in cases:
            sink.on_predict_batch_end(None, module, (case, torch.ones(1)))
        sink.on_predict_end(None, module)
        return sink

    def test_every_case_is_consumed_and_scored(self):
        perfect = np.array([[3, 0, 0], [1, 1, 0]])
        seen = []
        sink = self.run(lambda case, probabilities: seen.append(case) or perfect, ["a", "b", "c", "d"])
        assert seen == ["a", "b", "c", "d"]
        summary = sink.summary(TARGETS)
        assert summary == pytest.approx({"dice": 5 / 6, "dice_anterior": 1.0, "dice_posterior": 2 / 3})

    def test_cases_without_labels_give_no_score(self):
        assert self.run(lambda case, probabilities: None, ["a"]).summary(TARGETS) == {}

    def test_an_error_in_the_thread_is_raised(self):
        def fail(case, probabilities):
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            self.run(fail, ["a"])
