"""The time that is left, in words."""

from __future__ import annotations

import pytest

from utils.pace import Pace, in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.1, "1 s"), (40.4, "40 s"), (99.4, "99 s"), (99.5, "2 min"), (740, "12 min"), (6000, "1 h 40 min"),
        (7500, "2 h 05 min"), (112_000, "31 h"),
    ],
)  # fmt: skip
def test_a_length_of_time_in_words(seconds, words):
    assert in_words(seconds) == words


def test_nothing_is_said_before_the_first_step_and_after_the_last():
    pace = Pace()
    assert pace.left(3) == ""
    pace.add(2.0)
    assert (pace.left(3), pace.left(0)) == ("6 s left", "")


def test_the_last_steps_count_and_an_odd_one_does_not():
    pace = Pace()
    for seconds in [100.0] * 9 + [1.0] * 4:
        pace.add(seconds)
    assert pace.left(10) == "17 min left"
    pace.add(1.0)
    assert pace.left(10) == "10 s left"
