"""Whether processes work, wait for a processor, or hang: where others keep the machine busy, no clock can tell.

Linux counts for each thread how long it ran and how long it was ready to run (`/proc/PID/task/TID/schedstat`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

LOOK_S = 1.0
IDLE_S = 60.0
"""Whatever does nothing for so long waits for something that does not come."""
_IDLE_SHARE = 0.02
_IN_ALL = 20.0
"""Times its limit a command may take on the wall, however busy the machine is."""


def of_session(leader: int) -> Iterator[int]:
    """The processes of a session, most of which one process has started."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(entry.name)) == leader:
                yield int(entry.name)


class Activity:
    """What the processes of a command did since it began.

    Args:
        pids: gives those that there are.
        limit_s: seconds of processors that they may take.

    Attributes:
        ran_s: what they took until the last look.
    """

    def __init__(self, pids: Callable[[], Iterable[int]], limit_s: float) -> None:
        self._pids, self._limit_s = pids, limit_s
        self._begin_s = self._looked_s = time.monotonic()
        self._before: dict[str, tuple[float, float]] = {}
        self.ran_s = 0.0
        # When they were last seen to do something, and how much they had done since then.
        self._active_s, self._since_s = self._begin_s, 0.0

    def hangs(self) -> bool:
        """Whether they have taken too much, or done nothing for a minute; looks once a second."""
        now = time.monotonic()
        if now < self._looked_s + LOOK_S:
            return False
        self._looked_s = now
        ran_s, ready_s = self._more()
        self.ran_s += ran_s
        self._since_s += ran_s + ready_s
        if self._since_s > _IDLE_SHARE * IDLE_S:
            self._active_s, self._since_s = now, 0.0
        is_idle, in_all_s = now - self._active_s > IDLE_S, now - self._begin_s
        return is_idle or self.ran_s > self._limit_s or in_all_s > _IN_ALL * self._limit_s

    def _more(self) -> tuple[float, float]:
        """Seconds that their threads ran, and were ready to, since the last look."""
        now: dict[str, tuple[float, float]] = {}
        for pid in self._pids():
            with contextlib.suppress(OSError):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    with contextlib.suppress(OSError, ValueError):
                        ran, ready, _ = map(int, (thread / "schedstat").read_text().split())
                        now[str(thread)] = ran / 1e9, ready / 1e9
        ran_s, ready_s = (
            sum(each[kind] - self._before.get(name, (0.0, 0.0))[kind] for name, each in now.items())
            for kind in range(2)
        )
        self._before = now
        return ran_s, ready_s
