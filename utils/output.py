"""Standard output and errors that a run survives: a reader that goes away, a closed stream, a name that has no letters.

A run that trains for days must not end because `| head` has seen enough or because its terminal was closed. The streams
are replaced once, at the start, so that every `print`, progress bar, warning and log record goes through here.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import Any

from utils.disk import FULL

STANDARD_STREAMS = {"stdout": 1, "stderr": 2}


class _SteadyFile(io.FileIO):
    """A file descriptor whose writes never fail: what cannot be written is dropped."""

    def write(self, data: Any) -> int:
        """Write all of `data`, or drop it."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            try:
                written = super().write(rest)
                if written is None:  # Somebody made the descriptor non-blocking, and its reader is slow.
                    select.select([], [self.fileno()], [])
                    continue
            except OSError as error:
                # A log on a full disk may be written again when there is room.
                if error.errno not in FULL:
                    self._let_go()
                break
            rest = rest[written:]
        return size

    def _let_go(self) -> None:
        """Point the descriptor at nothing, so that C code and child processes do not fail on it either."""
        with contextlib.suppress(OSError):
            _open_null(self.fileno())


class _SteadyText(io.TextIOWrapper):
    """Text on a `_SteadyFile`; it stays open, as more than one part of a program thinks that it owns the stream."""

    replaced: Any = None
    """The stream before it; kept, as its end might close the descriptor."""

    def close(self) -> None:
        """Hand over what waits."""
        self.flush()


def steady_output() -> None:
    """Make this process's standard streams ones that cannot fail; called at the start of every process.

    A closed descriptor is filled, so that no other file gets its number and the lines of C code with it. A character
    that the stream's encoding lacks is written as its code. Streams that are no descriptors (a notebook's, a test's)
    stay as they are.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _open_null(descriptor)
    for name, descriptor in STANDARD_STREAMS.items():
        stream = getattr(sys, name)
        if isinstance(stream, _SteadyText) or (stream is not None and not _is_on(stream, descriptor)):
            continue
        steady = _make_steady(stream, descriptor)
        for alias in (name, f"__{name}__"):
            if getattr(sys, alias) is stream:
                setattr(sys, alias, steady)


def _make_steady(stream: Any, descriptor: int) -> _SteadyText:
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    raw = _SteadyFile(descriptor, "w", closefd=False)
    raw.name = f"<{'stdout' if descriptor == 1 else 'stderr'}>"
    # With python -u every write goes out at once; a buffer in between would hold it back.
    unbuffered = bool(getattr(stream, "write_through", False))
    steady = _SteadyText(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty() or bool(getattr(stream, "line_buffering", False)),
        write_through=unbuffered,
    )
    steady.replaced = stream
    return steady


def _is_on(stream: Any, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (AttributeError, OSError, ValueError):
        return False


def _open_null(descriptor: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened != descriptor:
        os.dup2(opened, descriptor)
        os.close(opened)
