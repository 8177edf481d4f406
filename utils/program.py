"""What this program is called at the moment, and which version of it runs."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import time
import tomllib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

DISTRIBUTION = "nnunet-lightning"
PROJECT = Path(__file__).resolve().parents[1]

_command: ContextVar[str | None] = ContextVar("_command", default=None)
_words: ContextVar[tuple[str, ...]] = ContextVar("_words", default=())


@contextlib.contextmanager
def called_as(command: str, words: tuple[str, ...] = ()) -> Iterator[None]:
    """Let usage texts inside the block name the program so, for example `nnunet train`, in place of their file.

    `words` are the flags that the command stands for, such as `--exec_mode train`.
    """
    tokens = _command.set(command), _words.set(words)
    try:
        yield
    finally:
        _command.reset(tokens[0])
        _words.reset(tokens[1])


def program_name(file: str) -> str:
    """What a usage text calls the program whose file is `file`: as the user called it."""
    return _command.get() or file


def called_name() -> str | None:
    """What the user called the program, for example `nnunet train`; None where it was called by its file."""
    return _command.get()


def predict_command() -> str:
    """How the user predicts raw scans: by the installed program's verb where it was called so, else by its file."""
    return "nnunet predict" if (_command.get() or "").startswith("nnunet") else "python scripts/inference.py"


def called_words() -> tuple[str, ...]:
    """Flags that this name stands for."""
    return _words.get()


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


def command_start_s(*, own_process: bool) -> float:
    """When this command started, on the clock of `time.monotonic()`.

    Args:
        own_process: whether the process was started for this command: its loading of modules counts, too. Where the
            system does not tell, and for a command inside of another program, it starts now.
    """
    now_s = time.monotonic()
    if not own_process:
        return now_s
    try:
        # The name of the program, in parentheses, may hold spaces; the start is field 22, in ticks since the boot.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return now_s
    return now_s - max(age_s, 0.0)
