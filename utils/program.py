"""What this program is called at the moment, and which version of it runs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import tomllib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

DISTRIBUTION = "nnunet-lightning"
PROJECT = Path(__file__).resolve().parents[1]

_command: ContextVar[str | None] = ContextVar("_command", default=None)


@contextlib.contextmanager
def called_as(command: str) -> Iterator[None]:
    """Let usage texts inside the block name the program so, for example `nnunet train`, in place of their file."""
    token = _command.set(command)
    try:
        yield
    finally:
        _command.reset(token)


def program_name(file: str) -> str:
    """What a usage text calls the program whose file is `file`: as the user called it."""
    return _command.get() or file


def program_version(project: Path = PROJECT) -> str:
    """Version of the program: of the source tree where there is one, as an installation's record may be older."""
    try:
        return tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        pass
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
