"""A thread is one batch ahead: the order is the same, nothing is lost, and what is left is closed."""

from __future__ import annotations

import threading

import pytest
import torch

from data_loading.ahead import one_ahead, pinned


def counting(number: int, seen: list[str]):
    try:
        for index in range(number):
            seen.append(threading.current_thread().name)
            yield {"number": index}
    finally:
        seen.append("closed")


@pytest.mark.parametrize("number", [0, 1, 5])
def test_all_batches_come_in_their_order_from_another_thread(number):
    seen: list[str] = []
    assert [batch["number"] for batch in one_ahead(counting(number, seen))] == list(range(number))
    assert seen.pop() == "closed" and len(seen) == number and all(name.startswith("next_batch") for name in seen)


def test_the_next_batch_is_made_while_one_is_worked_on():
    begun = threading.Event()

    def batches():
        yield {"number": 0}
        begun.set()
        yield {"number": 1}

    for batch in one_ahead(batches()):
        assert batch["number"] == 1 or begun.wait(10)


def test_who_stops_early_leaves_nothing_open():
    seen: list[str] = []
    source = counting(5, seen)
    batches = one_ahead(source)
    assert next(batches)["number"] == 0
    batches.close()
    assert seen[-1] == "closed" and len(seen) <= 3 and next(source, None) is None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("next_batch")]


def test_a_fault_reaches_who_asks():
    def faulty():
        yield {"number": 0}
        raise ValueError("damaged")

    batches = one_ahead(faulty())
    assert next(batches)["number"] == 0
    with pytest.raises(ValueError, match="damaged"):
        next(batches)


def test_tensors_are_pinned_and_names_stay(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self + 1)
    found = pinned({"image": torch.zeros(2), "case": "a"})
    assert found["case"] == "a" and torch.equal(found["image"], torch.ones(2))
