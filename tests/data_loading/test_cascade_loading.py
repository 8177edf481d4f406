"""Channels that hold classes or a mask and no intensities: they move with the label and keep their values."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch

from data_loading import train_loader
from data_loading.augment import cascade
from data_loading.augment.presets import UNCHANGED, Preset, choose_preset
from data_loading.dali_loader import CentrePatchLoader, VolumeLoader
from data_loading.data_module import batch_spec, find_shards
from data_loading.sampling import BatchSpec, CaseShard, Place
from data_loading.train_loader import TrainLoader
from tests.data_loading.shards import changes_of, make_module, make_plan, preset_with, write_case
from utils.config import LoaderConfig
from utils.errors import UserError

SPEC = BatchSpec(
    patch=(8, 8, 8), channels=2, cases_per_batch=2, per_epoch=6, mask_channels=1, previous_classes=3
)  # fmt: skip


@pytest.fixture
def shards(tmp_path) -> list[CaseShard]:
    """Cases whose first stage found exactly the label, and whose second channel marks the foreground."""
    rng, cases = np.random.default_rng(0), []
    for n in range(3):
        label = rng.choice([0, 1, 2], size=(11, 10, 12))
        image = np.stack([rng.normal(size=label.shape), label > 0])
        shard = write_case(tmp_path, f"case{n}", image, label)
        np.save(tmp_path / f"case{n}_p.npy", label[None].astype(np.uint8))
        cases.append(dataclasses.replace(shard, previous=tmp_path / f"case{n}_p.npy"))
    return cases


def everything(name: str) -> Preset:
    preset = choose_preset(name, SPEC.patch, foreground=0.5, elastic_probability=0.5)
    return preset_with(preset, **changes_of(preset, 0.9), degraded=False)


def load(shards: list[CaseShard], preset: Preset) -> list[dict]:
    return list(TrainLoader(shards, spec=SPEC, preset=preset, place=lambda: Place(seed=1), num_threads=1))


@pytest.mark.slow
@pytest.mark.parametrize("preset", [UNCHANGED, everything("reference"), everything("nnunet")])
def test_masks_and_previous_classes_move_with_the_label_and_keep_their_values(shards, preset):
    for batch in load(shards, preset):
        image, label = batch["image"], batch["label"]
        assert image.shape == (2, 2 + 2, 8, 8, 8) and label.shape == (2, 1, 8, 8, 8)
        # Intensities, the mask of the foreground, and a channel for each class.
        assert torch.equal(image[:, 1], (label[:, 0] > 0).float())
        assert torch.equal(image[:, 2], (label[:, 0] == 1).float())
        assert torch.equal(image[:, 3], (label[:, 0] == 2).float())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changed"), [("none", False), ("reference", True), ("nnunet", True)])
def test_previous_classes_are_made_worse_unless_nothing_is_augmented(shards, name, changed):
    batches = load(shards, choose_preset(name, SPEC.patch))
    worse = any((batch["image"][:, 2] != (batch["label"][:, 0] == 1)).any() for batch in batches)
    assert worse == changed
    assert all(
        torch.equal(a["image"], b["image"]) for a, b in zip(batches, load(shards, choose_preset(name, (8,) * 3)))
    )


def test_whole_volumes_come_with_their_previous_classes(shards):
    loader = VolumeLoader(shards, place=lambda: Place(seed=1), num_threads=1, previous_classes=3)
    for item, shard in zip(loader, shards):
        label = np.load(shard.label)[0]
        assert item["image"].shape == (1, 4, 11, 10, 12)
        assert np.array_equal(item["image"][0, 2], label == 1) and np.array_equal(item["image"][0, 3], label == 2)


def test_benchmark_patches_have_all_channels(shards):
    loader = CentrePatchLoader(shards, spec=SPEC, place=lambda: Place(seed=1), num_threads=1, count=2)
    assert [batch["image"].shape[1] for batch in loader] == [4, 4]


def test_the_plan_decides_on_the_channels(tmp_path):
    plan = dataclasses.replace(make_plan((8, 8, 8)), mask_channel=True, previous_stage="3d_lowres")
    spec = batch_spec(plan, LoaderConfig())
    assert (spec.channels, spec.mask_channels, spec.previous_classes) == (2, 1, 2)


def test_missing_previous_classes_are_named(shards):
    module = make_module(shards[0].image.parent, (8, 8, 8), train=("case0",), channels=2)
    (module.cases.folder / "case0_p.npy").unlink()
    with pytest.raises(UserError, match="case0_p.npy is missing".replace(".", "[.]")):
        find_shards(module.cases, channels=2, single_slice=False, cascade=True)


@pytest.mark.slow
def test_masks_are_made_worse_in_another_thread_than_the_training(shards, monkeypatch):
    threads, preset = set(), choose_preset("nnunet", SPEC.patch)
    real = cascade.ndimage.label

    def label(*args, **kwargs):
        threads.add(threading.current_thread().name.rpartition("_")[0])
        return real(*args, **kwargs)

    monkeypatch.setattr(cascade.ndimage, "label", label)
    ahead = load(shards, preset)
    assert threads == {"next_batch"}
    monkeypatch.setattr(train_loader, "one_ahead", lambda batches, device_id: batches)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(ahead, load(shards, preset), strict=True))


@pytest.mark.parametrize("device_id", [None, 0])
def test_volumes_for_a_gpu_are_pinned_while_the_one_before_is_worked_on(shards, monkeypatch, device_id):
    pinning: list[str] = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self: pinning.append(threading.current_thread().name) or self
    )
    loader = VolumeLoader(shards, place=lambda: Place(seed=1, device_id=device_id), num_threads=1)
    assert [item["case"] for item in loader] == [shard.case for shard in shards]
    assert len(pinning) == (0 if device_id is None else 2 * len(shards))
    assert all(name.startswith("next_batch") for name in pinning)
