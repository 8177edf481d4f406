from __future__ import annotations

from benchmarks.peers.accuracy import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def epochs_of(seconds_of_a_step: list[float], *, seconds: float, expected_s: float) -> tuple[list[int], float]:
    """Steps of every epoch, and when the last one ends, where steps take so long."""
    clock = Clock()
    pace, steps = Pace(seconds, len(seconds_of_a_step), expected_s, clock), []
    for step_s in seconds_of_a_step:
        steps.append(pace.next_epoch())
        clock.now += steps[-1] * step_s
    assert pace.steps == sum(steps)
    return steps, clock.now


def test_a_steady_machine_gets_equal_epochs():
    assert epochs_of([1.0] * 4, seconds=40, expected_s=1.0) == ([10] * 4, 40)


def test_a_machine_slower_than_expected_ends_in_time():
    # 10 steps in 20 s; the remaining 20 s hold 10 steps in two epochs.
    assert epochs_of([2.0, 2.0, 2.0], seconds=40, expected_s=40 / 30) == ([10, 5, 5], 40)


def test_a_machine_that_becomes_faster_makes_more_steps():
    assert epochs_of([4.0, 1.0, 1.0], seconds=40, expected_s=4.0)[0] == [3, 3, 25]


def test_an_epoch_has_a_step_even_when_the_time_is_up():
    assert epochs_of([9.0, 9.0], seconds=1, expected_s=1.0)[0] == [1, 1]
