"""What a user is told of a budget: what was measured, what was chosen, and why."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from training.budget_rules import (
    AIM,
    CHOSEN,
    FEWEST_EPOCHS,
    FEWEST_TO_WIDEN,
    MIRRORED_PASSES,
    MUON_PASSES,
    MUON_STEPS,
    NEARLY_AS_MANY,
    Costs,
    Facts,
    Network,
    choose_optimizer,
    passes,
    passes_for,
    per_pass,
    steps_needed,
)
from utils.duration import as_typed
from utils.pace import in_words


def explain(
    network: Network,
    facts: Facts,
    costs: Costs,
    options: Mapping[str, Any],
    kept: Collection[str],
    *,
    made: int,
    by_steps: bool = False,
) -> tuple[str, ...]:
    """What a user is told: what was measured, what was chosen, and why.

    Args:
        network: the chosen one, with the steps that fit.
        facts: of the run.
        costs: what is not steps.
        options: that were chosen.
        kept: options that were not to be chosen, as they were given or are the recipe's.
        made: steps that are planned.
        by_steps: whether the optimiser follows from their number, and not from the device.
    """
    speed = network.speed
    width = " ".join(map(str, network.width))
    if "filters" in kept:
        why = "as given"
    elif network.width == facts.widths[0]:
        why = "as --ckpt_path has them" if len(facts.widths) == 1 and "filters" in options else "as planned"
    else:
        why = _why_not(facts.widths[facts.widths.index(network.width) - 1], network, facts.dim)
    seen = passes(made, network.batch_size, facts)
    lines = [
        f"--budget {as_typed(facts.budget_s)}: a step takes {speed.step_s:.3g} s here, a validation "
        f"{speed.validation_s:.3g} s, start and end {costs.start_s + costs.end_s:.3g} s",
        f"  features {width}: {why}; about {made} steps of {network.batch_size} patches",
    ]
    if "augment" in options:
        bound = passes_for(options["augment"], facts)
        side = "at least" if options["augment"] != "none" else "fewer than"
        lines.append(f"  --augment {options['augment']}: each voxel is seen {seen:.3g} times, {side} {bound:g}")
    if options.get("mirror_axes") == ("none",):
        lines.append(f"  --mirror_axes none: flips wait until each voxel is seen {MIRRORED_PASSES:g} times")
    told = {"filters", "augment", "mirror_axes"}
    if by_steps and options["optimizer"] == choose_optimizer(made, seen):
        lines.append(f"  --optimizer {options['optimizer']}: {_why_muon(made, seen)}")
        told |= {"optimizer"}
    shown = [_flag(name, value) for name, value in options.items() if name not in told]
    lines.append(f"  {' '.join(shown)}")
    typed = sorted(set(kept) & set(CHOSEN))
    return tuple([*lines, *([f"  given or the recipe's, not chosen: {', '.join(typed)}"] if typed else [])])


def at_least(seconds: float) -> str:
    """A budget a little longer than this, in whole minutes, as it is typed."""
    return as_typed(60 * math.ceil(seconds * 1.1 / 60))


def too_short(network: Network, facts: Facts, costs: Costs) -> str | None:
    """What to say where not every case can be shown once; None where it can."""
    needed, step_s = per_pass(network, facts), network.speed.step_s
    if network.steps >= needed:
        return None
    other_s = costs.start_s + costs.end_s + network.speed.validation_s + FEWEST_EPOCHS * costs.epoch_s
    least_s = (other_s + needed * step_s) / AIM
    return (
        f"--budget {as_typed(facts.budget_s)} is too short to show each of {facts.cases} cases once: that takes "
        f"{needed} steps of {step_s:.2g} s, and start, validation and end take {in_words(other_s)}; "
        f"give at least {at_least(least_s)}"
    )


def _why_not(wider: Sequence[int], network: Network, dim: int) -> str:
    """Why a network of twice the features was not chosen."""
    if network.steps < FEWEST_TO_WIDEN:
        return f"with fewer than {FEWEST_TO_WIDEN} steps none is wider"
    return (
        f"{' '.join(map(str, wider))} would make fewer than {steps_needed(wider, dim)} steps and show less than "
        f"{NEARLY_AS_MANY:.0%} of these patches, or not every case once"
    )


def _why_muon(steps: int, seen: float) -> str:
    """Why Muon trains, or does not."""
    if steps >= MUON_STEPS:
        return f"at least {MUON_STEPS} steps"
    if seen >= MUON_PASSES:
        return f"each voxel is seen at least {MUON_PASSES:g} times"
    return f"fewer than {MUON_STEPS} steps, and each voxel is seen fewer than {MUON_PASSES:g} times"


def _flag(name: str, value: Any) -> str:
    """As it would be typed."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    return f"--{name} {' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
