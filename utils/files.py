"""Reading and writing the project's JSON, and writing any file whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar, get_args, get_origin

import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from utils.disk import find_write_fault, name_fault
from utils.errors import UserError
from utils.json_text import parse_json
from utils.temporary import temporary_file, temporary_folder, temporary_name

T = TypeVar("T")


def _strict(kinds: tuple[type, ...], name: str) -> Callable[[Any, type], Any]:
    def check(value: Any, kind: type) -> Any:
        # bool is a kind of int in Python, and not in a file.
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"expected {name}, got {value!r}")
        return kind(value)

    return check


def _one_of(value: Any, kind: Any) -> Any:
    for choice in get_args(kind):
        if value == choice and type(value) is type(choice):
            return choice
    raise ValueError(f"expected one of {', '.join(map(str, get_args(kind)))}, got {value!r}")


def _whole_number_or_all(value: Any, kind: Any) -> int | str:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError(f"expected a whole number or all, got {value!r}")


# cattrs would call int(2.7), bool("false") and str(None); a file with such a value is wrong and is refused.
_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_structure_hook(int, _strict((int,), "a whole number"))
_converter.register_structure_hook(float, _strict((int, float), "a number"))
_converter.register_structure_hook(bool, _strict((bool,), "true or false"))
_converter.register_structure_hook(str, _strict((str,), "text"))
_converter.register_structure_hook_func(lambda kind: get_origin(kind) is Literal, _one_of)
_converter.register_structure_hook_func(lambda kind: kind == int | Literal["all"], _whole_number_or_all)
_converter.register_structure_hook_factory(
    dataclasses.is_dataclass,
    lambda cls: make_dict_structure_fn(cls, _converter, _cattrs_forbid_extra_keys=True),
)


def _dict_writer(cls: type) -> Callable[[Any], dict[str, Any]]:
    """Fields whose metadata has `omit_default` are left out where they have their default."""
    later = (field.name for field in dataclasses.fields(cls) if field.metadata.get("omit_default"))
    kwargs: dict[str, Any] = {name: override(omit_if_default=True) for name in later}
    return make_dict_unstructure_fn(cls, _converter, **kwargs)


_converter.register_unstructure_hook_factory(dataclasses.is_dataclass, _dict_writer)


def to_dict(value: Any) -> dict:
    """A schema object as JSON-ready dicts and lists."""
    return _converter.unstructure(value)


def from_dict(cls: type[T], data: Any, *, source: str) -> T:
    """Build a schema object (or another annotated type, such as `int | None`) from parsed JSON.

    Raises:
        UserError: a key is missing, unknown or of the wrong kind; the message names `source` and every problem.
    """
    if dataclasses.is_dataclass(cls) and not isinstance(data, dict):
        raise UserError(f"{source} is not a valid {cls.__name__}: expected a mapping, got {data!r}")
    try:
        return _converter.structure(data, cls)
    except (cattrs.BaseValidationError, TypeError, ValueError, KeyError, AttributeError) as error:
        problem: object = error
        if isinstance(error, cattrs.BaseValidationError):
            problem = "; ".join(cattrs.transform_error(error, format_exception=_describe))
        name = f"a valid {cls.__name__}" if dataclasses.is_dataclass(cls) else "valid"
        raise UserError(f"{source} is not {name}: {problem}") from None


def _describe(error: BaseException, kind: type | None) -> str:
    """Our own complaints as they stand; cattrs' wording for the rest."""
    return str(error) if type(error) in (ValueError, UserError) else cattrs.v.format_exception(error, kind)


def json_ready(value: Any) -> Any:
    """Nested dicts and lists of plain values; NaN and infinity, which JSON cannot express, become None."""
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a scalar of numpy or torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(cls: type[T], path: Path) -> T:
    """Read a schema object from a JSON file; every fault is a `UserError` that names the file."""
    try:
        data = parse_json(Path(path).read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run preprocess.py first") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    return from_dict(cls, data, source=str(path))


def require_not_read(path: Path, flag: str, read: Iterable[Path]) -> None:
    """A file that a command writes is none of those that it reads.

    Raises:
        UserError: it is.
    """
    if path.resolve() in {each.resolve() for each in read}:
        raise UserError(f"{flag} {path} is read here, and writing there would destroy it; give another file")


def require_own_kind(path: Path, flag: str, begins: bytes, kind: str) -> None:
    """A file that is written over is of the kind that is written, and not one that was named by mistake.

    Args:
        path: need not exist.
        flag: that names it.
        begins: the first bytes of such files, in any case of letters.
        kind: how people call them.

    Raises:
        UserError: it is something else.
    """
    try:
        with path.open("rb") as file:
            found = file.read(len(begins))
    except OSError:
        return
    if found and found.lower() != begins.lower():
        raise UserError(f"{flag} {path} is there and is no {kind}; it stays as it is, give another file")


def write_json(value: Any, path: Path) -> None:
    """Write a schema object (or plain dict) as indented JSON, whole or not at all; see `json_ready` for NaN."""
    data = json_ready(to_dict(value) if dataclasses.is_dataclass(value) else value)
    write_atomically(Path(path), lambda file: file.write((json.dumps(data, indent=2) + "\n").encode()))


def file_digest(path: Path) -> str:
    """Digest of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def file_state(path: Path) -> tuple[int, int, int] | None:
    """What changes with every new file of a name: inode, bytes and time (ns); None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def file_stat(path: Path) -> tuple[int, int]:
    """Bytes and time (ns) of a file, which a copy with its times keeps."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write(binary_file)` on a temporary file beside `path`, then rename it into place.

    A killed process leaves either the old file or the new one, and at worst a stray `.tmp-*` file, which the next run
    that writes into the folder removes.

    Raises:
        OSError: the folder does not exist or cannot be written to, or the disk is full; it names `path`, and says how
            much was written and how much is free where the disk is full.
    """
    try:
        with temporary_file(path) as (file, temporary):
            try:
                write(file)
                file.flush()
                # Network file systems report a full disk when a file is closed. The file itself stays open, and with
                # it the lock, until it has its name.
                os.close(os.dup(file.fileno()))
            except (OSError, RuntimeError) as error:
                # numpy and torch say only that a write failed; the file itself says why.
                fault = error if isinstance(error, OSError) and error.errno else find_write_fault(file)
                if fault is None:
                    raise
                raise name_fault(fault, file.fileno(), path) from error
            _rename(file, temporary, path)
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _rename(file: BinaryIO, temporary: Path, path: Path) -> None:
    if os.name == "nt":  # An open file cannot be renamed there.
        file.close()
    os.replace(temporary, path)


def real_path(path: Path) -> Path:
    """The path without links; links that lead in a circle stay in it, and whoever opens the file says so."""
    return Path(os.path.realpath(path))


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy with its times where links are not possible, at once.

    What is there before is replaced; a target that is the same file already stays.
    """
    if target.exists() and os.path.samefile(source, target):
        return
    temporary = temporary_name(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copy2(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to fill, which becomes `path` at the end; after an error nothing is left.

    Raises:
        OSError: `path` is a file or a folder with something in it, or nothing can be written there.
    """
    path = Path(os.path.abspath(path))
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(path) as temporary:
            yield temporary
            os.rename(temporary, path)
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
