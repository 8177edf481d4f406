"""Two equal commands at once into every kind of folder: one says why it refuses, or both leave what one would leave."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.torture.commands import Limits, Outcome, begin, wait_for
from tests.torture.stages import Prepared, prepare, run_stage
from tests.torture.trees import put_back, read_tree

EACH = 4
"""Trials of a stage; in one of them both begin at the same moment."""
SET_ASIDE = "single/checkpoints_1"
"""A training that is given twice without --resume_training begins anew, and keeps what the first one has left."""


def run_twice(
    root: Path, *, seed: int, seconds: float, names: Sequence[str] | None = None, reuse: bool = False
) -> dict[str, Any]:
    """Run every stage twice at once, apart by a part of what it takes, as far as the time allows.

    Returns:
        numbers, and the faults of each trial that has some.
    """
    until, rng = time.monotonic() + seconds, random.Random(seed)
    stages, undisturbed = prepare(root, names, reuse=reuse)
    # Once of all before again of any: what does not fit is left out at the end.
    trials = [(stage, number) for number in range(EACH) for stage in stages]
    counts = {each.stage.name: {"trials": 0, "both_ended": 0, "one_refused": 0} for each in stages}
    faults, done = [], 0
    for prepared, number in trials:
        if time.monotonic() > until:
            break
        apart_s = 0.0 if not number else rng.uniform(0, prepared.seconds)
        outcomes, wrong = at_once(root, prepared, apart_s)
        done += 1
        count = counts[prepared.stage.name]
        count["trials"] += 1
        count["one_refused" if any(each.status == 2 for each in outcomes) else "both_ended"] += 1
        if wrong:
            faults.append({"stage": prepared.stage.name, "apart_s": round(apart_s, 3), "faults": wrong})
    return {"seed": seed, "undisturbed": undisturbed, "trials": done, "left_out": len(trials) - done, "twice": counts,
            "faults": faults}  # fmt: skip


def at_once(root: Path, prepared: Prepared, apart_s: float) -> tuple[list[Outcome], list[str]]:
    """One trial: both commands, and what is wrong about how they end and what they leave."""
    stage, work = prepared.stage, root / "work"
    put_back(prepared.before, work)
    limits = Limits(seconds=2 * stage.limit_s)
    both = []
    for number in range(2):
        time.sleep(apart_s * number)
        both.append(begin(stage.module, stage.command(work), log=root / f"output_{number}.txt", limits=limits))
    outcomes = [wait_for(each, beside=other.mark) for each, other in zip(both, reversed(both))]
    faults = [fault for number, each in enumerate(outcomes) for fault in _wrong(number, each)]
    if not any(each.status == 0 for each in outcomes):
        faults.append(f"both refuse: {outcomes[0].last_words} | {outcomes[1].last_words}")
    faults += [f"after both {each}" for each in _differences(prepared, work)]
    last = run_stage(stage, work, root)
    # What is there already may be refused, with the flag that replaces it.
    if last.status not in (0, 2) or last.has_traceback:
        faults.append(f"a third run ends with {last.status}: {last.last_words}")
    return outcomes, faults + [f"after a third {each}" for each in _differences(prepared, work)]


def _differences(prepared: Prepared, work: Path) -> list[str]:
    return [each for each in prepared.expected.faults(read_tree(work)) if not each.startswith(SET_ASIDE)][:5]


def _wrong(number: int, outcome: Outcome) -> list[str]:
    name = ("the first", "the second")[number]
    if outcome.timed_out or outcome.orphans:
        return [f"{name} does not end, or leaves {outcome.orphans}: {outcome.last_words}"]
    if outcome.status not in (0, 2) or outcome.has_traceback:
        return [f"{name} ends with {outcome.status}: {outcome.last_words}"]
    return []
