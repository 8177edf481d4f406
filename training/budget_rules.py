"""What a training of a given wall time is made of: pure functions of measured speeds and counts of cases.

Lengths are counted in steps and in passes over the data, never in seconds, so that the rules mean the same on any
device. A step is one batch of each process. Where a rule was measured: benchmarks/results/quality_hippocampus.md and
quality_hippocampus_bf16.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

AIM = 0.975
"""Share of the budget at which a training is planned to end."""
LATEST, EARLIEST = 1.0, 0.95
"""Shares of the budget between which an expected end changes no plan."""
STEPS_OF_FEATURES, POWER = 448, {2: 2.0, 3: 3.0}
"""Steps that a network of 16 features at its first level needs before one of half the features, which makes up to three
times as many of them, is no better any more; and by dimension the power of the features with which they grow. In 3D 32
features had 0.882 after 1750 steps where 16 have 0.885 in half of the time, and 0.885 after 5014; 2D: not tried."""
NEARLY_AS_MANY = 0.6
"""Share of the patches that a narrower network is shown, with which a wider one is better at any length: 400 steps of
16 features and 800 to 1000 of 8 give the same Dice."""
ENOUGH_STEPS = 1000
"""Steps that are worth a smaller batch."""
SMALLEST_BATCH = {2: 16, 3: 2}
"""By dimension."""
NARROWEST = 8
"""Features of the first level, at least."""
AUGMENTED_PASSES = {"muon": {2: 2.5, 3: 10.0}, "adam": {2: 5.0, 3: 25.0}}
"""Times that every voxel is seen, from which on random changes of the patches are worth their slower start. Slices
beside each other are much alike, so that in 2D a few times are many. Muon learns cases by heart sooner."""
STRONGER_PASSES = {"muon": {2: 5.0, 3: 20.0}, "adam": {2: 50.0, 3: 50.0}}
"""The same of nnU-Net's list. Muon: 0.884 after 26 times, the reference's 0.881 after 33; 2D, 8 times: 0.872 and 0.869.
AdamW: as good after 26 times, and further from learning by heart. In 900 steps it was no better (0.971; 0.973)."""
MIRRORED_PASSES = 100.0
"""The same of flips, which make a network learn the scans' mirror images, too; they were worse at 17 times, and where
they begin to pay is not measured."""
FEWEST_EPOCHS, MOST_EPOCHS = 10, 100
AROUND_SHARE = 0.05
"""Of the steps' time, for what comes once an epoch: loading begun anew, checkpoints, figures."""
VALIDATION_SHARE = 0.05
"""Of the time, for validations before the last one."""
MOST_VALIDATIONS = 10
LEVELS_FOR_SUPERVISION = 4
"""A network with so many levels is trained on its lower ones, too."""
FEW_STEPS, MUON_STEPS, MUON_PASSES = 2000, 3000, 40.0
"""Fewer steps take AdamW's faster rate; fewer, each voxel seen fewer times, are trained with Muon, which learns cases
by heart: hippocampus, nnU-Net's list, 26 times 0.885, 52 times 0.881 (AdamW 0.883 both); sarcoma, 83 times: worse."""
MUON_RATE, SGD_RATE, LEARNING_RATE, FAST_RATE = 0.01, 0.01, 0.002, 0.004
"""The last two are AdamW's: the faster one is the second."""
CHOSEN = (
    "amp", "optimizer", "filters", "batch_size", "max_epochs", "batches_per_epoch", "patience", "deep_supervision",
    "augment", "mirror_axes", "learning_rate", "scheduler", "schedule_by", "validate_every", "skip_first_n_eval",
)  # fmt: skip
"""Options that a budget may choose."""
FEWEST_TO_WIDEN = 400
"""Steps of a network from which on a wider one has a chance, and a few steps of it cost little."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured of one network and batch, in seconds.

    Attributes:
        step_s: a training step with its batch's loading.
        validation_s: a validation of all whole cases.
        patches_s: a validation of one patch of each.
    """

    step_s: float
    validation_s: float
    patches_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What a budget is chosen for.

    Attributes:
        budget_s: wall time of the command.
        dim: of the network.
        optimizer: as `--optimizer` has it.
        widths: features of the networks to choose from, the planned ones first.
        batch_size: patches in a planned batch of each process.
        batch_fixed: whether the batch size was given.
        nvol: cases of a batch that give several patches each; 0: each patch is of a case of its own.
        cases: that are trained on.
        processes: that train together.
        patch_share: what a patch shows of a case, 0..1.
        levels: of the network.
    """

    budget_s: float
    dim: int
    optimizer: str
    widths: tuple[tuple[int, ...], ...]
    batch_size: int
    batch_fixed: bool = False
    nvol: int = 0
    cases: int
    processes: int = 1
    patch_share: float = 1.0
    levels: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of a command that are no steps: until the first one, after the last validation, around an epoch."""

    start_s: float
    end_s: float
    epoch_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """The chosen network with the batch: its speed, and how many steps of it fit."""

    width: tuple[int, ...]
    batch_size: int
    speed: Speed
    steps: int


def steps_that_fit(budget_s: float, speed: Speed, costs: Costs) -> int:
    """Steps that fit beside start, end, one validation of whole cases and the fewest epochs."""
    other_s = costs.start_s + costs.end_s + speed.validation_s + FEWEST_EPOCHS * costs.epoch_s
    return max(math.floor((AIM * budget_s - other_s) / speed.step_s), 0)


def widths_of(planned: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The planned features of each level, a half and a quarter of them, as far as the first level keeps enough."""
    halves = [tuple(features // divisor for features in planned) for divisor in (1, 2, 4)]
    return tuple(width for width in halves if width == halves[0] or width[0] >= NARROWEST)


def choose_network(
    facts: Facts, measure: Callable[[tuple[int, ...], int], Speed], costs: Callable[[], Costs]
) -> Network:
    """The widest network of which enough steps fit, else the narrowest; with as small a batch as `ENOUGH_STEPS` need.

    Enough are `steps_needed`, or nearly as many as fit of the next narrower one. Every case is to be shown once, if any
    network and batch can do that.

    Args:
        facts: of the run.
        measure: the speed of a network (width) with a batch size; asked from the narrowest on, and no further than
            wider ones have a chance.
        costs: what is not steps, as it is known at the moment.
    """

    def network(width: tuple[int, ...], size: int) -> Network:
        speed = measure(width, size)
        steps = steps_that_fit(facts.budget_s, speed, costs())
        found = Network(width=width, batch_size=size, speed=speed, steps=steps)
        smaller = _half_batch(size, facts)
        if steps >= ENOUGH_STEPS or smaller is None:
            return found
        halved = network(width, smaller)
        # Smaller batches need more steps to show every case.
        return found if _shows_all(found, facts) and not _shows_all(halved, facts) else halved

    narrowest = facts.widths[-1]
    best = network(narrowest, facts.batch_size)
    for width in reversed(facts.widths[:-1]):
        if best.steps < FEWEST_TO_WIDEN:
            break
        wider = network(width, best.batch_size)
        shown = wider.steps * wider.batch_size / (best.steps * best.batch_size)
        is_enough = wider.steps >= steps_needed(width, facts.dim) or shown >= NEARLY_AS_MANY
        if not is_enough or not _shows_all(wider, facts):
            break
        best = wider
    return best


def steps_needed(width: Sequence[int], dim: int) -> int:
    """Steps that a network needs to be better than one of half its features in the same time."""
    return round(STEPS_OF_FEATURES * (width[0] / 16) ** POWER[dim])


def _shows_all(network: Network, facts: Facts) -> bool:
    return network.steps >= per_pass(network, facts)


def _half_batch(size: int, facts: Facts) -> int | None:
    half = size // 2
    fits = half >= SMALLEST_BATCH[facts.dim] and half % max(facts.nvol, 1) == 0
    return half if fits and not facts.batch_fixed else None


def passes(steps: int, batch_size: int, facts: Facts) -> float:
    """How often a training of so many steps sees every voxel, or would, if patches lay evenly."""
    return steps * batch_size * facts.processes * facts.patch_share / facts.cases


def per_pass(network: Network, facts: Facts) -> int:
    """Steps that show every case once."""
    return math.ceil(facts.cases / (facts.processes * (facts.nvol or network.batch_size)))


def most_epochs(network: Network, costs: Costs) -> int:
    """As many as keep what is around them small beside their steps, and no more than anybody wants to read."""
    room_s = AROUND_SHARE * network.steps * network.speed.step_s
    return min(max(math.floor(room_s / max(costs.epoch_s, 1e-3)), FEWEST_EPOCHS), MOST_EPOCHS)


def choose_epochs(
    steps: int, per_pass: int, *, most: int = MOST_EPOCHS, epochs: int | None = None, each: int | None = None
) -> tuple[int, int]:
    """(epochs, steps in each): an epoch shows every case once, unless that makes very few or very many epochs.

    The last epoch may end early, unless their number is given.

    Args:
        steps: that fit.
        per_pass: those that show every case once.
        most: epochs that are not too many.
        epochs: their number where it is given.
        each: the steps of an epoch where they are given.
    """
    if each is None and epochs is not None:
        return epochs, max(steps // epochs, 1)
    if each is None:
        each = max(math.ceil(steps / min(max(round(steps / per_pass), FEWEST_EPOCHS), most, max(steps, 1))), 1)
    return max(math.ceil(steps / each), 1), each


def choose_validations(epochs: int, network: Network, budget_s: float) -> tuple[int, int]:
    """(epochs from one validation of whole cases to the next, epochs without any at the beginning)."""
    room_s = VALIDATION_SHARE * budget_s - epochs * network.speed.patches_s
    count = 1 + min(math.floor(room_s / max(network.speed.validation_s, 1e-3)), MOST_VALIDATIONS - 1, epochs - 1)
    return (epochs, epochs - 1) if count <= 1 else (math.ceil(epochs / count), 0)


def choose_options(network: Network, facts: Facts, length: tuple[int, int], steps: int | None = None) -> dict[str, Any]:
    """Option -> value of all that a budget decides; those that are given are the caller's to keep.

    Args:
        network: the chosen one.
        facts: of the run.
        length: epochs, and steps in each.
        steps: that are made at most, where the last epoch may end early.
    """
    epochs, per_epoch = length
    every, skipped = choose_validations(epochs, network, facts.budget_s)
    made = min(epochs * per_epoch, epochs * per_epoch if steps is None else steps)
    seen = passes(made, network.batch_size, facts)
    width = {} if network.width == facts.widths[0] else {"filters": network.width}
    batch = {} if network.batch_size == facts.batch_size else {"batch_size": network.batch_size}
    # Without random changes, too: test-time flips do only harm there, and folds beside 25 passes stay one model.
    unmirrored = {"mirror_axes": ("none",)} if seen < MIRRORED_PASSES else {}
    return width | batch | unmirrored | {
        "max_epochs": epochs,
        "batches_per_epoch": per_epoch,
        "patience": 0,
        "deep_supervision": facts.levels >= LEVELS_FOR_SUPERVISION,
        "augment": choose_augmentation(seen, made, facts),
        "learning_rate": choose_rate(made, facts.optimizer),
        "scheduler": "wsd",
        "schedule_by": "step",
        "validate_every": every,
        "skip_first_n_eval": skipped,
    }  # fmt: skip


def choose_optimizer(steps: int, seen: float) -> str:
    """The optimiser of a training of so many steps on a CPU, in which each voxel is seen so many times."""
    return "muon" if steps < MUON_STEPS and seen < MUON_PASSES else "adam"


def choose_rate(steps: int, optimizer: str) -> float:
    """The first learning rate of `--optimizer`."""
    adam = FAST_RATE if steps < FEW_STEPS else LEARNING_RATE
    return {"muon": MUON_RATE, "sgd": SGD_RATE}.get(optimizer, adam)


def passes_for(augment: str, facts: Facts) -> float:
    """Times that every voxel is to be seen for these changes of the patches (`none`: at most); AdamW's for others."""
    bounds = STRONGER_PASSES if augment == "nnunet" else AUGMENTED_PASSES
    return bounds["muon" if facts.optimizer == "muon" else "adam"][facts.dim]


def choose_augmentation(seen: float, steps: int, facts: Facts) -> str:
    """The random changes of patches, by how often every voxel is seen; the stronger ones not in a few steps."""
    if seen < passes_for("none", facts):
        return "none"
    return "reference" if seen < passes_for("nnunet", facts) or steps < FEW_STEPS else "nnunet"
