"""Reading and writing the project's JSON, and writing any file whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import cattrs
from cattrs.gen import make_dict_structure_fn

from utils.errors import UserError

T = TypeVar("T")

_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_structure_hook_factory(
    dataclasses.is_dataclass,
    lambda cls: make_dict_structure_fn(cls, _converter, _cattrs_forbid_extra_keys=True),
)


def to_dict(value: Any) -> dict:
    """A schema object as JSON-ready dicts and lists."""
    return _converter.unstructure(value)


def from_dict(cls: type[T], data: dict, *, source: str) -> T:
    """Build a schema object from parsed JSON.

    Raises:
        UserError: a key is missing, unknown or of the wrong kind; the message names `source` and every problem.
    """
    try:
        return _converter.structure(data, cls)
    except (cattrs.BaseValidationError, TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, cattrs.BaseValidationError):
            error = "; ".join(cattrs.transform_error(error, format_exception=_describe))
        raise UserError(f"{source} is not a valid {cls.__name__}: {error}") from None


def _describe(error: BaseException, kind: type | None) -> str:
    """A dataclass's own complaint as it stands; cattrs' wording for the rest."""
    own_words = type(error) is ValueError and kind not in (int, float, bool)
    return str(error) if own_words else cattrs.v.format_exception(error, kind)


def read_json(cls: type[T], path: Path) -> T:
    """Read a schema object from a JSON file; every fault is a `UserError` that names the file."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run preprocess.py first") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    return from_dict(cls, data, source=str(path))


def write_json(value: Any, path: Path) -> None:
    """Write a schema object (or plain dict) as indented JSON, whole or not at all (temporary name, then rename)."""
    data = to_dict(value) if dataclasses.is_dataclass(value) else value
    write_atomically(Path(path), lambda file: file.write((json.dumps(data, indent=2) + "\n").encode()))


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write(binary_file)` on a temporary file beside `path`, then rename it into place.

    A killed process leaves either the old file or the new one, and at worst a stray `.tmp-*` file.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
