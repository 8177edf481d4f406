"""What --budget chooses, keeps and says beside flags that are given, on a machine and data that are made up."""

from __future__ import annotations

import dataclasses
import math
import time
from types import SimpleNamespace

import pytest
import torch

from training import budget, budget_measure
from training.budget_keeper import seconds_left
from training.budget_rules import AIM, EARLIEST, MUON_STEPS, Costs, Facts, Speed, choose_network, passes
from utils.args import parse_config
from utils.errors import UserError
from utils.flag_roles import ineffective_options
from utils.optim_config import OptimConfig

CHANGES = ("--mirror_axes", "S", "--elastic_probability", "0.2")


@pytest.fixture
def decided(monkeypatch):
    """Decides for typed words, on a machine and data that are made up."""
    facts = Facts(budget_s=600, dim=3, optimizer="muon", widths=((8, 16),), batch_size=2, cases=20)
    speed = Speed(step_s=0.4, validation_s=0.5, patches_s=0.05)
    monkeypatch.setattr(budget, "prepare", lambda config: SimpleNamespace(plan=None))
    monkeypatch.setattr(budget, "with_network", lambda setup, config: setup)

    def decide(*words, width=None, cases=20, speed=speed, started_s=0.0):
        monkeypatch.setattr(budget, "measure_speed", lambda config, setup, size, budget_s: speed)

        def follow(config, setup, budget_s):
            return dataclasses.replace(facts, optimizer=config.optim.optimizer, budget_s=budget_s, cases=cases)

        monkeypatch.setattr(budget, "look_at", follow)
        words = words if "--budget" in words else ("--budget", "10m", *words)
        return budget.decide(parse_config([*words]), time.monotonic() - started_s, lambda path, plan: width)

    return decide


@pytest.mark.parametrize(
    ("words", "scheduler", "schedule_by", "idle"),
    [
        ((), "wsd", None, ()),
        (("--scheduler", "cosine"), None, "step", ()),
        (("--schedule_by", "step"), "wsd", None, ("--schedule_by",)),
        (("--decay_share", "0.5"), "wsd", None, ()),
        (("--decay_share", "0.5", "--scheduler", "cosine"), None, "step", ("--decay_share",)),
        (("--min_epochs", "3"), "wsd", None, ("--min_epochs",)),
        (("--min_learning_rate", "1e-4"), "wsd", None, ()),
        (("--min_learning_rate", "1e-4", "--scheduler", "none"), None, None, ("--min_learning_rate",)),
    ],
)
def test_flags_that_go_with_the_chosen_schedule_are_taken_and_others_are_named(
    words, scheduler, schedule_by, idle, decided
):
    decision = decided(*words)
    assert (decision.options.get("scheduler"), decision.options.get("schedule_by")) == (scheduler, schedule_by)
    said = [line.split()[0] for line in decision.lines if "has no effect" in line]
    before = [line.split()[0] for line in ineffective_options(parse_config(["--budget", "10m", *words]))]
    assert {*said, *before} == set(idle)


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        (("--budget", "2m", *CHANGES), {"mirror_axes", "elastic_probability"}),
        (CHANGES, set()),
        (("--budget", "2m", "--patience", "5", "--skip_first_n_eval", "99"), {"patience"}),
        (("--budget", "2m", "--patience", "5", "--validate_every", "1"), set()),
    ],
)  # fmt: skip
def test_a_flag_that_a_choice_leaves_without_effect_is_named_once(words, idle, decided):
    """About 280 steps of 2 in 2 minutes see each of 200 cases 3 times: too few for changed patches."""
    decision = decided(*words, cases=200)
    said = [line.split()[0].removeprefix("--") for line in decision.lines if "has no effect" in line]
    before = [line.split()[0] for line in ineffective_options(parse_config(["--budget", "10m", *words]))]
    assert (set(said), before) == (idle, [])


def test_many_steps_are_adamws_unless_muon_is_asked_for(decided):
    """A step takes 0.4 s."""
    hour = ("--budget", "1h")
    short, long, asked = (decided(*words, cases=500) for words in ((), hour, (*hour, "--optimizer", "muon")))
    assert short.plan.total < MUON_STEPS < long.plan.total
    assert (short.options["optimizer"], short.options["learning_rate"]) == ("muon", 0.01)
    assert (long.options["optimizer"], long.options["learning_rate"]) == ("adam", 0.002)
    assert "optimizer" not in asked.options and asked.options["learning_rate"] == 0.01
    assert "--optimizer muon: fewer than 3000 steps" in "\n".join(short.lines)
    assert "--optimizer adam: at least 3000 steps" in "\n".join(long.lines)
    assert "3000" not in "\n".join(asked.lines)


def test_cases_that_are_seen_often_are_adamws_in_few_steps_too(decided):
    """Some 1450 steps of 2 patches."""
    for cases, optimizer in ((80, "muon"), (70, "adam")):
        decision = decided(cases=cases)
        assert decision.options["optimizer"] == optimizer and decision.plan.total < MUON_STEPS
        side = {"muon": "fewer", "adam": "at least"}[optimizer]
        [told] = [line for line in decision.lines if "--optimizer" in line]
        assert f"each voxel is seen {side}" in told and "40 times" in told


def test_many_steps_are_no_reason_where_the_device_is_one(decided, monkeypatch):
    monkeypatch.setattr(budget, "_of_device", lambda hardware, kept: {"optimizer": "adam"})
    decision = decided("--budget", "1h")
    assert decision.options["optimizer"] == "adam" and decision.plan.total > MUON_STEPS
    assert "3000" not in "\n".join(decision.lines) and "--optimizer adam" in "\n".join(decision.lines)


def test_what_changes_the_patches_goes_with_the_optimizer_that_is_chosen(decided):
    """Cases that are seen about 30 times: enough for nnU-Net's list with Muon, and not with AdamW."""
    chosen, asked = (decided("--budget", "23m", *words, cases=220) for words in ((), ("--optimizer", "muon")))
    assert abs(chosen.plan.total - asked.plan.total) <= 2 and chosen.plan.total >= MUON_STEPS
    assert (chosen.options["augment"], asked.options["augment"]) == ("reference", "nnunet")


def test_a_given_epoch_that_is_longer_than_the_time_is_cut_and_what_is_said_follows(decided):
    free, each = decided(), decided("--batches_per_epoch", "20000")
    assert 0.95 * free.plan.total <= each.plan.total <= 1.1 * free.plan.total
    assert (each.options["learning_rate"], each.options["augment"]) == (0.004, "reference")
    assert f"about {each.plan.total} steps" in "\n".join(each.lines)
    # An epoch and a half.
    longer = decided("--batches_per_epoch", "1000")
    assert longer.options["max_epochs"] == 2 and abs(longer.plan.total - each.plan.total) < 10
    # What is typed as it is by default leaves the choice.
    assert decided("--batches_per_epoch", "0").options == free.options


def test_validations_that_are_asked_for_are_made(decided):
    assert "skip_first_n_eval" not in decided("--validate_every", "2").options
    # Of one epoch, too, which may become two.
    assert not decided("--validate_every", "1", "--batches_per_epoch", "20000").plan.course.only_last
    assert (
        decided("--validate_every", "2", "--skip_first_n_eval", "4")
        .options.keys()
        .isdisjoint(("validate_every", "skip_first_n_eval"))
    )


@pytest.mark.parametrize(
    ("use_gpu", "precision", "words", "options"),
    [
        (False, "32-true", (), {"optimizer": "muon"}),
        (False, "bf16-mixed", (), {"optimizer": "muon", "amp": True}),
        (False, "bf16-mixed", ("--precision", "fp32"), {"optimizer": "muon"}),
        # On GPUs it was never run.
        (True, "16-mixed", (), {"optimizer": "adam", "amp": True}),
        (True, "16-mixed", ("--optimizer", "muon"), {"amp": True}),
        (False, "32-true", ("--optimizer", "adam"), {}),
    ],
)
def test_optimizer_and_precision_are_those_that_the_device_is_known_to_do_well(
    use_gpu, precision, words, options, decided, monkeypatch
):
    runtime = SimpleNamespace(use_gpu=use_gpu, precision=precision)
    monkeypatch.setattr(budget, "choose_runtime", lambda hardware, machine: runtime)
    found = decided(*words, cases=200).options
    assert {name: found[name] for name in ("optimizer", "amp") if name in found} == options
    trains = "muon" if "muon" in (found.get("optimizer"), *words) else "adam"
    assert found["learning_rate"] == {"muon": 0.01, "adam": 0.004}[trains]


@pytest.mark.parametrize(
    ("words", "width", "filters", "why"),
    [
        ((), None, None, "features 8 16: as planned;"),
        (("--filters", "8", "16"), None, None, "features 8 16: as given;"),
        (("--ckpt_path", "c"), (8, 16), (8, 16), "features 8 16: as --ckpt_path has them;"),
        (("--ckpt_path", "c"), None, None, "features 8 16: as planned;"),
        (("--ckpt_path", "c", "--filters", "8", "16"), (4, 4), None, "features 8 16: as given;"),
    ],
)
def test_a_network_has_the_width_of_the_weights_that_it_begins_with(words, width, filters, why, decided):
    decision = decided(*words, width=width)
    assert decision.options.get("filters") == filters
    assert why in "\n".join(decision.lines)


def test_why_none_is_wider_is_told_of_the_steps_that_fit(monkeypatch):
    facts = Facts(budget_s=600, dim=3, optimizer="muon", widths=((16, 32), (8, 16)), batch_size=2, cases=22)
    speeds = {
        16: Speed(step_s=4, validation_s=0.5, patches_s=0.1),
        8: Speed(step_s=1.45, validation_s=0.5, patches_s=0.1),
    }
    monkeypatch.setattr(budget, "prepare", lambda config: "setup")
    monkeypatch.setattr(budget, "look_at", lambda config, setup, budget_s: facts)
    monkeypatch.setattr(budget, "measure_speed", lambda config, setup, size, budget_s: speeds[size[0][0]])
    decision = budget.decide(parse_config(["--budget", "10m"]), time.monotonic())
    # More than 400 fit, and fewer beside the validations before the last one.
    assert decision.plan.total < 400
    assert decision.options["filters"] == (8, 16) and "fewer than 400 steps none" not in "\n".join(decision.lines)


def test_a_rate_that_moves_by_epoch_is_refused():
    with pytest.raises(UserError, match="--schedule_by epoch does not go with --budget"):
        budget.with_budget(parse_config(["--budget", "10m", "--schedule_by", "epoch"]), resume=None, started_s=0.0)


def test_a_training_is_not_continued_with_another_number_of_epochs():
    begun = SimpleNamespace(options={"max_epochs": 20})
    budget._require_same_length(begun, parse_config(["--max_epochs", "20"]))
    with pytest.raises(UserError, match="--max_epochs was 20, now it is 30"):
        budget._require_same_length(begun, parse_config(["--max_epochs", "30"]))


@pytest.mark.parametrize(
    ("devices", "use_gpu", "launched", "shared"),
    [(1, False, False, []), (2, False, False, [2]), (2, True, False, []), (2, False, True, [])],
)
def test_a_network_is_measured_on_the_cores_and_batches_that_it_trains_with(
    devices, use_gpu, launched, shared, monkeypatch
):
    told, setup = [], SimpleNamespace(runtime=SimpleNamespace(devices=devices, use_gpu=use_gpu))
    environment = SimpleNamespace(creates_processes_externally=launched)
    monkeypatch.setattr(budget_measure, "cluster_environment", lambda: environment)
    monkeypatch.setattr(budget_measure, "with_network", lambda setup, config: setup)
    monkeypatch.setattr(budget_measure, "share_threads", told.append)

    def build(config, setup):
        # More than one step, however few the cases are: the first one is no measure.
        assert config.loader.batches_per_epoch > 1
        raise StopIteration

    monkeypatch.setattr(budget_measure, "build_data", build)
    with pytest.raises(StopIteration):
        budget_measure.measure_speed(parse_config(["--budget", "1h"]), setup, ((8, 16), 2), 60.0)
    assert told == shared


def test_networks_to_choose_from_are_such_as_their_normalisation_can_have():
    widths = budget_measure._widths
    assert widths((32, 64, 128), "instance") == ((32, 64, 128), (16, 32, 64), (8, 16, 32))
    assert widths((32, 64, 128), "group") == ((32, 64, 128), (16, 32, 64))


def test_what_follows_from_the_length_follows_from_the_one_that_is_trained(monkeypatch):
    facts = Facts(budget_s=600, dim=3, optimizer="muon", widths=((8, 16),), batch_size=2, cases=20)
    monkeypatch.setattr(budget, "prepare", lambda config: "setup")
    speed = Speed(step_s=0.2, validation_s=0.5, patches_s=0.05)
    monkeypatch.setattr(budget, "measure_speed", lambda config, setup, size, budget_s: speed)
    found = {}
    for budget_s in range(20, 400):
        seconds = dataclasses.replace(facts, budget_s=budget_s)
        monkeypatch.setattr(budget, "look_at", lambda config, setup, budget_s, seconds=seconds: seconds)
        decision = budget.decide(parse_config(["--budget", f"{budget_s}s"]), time.monotonic())
        seen = passes(decision.plan.total, 2, facts)
        found[seen] = (decision.options["augment"], decision.options.get("mirror_axes") == ("none",))
    assert {seen: ("none" if seen < 10 else "reference", seen < 100) for seen in found} == found
    assert min(found) < 10 < max(found)


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        (("--optimizer", "sgd"), 0.01),
        (("--optimizer", "adam"), 0.004),
        (("--optimizer", "sgd", "--learning_rate", "0.1"), None),
        (("--recipe", "nnunet"), None),
        (("--recipe", "paper"), None),
        (("--recipe", "paper", "--optimizer", "muon"), 0.01),
        (("--recipe", "nnunet", "--optimizer", "adam"), 0.004),
    ],
)
def test_a_rate_is_the_optimisers_unless_it_is_given_or_the_recipes_with_its_own_optimiser(words, rate, decided):
    decision = decided("--budget", "2m", *words)
    assert decision.options.get("learning_rate") == rate
    [told] = [line for line in decision.lines if "not chosen" in line]
    assert ("learning_rate" in told) is (rate is None)


def test_automatic_precision_is_the_devices_to_say(decided, monkeypatch):
    monkeypatch.setattr(budget, "_of_device", lambda hardware, kept: {"amp": "precision" not in kept})
    assert [decided("--precision", name).options["amp"] for name in ("auto", "fp32")] == [True, False]


def test_what_is_told_can_be_typed(decided, monkeypatch):
    monkeypatch.setattr(budget, "_of_device", lambda hardware, kept: {"amp": True})
    [line] = [line for line in decided("--budget", "2m").lines if "--amp" in line]
    words = line.split()
    config = parse_config(words)
    assert {word.removeprefix("--").removeprefix("no_") for word in words if word.startswith("--")} == set(config.given)
    assert config.hardware.amp and config.model.deep_supervision


@pytest.mark.parametrize("step_s", [0.2, 0.4, 0.85])
@pytest.mark.parametrize("validation_s", [0.5, 7.0])
@pytest.mark.parametrize("budget_s", ["2m", "10m", "1h"])
def test_a_plan_has_the_steps_that_fit_and_not_whole_epochs_of_them(budget_s, validation_s, step_s, decided):
    """The end that its keeper expects at the start is one that changes nothing."""
    speed = Speed(step_s=step_s, validation_s=validation_s, patches_s=validation_s / 10)
    decision = decided("--budget", budget_s, cases=50, speed=speed)
    plan = decision.plan
    left_s = seconds_left(0, plan.total, plan.pace, plan.course)
    assert EARLIEST * plan.budget_s <= left_s <= AIM * plan.budget_s
    assert decision.options["max_epochs"] == math.ceil(plan.total / plan.course.per_epoch)


def test_with_a_given_number_of_epochs_what_is_told_is_what_is_done(decided):
    """A thousand epochs of a step: more than fit beside what is around them."""
    decision = decided("--max_epochs", "1000", cases=170, started_s=8.0)
    made = decision.plan.total
    assert made < 1000
    seen = made * 2 / 170
    assert decision.options["augment"] == ("none" if seen < 10 else "reference")
    [told] = [line for line in decision.lines if "--augment" in line]
    assert f"{seen:.3g} times, {'fewer than' if seen < 10 else 'at least'} 10" in told


def test_a_first_step_that_prepares_says_nothing_of_the_others(monkeypatch):
    """It takes a hundred times as long as the measurement may."""
    now_s = iter([0.0, 100.0, 100.5, 101.0])
    monkeypatch.setattr(budget_measure.time, "perf_counter", lambda: next(now_s))
    batches = [{"image": torch.zeros(1), "label": torch.zeros(1)}] * 30
    parameter = torch.nn.Parameter(torch.zeros(1))
    module = SimpleNamespace(
        network=torch.nn.ParameterList([parameter]), optim=OptimConfig(), train=lambda: None,
        training_step=lambda batch, index: (parameter * 0).sum(),
    )  # fmt: skip
    runtime = SimpleNamespace(precision="32-true", device=torch.device("cpu"))
    data = SimpleNamespace(train_dataloader=lambda: batches)
    assert budget_measure._step_seconds(data, module, runtime, 0.1) == 0.5


@pytest.mark.parametrize(("words", "nvol"), [((), 64), (("--data2d_dim", "2"), 0), (("--nvol", "0"), 0)])
def test_a_batch_of_slices_is_halved_to_whole_volumes_only(words, nvol, monkeypatch):
    """Also where each volume gives one slice."""
    shard = SimpleNamespace(shape=(1, 8, 8))
    data = SimpleNamespace(
        spec=SimpleNamespace(box=(1, 8, 8)), train_dataloader=lambda: SimpleNamespace(shards=[shard]),
        teardown=lambda stage: None,
    )  # fmt: skip
    monkeypatch.setattr(budget_measure, "build_data", lambda config, setup: data)
    stage = SimpleNamespace(dim=2, filters=(32, 64), batch_size=64, strides=((1, 1), (2, 2)))
    setup = SimpleNamespace(
        plan=SimpleNamespace(stage=stage), fold=SimpleNamespace(train=("a",)), runtime=SimpleNamespace(world_size=1)
    )
    config = parse_config(["--dim", "2", "--nvol", "64", *words])
    facts = budget_measure.look_at(config, setup, 600)
    assert facts.nvol == nvol
    speed = Speed(step_s=1, validation_s=1, patches_s=0.1)
    network = choose_network(facts, lambda width, size: speed, lambda: Costs(start_s=1, end_s=1, epoch_s=0.1))
    assert network.batch_size == (64 if nvol else 16)
