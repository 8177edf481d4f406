"""How `--help` shows a dataclass of options: for tyro, which would name `None` where nothing is the default.

A default that the text under a field says in words is not said twice, and one that is nothing is left out.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from utils.flags import DEFAULT_IN_WORDS, field_help
from utils.program import called_name, called_words

NAMES = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}
"""What stands for a value of a type."""


def help_registry() -> ConstructorRegistry:
    """The rules by which tyro reads our dataclasses."""
    registry = ConstructorRegistry()
    registry.struct_rule(_option_fields)
    return registry


def description(options: type, doc: str, program: str) -> str:
    """The text on top of a command's help: what its dataclass says, and the examples of its module's docstring.

    Args:
        options: dataclass.
        doc: docstring of the command, whose lines `python ...` are examples.
        program: file name of the command, such as `preprocess.py`.
    """
    examples = re.findall(r"^python (?:.*\\\n)*.*$", doc, re.MULTILINE)
    if called := called_name():
        # Those of other commands name files that such a user may not see.
        examples = [each for each in examples if program in each]
        name, words = called, " ".join(called_words())
        examples = [each.replace(f" {words}", "", 1) for each in examples if words in each] if words else examples
        examples = [re.sub(rf"^python \S*\b{re.escape(program)}", name, each) for each in examples]
    paragraphs = [" ".join(each.split()) for each in inspect.cleandoc(options.__doc__ or "").split("\n\n")]
    title = "Examples:" if len(examples) > 1 else "Example:"
    # Lines that begin with a space are not run together.
    shown = ["\n".join([title, *(f"  {line.strip()}" for each in examples for line in each.splitlines())])]
    return "\n\n".join([*paragraphs, *(shown if examples else [])])


def _option_fields(info: StructTypeInfo) -> StructConstructorSpec | None:
    """How a dataclass is made of flags; None leaves other types to tyro."""
    options: Any = info.type
    if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
        return None
    hints, texts = typing.get_type_hints(options, include_extras=True), field_help(options)
    fields = []
    for field in dataclasses.fields(options):
        kind: Any = hints[field.name]
        own = _default(field)
        # Those of another instance, such as that of a --config file, stand in place of the field's own.
        default = getattr(info.default, field.name) if isinstance(info.default, options) else own
        text: str | None = texts.get(field.name, "")
        if dataclasses.is_dataclass(_plain(kind)):
            # The title of its flags.
            text, kind = None, Annotated[kind, tyro.conf.arg(name=field.name.replace("_", " "))]
        else:
            hint = _hint(default, said=text if default == own else "")
            kind = Annotated[kind, tyro.conf.arg(help_behavior_hint=hint, metavar=_metavar(_plain(kind)))]
        fields.append(StructFieldSpec(name=field.name, type=kind, default=default, helptext=text))
    return StructConstructorSpec(instantiate=options, fields=tuple(fields))


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return tyro.MISSING_NONPROP if field.default is dataclasses.MISSING else field.default


def _hint(default: Any, *, said: str | None) -> str:
    """What a flag's help says of its default, after its text."""
    if default is None or default == () or re.search(DEFAULT_IN_WORDS, said or ""):
        return ""
    shown = {True: "on", False: "off"}.get(default, default) if isinstance(default, bool) else default
    return f"(default: {' '.join(map(str, shown)) if isinstance(shown, tuple) else shown})"


def _plain(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _metavar(kind: Any) -> str | None:
    """What stands for the value of a flag of several types, without the `None`; None leaves it to tyro."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return None
    value, *others = [each for each in typing.get_args(kind) if each is not type(None)]
    if others:
        return "|".join(_value_name(each) for each in (value, *others))
    if typing.get_origin(value) is Annotated:
        return next((note.metavar for note in value.__metadata__ if getattr(note, "metavar", None)), None)
    if typing.get_origin(value) is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(value))) + "}"
    if typing.get_origin(value) is tuple:
        name = _value_name(typing.get_args(value)[0])
        return f"{name} [{name} ...]"
    return _value_name(value)


def _value_name(value: Any) -> str:
    if typing.get_origin(value) is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(value))) + "}"
    return NAMES[value]
