"""What a user is told of a budget: what was measured, what was chosen, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from training.budget_rules import (
    CHOSEN,
    FEWEST_TO_WIDEN,
    MIRRORED_PASSES,
    NEARLY_AS_MANY,
    Costs,
    Facts,
    Network,
    passes,
    passes_for,
    steps_needed,
)
from utils.pace import in_words


def explain(
    network: Network,
    facts: Facts,
    costs: Costs,
    options: Mapping[str, Any],
    kept: Collection[str],
    *,
    made: int,
) -> tuple[str, ...]:
    """What a user is told: what was measured, what was chosen, and why.

    Args:
        network: the chosen one, with the steps that fit.
        facts: of the run.
        costs: what is not steps.
        options: that were chosen.
        kept: options that were not to be chosen.
        made: steps that are planned.
    """
    speed = network.speed
    width = " ".join(map(str, network.width))
    if "filters" in kept:
        why = "as given"
    elif network.width == facts.widths[0]:
        why = "as --ckpt_path has them" if len(facts.widths) == 1 and "filters" in options else "as planned"
    else:
        why = _why_not(facts.widths[facts.widths.index(network.width) - 1], network)
    seen = passes(made, network.batch_size, facts)
    lines = [
        f"--budget {in_words(facts.budget_s)}: a step takes {speed.step_s:.3g} s here, a validation "
        f"{speed.validation_s:.3g} s, start and end {costs.start_s + costs.end_s:.3g} s",
        f"  features {width}: {why}; about {made} steps of {network.batch_size} patches",
    ]
    if "augment" in options:
        bound = passes_for(options["augment"], facts)
        side = "at least" if options["augment"] != "none" else "fewer than"
        lines.append(f"  --augment {options['augment']}: each voxel is seen {seen:.3g} times, {side} {bound:g}")
    if options.get("mirror_axes") == ("none",):
        lines.append(f"  --mirror_axes none: flips wait until each voxel is seen {MIRRORED_PASSES:g} times")
    told = ("filters", "augment", "mirror_axes")
    shown = [f"--{name} {_shown(value)}" for name, value in options.items() if name not in told]
    lines.append(f"  {' '.join(shown)}")
    typed = sorted(set(kept) & set(CHOSEN))
    return tuple([*lines, *([f"  given, not chosen: {', '.join(typed)}"] if typed else [])])


def _why_not(wider: Sequence[int], network: Network) -> str:
    """Why a network of twice the features was not chosen."""
    if network.steps < FEWEST_TO_WIDEN:
        return f"with fewer than {FEWEST_TO_WIDEN} steps none is wider"
    return (
        f"{' '.join(map(str, wider))} would make fewer than {steps_needed(wider)} steps and show less than "
        f"{NEARLY_AS_MANY:.0%} of these patches, or not every case once"
    )


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
