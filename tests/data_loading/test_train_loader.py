"""From epoch to epoch: the next one is begun ahead, and is the one that a new loader would give."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline

from data_loading import train_loader
from data_loading.augment.presets import choose_preset
from data_loading.sampling import BatchSpec, CaseShard, Place
from data_loading.train_loader import TrainLoader
from tests.data_loading.recorder import Recorder, trainer
from tests.data_loading.shards import make_module, write_case
from utils.config import LoaderConfig

PATCH = (6, 6, 8)


@pytest.fixture
def shards(tmp_path: Path) -> list[CaseShard]:
    rng = np.random.default_rng(0)
    shape = (9, 10, 12)
    return [write_case(tmp_path, f"n{i}", rng.normal(size=(1, *shape)), rng.choice(3, size=shape)) for i in range(5)]


class Standing:
    """A place whose epoch can be moved on, as a trainer does."""

    def __init__(self) -> None:
        self.place = Place(seed=1)

    def __call__(self) -> Place:
        return self.place

    def go_to(self, epoch: int) -> None:
        self.place = dataclasses.replace(self.place, epoch=epoch)


def make(
    shards: list[CaseShard], standing: Standing, *, benchmark_batches: int = 0, last_epoch: int | None = None
) -> TrainLoader:
    return TrainLoader(
        shards, spec=BatchSpec(patch=PATCH, channels=1, cases_per_batch=2), place=standing, num_threads=1,
        preset=choose_preset("nnunet", PATCH, foreground=0.5), benchmark_batches=benchmark_batches,
        last_epoch=lambda: last_epoch,
    )  # fmt: skip


def epoch_of(loader: TrainLoader, standing: Standing, epoch: int) -> list[torch.Tensor]:
    standing.go_to(epoch)
    return [torch.cat([batch["image"], batch["label"].float()], dim=1) for batch in loader]


def running() -> set[int]:
    """Pipelines that hold threads and buffers."""
    # By its type: some objects answer a question for their class with a warning.
    return {id(each) for each in gc.get_objects() if issubclass(type(each), Pipeline) and each._pipe is not None}


@pytest.fixture
def num_running() -> Iterator[Callable[[], int]]:
    """Counts running pipelines, other tests' left out; no garbage collection ends one by chance."""
    gc.collect()
    gc.disable()
    before = running()
    yield lambda: len(running() - before)
    gc.enable()


@pytest.fixture
def beginnings(monkeypatch) -> list[tuple[int, bool]]:
    """(epoch, in the caller's thread) of every epoch that is begun."""
    begun, begin = [], TrainLoader._begin
    caller = threading.current_thread()

    def noting(self, place, length):
        begun.append((place.epoch, threading.current_thread() is caller))
        return begin(self, place, length)

    monkeypatch.setattr(TrainLoader, "_begin", noting)
    return begun


@pytest.mark.slow
def test_every_epoch_is_that_of_a_new_loader(shards, beginnings):
    standing = Standing()
    loader = make(shards, standing)
    epochs = [epoch_of(loader, standing, epoch) for epoch in range(3)]
    assert beginnings[:3] == [(0, True), (1, False), (2, False)]
    for number, epoch in enumerate(epochs):
        again = epoch_of(make(shards, standing), standing, number)
        assert len(again) == 3 and all(torch.equal(a, b) for a, b in zip(epoch, again, strict=True))
    assert not torch.equal(epochs[0][0], epochs[1][0])


def test_what_was_begun_ahead_is_left_when_the_epoch_is_another(shards, beginnings):
    standing = Standing()
    loader = make(shards, standing)
    epoch_of(loader, standing, 0)
    resumed = epoch_of(loader, standing, 5)
    assert (5, True) in beginnings
    assert torch.equal(resumed[0], epoch_of(make(shards, standing), standing, 5)[0])


def test_an_epoch_that_was_broken_off_begins_anew(shards):
    standing = Standing()
    loader = make(shards, standing)
    first = next(iter(loader))["image"]
    assert torch.equal(next(iter(loader))["image"], first)


def test_a_benchmark_begins_nothing_ahead(shards, beginnings):
    standing = Standing()
    assert len(epoch_of(make(shards, standing, benchmark_batches=4), standing, 0)) == 4
    assert beginnings == [(0, True)]


def test_nothing_is_begun_after_the_last_epoch(shards, beginnings):
    standing = Standing()
    loader = make(shards, standing, last_epoch=2)
    for epoch in range(3):
        epoch_of(loader, standing, epoch)
    loader.close()
    assert [epoch for epoch, _ in beginnings] == [0, 1, 2]


@pytest.mark.slow
def test_no_pipeline_outlives_its_epoch_or_a_loader_that_is_closed(shards, num_running):
    standing = Standing()
    loader = make(shards, standing)
    for epoch in range(3):
        epoch_of(loader, standing, epoch)
        loader._next[1].result()
        # The one that was begun ahead.
        assert num_running() == 1
    # Another epoch than the one that was begun; it is broken off.
    standing.go_to(7)
    for _ in loader:
        break
    del _
    loader.close()
    assert num_running() == 0
    loader.close()
    assert len(epoch_of(loader, standing, 1)) == 3


def test_a_fault_of_an_epoch_that_does_not_come_is_nobody_s(shards, monkeypatch):
    standing = Standing()
    loader = make(shards, standing)
    epoch = iter(loader)
    next(epoch)
    monkeypatch.setattr(train_loader, "training_pipeline", lambda *_, **__: 1 / 0)
    assert len(list(epoch)) == 2
    loader.close()


def test_batches_stay_when_their_pipeline_is_released(shards):
    standing = Standing()
    loader, again = make(shards, standing), make(shards, standing)
    kept = list(loader)
    loader.close()
    for one, other in zip(kept, again, strict=True):
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["label"], other["label"])


@pytest.mark.slow
@pytest.mark.parametrize("max_epochs", [1, 3])
def test_a_training_leaves_no_pipeline_and_begins_none_too_many(tmp_path, shards, beginnings, num_running, max_epochs):
    module = make_module(tmp_path, PATCH, train=("n0", "n1", "n2"), val=("n3",), loader=LoaderConfig(augment="nnunet"))
    trainer(max_epochs).fit(Recorder(), module)
    assert [epoch for epoch, _ in beginnings] == list(range(max_epochs))
    assert num_running() == 0


@pytest.mark.slow
def test_a_training_that_stops_early_leaves_no_pipeline(tmp_path, shards, num_running):
    class Stopping(Recorder):
        def on_train_epoch_end(self):
            self.trainer.should_stop = self.current_epoch == 1

    module = make_module(tmp_path, PATCH, train=("n0", "n1", "n2"), val=("n3",))
    trainer(9).fit(Stopping(), module)
    assert num_running() == 0


def test_a_fault_of_the_next_epoch_is_raised_there(shards, monkeypatch):
    standing = Standing()
    loader = make(shards, standing)
    pipeline, calls = train_loader.training_pipeline, []

    def failing(*positional, **named):
        calls.append(1)
        if len(calls) == 2:
            raise OSError("the disk has gone")
        return pipeline(*positional, **named)

    monkeypatch.setattr(train_loader, "training_pipeline", failing)
    assert len(epoch_of(loader, standing, 0)) == 3
    with pytest.raises(OSError, match="the disk has gone"):
        epoch_of(loader, standing, 1)
