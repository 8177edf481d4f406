"""A training whose numbers are not finite ends with a word, and before a checkpoint is made of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import models.finite
from models.finite import EndWhereNotFinite, weights_are_finite
from models.trainer import build_trainer
from tests.models.training import OPTIM, batches, cases, fit, make_module
from utils.config import HardwareConfig
from utils.errors import UserError
from utils.runtime import Machine, choose_runtime

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
NAN, INF = float("nan"), float("inf")


class Run:
    """A training of which only losses, weights and precision matter."""

    def __init__(self, precision: str = "32-true", scale: float = 65536.0, world_size: int = 1) -> None:
        scaler = SimpleNamespace(get_scale=lambda: scale)
        self.trainer = SimpleNamespace(
            precision=precision, precision_plugin=SimpleNamespace(scaler=scaler), world_size=world_size,
            current_epoch=4, is_last_batch=False,
        )  # fmt: skip
        self.module = nn.Linear(2, 2)
        self.module.reduce_sum = lambda value: value
        self.watch = EndWhereNotFinite()
        self.watch.on_train_epoch_start(self.trainer, self.module)

    def epoch(self, losses: list[float], image: float = 0.0) -> None:
        for number, loss in enumerate(losses):
            self.trainer.is_last_batch = number == len(losses) - 1
            batch = {"image": torch.full((1, 1, 2, 2), image)}
            self.watch.on_train_batch_end(self.trainer, self.module, {"loss": torch.tensor(loss)}, batch, number)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_loss_that_is_not_finite_ends_the_training_at_its_batch(value, place):
    losses = [1.0] * 8
    losses[place] = value
    with pytest.raises(UserError, match=rf"epoch 5, at batch {place + 1}: the loss or its gradients are infinite"):
        Run().epoch(losses)


def test_weights_that_are_not_finite_after_the_last_batch_end_it_too():
    run = Run()
    run.epoch([1.0, 1.0])
    run.module.bias.data[1] = NAN
    with pytest.raises(UserError, match="weights of the network are infinite"):
        run.epoch([1.0, 1.0])


def test_running_statistics_are_weights_too():
    norm = nn.BatchNorm2d(2)
    assert weights_are_finite(norm)
    norm.running_var[0] = INF
    assert not weights_are_finite(norm)


def test_images_that_are_not_finite_are_named_as_the_reason():
    with pytest.raises(UserError, match="images of this batch hold such values"):
        Run().epoch([NAN], image=NAN)


def test_several_processes_look_every_few_batches_and_together():
    run, asked = Run(world_size=2), []
    run.module.reduce_sum = lambda value: asked.append(1) or value
    run.epoch([1.0] * 25)
    assert len(asked) == 3
    # Only the other process has such numbers.
    run.module.reduce_sum = lambda value: value + torch.tensor([1.0, 0.0])
    with pytest.raises(UserError, match="at batch 10"):
        run.epoch([1.0] * 25)


def test_fp16_leaves_out_single_steps():
    run = Run("16-mixed")
    run.epoch([INF] * models.finite.SKIPPED_BATCHES + [1.0, NAN, 1.0])
    with pytest.raises(UserError, match="loss"):
        run.epoch([1.0] + [INF] * (models.finite.SKIPPED_BATCHES + 1))


def test_fp16_whose_gradients_are_always_infinite_ends():
    with pytest.raises(UserError, match="gradients"):
        Run("16-mixed", scale=2.0**-12).epoch([1.0])


def test_a_loss_that_was_left_out_is_not_in_the_epoch_s_mean(monkeypatch):
    module = make_module()
    module._loss_of = iter([torch.tensor(2.0), torch.tensor(INF), torch.tensor(4.0)]).__next__
    monkeypatch.setattr(module, "_loss_of", lambda image, label, losses=module._loss_of: losses())
    for number in range(3):
        module.training_step({"image": None, "label": None}, number)
    assert module._loss_sum.tolist() == [6.0, 2.0]


@pytest.mark.parametrize("where", ["first epoch", "second epoch", "last batch"])
def test_last_ckpt_never_holds_them(tmp_path, monkeypatch, where):
    """A weight becomes NaN after a step: the next loss, or the last look at the weights, ends the training."""
    module = make_module(OPTIM)
    epoch, batch = {"first epoch": (0, 0), "second epoch": (1, 1), "last batch": (1, 2)}[where]

    def spoil(outputs, data, index):
        if (module.current_epoch, index) == (epoch, batch):
            module.network.output_block.conv.conv.weight.data[0] = NAN

    # Lightning asks callbacks before the module: this stands for what the optimiser does.
    watch = EndWhereNotFinite()
    look = watch.on_train_batch_end
    monkeypatch.setattr(watch, "on_train_batch_end", lambda t, m, o, d, i: (spoil(o, d, i), look(t, m, o, d, i)))
    with pytest.raises(UserError, match=f"epoch {epoch + 1}, at batch {min(batch + 2, 3)}"):
        fit(module, tmp_path, watch)
    assert (tmp_path / "last.ckpt").is_file() == (epoch > 0)
    if epoch:
        weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
        assert all(weight.isfinite().all() for weight in weights.values())


def test_every_training_is_watched():
    machine = Machine(num_gpus=0, capability=None, cpu_bf16=False)
    runtime = choose_runtime(HardwareConfig(accelerator="cpu"), machine)
    trainer = build_trainer(runtime, callbacks=[], optim=OPTIM)
    module = make_module()
    data = batches()
    data[1]["image"][:] = NAN
    with pytest.raises(UserError, match="images of this batch hold such values"):
        trainer.fit(module, DataLoader(data, batch_size=None), DataLoader(cases(), batch_size=None))


@pytest.mark.parametrize("loss", [NAN, INF])
def test_a_validation_loss_that_is_not_finite_ends_the_training_before_its_checkpoint(loss):
    run = Run()
    run.trainer.sanity_checking = False
    run.module.last_validation = SimpleNamespace(loss=1.0)
    run.watch.on_validation_end(run.trainer, run.module)
    run.module.last_validation = SimpleNamespace(loss=loss)
    with pytest.raises(UserError, match=r"epoch 5: the loss of its validation cases .* No checkpoint was made"):
        run.watch.on_validation_end(run.trainer, run.module)
