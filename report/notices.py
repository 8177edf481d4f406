"""What a reader must know of the files that a page is made from: some are damaged, or older than what they are about.

Readers note it while a page is made, wherever they are; the page shows all of it above everything else. A file that is
not there is no notice: a page is made of what is there.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from pathlib import Path

_notices: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("notices", default=None)


@contextlib.contextmanager
def collecting() -> Iterator[None]:
    """Gather the notices of the page that is made in the block."""
    token = _notices.set([])
    try:
        yield
    finally:
        _notices.reset(token)


def notices() -> tuple[str, ...]:
    """What was noted in the block so far, each once; nothing outside of a block."""
    return tuple(dict.fromkeys(_notices.get() or ()))


def note(text: str) -> None:
    """Note something for the page that is being made."""
    found = _notices.get()
    if found is not None:
        found.append(text)


def note_damage(path: Path, error: Exception | str) -> None:
    """Note that a file could not be read; that it is not there is no damage."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return
    if isinstance(error, OSError):
        error = error.strerror or str(error)
    text = str(error)
    # Our own messages name the file already.
    note(f"Damaged, and left out: {text if str(path) in text else f'{path}: {text}'}")


def newer_than(paths: Iterator[Path] | list[Path], record: Path, *, tolerance_s: float = 1.0) -> list[Path]:
    """Files that were changed after a record was written; all of them count as older where that is not there."""
    try:
        limit_s = record.stat().st_mtime + tolerance_s
    except OSError:
        return []
    return [path for path in paths if _changed_s(path) > limit_s]


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
