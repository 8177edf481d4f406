"""The module under Lightning: what is logged, what a checkpoint holds, resuming at any epoch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from models import inferer, sliding_window
from models.callbacks import EpochReport
from models.checkpoint import load_for_inference
from models.inferer import InferenceSettings, to_probabilities
from models.nn_unet import NNUnet, uses_batch_dice
from tests.models.builders import BRATS, TWO_CLASSES, make_plan, make_stage
from tests.models.training import OPTIM, cases, fit, make_module
from utils.config import ModelConfig
from utils.optim_config import OptimConfig
from utils.rules import NNUNET_V2, Rules

# Lightning's advice about loaders, folders that exist and its own use of torch is not about this code.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
FALLING = OptimConfig(
    max_epochs=9, min_epochs=1, scheduler="multistep", steps=(2,), factor=0.1, learning_rate=1e-6,
    min_learning_rate=5e-7,
)  # fmt: skip


class Records(Callback):
    """Keeps what was logged at the end of each epoch."""

    def __init__(self):
        self.epochs, self.losses = [], []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.losses.append(outputs["loss"].item())

    def on_train_end(self, trainer, module):
        self.epochs.append({name: value.item() for name, value in trainer.callback_metrics.items()})


class NullLogger:
    """Logs nothing."""

    def log(self, step, data):
        pass


def rate_of(module: NNUnet) -> float:
    return module.trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 3])
def test_training_loss_is_the_mean_of_the_last_epoch(tmp_path, dim):
    records = Records()
    fit(make_module(dim=dim), tmp_path, records, epochs=2)
    assert records.epochs[0]["train_loss"] == pytest.approx(sum(records.losses[-3:]) / 3, rel=1e-5)


@pytest.mark.slow
def test_validation_logs_loss_and_unrounded_dice(tmp_path):
    module, records = make_module(), Records()
    fit(module, tmp_path, records, epochs=1)
    logged, result = records.epochs[0], module.eval().last_validation
    losses = [module.loss(module.predict_logits(case["image"]), case["label"]).item() for case in cases()]
    assert logged["val_loss"] == pytest.approx(sum(losses) / 2, rel=1e-3)
    assert logged["dice"] == pytest.approx(sum(result.dice) / 2) and 0 < logged["dice"] < 1
    assert logged["dice_anterior"] == pytest.approx(result.dice[0], rel=1e-6)


@pytest.mark.slow
def test_checkpoint_is_self_contained(tmp_path):
    module = make_module()
    fit(module, tmp_path, epochs=1)
    network, plan, model = load_for_inference(tmp_path / "last.ckpt")
    assert plan == module.plan and model == module.model_config
    image = cases()[0]["image"][..., :8, :8, :8]
    torch.testing.assert_close(network(image), module.network.eval()(image))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        ("adam", "none"),
        ("sgd", "multistep"),
        ("adam", "cosine"),
        ("sgd", "plateau"),
        ("sgd", "poly"),
        ("adam_l2", "loss_plateau"),
        ("muon", "poly"),
    ],
)
def test_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, scheduler, optimizer):
    optim = dataclasses.replace(
        OPTIM, max_epochs=4, scheduler=scheduler, optimizer=optimizer, steps=(1, 3), lr_patience=1, learning_rate=1e-5
    )
    whole, first, second = (make_module(optim) for _ in range(3))
    fit(whole, tmp_path / "whole", epochs=4)
    fit(first, tmp_path / "parts", epochs=3)
    fit(second, tmp_path / "parts", epochs=4, resume=tmp_path / "parts" / "last.ckpt")
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in second.state_dict().items())
    assert rate_of(whole) == rate_of(second)
    if scheduler != "none":
        states = [module.lr_schedulers().state_dict() for module in (whole, second)]
        assert states[0] == states[1] and rate_of(whole) < optim.learning_rate


@pytest.mark.slow
def test_plateau_drops_the_rate_when_dice_stands_still(tmp_path):
    optim = dataclasses.replace(OPTIM, scheduler="plateau", lr_patience=1, factor=0.5, learning_rate=1e-6)
    module = make_module(optim)
    fit(module, tmp_path, epochs=4)
    assert math.isclose(rate_of(module), 0.5e-6, rel_tol=1e-6)


@pytest.mark.slow
def test_poly_is_logged_with_the_rate_of_each_epoch(tmp_path):
    module = make_module(dataclasses.replace(OPTIM, scheduler="poly", learning_rate=1.0, max_epochs=2))
    report = EpochReport(NullLogger(), tmp_path / "progress.png", module.plan.labels.target_names)
    fit(module, tmp_path, report, epochs=2)
    assert [record.learning_rate for record in report.history] == pytest.approx([1.0, 0.5**0.9])
    assert rate_of(module) == 0


@pytest.mark.slow
@pytest.mark.parametrize("min_epochs", [1, 4])
def test_training_ends_below_the_least_learning_rate_and_not_before_min_epochs(tmp_path, min_epochs):
    module = make_module(FALLING)
    fit(module, tmp_path, epochs=9, min_epochs=min_epochs)
    # 1e-6 in epochs 0 and 1, then a tenth.
    assert module.current_epoch == max(2, min_epochs)


@pytest.mark.slow
def test_training_that_ended_for_its_learning_rate_is_not_resumed(tmp_path):
    fit(make_module(FALLING), tmp_path, epochs=9)
    again = make_module(FALLING)
    fit(again, tmp_path, epochs=9, resume=tmp_path / "last.ckpt")
    assert again.current_epoch == 2


@pytest.mark.parametrize(("choice", "dim", "expected"), [
    ("always", 3, True), ("never", 2, False), ("auto", 2, True), ("auto", 3, False),
])  # fmt: skip
def test_batch_dice_by_rule(choice, dim, expected):
    stage = make_stage((8,) * dim)
    assert uses_batch_dice(choice, stage) == expected
    assert uses_batch_dice("auto", dataclasses.replace(stage, batch_dice=True))
    assert make_module(dataclasses.replace(OPTIM, batch_dice=choice), dim).loss.batch_dice == expected


@pytest.mark.slow
def test_native_scorer_decides_what_is_counted(tmp_path, monkeypatch):
    module = make_module()
    seen = []

    def scorer(case: str, slabs: Iterator[torch.Tensor]) -> torch.Tensor:
        seen.append((case, [tuple(slab.shape) for slab in slabs]))
        return torch.tensor([[1, 0, 0], [1, 1, 1]])

    module.native_scorer = scorer
    # Three classes on four planes of 8 x 10 voxels.
    monkeypatch.setattr(inferer, "BLOCK_VALUES", 3 * 4 * 80)
    fit(module, tmp_path, epochs=1)
    assert module.last_validation.dice == (1.0, 0.5)
    slabs = [(3, 4, 8, 10), (3, 4, 8, 10), (3, 1, 8, 10)]
    assert seen[-2:] == [("case_0", slabs), ("case_1", slabs)]


def test_validation_follows_the_rules_and_flips_of_the_plan_as_prediction_does():
    plan = dataclasses.replace(make_plan(), rules=NNUNET_V2, mirror_axes=(0, 2))
    settings = InferenceSettings(tta=True)
    module = NNUnet(plan=plan, model=ModelConfig(), optim=OPTIM, inference=settings).eval()
    case = {"case": "c", "image": torch.randn(1, 1, 19, 11, 9), "label": torch.ones(1, 1, 19, 11, 9)}
    expected = torch.cat(list(module.predict_step(case, 0)[1]), dim=1)
    logits = module.predict_logits(case["image"])
    assert expected.dtype == torch.float16 and torch.equal(logits, expected[None].float())
    ours = dataclasses.replace(plan, rules=Rules())
    module.plan = dataclasses.replace(plan, mirror_axes=None)
    assert not torch.equal(module.predict_logits(case["image"]), logits)
    module.plan = ours
    assert not torch.equal(module.predict_logits(case["image"]), logits)


@pytest.mark.parametrize(("rules", "in_logits"), [(Rules(), False), (NNUNET_V2, True)], ids=["ours", "nnU-Net's"])
def test_the_native_scorer_gets_what_the_rules_average(rules: Rules, in_logits: bool):
    seen = []

    def scorer(case: str, slabs: Iterator[torch.Tensor]) -> torch.Tensor:
        seen.extend(slabs)
        return torch.zeros(2, 3)

    plan = dataclasses.replace(make_plan(), rules=rules)
    module = NNUnet(plan=plan, model=ModelConfig(), optim=OPTIM, inference=InferenceSettings(), native_scorer=scorer)
    module.eval().validation_step(cases()[0], 0)
    whole = module.predict_logits(cases()[0]["image"])
    assert torch.equal(torch.cat(seen, dim=1), (whole if in_logits else to_probabilities(whole, plan.labels))[0])


@pytest.mark.parametrize("labels", [TWO_CLASSES, BRATS], ids=["classes", "regions"])
def test_scores_by_planes_are_those_of_the_whole_volume(monkeypatch, labels):
    plan = make_plan(labels=labels)
    module = NNUnet(plan=plan, model=ModelConfig(), optim=OPTIM, inference=InferenceSettings()).eval()
    results = []
    for block_values in (2**22, 1):
        monkeypatch.setattr(inferer, "BLOCK_VALUES", block_values)
        module.on_validation_epoch_start()
        for index, case in enumerate(cases()):
            module.validation_step(case, index)
        results.append((module.dice.compute(), module._val_loss_sum))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [2, 3])
def test_prediction_never_holds_a_whole_volume_of_probabilities(monkeypatch, dim):
    module = make_module(dim=dim).eval()
    case = {"case": "long", "image": torch.randn(1, 1, 48, 8, 8)}
    expected = to_probabilities(module.predict_logits(case["image"]), module.plan.labels)[0]
    monkeypatch.setattr(sliding_window, "SLAB_VALUES", 3 * 64 * 4)
    name, slabs = module.predict_step(case, 0)
    monkeypatch.setattr(module, "predict_logits", None)
    slabs = list(slabs)
    assert name == "long" and max(slab.shape[1] for slab in slabs) <= 4
    torch.testing.assert_close(torch.cat(slabs, dim=1), expected, rtol=1e-6, atol=1e-6)
