"""From a command line (and an optional --config file) to the frozen option groups of utils/config.py."""

from __future__ import annotations

import dataclasses
import json
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from utils.config import HardwareConfig, InferenceConfig, LoaderConfig, ModelConfig, OptimConfig, RunConfig
from utils.errors import UserError, list_problems
from utils.files import from_dict
from utils.program import program_name
from utils.recipes import RECIPES

T = TypeVar("T")

GROUPS = ("run", "hardware", "loader", "model", "optim", "inference")
SECOND_NAMES = {"residual": "res_block", "epochs": "max_epochs", "blend_mode": "blend"}
"""Keys that a --config file may use as the command line does, and the fields that they mean."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Train, evaluate or predict with the U-Net of a preprocessed data set."""

    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    hardware: HardwareConfig = dataclasses.field(default_factory=HardwareConfig)
    loader: LoaderConfig = dataclasses.field(default_factory=LoaderConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    inference: InferenceConfig = dataclasses.field(default_factory=InferenceConfig)
    config: Path | None = None
    """JSON or YAML file with defaults for these flags; a flag on the command line wins over it."""


def parse(cls: type[T], argv: Sequence[str] | None, *, prog: str, default: T | None = None) -> T:
    """Parse a command line into one dataclass of options, which raises `UserError` for a value out of range.

    Flags may be written with underscores or hyphens, and booleans have a pair (--amp, --no-amp), so that a value of
    `default` can be switched off again. An unknown flag or a malformed value ends the process with status 2 and a
    usage message, as argparse does.
    """
    defaults = {} if default is None else {"default": default}
    prog = program_name(prog)
    try:
        return tyro.cli(
            cls,
            args=argv,
            prog=prog,
            description=cls.__doc__,
            config=(tyro.conf.OmitArgPrefixes,),
            use_underscores=True,
            **defaults,
        )
    except UserError as error:
        raise UserError(f"{error} (see {prog} --help)") from None


def task_name(task: str) -> str:
    """A task's number as all folders have it, with two digits at least: 4, 04 and 004 are one task."""
    return f"{int(task):02d}" if task.isdecimal() else task


def to_words(options: Any, names: Sequence[str]) -> list[str]:
    """The command line that gives these fields these values, for another program with the same flags.

    Fields that are None or False are left out: the other program's defaults hold.
    """
    words = []
    for name in names:
        value = getattr(options, name)
        if value is None or value is False:
            continue
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        words += [f"--{name}", *map(str, values)]
    return words


def parse_config(argv: Sequence[str] | None = None, *, prog: str = "main.py") -> Config:
    """Parse main.py's flags: values of --recipe come first, those of a --config file and then the flags override them.

    Raises:
        UserError: a value out of range, or a --config file that is missing, malformed or has unknown keys.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    named = _last_value(words, "--config")
    path = None if named is None else Path(named)
    values = {} if path is None else _read_values(path)
    # A recipe that does not exist is left for the parser to refuse.
    recipe = RECIPES.get(_last_value(words, "--recipe") or values.get("recipe", "reference"), {})
    config = parse(Config, words, prog=prog, default=_with_values({**recipe, **values}, path))
    if config.run.task is not None:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, task=task_name(config.run.task)))
    return config


def _last_value(words: Sequence[str], flag: str) -> str | None:
    """A flag's value that is needed before the others are parsed; like any flag, the last one counts."""
    found = None
    for word, following in zip(words, [*words[1:], None]):
        if word == flag and following is not None:
            found = following
        elif word.startswith(f"{flag}="):
            found = word.removeprefix(f"{flag}=")
    return found


def _fields() -> dict[str, tuple[str, Any]]:
    """Field -> its group and type."""
    return {
        field: (group, kind)
        for group in GROUPS
        for field, kind in typing.get_type_hints(type(getattr(Config(), group))).items()
    }


def _read_values(path: Path) -> dict[str, Any]:
    """Field -> value of a --config file."""
    fields = _fields()
    values: dict[str, Any] = {}
    problems = []
    for key, value in _read_mapping(path).items():
        name = str(key).replace("-", "_")
        name = SECOND_NAMES.get(name, name)
        if name not in fields:
            problems.append(f"unknown option {key!r}")
            continue
        if isinstance(value, str) and "\0" in value:
            problems.append(f"{key}: {value!r} holds a character that no name may have")
            continue
        try:
            values[name] = from_dict(fields[name][1], _as_flag(name, value), source=f"{key}: {value!r}")
        except UserError as error:
            problems.append(str(error))
    if problems:
        known = ", ".join(sorted(fields.keys() | SECOND_NAMES))
        raise list_problems(f"--config {path} has wrong entries:", problems, advice=f"Known options: {known}")
    return values


def _with_values(values: Mapping[str, Any], path: Path | None = None) -> Config:
    """The defaults with other values in their place."""
    fields, default = _fields(), Config()
    chosen: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for name, value in values.items():
        chosen[fields[name][0]][name] = value
    groups = {group: _unchecked(getattr(default, group), chosen[group]) for group in GROUPS}
    return dataclasses.replace(default, **groups, config=path)


def _as_flag(name: str, value: Any) -> Any:
    """YAML reads `task: 04` as a number and `8e-4`, which has no point, as text; both mean what a flag would."""
    if name == "task" and type(value) is int:
        return str(value)
    if isinstance(value, str) and name in ("learning_rate", "min_learning_rate", "weight_decay"):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _unchecked(group: T, values: dict[str, Any]) -> T:
    """A copy with other values that is not checked yet: a flag may still supply what the file leaves out."""
    copy = object.__new__(type(group))
    for field in dataclasses.fields(group):
        object.__setattr__(copy, field.name, values.get(field.name, getattr(group, field.name)))
    return copy


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UserError(f"--config {path} cannot be read: {reason}") from None
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


def ineffective_options(config: Config) -> list[str]:
    """Options that differ from their default and do nothing in this run, each with the reason; for a warning."""
    default = _with_values(RECIPES[config.optim.recipe])
    messages = {}
    for reason, group, fields in _pointless(config):
        for field in fields:
            if getattr(getattr(config, group), field) != getattr(getattr(default, group), field):
                messages.setdefault(field, f"--{field} has no effect in this run: {reason}")
    return list(messages.values())


def pointless_options(config: Config) -> set[str]:
    """Names of the options that this run does not look at, whatever their values."""
    return {field for _, _, fields in _pointless(config) for field in fields}


def _pointless(config: Config) -> list[tuple[str, str, Sequence[str]]]:
    """(reason, group, fields) of the options that this run does not look at; the first reason counts."""
    run, hardware, loader, optim = config.run, config.hardware, config.loader, config.optim
    training, predicting = run.exec_mode == "train", run.exec_mode == "predict"
    rules = [
        (not training, "only training uses it", "optim", _names(optim)),
        (not training, "only training uses it", "loader",
         ("batch_size", "nvol", "oversampling", "data2d_dim", "augment", "mirror_axes", "elastic_probability",
          "batches_per_epoch")),
        (loader.augment == "none", "--augment none changes nothing", "loader", ("elastic_probability", "mirror_axes")),
        (not training, "only training uses it", "run", ("resume_training", "save_ckpt")),
        (not training and not run.benchmark, "the checkpoint holds its own (unless the NVIDIA reference wrote it)",
         "model", _names(config.model)),
        (run.benchmark, "--benchmark measures speed only", "run", ("ckpt_path", "resume_training")),
        (run.benchmark, "--benchmark measures speed only", "inference", _names(config.inference)),
        (not run.benchmark and training, "it needs --benchmark; --batches_per_epoch makes epochs shorter", "run",
         ("train_batches",)),
        (not run.benchmark, "it needs --benchmark", "run", ("test_batches", "warmup")),
        (run.benchmark and training, "--exec_mode predict uses it", "run", ("test_batches",)),
        (not training, "--exec_mode train uses it", "run", ("train_batches",)),
        (training, "training validates without it; evaluate and predict use it", "inference", ("tta",)),
        (not predicting, "--exec_mode predict uses it", "inference", ("save_preds", "save_probabilities")),
        (not config.inference.save_preds, "it needs --save_preds", "inference", ("save_probabilities",)),
        (optim.scheduler != "multistep", "it needs --scheduler multistep", "optim", ("steps",)),
        ("plateau" not in optim.scheduler, "it needs --scheduler plateau or loss_plateau", "optim", ("lr_patience",)),
        (optim.scheduler not in ("multistep", "plateau", "loss_plateau"),
         "it needs --scheduler multistep or plateau or loss_plateau", "optim", ("factor",)),
        (optim.scheduler == "none", "the learning rate stays as it is", "optim", ("min_learning_rate",)),
        (run.splits is not None, "--splits says how many there are", "run", ("nfolds",)),
        (optim.optimizer != "sgd", "it needs --optimizer sgd", "optim", ("momentum",)),
        (not config.model.deep_supervision, "it needs --deep_supervision", "model", ("deep_supr_num",)),
        (run.dim != 2, "it needs --dim 2", "loader", ("nvol", "data2d_dim")),
        (loader.data2d_dim == 2, "items of --data2d_dim 2 are single slices", "loader", ("nvol",)),
        (config.model.norm != "batch", "it needs --norm batch", "hardware", ("sync_batchnorm",)),
        (hardware.precision != "auto", "--precision decides", "hardware", ("amp",)),
        (hardware.accelerator == "cpu" or hardware.gpus == 0, "it needs a GPU", "hardware", ("affinity",)),
        (not hardware.compile, "it needs --compile", "hardware", ("compile_mode",)),
        (config.model.norm != "instance", "it needs --norm instance", "hardware", ("fused_norm",)),
        (hardware.layout == "NCDHW", "it needs --layout NDHWC", "hardware", ("fused_norm",)),
    ]  # fmt: skip
    return [(reason, group, fields) for pointless, reason, group, fields in rules if pointless]


def _names(group: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(group))
