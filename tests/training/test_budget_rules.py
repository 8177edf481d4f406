"""The rules of --budget as functions of numbers: what follows from a step's seconds and the number of cases."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from training.budget_rules import (
    AIM,
    CHOSEN,
    FEW_STEPS,
    FEWEST_EPOCHS,
    Costs,
    Facts,
    Network,
    Speed,
    choose_epochs,
    choose_network,
    choose_options,
    choose_validations,
    most_epochs,
    passes,
    passes_for,
    per_pass,
    steps_needed,
    steps_that_fit,
    widths_of,
)
from training.budget_words import explain, too_short
from utils.duration import seconds_of

COSTS = Costs(start_s=8, end_s=3, epoch_s=0.2)
PLANNED = (32, 64, 128, 256)
HIPPOCAMPUS = Facts(budget_s=600, dim=3, optimizer="muon", widths=widths_of(PLANNED), batch_size=2, cases=166)


def cpu(width, size) -> Speed:
    """About what two CPU cores take, without bf16."""
    step_s = 0.25 * size * (width[0] / 16) ** 1.6
    return Speed(step_s=step_s, validation_s=20 * step_s, patches_s=7 * step_s)


def gpu(width, size) -> Speed:
    """About what a GPU takes whose time hardly depends on the features."""
    step_s = 0.004 * size + 0.01 * width[0] / 32
    return Speed(step_s=step_s, validation_s=1.0, patches_s=0.3)


def network_for(budget_s: float, measure=cpu, **changes) -> tuple[Network, Facts]:
    facts = dataclasses.replace(HIPPOCAMPUS, budget_s=budget_s, **changes)
    return choose_network(facts, measure, lambda: COSTS), facts


def options_for(budget_s: float, measure=cpu, **changes) -> dict:
    network, facts = network_for(budget_s, measure, **changes)
    return choose_options(network, facts, choose_epochs(network.steps, per_pass(network, facts)))


def test_steps_that_fit_by_hand():
    speed = Speed(step_s=0.5, validation_s=10, patches_s=1)
    # 0.975 * 100 - 8 - 3 - 10 - 10 * 0.2 = 74.5
    assert steps_that_fit(100, speed, COSTS) == 149
    assert steps_that_fit(15, speed, COSTS) == 0


def test_widths_are_the_planned_ones_and_halves_of_them_that_are_not_too_narrow():
    assert widths_of(PLANNED) == (PLANNED, (16, 32, 64, 128), (8, 16, 32, 64))
    assert widths_of((16, 32)) == ((16, 32), (8, 16))
    assert widths_of((4, 8)) == ((4, 8),)


@pytest.mark.parametrize("measure", [cpu, gpu])
def test_more_time_never_means_a_narrower_network_fewer_steps_of_it_or_less_augmentation(measure):
    found = [network_for(budget_s, measure) for budget_s in (100, 200, 300, 600, 1200, 3600, 28800, 86400)]
    for (before, facts), (after, later) in itertools.pairwise(found):
        assert after.width[0] >= before.width[0]
        if after.width == before.width:
            assert after.steps >= before.steps
            seen = [passes(n.steps, n.batch_size, f) for n, f in ((before, facts), (after, later))]
            assert seen[0] <= seen[1]


def test_a_slow_machine_gets_a_narrow_network_without_augmentation_and_a_fast_one_the_planned_with_it():
    slow, fast = options_for(100), options_for(600, gpu)
    assert slow["filters"] == (8, 16, 32, 64) and slow["augment"] == "none"
    assert "filters" not in fast and fast["augment"] == "nnunet"


def test_a_network_is_wide_only_where_enough_steps_of_it_fit():
    for budget_s in (150, 400, 1000, 3000, 10000):
        network, facts = network_for(budget_s)
        assert network.steps >= steps_needed(network.width, 3) or network.width == facts.widths[-1]


def test_a_wide_network_with_a_small_batch_is_better_than_a_narrow_one_with_a_large_batch():
    network, _ = network_for(400, batch_size=9)
    # 734 steps; the narrow one would make 1100 of 4 patches.
    assert network.width == (16, 32, 64, 128) and network.batch_size == 2
    assert network_for(400, batch_size=9, batch_fixed=True)[0].width == (8, 16, 32, 64)


@pytest.mark.parametrize("changes", [{"batch_size": 9}, {"batch_size": 2}, {"batch_size": 2, "nvol": 1}])
@pytest.mark.parametrize("cases", [200, 600, 1500])
@pytest.mark.parametrize("budget_s", [300, 600, 1500, 5000])
def test_no_network_is_chosen_that_cannot_show_every_case_where_another_one_can(budget_s, cases, changes):
    network, facts = network_for(budget_s, cases=cases, **changes)
    narrow, narrow_facts = network_for(budget_s, cases=cases, widths=((8, 16, 32, 64),), **changes)
    if narrow.steps >= per_pass(narrow, narrow_facts):
        assert network.steps >= per_pass(network, facts)


def test_a_batch_is_not_halved_where_that_leaves_cases_out():
    # A step takes as long with any batch: some 430 of them, and 188 of 8 patches, 375 of 4 or 750 of 2 show every case.
    network, facts = network_for(
        250, lambda width, size: Speed(step_s=0.5, validation_s=3, patches_s=1), batch_size=8, cases=1500,
        widths=((8, 16, 32, 64),),
    )  # fmt: skip
    assert network.batch_size == 4 and per_pass(network, facts) <= network.steps < 750


def test_wide_networks_without_a_chance_are_not_measured():
    asked = []
    # Some 360 steps of the narrowest.
    network_for(75, lambda width, size: asked.append(width) or cpu(width, size))
    assert set(asked) == {(8, 16, 32, 64)}


def test_a_network_that_makes_nearly_as_many_steps_as_a_narrower_one_is_taken():
    """In bf16 twice the features may take 1.4 times as long."""

    def bf16(width, size) -> Speed:
        step_s = {8: 0.15, 16: 0.21, 32: 0.67}[width[0]]
        return Speed(step_s=step_s, validation_s=5, patches_s=3)

    network, _ = network_for(110, bf16)
    assert network.width == (16, 32, 64, 128) and 300 < network.steps < steps_needed(network.width, 3) == 448
    assert network_for(120)[0].width == (8, 16, 32, 64)


def test_flips_wait_for_longer_trainings_than_other_changes():
    """Flipped scans are others than those that are asked about."""
    few, some, more, many = (options_for(seconds, gpu, optimizer="adam") for seconds in (20, 60, 120, 600))
    assert [each["augment"] for each in (few, some, more, many)] == ["none", "reference", "nnunet", "nnunet"]
    assert few["mirror_axes"] == some["mirror_axes"] == more["mirror_axes"] == ("none",) and "mirror_axes" not in many


def test_a_wider_network_is_not_preferred_for_the_steps_that_a_smaller_batch_gives_it():
    """The narrower one makes 1010 steps of 32 slices; a third of that, or twice as many of 16, are no more patches."""

    def speed(width, size) -> Speed:
        return Speed(step_s=0.1 * size / 32 * (1 if width[0] == 16 else 3), validation_s=1, patches_s=1)

    network, _ = network_for(118, speed, dim=2, batch_size=32, widths=((32, 64), (16, 32)))
    assert network.width == (16, 32) and network.steps > 1000 and network.batch_size == 32


def test_the_batch_is_halved_only_where_a_network_makes_too_few_steps():
    narrow = ((8, 16, 32, 64),)
    assert network_for(400, batch_size=9, widths=narrow)[0].batch_size == 4
    assert network_for(100000, batch_size=9)[0].batch_size == 9
    assert network_for(60, batch_size=8)[0].batch_size == 2
    assert network_for(60, batch_size=8, batch_fixed=True)[0].batch_size == 8
    # Slices of two volumes.
    assert network_for(60, batch_size=64, dim=2, nvol=2)[0].batch_size == 16
    assert network_for(60, batch_size=66, dim=2, nvol=2)[0].batch_size == 66


def test_large_scans_are_augmented_later_than_small_ones():
    assert options_for(900, gpu)["augment"] == "nnunet"
    assert options_for(900, gpu, patch_share=0.002)["augment"] == "none"


def test_muon_sees_changed_patches_sooner():
    # 17 times.
    network = Network(width=PLANNED, batch_size=2, speed=cpu(PLANNED, 2), steps=1400)
    chosen = {name: dataclasses.replace(HIPPOCAMPUS, optimizer=name) for name in ("muon", "adam", "sgd")}
    found = {name: choose_options(network, facts, (10, 140))["augment"] for name, facts in chosen.items()}
    assert found == {"muon": "reference", "adam": "none", "sgd": "none"}
    # 27 times.
    found = {name: choose_options(network, facts, (10, 225))["augment"] for name, facts in chosen.items()}
    assert found == {"muon": "nnunet", "adam": "reference", "sgd": "reference"}


def test_slices_are_augmented_from_fewer_times_on():
    """Each of 800 steps of 16 slices sees a hundredth of its cases."""
    facts = dataclasses.replace(HIPPOCAMPUS, cases=16, patch_share=0.01, batch_size=16)
    network = Network(width=PLANNED, batch_size=16, speed=cpu(PLANNED, 2), steps=800)
    flat, solid = (choose_options(network, dataclasses.replace(facts, dim=dim), (10, 80)) for dim in (2, 3))
    assert passes(800, 16, facts) == 8
    assert (flat["augment"], solid["augment"]) == ("reference", "none") and flat["mirror_axes"] == ("none",)


def test_few_cases_are_not_changed_the_more_for_being_few():
    few, many = (options_for(seconds, gpu, cases=8) for seconds in (40, 120))
    assert (few["augment"], many["augment"]) == ("reference", "nnunet") and "mirror_axes" not in few
    assert few["max_epochs"] * few["batches_per_epoch"] < FEW_STEPS <= many["max_epochs"] * many["batches_per_epoch"]


def test_a_training_of_few_steps_takes_larger_ones():
    adam = {"optimizer": "adam"}
    assert options_for(80, **adam)["learning_rate"] == options_for(900, **adam)["learning_rate"] == 0.004
    assert options_for(3600, **adam)["learning_rate"] == options_for(600, gpu, **adam)["learning_rate"] == 0.002
    assert options_for(80)["learning_rate"] == options_for(3600)["learning_rate"] == 0.01


def test_passes_by_hand():
    facts = dataclasses.replace(HIPPOCAMPUS, cases=100, processes=2, patch_share=0.5)
    assert passes(1000, 4, facts) == 40


@pytest.mark.parametrize(
    ("steps", "pass_steps", "flags", "expected"),
    [
        (1660, 83, {}, (20, 83)),
        (200, 83, {}, (FEWEST_EPOCHS, 20)),
        (100000, 10, {}, (100, 1000)),
        (4, 83, {}, (4, 1)),
        (1000, 83, {"epochs": 4}, (4, 250)),
        (1000, 83, {"each": 250}, (4, 250)),
        (10, 83, {"each": 250}, (1, 250)),
    ],
)
def test_epochs_by_hand(steps, pass_steps, flags, expected):
    assert choose_epochs(steps, pass_steps, **flags) == expected


def test_epochs_are_not_so_short_that_what_is_around_them_takes_the_time():
    network, _ = network_for(600)
    costly = dataclasses.replace(COSTS, epoch_s=0.05 * network.steps * network.speed.step_s / 20)
    assert most_epochs(network, costly) == 20
    assert most_epochs(network, dataclasses.replace(COSTS, epoch_s=60)) == FEWEST_EPOCHS
    assert most_epochs(network, dataclasses.replace(COSTS, epoch_s=0)) == 100
    assert choose_epochs(1000, 2, most=20) == (20, 50)


def test_validation_before_the_last_epoch_has_to_be_cheap():
    def network(validation_s: float, patches_s: float) -> Network:
        speed = Speed(step_s=1, validation_s=validation_s, patches_s=patches_s)
        return Network(width=PLANNED, batch_size=2, speed=speed, steps=100)

    # 5 % of 1000 s.
    assert choose_validations(20, network(100, 0), 1000) == (20, 19)
    assert choose_validations(20, network(10, 3), 1000) == (20, 19)
    assert choose_validations(20, network(10, 0.5), 1000) == (4, 0)
    assert choose_validations(20, network(0.1, 0), 1000) == (2, 0)
    assert choose_validations(1, network(0.1, 0), 1000) == (1, 0)


@pytest.mark.parametrize("budget_s", [5, 20, 25])
def test_a_time_without_one_pass_is_refused_and_what_is_asked_for_instead_is_enough(budget_s):
    network, facts = network_for(budget_s)
    said = too_short(network, facts, COSTS)
    assert said is not None and "83 steps" in said and "166 cases" in said
    asked_s = seconds_of(said.rpartition("at least ")[2], "--budget")
    network, facts = network_for(asked_s)
    assert too_short(network, facts, COSTS) is None


def test_all_that_is_chosen_is_said_to_be_a_budget_s_choice():
    assert set(options_for(200)) | set(options_for(600, gpu)) <= set(CHOSEN)
    assert set(CHOSEN) - set(options_for(200)) == {"amp", "optimizer", "batch_size"}


def test_what_is_told_names_network_steps_reason_and_given_flags():
    network, facts = network_for(100)
    options = choose_options(network, facts, choose_epochs(network.steps, per_pass(network, facts)))
    del options["learning_rate"]
    text = "\n".join(explain(network, facts, COSTS, options, {"learning_rate", "task"}, made=network.steps))
    assert "8 16 32 64: 16 32 64 128 would make fewer than 448 steps" in text
    assert (
        f"fewer than {passes_for('none', facts):g}" in text
        and "given or the recipe's, not chosen: learning_rate" in text
    )
    assert "--mirror_axes none: flips wait until each voxel is seen 100 times" in text
    assert len(text.splitlines()) <= 7


@pytest.mark.parametrize(("budget_s", "told"), [(40, "reference"), (600, "nnunet")])
def test_what_is_told_of_the_augmentation_is_the_bound_that_it_passed(budget_s, told):
    network, facts = network_for(budget_s, gpu)
    options = choose_options(network, facts, choose_epochs(network.steps, per_pass(network, facts)))
    [line] = [line for line in explain(network, facts, COSTS, options, (), made=network.steps) if "--augment" in line]
    bound = {"reference": 10, "nnunet": 20}[told]
    assert line.startswith(f"  --augment {told}: each voxel is seen ") and line.endswith(f" times, at least {bound:g}")


def test_no_reason_is_told_that_was_not_measured():
    network, facts = network_for(60)
    options = choose_options(network, facts, choose_epochs(network.steps, per_pass(network, facts)))
    assert network.steps < 400
    said = explain(network, facts, COSTS, options, (), made=network.steps)
    assert "with fewer than 400 steps none is wider" in "\n".join(said)


def test_the_plan_ends_within_the_budget_by_its_own_reckoning():
    for budget_s in (100, 600, 7200):
        network, _ = network_for(budget_s)
        speed = network.speed
        spent_s = COSTS.start_s + COSTS.end_s + 10 * COSTS.epoch_s + speed.validation_s + network.steps * speed.step_s
        assert AIM * budget_s - speed.step_s < spent_s <= AIM * budget_s


@pytest.mark.parametrize(
    ("dim", "first", "steps"), [(3, 8, 56), (3, 16, 448), (3, 32, 3584), (2, 8, 112), (2, 32, 1792)]
)
def test_steps_that_a_width_needs_by_hand(dim, first, steps):
    assert steps_needed((first, 2 * first), dim) == steps
