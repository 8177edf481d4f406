"""What each flag of main.py is for: the one table from which everything follows that depends on it.

Whether a run looks at a flag at all, whether a resumed training may change it, whether it makes another run of a
cross-validation, and whether scripts/cross_validate.py sets it itself. A flag without a role fails a test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from utils.args import GROUPS, Config, recipe_defaults

Kind = Literal["step", "place", "cases", "device", "speed", "prediction", "stated", "network", "training"]
"""What a flag decides.

step: what this command does with the model. place: where files lie. cases: which are trained on (the record of a
training has them by name). device: on what it runs. speed: how it is computed, with results that differ in rounding at
most. prediction: how masks are made. stated: something that the plan, the network or other flags say once more.
network: its layers. training: what the network learns.
"""
CHANGEABLE: frozenset[Kind] = frozenset({"step", "place", "cases", "device", "speed", "prediction", "stated"})
"""Kinds that a resumed training may change; the network is compared by itself."""
ELSEWHERE: frozenset[Kind] = frozenset({"step", "place", "cases", "device"})
"""Kinds that make no other run of a cross-validation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Idle:
    """A reason for which a run does not look at a flag."""

    reason: str
    when: Callable[[Config], bool]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Role:
    """Attributes:
    kind: what the flag decides.
    idle: when it decides nothing; the first reason that holds counts.
    ours: scripts/cross_validate.py sets it, or has a flag of that name.
    decided: and so that no --config file may set it either.
    """

    kind: Kind
    idle: tuple[Idle, ...] = ()
    ours: bool = False
    decided: bool = False


def _needs(flag: str, when: Callable[[Config], bool]) -> Idle:
    return Idle(reason=f"it needs {flag}", when=when)


# Conditions that several flags share.
NOT_TRAINING = Idle(reason="only training uses it", when=lambda c: c.run.exec_mode != "train")
NOT_PREDICTING = Idle(reason="--exec_mode predict uses it", when=lambda c: c.run.exec_mode != "predict")
SPEED_ONLY = Idle(reason="--benchmark measures speed only", when=lambda c: c.run.benchmark)
NO_BENCHMARK = _needs("--benchmark", lambda c: not c.run.benchmark)
OF_CHECKPOINT = Idle(
    reason="the checkpoint holds its own (unless the NVIDIA reference wrote it)",
    when=lambda c: c.run.exec_mode != "train" and not c.run.benchmark,
)
NOT_2D = _needs("--dim 2", lambda c: c.run.dim != 2)


def _training(*idle: Idle, kind: Kind = "training") -> Role:
    return Role(kind=kind, idle=(NOT_TRAINING, *idle))


def _network(*idle: Idle) -> Role:
    return Role(kind="network", idle=(OF_CHECKPOINT, *idle))


def _scored(kind: Kind, *idle: Idle, ours: bool = False) -> Role:
    """Of the flags that say how masks are made and scored."""
    return Role(kind=kind, idle=(SPEED_ONLY, *idle), ours=ours)


ROLES: Mapping[str, Role] = {
    "exec_mode": Role(kind="step", ours=True),
    "data": Role(kind="place", ours=True),
    "results": Role(kind="place", ours=True),
    "ckpt_store_dir": Role(kind="place", ours=True, decided=True),
    "logname": Role(kind="place", ours=True),
    "logger": Role(kind="place", idle=(NOT_TRAINING, SPEED_ONLY)),
    "task": Role(kind="place", ours=True),
    "dim": Role(kind="place", ours=True),
    "fold": Role(kind="cases", ours=True),
    "nfolds": Role(
        kind="cases", ours=True,
        idle=(Idle(reason="--splits says how many there are", when=lambda c: c.run.splits is not None),),
    ),
    "splits": Role(kind="cases"),
    "group_by": Role(kind="cases"),
    "seed": Role(kind="training"),
    "ckpt_path": Role(kind="stated", idle=(SPEED_ONLY,)),
    "resume_training": Role(kind="step", idle=(NOT_TRAINING, SPEED_ONLY), ours=True, decided=True),
    "save_ckpt": Role(kind="step", idle=(NOT_TRAINING,), ours=True, decided=True),
    "report": Role(
        kind="step", ours=True,
        idle=(
            SPEED_ONLY,
            Idle(reason="training and prediction write a page", when=lambda c: c.run.exec_mode == "evaluate"),
            Idle(
                reason="the page shows masks, which --save_preds writes",
                when=lambda c: c.run.exec_mode == "predict" and not c.inference.save_preds,
            ),
        ),
    ),
    "benchmark": Role(kind="step", ours=True, decided=True),
    "train_batches": Role(
        kind="stated",
        idle=(
            Idle(
                reason="it needs --benchmark; --batches_per_epoch makes epochs shorter",
                when=lambda c: not c.run.benchmark and c.run.exec_mode == "train",
            ),
            Idle(reason="--exec_mode train uses it", when=lambda c: c.run.exec_mode != "train"),
        ),
    ),
    "test_batches": Role(
        kind="step",
        idle=(NO_BENCHMARK, Idle(reason="--exec_mode predict uses it", when=lambda c: c.run.exec_mode == "train")),
    ),
    "warmup": Role(kind="step", idle=(NO_BENCHMARK,)),
    "profile": Role(kind="step"),
    "accelerator": Role(kind="device", ours=True),
    "gpus": Role(kind="device", ours=True),
    "nodes": Role(kind="device", ours=True),
    "processes": Role(kind="device"),
    "amp": Role(
        kind="training", idle=(Idle(reason="--precision decides", when=lambda c: c.hardware.precision != "auto"),)
    ),
    "precision": Role(kind="training"),
    "layout": Role(kind="speed"),
    "fused_norm": Role(
        kind="speed",
        idle=(
            _needs("--norm instance", lambda c: c.model.norm != "instance"),
            _needs("--layout NDHWC", lambda c: c.hardware.layout == "NCDHW"),
        ),
    ),
    "winograd": Role(kind="speed"),
    "compile": Role(kind="speed"),
    "compile_mode": Role(kind="speed", idle=(_needs("--compile", lambda c: not c.hardware.compile),)),
    "sync_batchnorm": Role(kind="training", idle=(_needs("--norm batch", lambda c: c.model.norm != "batch"),)),
    "affinity": Role(
        kind="device", idle=(_needs("a GPU", lambda c: c.hardware.accelerator == "cpu" or c.hardware.gpus == 0),)
    ),
    "num_workers": Role(kind="device"),
    "batch_size": _training(kind="stated"),
    "val_batch_size": Role(kind="speed"),
    "nvol": _training(
        NOT_2D,
        Idle(reason="items of --data2d_dim 2 are single slices", when=lambda c: c.loader.data2d_dim == 2),
    ),
    "data2d_dim": _training(NOT_2D),
    "oversampling": _training(),
    "augment": _training(),
    "mirror_axes": _training(
        Idle(reason="--augment none changes nothing", when=lambda c: c.loader.augment == "none")
    ),
    "elastic_probability": _training(
        Idle(reason="--augment none changes nothing", when=lambda c: c.loader.augment == "none")
    ),
    "batches_per_epoch": _training(),
    "norm": _network(),
    "negative_slope": _network(),
    "res_block": _network(),
    "depth": _network(),
    "min_fmap": _network(),
    "filters": _network(),
    "deep_supervision": _network(),
    "deep_supr_num": _network(_needs("--deep_supervision", lambda c: not c.model.deep_supervision)),
    "brats": Role(kind="stated", idle=(OF_CHECKPOINT,)),
    "recipe": _training(kind="stated"),
    "budget": _training(SPEED_ONLY),
    "learning_rate": _training(),
    "optimizer": _training(),
    "momentum": _training(_needs("--optimizer sgd", lambda c: c.optim.optimizer != "sgd")),
    "weight_decay": _training(),
    "scheduler": _training(),
    "schedule_by": _training(
        _needs("--scheduler cosine or poly", lambda c: c.optim.scheduler not in ("cosine", "poly"))
    ),
    "warmup_steps": _training(),
    "decay_share": _training(_needs("--scheduler wsd", lambda c: c.optim.scheduler != "wsd")),
    "ema": _training(SPEED_ONLY),
    "steps": _training(_needs("--scheduler multistep", lambda c: c.optim.scheduler != "multistep")),
    "factor": _training(
        _needs(
            "--scheduler multistep or plateau or loss_plateau",
            lambda c: c.optim.scheduler not in ("multistep", "plateau", "loss_plateau"),
        )
    ),
    "lr_patience": _training(
        _needs("--scheduler plateau or loss_plateau", lambda c: "plateau" not in c.optim.scheduler)
    ),
    "min_learning_rate": _training(
        Idle(reason="the learning rate stays as it is", when=lambda c: c.optim.scheduler == "none")
    ),
    "gradient_clip_val": _training(),
    "focal": _training(),
    "batch_dice": _training(),
    "min_epochs": _training(
        Idle(reason="--budget ends a training by its time", when=lambda c: c.optim.budget is not None)
    ),
    "max_epochs": _training(),
    "patience": _training(
        Idle(
            reason="only the last epoch is validated (--validate_every 1 validates each)",
            when=lambda c: c.optim.skip_first_n_eval >= c.optim.max_epochs - 1 > 0,
        )
    ),
    "skip_first_n_eval": _training(),
    "validate_every": _training(),
    "tta": _scored(
        "prediction",
        Idle(
            reason="training validates without it; evaluate and predict use it",
            when=lambda c: c.run.exec_mode == "train",
        ),
    ),
    "overlap": _scored("training"),
    "blend": _scored("training"),
    "save_preds": _scored("step", NOT_PREDICTING, ours=True),
    "save_probabilities": _scored(
        "step", NOT_PREDICTING, _needs("--save_preds", lambda c: not c.inference.save_preds), ours=True
    ),
    "invert_resampled_y": _scored("training"),
}  # fmt: skip
"""Flag of main.py -> its role."""

CHANGEABLE_FLAGS = frozenset(name for name, role in ROLES.items() if role.kind in CHANGEABLE)
"""Options that a resumed training may change. Any other, a new one too, is compared."""
ELSEWHERE_FLAGS = frozenset(name for name, role in ROLES.items() if role.kind in ELSEWHERE)
"""Flags that do not make another run of a cross-validation: places, devices, folds, and what each step sets itself."""
CROSS_VALIDATION_FLAGS = frozenset(name for name, role in ROLES.items() if role.ours)
"""Flags that belong to scripts/cross_validate.py or to its steps."""
DECIDED_FLAGS = tuple(name for name, role in ROLES.items() if role.decided)
"""Those of them that each step needs as it sets them."""


BY_CHOICE: Mapping[str, str] = {
    "schedule_by": "scheduler", "decay_share": "scheduler", "min_learning_rate": "scheduler",
    "deep_supr_num": "deep_supervision", "elastic_probability": "augment", "mirror_axes": "augment",
    "patience": "skip_first_n_eval",
}  # fmt: skip
"""Flag -> the option that a `--budget` may choose, by which the flag has an effect or none."""


def ineffective_options(config: Config, *, chosen: bool = False) -> list[str]:
    """Options that differ from their default and do nothing in this run, each with the reason; for a warning.

    Args:
        config: of the run.
        chosen: whether a `--budget` has chosen; before, nothing is said of what depends on its choices.
    """
    default = recipe_defaults(config.optim.recipe)
    waiting = set() if chosen or config.optim.budget is None else {
        name for name, by in BY_CHOICE.items() if by not in config.given
    }  # fmt: skip
    return [
        f"--{name} has no effect in this run: {reason}"
        for name, reason in _idle(config).items()
        if _value(config, name) != _value(default, name) and name not in waiting
    ]


def pointless_options(config: Config) -> set[str]:
    """Names of the options that this run does not look at, whatever their values."""
    return set(_idle(config))


def _idle(config: Config) -> dict[str, str]:
    """Flag -> the reason for which this run does not look at it."""
    reasons = {name: next((i.reason for i in role.idle if i.when(config)), None) for name, role in ROLES.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _value(config: Config, name: str) -> Any:
    group = next(g for g in GROUPS if hasattr(getattr(config, g), name))
    return getattr(getattr(config, group), name)
