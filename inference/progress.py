"""How far long scans are: a live line on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from inference.configuration_predictor import Counter, Work

LIVE_S, SPARSE_S = 0.5, 60.0
"""Seconds between two words on one scan, on a terminal and elsewhere; shorter scans say nothing."""
_CLEAR = "\r\x1b[K"


class Progress:
    """Says how far each scan is; what else is printed goes through `say`, so that no live line is in its way.

    Args:
        out: where to; the standard output by default.
        clock: seconds from any moment.
    """

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out or sys.stdout, clock
        self._is_live = self._out.isatty()
        self._lock = threading.Lock()
        self._shown = False

    def begin(self, case: str, expected: Work) -> Counter:
        """What is to be called with all work that is done on a scan, of which `expected` is the whole."""
        start_s = said_s = self._clock()
        done = Work()

        def count(work: Work) -> None:
            nonlocal done, said_s
            done, now_s = done + work, self._clock()
            if now_s - said_s < (LIVE_S if self._is_live else SPARSE_S) or done.voxels >= expected.voxels:
                return
            said_s = now_s
            left_s = (now_s - start_s) * (expected.voxels - done.voxels) / done.voxels
            self._show(f"{case}: {done.windows} of {expected.windows} windows, about {duration(left_s)} left")

        return count

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with self._lock:
            print(f"{_CLEAR if self._shown else ''}{text}", file=self._out, flush=True)
            self._shown = False

    def _show(self, text: str) -> None:
        if not self._is_live:
            self.say(text)
            return
        with self._lock:
            print(f"{_CLEAR}{text}", file=self._out, end="", flush=True)
            self._shown = True


def duration(seconds: float) -> str:
    """In whole seconds, minutes or hours and minutes."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
