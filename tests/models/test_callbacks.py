"""What happens around epochs and batches, without a Trainer."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.trainer.states import TrainerFn

from models import callbacks
from models.callbacks import EpochReport, ScheduledValidations
from models.metrics import DiceAccumulator
from models.nn_unet import ValidationResult
from models.prediction_sink import PredictionSink
from models.progress import EpochBar
from models.saving import AtomicCheckpointIO, CheckpointRoom, checkpoint_callbacks
from models.weight_average import weight_averages
from tests.models.builders import TWO_CLASSES
from utils.errors import UserError
from utils.logger import NullLogger
from utils.validation_schedule import ValidationSchedule

TARGETS = ("anterior", "posterior")


def fake_trainer(epoch: int) -> SimpleNamespace:
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}])
    return SimpleNamespace(current_epoch=epoch, max_epochs=4, is_global_zero=True, optimizers=[optimizer])


def fake_module(loss: float, validation: ValidationResult | None) -> SimpleNamespace:
    return SimpleNamespace(mean_train_loss=lambda: loss, last_validation=validation, reduce_sum=lambda value: value)


def validation(dice: float) -> ValidationResult:
    return ValidationResult(dice=(dice, dice), mean_dice=dice, loss=1.0)


@pytest.fixture
def undrawn(monkeypatch):
    """Epochs are reported without a picture."""
    monkeypatch.setattr(callbacks, "write_progress", lambda *_: None)


def test_summary_names_the_best_epoch_and_history_survives_a_checkpoint(tmp_path, undrawn):
    report = EpochReport(NullLogger(), tmp_path / "progress.png", TARGETS)
    for epoch, result in enumerate((None, validation(0.7), validation(0.6))):
        report.on_train_epoch_end(fake_trainer(epoch), fake_module(1.0, result))
    again = EpochReport(NullLogger(), tmp_path / "progress.png", TARGETS)
    again.load_state_dict(report.state_dict())
    assert again.history == report.history
    summary = again.summary()
    assert (summary["epochs"], summary["best_epoch"], summary["best_dice_posterior"]) == (3, 1, 0.7)


def test_cases_of_the_best_validation_lie_beside_the_log(tmp_path, undrawn):
    report = EpochReport(NullLogger(), tmp_path / "progress.png", TARGETS, ("a", "b", "other process"))
    path = tmp_path / "validation.json"

    def end(epoch: int, dice: float, counts: int) -> None:
        module = fake_module(1.0, validation(dice))
        module.case_counts = {case: torch.full((len(TARGETS), 3), counts) for case in "ab"}
        module.plan = SimpleNamespace(labels=SimpleNamespace(target_names=TARGETS))
        report.on_train_epoch_end(fake_trainer(epoch), module)

    end(0, 0.5, 1)
    end(1, 0.7, 2)
    end(2, 0.6, 3)
    content = json.loads(path.read_text())
    assert (content["epoch"], content["mean_dice"], content["targets"]) == (1, 0.7, list(TARGETS))
    # A case that no process has seen is none.
    assert content["cases"] == {case: [[2, 2, 2]] * len(TARGETS) for case in "ab"}


def test_lines_say_which_epoch_of_how_many_and_how_long_the_rest_takes(tmp_path, undrawn, monkeypatch, capsys):
    # Epochs of 60, 100 and 60 s: one that is odd changes nothing.
    monkeypatch.setattr(time, "perf_counter", iter((0.0, 0.0, 60.0, 60.0, 160.0, 160.0, 220.0, 220.0, 280.0)).__next__)
    report, module = EpochReport(NullLogger(), tmp_path / "progress.png", TARGETS), fake_module(1.0, None)
    for epoch in range(4):
        report.on_train_epoch_start(fake_trainer(epoch), module)
        report.on_train_epoch_end(fake_trainer(epoch), module)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:12] for line in lines] == [f"epoch {number} of 4" for number in (1, 2, 3, 4)]
    assert [line.split("  ")[-1] for line in lines] == ["3 min left", "3 min left", "60 s left", "60.0 s"]


def test_curves_are_drawn_no_more_often_than_they_may_cost_and_all_of_them_at_the_end(tmp_path, monkeypatch):
    now_s, drawn = [100.0], []

    def draw(_, history, __):
        # The first time takes a second, for what is imported.
        now_s[0] += 0.1 if drawn else 1.0
        drawn.append(len(history))

    monkeypatch.setattr(callbacks, "write_progress", draw)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now_s[0])
    report, module = EpochReport(NullLogger(), tmp_path / "progress.png", TARGETS), fake_module(1.0, None)

    def epochs(number: int, seconds: float) -> None:
        for _ in range(number):
            now_s[0] += seconds
            report.on_train_epoch_end(fake_trainer(len(report.history)), module)

    epochs(5, 9.0)
    assert drawn == [1]
    epochs(5, 9.0)
    assert drawn == [1, 7, 8, 9, 10]
    report.on_fit_end(fake_trainer(9), module)
    assert drawn == [1, 7, 8, 9, 10]
    epochs(2, 1.0)
    for _ in range(2):
        report.on_fit_end(fake_trainer(11), module)
        assert drawn == [1, 7, 8, 9, 10, 12]
    # A training that is found to be finished, as its picture may be of an earlier epoch.
    again = EpochReport(NullLogger(), tmp_path / "progress.png", TARGETS)
    again.load_state_dict(report.state_dict())
    again.on_fit_end(fake_trainer(11), module)
    assert drawn[-2:] == [12, 12]


def test_the_bar_says_the_same(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", iter((0.0, 0.0, 120.0, 120.0)).__next__)
    monkeypatch.setattr(RichProgressBar, "on_train_epoch_start", lambda *_: None)
    monkeypatch.setattr(RichProgressBar, "on_train_epoch_end", lambda *_: None)
    bar = EpochBar()
    bar._trainer = SimpleNamespace(max_epochs=30)
    assert bar._get_train_description(0) == "epoch 1 of 30"
    bar.on_train_epoch_start(None, None)
    bar.on_train_epoch_end(None, None)
    assert bar._get_train_description(1) == "epoch 2 of 30, 58 min left"


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


def test_validation_is_off_first_then_of_patches_or_of_whole_cases():
    callback = ScheduledValidations(ValidationSchedule(skipped=2, every=2, last_epoch=4))
    trainer, module = SimpleNamespace(current_epoch=0, limit_val_batches=1.0), SimpleNamespace(shown_patches=None)
    seen = []
    for trainer.current_epoch in range(5):
        callback.on_train_epoch_start(trainer, module)
        seen.append((trainer.limit_val_batches, module.shown_patches))
    assert seen == [(0.0, False), (0.0, False), (1.0, True), (1.0, False), (1.0, False)]


@pytest.mark.parametrize(("only_last", "skipped"), [(True, 2), (False, 1)])
def test_validations_follow_a_training_that_ends_after_another_epoch(only_last, skipped):
    callback = ScheduledValidations(ValidationSchedule(skipped=1, every=3, last_epoch=9))
    trainer = SimpleNamespace(current_epoch=1, limit_val_batches=None, datamodule=SimpleNamespace(schedule=None))
    module = SimpleNamespace(shown_patches=None)
    callback.follow(trainer, module, last_epoch=2, only_last=only_last)
    wanted = ValidationSchedule(skipped=skipped, every=3, last_epoch=2)
    assert callback.schedule == trainer.datamodule.schedule == wanted
    # The epoch that is going on already keeps to it.
    assert (trainer.limit_val_batches, module.shown_patches) == ((0.0, False) if only_last else (1.0, True))


class TestPredictionSink:
    def run(self, consume, cases, slabs=lambda: [torch.ones(1)]):
        sink = PredictionSink(consume, DiceAccumulator(TWO_CLASSES))
        module = fake_module(0.0, None)
        for case in cases:
            sink.on_predict_batch_end(None, module, (case, iter(slabs())))
        sink.on_predict_end(None, module)
        return sink

    def test_every_case_is_consumed_and_scored(self):
        perfect = np.array([[3, 0, 0], [1, 1, 0]])
        seen = []

        def consume(case, slabs):
            seen.append((case, [slab.item() for slab in slabs]))
            return perfect

        sink = self.run(consume, "abcd", lambda: [torch.tensor(1.0), torch.tensor(2.0)])
        assert seen == [(case, [1.0, 2.0]) for case in "abcd"]
        summary = sink.summary(TARGETS)
        assert summary == pytest.approx({"dice": 5 / 6, "dice_anterior": 1.0, "dice_posterior": 2 / 3})
        assert sink.num_failed == 0

    def test_cases_without_labels_give_no_score(self):
        assert self.run(lambda case, slabs: None, ["a"]).summary(TARGETS) == {}

    @pytest.mark.parametrize("error", [UserError("no room"), OSError(28, "no room", "a.npy")], ids=["ours", "system's"])
    def test_a_case_that_cannot_be_written_is_named_and_the_others_go_on(self, capsys, error):
        def consume(case, slabs):
            if case == "b":
                raise error
            return np.array([[1, 0, 0], [1, 0, 0]]) if len(list(slabs)) == 9 else None

        # More slabs than wait: nobody is left waiting for a reader that has given up.
        sink = self.run(consume, "abc", lambda: [torch.ones(1)] * 9)
        assert sink.num_failed == 1 and sink.summary(TARGETS)["dice"] == 1.0
        assert sink.reasons.keys() == {"b"} and "no room" in sink.reasons["b"]
        errors = capsys.readouterr().err
        assert "b could not be predicted" in errors and "no room" in errors

    def test_our_own_mistakes_are_raised(self):
        def fail(case, slabs):
            raise RuntimeError("a bug")

        with pytest.raises(RuntimeError, match="a bug"):
            self.run(fail, ["a"])

    def test_an_error_of_the_network_is_raised(self):
        def slabs():
            yield torch.ones(1)
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError, match="out of memory"):
            self.run(lambda case, slabs: list(slabs) and None, ["a"], slabs)

    def test_few_slabs_wait_for_a_slow_writer(self):
        begun, made, allowed = threading.Event(), [], threading.Event()

        def slabs():
            for number in range(9):
                made.append(number)
                if number == 2:
                    # Two wait and one is at hand, without any being taken.
                    allowed.set()
                yield torch.ones(1)

        def consume(case, slabs):
            assert allowed.wait(10)
            # Time for a maker that does not wait.
            time.sleep(0.05)
            assert len(made) == 3
            begun.set()
            return None if len(list(slabs)) == 9 else 1 / 0

        self.run(consume, ["a"], slabs)
        assert begun.is_set() and len(made) == 9


def judged_epochs(
    folder, scores: list[tuple[float, bool | None]], patience: int = 2, every: int = 1
) -> tuple[int | None, list[str]]:
    """Epoch after which a training ends, and its best checkpoint.

    Scores are, by epoch, Dice and whether there was a target (None: no validation); with `every` whether it was whole.
    """
    best, _, stopping = checkpoint_callbacks(folder, patience, every)[1:]
    saved: list[str] = []
    strategy = SimpleNamespace(
        reduce_boolean_decision=lambda value, all=True: value, broadcast=lambda value: value, barrier=lambda *_: None,
        remove_checkpoint=lambda path: saved.remove(Path(path).name),
    )  # fmt: skip
    trainer = SimpleNamespace(
        fast_dev_run=False, should_stop=False, sanity_checking=False, is_global_zero=True, loggers=[], ckpt_path=None,
        state=SimpleNamespace(fn=TrainerFn.FITTING), lightning_module=None, strategy=strategy,
        save_checkpoint=lambda path, weights_only: saved.append(Path(path).name),
    )  # fmt: skip
    for epoch, (dice, has_target) in enumerate(scores):
        trainer.current_epoch, trainer.global_step = epoch, epoch + 1
        trainer.callback_metrics = {"dice": torch.tensor(dice)}
        kind = {"has_target": has_target} if every == 1 else {"whole": has_target}
        result = None if has_target is None else dataclasses.replace(validation(dice), **kind)
        module = SimpleNamespace(last_validation=result)
        if result is not None:
            stopping.on_validation_end(trainer, module)
        best.on_train_epoch_end(trainer, module)
        if trainer.should_stop:
            return epoch, saved
    return None, saved


NAN = float("nan")


def test_validations_without_a_target_neither_stop_nor_are_best(tmp_path):
    # One wrong voxel makes 0 of NaN.
    assert judged_epochs(tmp_path, [(NAN, False), (0.0, False), (NAN, False), (NAN, False), (0.0, False)]) == (None, [])


def test_validations_with_a_target_are_judged_as_ever(tmp_path):
    assert judged_epochs(tmp_path, [(0.5, True), (0.7, True), (0.6, True), (0.6, True), (0.6, True)]) == (
        3,
        ["epoch=1-dice=0.7000.ckpt"],
    )


def test_patches_neither_stop_nor_are_best_nor_use_patience(tmp_path):
    # One epoch in three is validated whole: a patience of 4 epochs is two of these validations.
    scores = [(0.9, False), (0.9, False), (0.5, True), (0.9, False), (0.4, True), (0.9, False), (0.4, True)]
    assert judged_epochs(tmp_path, scores, patience=4, every=3) == (6, ["epoch=2-dice=0.5000.ckpt"])


def test_an_epoch_without_validation_is_not_judged_by_the_one_before(tmp_path):
    assert judged_epochs(tmp_path, [(0.5, True), (0.7, None)]) == (None, ["epoch=0-dice=0.5000.ckpt"])


def test_patches_are_reported_under_their_own_name(tmp_path, undrawn, capsys):
    report = EpochReport(NullLogger(), tmp_path / "progress.png", TARGETS)
    found = dataclasses.replace(validation(0.7), whole=False)
    report.on_train_epoch_end(fake_trainer(0), fake_module(1.0, found))
    assert "patches: val loss 1.0000, dice 0.7000" in capsys.readouterr().out
    (record,) = report.history
    assert (record.mean_dice, record.val_dice, record.patch_dice) == (None, (), 0.7)
    assert "best_dice" not in report.summary()
    assert set(found.summary(TARGETS)) == {
        "patch_dice",
        "patch_dice_anterior",
        "patch_dice_posterior",
        "patch_val_loss",
    }


def test_the_summary_leaves_out_epochs_whose_dice_says_nothing(tmp_path, undrawn):
    report = EpochReport(NullLogger(), tmp_path / "progress.png", TARGETS)
    for epoch, dice in enumerate((NAN, 0.7, NAN)):
        report.on_train_epoch_end(fake_trainer(epoch), fake_module(1.0, validation(dice)))
    assert (report.summary()["best_epoch"], report.summary()["epochs"]) == (1, 3)
    report.history = report.history[:1]
    assert "best_dice" not in report.summary()


def test_callbacks_keep_lightning_s_names_in_a_checkpoint(tmp_path):
    [best, _, stopping] = [callback.state_key for callback in checkpoint_callbacks(tmp_path, 3)][-3:]
    assert best.startswith("ModelCheckpoint{") and stopping.startswith("EarlyStopping{")


def test_checkpoints_that_do_not_fit_are_refused_before_the_first_step(tmp_path, monkeypatch):
    module = torch.nn.Linear(100, 10, bias=False)
    trainer = SimpleNamespace(optimizers=[torch.optim.Adam(module.parameters())], callbacks=[])
    # Weights and two moments, 4000 bytes each, in three files.
    monkeypatch.setattr("utils.room.free_bytes", lambda folder: 36_000)
    CheckpointRoom(tmp_path).on_fit_start(trainer, module)
    monkeypatch.setattr("utils.room.free_bytes", lambda folder: 35_999)
    with pytest.raises(UserError, match=r"checkpoints need 0\.04 MB"):
        CheckpointRoom(tmp_path).on_fit_start(trainer, module)
    # A resumed training has two of them already.
    (tmp_path / "last.ckpt").touch()
    (tmp_path / "epoch=0-dice=0.5.ckpt").touch()
    CheckpointRoom(tmp_path).on_fit_start(trainer, module)
    # An average of the weights is as large as they are.
    monkeypatch.setattr("utils.room.free_bytes", lambda folder: 15_999)
    CheckpointRoom(tmp_path).on_fit_start(trainer, module)
    trainer.callbacks += weight_averages(0.9, torch.device("cpu"))
    with pytest.raises(UserError, match=r"checkpoints need 0\.02 MB"):
        CheckpointRoom(tmp_path).on_fit_start(trainer, module)
