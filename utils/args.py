"""From a command line (and an optional --config file) to the frozen option groups of utils/config.py."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from utils.config import HardwareConfig, InferenceConfig, LoaderConfig, ModelConfig, OptimConfig, RunConfig
from utils.errors import UserError
from utils.files import from_dict, to_dict

T = TypeVar("T")

# The unhyphenated word "None" is the only value without a flag form, so pairs (--amp / --no-amp) stay on: a value
# from a --config file can be switched off again on the command line.
TYRO_SETTINGS = (tyro.conf.OmitArgPrefixes,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that main.py can be asked for."""

    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    hardware: HardwareConfig = dataclasses.field(default_factory=HardwareConfig)
    loader: LoaderConfig = dataclasses.field(default_factory=LoaderConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    inference: InferenceConfig = dataclasses.field(default_factory=InferenceConfig)
    config: Path | None = None
    """JSON or YAML file with defaults for these flags; a flag on the command line wins over it."""


def parse(cls: type[T], argv: Sequence[str] | None, *, prog: str, default: T | None = None) -> T:
    """Parse a command line into one dataclass of options; a value out of range is a `UserError`.

    Flags may be written with underscores or hyphens. An unknown flag or a malformed value ends the process with
    status 2 and a usage message, as argparse does.
    """
    defaults = {} if default is None else {"default": default}
    try:
        return tyro.cli(
            cls, args=argv, prog=prog, description=cls.__doc__, config=TYRO_SETTINGS, use_underscores=True, **defaults
        )
    except ValueError as error:
        raise UserError(f"{error}\nSee {prog} --help.") from None


def parse_config(argv: Sequence[str], *, prog: str = "main.py") -> Config:
    """Parse main.py's flags; values of a --config file come first, explicit flags override them.

    Raises:
        UserError: a value out of range, or a --config file that is missing, malformed or has unknown keys.
    """
    path = _config_path(argv)
    config = parse(Config, list(argv), prog=prog, default=_with_file(Config(), path) if path else Config())
    if config.run.task is not None:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, task=config.run.task.zfill(2)))
    return config


def _config_path(argv: Sequence[str]) -> Path | None:
    for position, word in enumerate(argv):
        if word == "--config" and position + 1 < len(argv):
            return Path(argv[position + 1])
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def _with_file(config: Config, path: Path) -> Config:
    values = _read_mapping(path)
    groups = {name: getattr(config, name) for name in GROUPS}
    for key, value in values.items():
        name = next((g for g, group in groups.items() if key.replace("-", "_") in to_dict(group)), None)
        if name is None:
            known = sorted(field for group in groups.values() for field in to_dict(group))
            raise UserError(f"{path}: unknown option {key!r}. Known options: {', '.join(known)}")
        merged = {**to_dict(groups[name]), key.replace("-", "_"): value}
        groups[name] = from_dict(type(groups[name]), merged, source=str(path))
    return dataclasses.replace(config, **groups, config=path)


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}") from None
    if path.suffix == ".json":
        load, faults = json.loads, (ValueError,)
    else:
        import yaml

        load, faults = yaml.safe_load, (yaml.YAMLError,)
    try:
        values = load(text)
    except faults as error:
        raise UserError(f"--config {path} is malformed: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold a mapping of option names to values")
    return values


GROUPS = ("run", "hardware", "loader", "model", "optim", "inference")


def ineffective_options(config: Config) -> list[str]:
    """Options that differ from their default and do nothing in this run, each with the reason; for a warning."""
    run, optim, model, loader = config.run, config.optim, config.model, config.loader
    training = run.exec_mode == "train"
    pointless = {
        "only training uses it": () if training else (
            *(("optim", f) for f in to_dict(optim)), *(("model", f) for f in to_dict(model)),
            ("loader", "batch_size"), ("loader", "nvol"), ("loader", "oversampling"), ("run", "resume_training"),
            ("loader", "data2d_dim"),
        ),
        "training validates without it; predict uses it": (("inference", "tta"), ("inference", "save_preds"))
        if training else (),
        "only --exec_mode predict uses it": (("inference", "save_preds"),) if run.exec_mode == "evaluate" else (),
        "it needs --save_preds": () if config.inference.save_preds else (("inference", "save_probabilities"),),
        "it needs --scheduler multistep": () if optim.scheduler == "multistep" else (("optim", "steps"),),
        "it needs --scheduler plateau": () if optim.scheduler == "plateau" else (("optim", "lr_patience"),),
        "it needs --scheduler multistep or plateau": () if optim.scheduler in ("multistep", "plateau")
        else (("optim", "factor"),),
        "it needs --optimizer sgd": () if optim.optimizer == "sgd" else (("optim", "momentum"),),
        "it needs --deep_supervision": () if model.deep_supervision else (("model", "deep_supr_num"),),
        "it needs --dim 2": () if run.dim == 2 else (("loader", "nvol"), ("loader", "data2d_dim")),
        "it needs --norm batch": () if model.norm == "batch" else (("hardware", "sync_batchnorm"),),
        "it needs --benchmark": () if run.benchmark
        else (("run", "train_batches"), ("run", "test_batches"), ("run", "warmup")),
        "batch_size is needed to draw slices": (("loader", "nvol"),) if loader.data2d_dim == 2 else (),
    }
    default = Config()
    changed = {
        (group, field)
        for group in GROUPS
        for field, value in to_dict(getattr(config, group)).items()
        if value != to_dict(getattr(default, group))[field]
    }
    messages = []
    for reason, options in pointless.items():
        for option in options:
            if option in changed:
                changed.discard(option)
                messages.append(f"--{option[1]} has no effect in this run: {reason}")
    return messages
