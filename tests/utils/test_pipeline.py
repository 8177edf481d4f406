"""Reading, computing and writing overlap; failures stay with their case; what is in flight is bounded."""

from __future__ import annotations

import threading

import pytest

from utils.pipeline import MemoryGate, Stages, run_pipeline


def stages(read=lambda case: case, compute=lambda item: iter([item, 10 * item]), write=None):
    return Stages(read=read, compute=compute, write=write or (lambda case, item, slabs: sum(slabs)))


def run(cases, *lanes, budget=1e9, size=lambda case: 1):
    reported = []
    outcomes = run_pipeline(cases, lanes, size=size, gate=MemoryGate(budget), report=reported.append)
    assert {id(outcome) for outcome in reported} == {id(outcome) for outcome in outcomes}
    return outcomes


@pytest.mark.parametrize("lanes", [1, 3])
def test_results_come_in_the_order_of_the_cases(lanes):
    outcomes = run(range(7), *[stages()] * lanes)
    assert [(outcome.case, outcome.result) for outcome in outcomes] == [(case, 11 * case) for case in range(7)]


def test_no_cases_no_outcomes():
    assert run([], stages()) == []


def fail_at(bad, then):
    def step(case, *rest):
        if case == bad:
            raise ValueError("broken")
        return then(case, *rest)

    return step


def late_failure(item):
    yield item
    if item == 2:
        raise ValueError("broken")


@pytest.mark.parametrize(
    "lane",
    [
        stages(read=fail_at(2, lambda case: case)),
        stages(compute=fail_at(2, lambda item: iter([item]))),
        stages(compute=late_failure),
        stages(write=fail_at(2, lambda case, item, slabs: sum(slabs)), compute=lambda item: iter([item] * 50)),
    ],
    ids=["read", "compute", "between slabs", "write"],
)
def test_a_broken_case_does_not_stop_the_others(lane):
    outcomes = run(range(5), lane)
    assert [outcome.case for outcome in outcomes if outcome.error] == [2]
    assert str(outcomes[2].error) == "broken" and outcomes[2].result is None
    assert all(outcome.result is not None for outcome in outcomes if outcome.case != 2)


def test_the_next_case_is_read_while_one_is_computed():
    read_next = threading.Event()

    def read(case):
        if case == 1:
            read_next.set()
        return case

    def compute(item):
        assert read_next.wait(5)
        yield item

    assert [outcome.error for outcome in run(range(2), stages(read, compute))] == [None, None]


def test_slabs_are_written_while_later_ones_are_computed():
    first_written = threading.Event()

    def compute(item):
        yield 1
        assert first_written.wait(5)
        yield 2

    def write(case, item, slabs):
        seen = []
        for slab in slabs:
            seen.append(slab)
            first_written.set()
        return seen

    assert run([0], stages(compute=compute, write=write))[0].result == [1, 2]


def test_no_more_than_the_budget_is_in_flight():
    in_flight, most, lock = 0, 0, threading.Lock()

    def read(case):
        nonlocal in_flight, most
        with lock:
            in_flight += case
            most = max(most, in_flight)
        return case

    def write(case, item, slabs):
        nonlocal in_flight
        list(slabs)
        with lock:
            in_flight -= case
        return case

    cases = [3, 3, 3, 20, 3, 6, 2]
    outcomes = run(cases, stages(read=read, write=write), budget=6, size=lambda case: case)
    assert [outcome.result for outcome in outcomes] == cases
    # The case that is larger than the budget went alone.
    assert most == 20


@pytest.mark.parametrize("budget", [0, 1e9])
def test_interruption_ends_the_run_and_leaves_no_thread_waiting(budget):
    before = threading.active_count()

    def compute(item):
        yield item
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(range(6), stages(compute=compute), budget=budget)
    assert threading.active_count() == before
