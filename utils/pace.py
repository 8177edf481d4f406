"""How long the rest takes: from the steps that are done to the time that is left, in words."""

from __future__ import annotations

import statistics

RECENT_STEPS = 9
"""Steps whose median counts: few enough to follow a change of pace, enough for one odd step to change nothing."""


class Pace:
    """The seconds of the last steps of a job whose steps are alike."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def add(self, seconds: float) -> None:
        """Take in a step."""
        self._seconds = [*self._seconds[1 - RECENT_STEPS :], seconds]

    def left(self, num_steps: int) -> str:
        """The time that so many more steps take, such as "12 min left"; empty before the first step and after the last.

        Args:
            num_steps: those that are not done yet.
        """
        if num_steps <= 0 or not self._seconds:
            return ""
        return f"{in_words(num_steps * statistics.median(self._seconds))} left"


def in_words(seconds: float) -> str:
    """A length of time as one would say it: 40 s, 12 min, 2 h 05 min, 31 h."""
    if seconds < 99.5:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 1440 else f"{round(minutes / 60)} h"
