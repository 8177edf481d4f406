"""The flags of a command as data, read from its dataclass of options; for the reference page and the tests of the docs.

What is read is what tyro reads: field names, types, defaults, and the docstring under each field.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from pathlib import Path
from typing import Any

import tyro

DEFAULT_IN_WORDS = r"\s*\(default: ([^()]*(?:\([^()]*\)[^()]*)*)\)|\s*Default: ([^.]+)\.$"
"""What of a help text says the default, where the value would not."""


_HELP: dict[type[Any], dict[str, str]] = {}
"""Texts that have been read from the source."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """A flag with all its spellings, as `--help` shows it; a word without a flag is named in capitals."""

    names: tuple[str, ...]
    default: str
    """In words; `required` where there is none."""
    choices: tuple[str, ...]
    """Values that it takes, where they are few."""
    is_open: bool
    """Whether it takes a path, too."""
    help: str
    is_switch: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlagGroup:
    """Flags that belong together, with the docstring of their dataclass."""

    text: str
    flags: tuple[Flag, ...]


def flag_groups(options: type[Any]) -> tuple[FlagGroup, ...]:
    """The groups of a dataclass of options: its own flags, if it has any, then those of each dataclass in it."""
    hints = typing.get_type_hints(options, include_extras=True)
    own: list[Flag] = []
    groups: list[FlagGroup] = []
    for field in dataclasses.fields(options):
        kind = hints[field.name]
        if tyro.conf.Suppress in getattr(kind, "__metadata__", ()):
            continue
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            groups += flag_groups(kind)
        else:
            own.append(_flag(field, kind, field_help(options).get(field.name, "")))
    first = [FlagGroup(text=inspect.cleandoc(options.__doc__ or ""), flags=tuple(own))] if own else []
    return (*first, *groups)


def all_flags(*options: type) -> tuple[Flag, ...]:
    """Every flag of one or several commands."""
    return tuple(flag for each in options for group in flag_groups(each) for flag in group.flags)


def _flag(field: dataclasses.Field, kind: Any, text: str) -> Flag:
    notes = getattr(kind, "__metadata__", ())
    names = [field.name.upper() if tyro.conf.Positional in notes else f"--{field.name}"]
    for note in notes:
        names += getattr(note, "aliases", None) or ()
    said = re.search(DEFAULT_IN_WORDS, text)
    if said:
        text = text[: said.start()] + text[said.end() :]
    return Flag(
        names=tuple(names),
        default=next(filter(None, said.groups())) if said else _default(field),
        choices=_choices(kind),
        is_open=Path in typing.get_args(kind),
        help=text,
        is_switch=kind is bool or typing.get_args(kind)[:1] == (bool,),
    )


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        # utils/config.py: the container's folder where there is one.
        return f"`/{value.name}` or `{value.name}`" if isinstance(value, Path) else f"`{value}`"
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, bool):
        return "on" if field.default else "off"
    if field.default is None or field.default == ():
        return "none"
    value = field.default
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _choices(kind: Any) -> tuple[str, ...]:
    """Values of a Literal, also inside Optional, tuples and Annotated."""
    if typing.get_origin(kind) is typing.Literal:
        return tuple(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType, tuple, typing.Annotated):
        return next(filter(None, map(_choices, typing.get_args(kind))), ())
    return ()


def field_help(options: type[Any]) -> dict[str, str]:
    """Field -> the docstring under it, as one line."""
    if options not in _HELP:
        _HELP[options] = _read_help(options)
    return _HELP[options]


def _read_help(options: type[Any]) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, text in zip(tree.body, tree.body[1:]):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found
