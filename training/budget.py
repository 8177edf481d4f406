"""`--budget`: what a training of a given wall time is made of, decided once by its first process, and kept by a keeper.

A training that is resumed takes its choices from its checkpoint, and the rest of its time.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from models.checkpoint import CheckpointContents
from training.budget_exchange import shared
from training.budget_keeper import BudgetKeeper, BudgetPlan, Course, Pace, total_for
from training.budget_measure import look_at, measure_speed
from training.budget_rules import (
    AIM,
    CHOSEN,
    Costs,
    Facts,
    Network,
    choose_epochs,
    choose_network,
    choose_optimizer,
    choose_options,
    most_epochs,
    passes,
    per_pass,
)  # fmt: skip
from training.budget_words import at_least, explain, too_short
from training.run_setup import prepare, with_network
from utils.args import Config, with_options
from utils.config import HardwareConfig
from utils.duration import as_typed, seconds_of
from utils.errors import UserError
from utils.files import from_dict, to_dict
from utils.flag_roles import BY_CHOICE, ineffective_options, pointless_options
from utils.pace import in_words
from utils.recipes import RECIPES
from utils.runtime import choose_runtime, detect_machine, resolve_hardware
from utils.schema import Plan

WidthOf = Callable[[Path, Plan], tuple[int, ...] | None]
"""Checkpoint, plan of the data -> features of the checkpoint's levels; None where it does not say."""
LENGTH = frozenset({"max_epochs", "batches_per_epoch"})
"""Options that say how long a training is; a budget decides them though a recipe has them."""
VALIDATION = frozenset({"validate_every", "skip_first_n_eval"})
BY_LENGTH = frozenset({"optimizer", "max_epochs", "augment", "mirror_axes", "learning_rate"}) | VALIDATION
"""Options that follow from the number of steps."""
SETUP_SHARE, END_SHARE, PAGE_SHARE, EPOCH_SHARE = 0.3, 0.2, 0.25, 0.03
"""Of the seconds from a command's start to its first measurement, which follow the machine and its load: what is built
once more after the choice, the end of a command, the page that it writes, and what is around an epoch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What is chosen for a budget: options by name, the plan of its steps, and what a user is told of it."""

    options: dict[str, Any]
    plan: BudgetPlan
    lines: tuple[str, ...]


def with_budget(
    config: Config, *, resume: CheckpointContents | None, width_of: WidthOf | None = None, started_s: float
) -> tuple[Config, list[BudgetKeeper]]:  # fmt: skip
    """The options of a training with those that its `--budget` has chosen, and what keeps its time; else unchanged.

    Args:
        config: as it was typed.
        resume: checkpoint of the training that goes on.
        width_of: finds the features of a network whose weights a training begins with (`--ckpt_path`).
        started_s: start of the command, `time.monotonic()`.

    Raises:
        UserError: the time is too short, or flags leave nothing to choose.
    """
    if config.optim.budget is None:
        return config, []
    if set(config.given) >= LENGTH and config.loader.batches_per_epoch:
        raise UserError(
            "--max_epochs and --batches_per_epoch say how long a training is, and so does --budget; leave one of the "
            "three out"
        )
    if "schedule_by" in config.given and config.optim.schedule_by == "epoch":
        raise UserError(
            "--schedule_by epoch does not go with --budget, whose epochs may become more or fewer on the way; leave "
            "it out: the learning rate then moves by step"
        )
    if resume is not None:
        _require_same_length(resume, config)
        config = with_options(config, _stored_options(resume, config))
        unmeasured = Pace(step_s=0, epoch_s=0, validation_s=0, patches_s=0, end_s=0)
        return config, [BudgetKeeper(_plan(config, unmeasured), started_s)]
    runtime = resolve_hardware(config.hardware)
    found = shared(runtime, lambda: to_dict(decide(config, started_s, width_of)))
    decision = from_dict(Decision, found, source="what the first process chose for --budget")
    if runtime.is_first_process:
        print("\n".join(decision.lines), flush=True)
    return with_options(config, _typed(decision.options)), [BudgetKeeper(decision.plan, started_s)]


def budget_summary(keepers: Sequence[BudgetKeeper]) -> dict[str, Any]:
    """Numbers for the record of a run; none where nothing keeps a time."""
    return {name: value for keeper in keepers for name, value in keeper.summary().items()}


def decide(config: Config, started_s: float, width_of: WidthOf | None = None) -> Decision:
    """Measure and choose, by the arguments of `with_budget`; the first process does it for all.

    Raises:
        UserError: the time is too short.
    """
    assert config.optim.budget is not None, "asked for"
    began_s, budget_s = time.monotonic() - started_s, seconds_of(config.optim.budget, "--budget")
    kept = _kept(config)
    options = _unless(kept, _of_device(config.hardware, kept))
    config = with_options(config, options)
    setup = prepare(config)
    _require_time(budget_s, time.monotonic() - started_s)
    if width_of is not None and config.run.ckpt_path is not None and "filters" not in kept:
        width = width_of(config.run.ckpt_path, setup.plan)
        options |= {} if width is None else {"filters": width}
        config = with_options(config, options)
        setup = with_network(setup, config)
    facts = look_at(config, setup, budget_s)

    def costs() -> Costs:
        return Costs(
            start_s=time.monotonic() - started_s + SETUP_SHARE * began_s,
            end_s=(END_SHARE + PAGE_SHARE * config.run.report) * began_s,
            epoch_s=EPOCH_SHARE * began_s,
        )

    network = choose_network(facts, lambda *size: measure_speed(config, setup, size, budget_s), costs)
    if problem := too_short(network, facts, costs()):
        raise UserError(problem)
    length = _length(config, network, facts, costs())
    by_steps = options.get("optimizer") == "muon"
    facts, chosen = _chosen(network, facts, length, network.steps, by_steps=by_steps)
    options |= _unless(kept, chosen)
    config, speed = with_options(config, options), network.speed
    if "schedule_by" in pointless_options(config):
        options.pop("schedule_by", None)
    pace = Pace(
        step_s=speed.step_s, epoch_s=costs().epoch_s, validation_s=speed.validation_s, patches_s=speed.patches_s,
        end_s=costs().end_s,
    )  # fmt: skip
    plan = _plan(config, pace)
    # Validations before the last one have a share of the steps' time.
    most = total_for(0, AIM * budget_s - costs().start_s, pace, plan.course)
    if most < plan.total:
        # The last epoch may end early.
        shorter = max(math.ceil(most / plan.course.per_epoch), 1)
        facts, again = _chosen(network, facts, (shorter, plan.course.per_epoch), max(most, 1), by_steps=by_steps)
        changed = set(BY_LENGTH)
        if "max_epochs" in kept or not plan.course.only_last:
            changed -= VALIDATION
        else:
            again |= {"validate_every": shorter, "skip_first_n_eval": shorter - 1}
        options |= _unless(kept, {name: again[name] for name in changed & again.keys()})
        plan = _plan(with_options(config, options), pace)
    plan = dataclasses.replace(plan, total=min(plan.total, max(most, 1)))
    lines = explain(network, facts, costs(), options, kept & _named(config), made=plan.total, by_steps=by_steps)
    return Decision(options=options, plan=plan, lines=(*lines, *_without_effect(with_options(config, options))))


def _require_time(budget_s: float, spent_s: float) -> None:
    if spent_s >= budget_s:
        raise UserError(
            f"--budget {as_typed(budget_s)} is over before anything can be trained: the start alone has taken "
            f"{in_words(spent_s)}; give at least {at_least(4 * spent_s)}"
        )


def _chosen(
    network: Network, facts: Facts, length: tuple[int, int], steps: int, *, by_steps: bool
) -> tuple[Facts, dict[str, Any]]:
    """Options for a length, and the facts with the optimiser, which follows from it too where `by_steps` says so."""
    if not by_steps:
        return facts, choose_options(network, facts, length, steps)
    made = min(math.prod(length), steps)
    optimizer = choose_optimizer(made, passes(made, network.batch_size, facts))
    facts = dataclasses.replace(facts, optimizer=optimizer)
    return facts, {"optimizer": optimizer} | choose_options(network, facts, length, steps)


def _unless(kept: Collection[str], chosen: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if name not in kept}


def _without_effect(config: Config) -> list[str]:
    """What was given and does nothing with what was chosen."""
    return [
        f"  {message}" for message in ineffective_options(config, chosen=True)
        if message.split()[0].removeprefix("--") in BY_CHOICE.keys() & set(config.given)
    ]  # fmt: skip


def _kept(config: Config) -> set[str]:
    """Options that are not a budget's to choose: given ones, and what does not go with them."""
    given = _named(config)
    # A recipe's rate is that of its optimiser.
    if config.optim.optimizer != RECIPES[config.optim.recipe].get("optimizer", config.optim.optimizer):
        given -= {"learning_rate"} - set(config.given)
    # The same as not to say it.
    if config.hardware.precision == "auto":
        given -= {"precision"}
    if config.optim.scheduler == "plateau":
        given |= {"validate_every", "skip_first_n_eval"}
    if "validate_every" in given:
        given |= {"skip_first_n_eval"}
    # 0 is the default: an epoch of every case.
    if not config.loader.batches_per_epoch:
        given -= {"batches_per_epoch"}
    # Other recipes flip as long as they train.
    return given if config.optim.recipe == "reference" else given | {"mirror_axes"}


def _named(config: Config) -> set[str]:
    """Options that were typed, or that the recipe or a --config file has."""
    return {*config.given, *(RECIPES[config.optim.recipe].keys() - LENGTH)}


def _of_device(hardware: HardwareConfig, kept: set[str]) -> dict[str, Any]:
    """Mixed precision where the device computes in it, and Muon but on GPUs, where it was never run."""
    runtime = choose_runtime(dataclasses.replace(hardware, amp=True), detect_machine())
    mixed = runtime.precision != "32-true" and not kept & {"amp", "precision"}
    return ({"amp": True} if mixed else {}) | {"optimizer": "adam" if runtime.use_gpu else "muon"}


def _length(config: Config, network: Network, facts: Facts, costs: Costs) -> tuple[int, int]:
    each = config.loader.batches_per_epoch if "batches_per_epoch" in config.given else 0
    return choose_epochs(
        network.steps, per_pass(network, facts), most=most_epochs(network, costs), each=each or None,
        epochs=config.optim.max_epochs if "max_epochs" in config.given else None,
    )  # fmt: skip


def _plan(config: Config, pace: Pace) -> BudgetPlan:
    """The plan of a configuration whose length is chosen."""
    optim, per_epoch = config.optim, config.loader.batches_per_epoch
    total = optim.max_epochs * per_epoch
    return BudgetPlan(
        budget_s=seconds_of(optim.budget or "", "--budget"),
        total=total,
        pace=pace,
        course=Course(
            per_epoch=per_epoch,
            every=optim.validate_every or 1,
            # One epoch has no first ones to skip; it may become several.
            only_last=optim.skip_first_n_eval >= optim.max_epochs - 1
            and (optim.skip_first_n_eval > 0 or "validate_every" not in config.given),
            limit=total if "max_epochs" in config.given else None,
        ),
    )


def _stored_options(contents: CheckpointContents, config: Config) -> dict[str, Any]:
    """What was chosen when the training was begun."""
    if contents.options.get("budget") is None or contents.model is None:
        raise UserError(
            f"{contents.path} is of a training that was not begun with --budget; continue it without, and with the "
            "flags that it was begun with"
        )
    model = {name: getattr(contents.model, name) for name in ("filters", "deep_supervision")}
    # A record leaves out options that do nothing: where a training without random changes flips, and when one stops
    # of which only the end is validated.
    unmirrored = {"mirror_axes": ("none",)} if contents.plan is not None and contents.plan.mirror_axes == () else {}
    stored = {"patience": 0} | unmirrored | contents.options | model
    kept = _kept(config) - ({"skip_first_n_eval"} - set(config.given))
    return _typed({name: stored[name] for name in CHOSEN if name in stored and name not in kept})


def _require_same_length(contents: CheckpointContents, config: Config) -> None:
    """The plan of the steps is the checkpoint's, so that another number of epochs would be without effect."""
    begun = contents.options.get("max_epochs")
    if "max_epochs" in config.given and begun not in (None, config.optim.max_epochs):
        raise UserError(
            f"--max_epochs was {begun}, now it is {config.optim.max_epochs}: a training with --budget is continued "
            "with the length that it was begun with; leave --max_epochs as it was"
        )


def _typed(options: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
