"""The average of the weights by hand, in validation, in checkpoints and over a resumed training."""

from __future__ import annotations

import pytest
import torch

from models.checkpoint import read_checkpoint
from models.nn_unet import NNUnet
from models.weight_average import AveragedWeights, kept_share
from tests.main_runs import TINY, checkpoint, train
from tests.tiny_task import Task, make_folds

EMA = (
    *TINY,
    "--no_report",
    "--nfolds",
    "3",
    "--ema",
    "0.8",
    "--learning_rate",
    "0.01",
    "--scheduler",
    "wsd",
    "--warmup_steps",
    "1",
)


def test_the_average_follows_closely_at_first_and_keeps_its_share_later():
    assert kept_share(0.99, 1) == pytest.approx(2 / 11)
    assert kept_share(0.99, 100000) == 0.99
    assert kept_share(0.0, 5) == 0


def test_the_average_by_hand():
    callback = AveragedWeights(0.5, torch.device("cpu"))
    average, weight = [torch.tensor([1.0])], [torch.tensor([2.0])]
    callback._kwargs["multi_avg_fn"](average, weight, torch.tensor(1))
    # After one step 2/11 is kept, later half.
    assert average[0].item() == pytest.approx(1 * 2 / 11 + 2 * 9 / 11)
    average = [torch.tensor([1.0])]
    callback._kwargs["multi_avg_fn"](average, weight, torch.tensor(1000))
    assert average[0].item() == pytest.approx(1.5)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Task:
    return make_folds(tmp_path_factory.mktemp("task"))


@pytest.mark.slow
def test_the_average_is_validated_and_saved_and_a_resumed_training_goes_on_with_both(task, tmp_path, monkeypatch):
    trained, validated = [], []
    real_step, real_validation = NNUnet.on_train_batch_end, NNUnet.validation_step

    def first_weight(module: NNUnet) -> torch.Tensor:
        return next(module.network.parameters()).detach().clone()

    def stepped(self, *batch):
        trained.append(first_weight(self))
        return real_step(self, *batch)

    def scored(self, *batch):
        validated.append(first_weight(self))
        real_validation(self, *batch)

    monkeypatch.setattr(NNUnet, "on_train_batch_end", stepped)
    monkeypatch.setattr(NNUnet, "validation_step", scored)
    assert train(task, tmp_path / "whole", *EMA, "--max_epochs", "3") == 0
    expected = trained[0]
    for number, weight in enumerate(trained[1:], start=1):
        share = kept_share(0.8, number)
        expected = share * expected + (1 - share) * weight
    whole = checkpoint(tmp_path / "whole")
    name = next(name for name in whole["state_dict"])
    assert torch.allclose(whole["state_dict"][name], expected, atol=1e-6)
    assert torch.equal(whole["current_model_state"][name], trained[-1])
    assert torch.equal(validated[-1], whole["state_dict"][name]) and not torch.equal(validated[-1], trained[-1])
    # What predicts is the average.
    read = read_checkpoint(tmp_path / "whole/checkpoints/last.ckpt").state_dict
    assert torch.equal(read[name.removeprefix("network.")], whole["state_dict"][name])

    monkeypatch.setattr("models.callbacks.EpochReport.on_train_epoch_start", _stop_before_the_last)
    assert train(task, tmp_path / "broken", *EMA, "--max_epochs", "3") == 130
    monkeypatch.undo()
    assert train(task, tmp_path / "broken", *EMA, "--max_epochs", "3", "--resume_training") == 0
    resumed = checkpoint(tmp_path / "broken")
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, whole[key][weight]) for weight, value in resumed[key].items())


def _stop_before_the_last(self, trainer, module) -> None:
    self._epoch_start_s = self._learning_rate = 0.0
    if trainer.current_epoch == 2:
        raise KeyboardInterrupt
