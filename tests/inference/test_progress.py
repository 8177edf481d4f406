"""A long scan says how far it is: rarely in a file, in one live line on a terminal."""

from __future__ import annotations

import io

import pytest

from inference.configuration_predictor import Work
from inference.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def watch(out, seconds):
    """A scan of ten windows of which each takes so long; the numbers of windows are no measure, their voxels are."""
    now = [0.0]
    progress = Progress(out, clock=lambda: now[0])
    count = progress.begin("a", Work(windows=10, voxels=1000))
    for _ in range(10):
        now[0] += seconds
        count(Work(windows=1, voxels=100))
    progress.say("[1/1] a: done")
    return out.getvalue()


def test_short_scans_say_nothing():
    assert watch(io.StringIO(), 5.9) == "[1/1] a: done\n"
    assert watch(Terminal(), 0.04) == "[1/1] a: done\n"


def test_a_file_gets_a_line_each_minute_with_what_is_left():
    lines = watch(io.StringIO(), 25).splitlines()
    assert lines == [
        "a: 3 of 10 windows, about 3 min left",
        "a: 6 of 10 windows, about 2 min left",
        "a: 9 of 10 windows, about 25 s left",
        "[1/1] a: done",
    ]


def test_a_terminal_has_one_live_line_that_goes_before_the_next():
    written = watch(Terminal(), 0.4)
    assert written.endswith("\r\x1b[Ka: 8 of 10 windows, about 1 s left\r\x1b[K[1/1] a: done\n")
    assert written.count("\n") == 1 and written.count("windows") == 4


def test_what_is_left_counts_voxels_and_not_windows():
    out, now = io.StringIO(), [0.0]
    count = Progress(out, clock=lambda: now[0]).begin("a", Work(windows=11, voxels=1000))
    now[0] = 100.0
    count(Work(windows=10, voxels=500))
    assert out.getvalue() == "a: 10 of 11 windows, about 2 min left\n"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "7 s"), (89, "1 min"), (3599, "1 h 0 min"), (9000, "2 h 30 min")])
def test_durations_are_in_the_words_that_one_uses(seconds, text):
    assert duration(seconds) == text
