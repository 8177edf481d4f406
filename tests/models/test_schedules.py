"""Learning rates by hand, and what weight decay does to which optimiser."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.schedules import LossPlateau, StepRate, build_optimizer, build_scheduler, poly_share
from utils.optim_config import OptimConfig
from utils.recipes import RECIPES


def make_optimizer(**changes) -> torch.optim.Optimizer:
    return build_optimizer([nn.Parameter(torch.ones(1))], OptimConfig(**changes), fused=False)


def rates_of(optim: OptimConfig, epochs: int) -> list[float]:
    optimizer = build_optimizer([nn.Parameter(torch.ones(1))], optim, fused=False)
    scheduler = build_scheduler(optimizer, optim)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_poly_by_hand():
    rates = rates_of(OptimConfig(scheduler="poly", learning_rate=0.01, max_epochs=4), 5)
    assert rates == pytest.approx([0.01, 0.01 * 0.75**0.9, 0.01 * 0.5**0.9, 0.01 * 0.25**0.9, 0])


def test_poly_stays_at_zero_after_the_last_epoch():
    assert poly_share(11, 10) == 0


def test_loss_plateau_averages_with_a_memory_of_0_93():
    plateau = LossPlateau(make_optimizer(), factor=0.5, patience=1)
    plateau.step(2.0)
    plateau.step(1.0)
    assert plateau.average == pytest.approx(0.93 * 2 + 0.07 * 1)


@pytest.mark.parametrize(("fall", "drops"), [(0.0, True), (0.004, True), (0.1, False)])
def test_loss_plateau_drops_where_the_average_does_not_fall_by_0_005(fall, drops):
    optimizer = make_optimizer(learning_rate=1.0)
    plateau = LossPlateau(optimizer, factor=0.5, patience=3)
    # Of a loss that falls steadily the average falls as fast, once it has caught up.
    for epoch in range(30):
        if epoch == 29:
            optimizer.param_groups[0]["lr"] = 1.0
            plateau.best, plateau.num_bad_epochs = plateau.average, 3
        plateau.step(5 - fall * epoch)
    assert optimizer.param_groups[0]["lr"] == (0.5 if drops else 1.0)


def test_the_paper_s_schedule_ends_after_four_drops():
    optim = OptimConfig(**{name: value for name, value in RECIPES["paper"].items() if hasattr(OptimConfig, name)})
    optimizer = build_optimizer([nn.Parameter(torch.ones(1))], optim, fused=False)
    scheduler = build_scheduler(optimizer, optim)
    drops = []
    for epoch in range(200):
        before = optimizer.param_groups[0]["lr"]
        scheduler.step(1.0)
        if optimizer.param_groups[0]["lr"] < before:
            drops.append((epoch, optimizer.param_groups[0]["lr"]))
        if optimizer.param_groups[0]["lr"] < optim.min_learning_rate:
            break
    # Epoch 0 is the best one; 30 others are tolerated, the next one is too many.
    assert [epoch for epoch, _ in drops] == [31, 62, 93, 124]
    assert [rate for _, rate in drops] == pytest.approx([6e-5, 1.2e-5, 2.4e-6, 4.8e-7])


def test_loss_plateau_goes_on_from_its_state():
    first, second = (LossPlateau(make_optimizer(), factor=0.5, patience=9) for _ in range(2))
    for loss in (3.0, 2.0):
        first.step(loss)
    second.load_state_dict(first.state_dict())
    for plateau in (first, second):
        plateau.step(1.0)
    assert first.state_dict() == second.state_dict()


def test_l2_decay_goes_through_adam_s_scaling_and_decoupled_decay_does_not():
    # No gradient of the loss: Adam makes any L2 gradient a whole step of lr; decoupled, it is lr * decay.
    weights = {}
    for name in ("adam", "adam_l2"):
        weight = nn.Parameter(torch.ones(1))
        optimizer = build_optimizer(
            [weight], OptimConfig(optimizer=name, learning_rate=0.1, weight_decay=0.01), fused=False
        )
        weight.grad = torch.zeros(1)
        optimizer.step()
        weights[name] = weight.item()
    assert weights == pytest.approx({"adam": 1 - 0.1 * 0.01, "adam_l2": 1 - 0.1}, abs=1e-5)


def test_sgd_is_nesterov_where_there_is_momentum():
    assert make_optimizer(optimizer="sgd").param_groups[0]["nesterov"]
    assert not make_optimizer(optimizer="sgd", momentum=0.0).param_groups[0]["nesterov"]


def step_rates(steps: int, **changes) -> list[float]:
    optim = OptimConfig(learning_rate=1.0, **changes)
    optimizer = build_optimizer([nn.Parameter(torch.ones(1))], optim, fused=False)
    scheduler, rates = build_scheduler(optimizer, optim, steps=steps), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_a_warm_up_grows_by_steps_and_then_stays():
    assert step_rates(6, warmup_steps=3) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_wsd_is_constant_and_falls_in_its_last_share():
    assert step_rates(10, scheduler="wsd", decay_share=0.4) == pytest.approx([1] * 7 + [0.75, 0.5, 0.25])


def test_cosine_and_poly_by_step():
    assert step_rates(4, scheduler="cosine", schedule_by="step") == pytest.approx(
        [1, 0.853553, 0.5, 0.146447], abs=1e-5
    )
    assert step_rates(2, scheduler="poly", schedule_by="step") == pytest.approx([1, 0.5**0.9])
    by_epoch = OptimConfig(scheduler="cosine")
    assert not by_epoch.moves_by_step and not OptimConfig(scheduler="none", schedule_by="step").moves_by_step


def test_a_changed_number_of_steps_goes_on_from_where_the_schedule_is():
    rate = StepRate(OptimConfig(scheduler="poly", schedule_by="step"), 10)
    assert rate.progress(5) == 0.5
    rate.change_total(5, 7)
    # The other half in two steps.
    assert [rate.progress(step) for step in (5, 6, 7, 8)] == [0.5, 0.75, 1, 1]
    rate.change_total(6, 10)
    assert [rate.progress(step) for step in (6, 8, 10)] == pytest.approx([0.75, 0.875, 1])


def test_a_schedule_by_step_goes_on_from_its_state():
    optim = OptimConfig(scheduler="wsd", warmup_steps=2)
    first = build_scheduler(make_optimizer(), optim, steps=10)
    first.lr_lambdas[0].change_total(0, 20)
    second = build_scheduler(make_optimizer(), optim, steps=10)
    second.load_state_dict(first.state_dict())
    assert vars(second.lr_lambdas[0]) == vars(first.lr_lambdas[0]) and second.lr_lambdas[0].total == 20
