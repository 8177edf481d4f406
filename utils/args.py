"""From a command line (and an optional --config file) to the frozen option groups of utils/config.py."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from utils.config import (
    HardwareConfig,
    InferenceConfig,
    LabelConfig,
    LoaderConfig,
    ModelConfig,
    RunConfig,
)
from utils.errors import UserError, list_problems
from utils.files import from_dict
from utils.help_texts import description, help_registry
from utils.json_text import parse_json
from utils.optim_config import OptimConfig
from utils.program import program_name
from utils.recipes import RECIPES

T = TypeVar("T")

GROUPS = ("run", "hardware", "loader", "model", "labels", "optim", "inference")
SECOND_NAMES = {
    "residual": "res_block", "epochs": "max_epochs", "blend_mode": "blend", "model": "ckpt_path", "prepared": "data",
}  # fmt: skip
"""Keys that a --config file may use as the command line does, and the fields that they mean."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Train, evaluate or predict with the U-Net of a preprocessed data set."""

    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    hardware: HardwareConfig = dataclasses.field(default_factory=HardwareConfig)
    loader: LoaderConfig = dataclasses.field(default_factory=LoaderConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    labels: LabelConfig = dataclasses.field(default_factory=LabelConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    inference: InferenceConfig = dataclasses.field(default_factory=InferenceConfig)
    config: Path | None = None
    """JSON or YAML file with defaults for these flags; a flag on the command line wins over it."""
    given: Annotated[tuple[str, ...], tyro.conf.Suppress] = dataclasses.field(default=(), compare=False)
    """Names of the options that the command line or the --config file has set; no flag."""


def parse(
    cls: type[T], argv: Sequence[str] | None, *, prog: str, default: T | None = None, doc: str | None = None
) -> T:
    """Parse a command line into one dataclass of options, which raises `UserError` for a value out of range.

    Flags may be written with underscores or hyphens, and booleans have a pair (--amp, --no-amp), so that a value of
    `default` can be switched off again. An unknown flag or a malformed value ends the process with status 2 and a
    usage message, as argparse does.

    Args:
        cls: of the options.
        argv: words; None takes those of this process.
        prog: file name of the command.
        default: values where no flag says otherwise; None takes those of the dataclass.
        doc: docstring with examples, lines that begin with `python`; None takes that of the dataclass's module.
    """
    examples = (sys.modules[cls.__module__].__doc__ or "") if doc is None else doc
    try:
        return tyro.cli(
            cls,
            args=argv,
            prog=program_name(prog),
            description=description(cls, examples, prog),
            config=(tyro.conf.OmitArgPrefixes,),
            use_underscores=True,
            registry=help_registry(),
            default=tyro.MISSING_NONPROP if default is None else default,
        )
    except UserError as error:
        raise UserError(f"{error} (see {program_name(prog)} --help)") from None


def changed_options(options: Any, default: Any) -> list[str]:
    """Names of the fields of a dataclass that differ from those of another one of its kind."""
    names = [field.name for field in dataclasses.fields(options)]
    return [name for name in names if getattr(options, name) != getattr(default, name)]


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


def without_flags(words: Sequence[str], options: type, *names: str) -> list[str]:
    """A command line without the flags of a dataclass, each of which takes one value, and without further such ones."""
    left_out = {field.name for field in dataclasses.fields(options)} | set(names)
    kept, skip = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        is_one = flag.startswith("--") and flag[2:].replace("-", "_") in left_out
        if not skip and not is_one:
            kept.append(word)
        skip = is_one and not equals and not skip
    return kept


def parse_config(argv: Sequence[str] | None = None, *, prog: str = "main.py", doc: str | None = "") -> Config:
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
    config = parse(Config, words, prog=prog, default=_with_values({**recipe, **values}, path), doc=doc)
    return dataclasses.replace(config, given=tuple(sorted({*values, *_typed(words)})))


def with_options(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with other values of some options, checked as if they had been typed."""
    fields = _fields()
    chosen: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for name, value in values.items():
        chosen[fields[name][0]][name] = value
    groups = {group: dataclasses.replace(getattr(config, group), **chosen[group]) for group in GROUPS if chosen[group]}
    return dataclasses.replace(config, **groups)


def _typed(words: Sequence[str]) -> set[str]:
    """Fields whose flags a command line holds, in whatever spelling."""
    fields = _fields()
    names = [word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    names = [name if name in fields or name in SECOND_NAMES else name.removeprefix("no_") for name in names]
    return {SECOND_NAMES.get(name, name) for name in names} & fields.keys()


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
            kind = fields[name][1]
            if _takes_several(kind) and isinstance(value, (str, int, float)):
                value = [_number(word) for word in value.split()] if isinstance(value, str) else [value]
            values[name] = from_dict(kind, _as_flag(name, value), source=f"{key}: {value!r}")
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


def recipe_defaults(recipe: str) -> Config:
    """What a command line means that gives `--recipe` alone.

    Raises:
        KeyError: there is no such recipe.
    """
    return _with_values(RECIPES[recipe])


def _as_flag(name: str, value: Any) -> Any:
    """YAML reads `task: 04` as a number and `8e-4`, which has no point, as text; both mean what a flag would."""
    if (name == "task" and type(value) is int) or (name == "budget" and type(value) in (int, float)):
        return str(value)
    if isinstance(value, str) and name in ("learning_rate", "min_learning_rate", "weight_decay"):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _takes_several(kind: Any) -> bool:
    return any(typing.get_origin(each) is tuple for each in (kind, *typing.get_args(kind)))


def _number(word: str) -> int | str:
    return int(word) if word.isdecimal() else word


def _unchecked(group: Any, values: dict[str, Any]) -> Any:
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
    try:
        values = parse_json(text) if path.suffix == ".json" else _read_yaml(text)
    except ValueError as error:
        raise UserError(f"--config {path} is malformed: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold a mapping of option names to values")
    return values


def _read_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
