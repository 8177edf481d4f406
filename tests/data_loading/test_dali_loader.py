from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from data_loading.dali_loader import CentrePatchLoader, TrainLoader, VolumeLoader
from data_loading.order import BatchSpec, CaseShard, Odds, Place
from tests.data_loading.shards import NO_AUGMENTATION, constant_cases, write_case

PATCH = (4, 4, 4)
PLAIN = Odds(foreground=0.0, **NO_AUGMENTATION)
SPATIAL = Odds(foreground=0.5, **NO_AUGMENTATION | {"zoom": 0.7, "flip": 0.5})


def batches_of(
    shards: Sequence[CaseShard], spec: BatchSpec, odds: Odds = PLAIN, *, benchmark_batches: int = 0, **place: int
) -> list[dict]:
    where = Place(**{"seed": 1} | place)
    loader = TrainLoader(
        shards, spec=spec, odds=odds, place=lambda: where, num_threads=1, benchmark_batches=benchmark_batches
    )
    batches = list(loader)
    assert len(batches) == len(loader)
    return batches


def spec_3d(cases_per_batch: int = 2, patch: tuple[int, ...] = PATCH) -> BatchSpec:
    return BatchSpec(patch=patch, channels=1, cases_per_batch=cases_per_batch)


@pytest.fixture
def noisy(tmp_path: Path) -> list[CaseShard]:
    rng = np.random.default_rng(0)
    return [
        write_case(tmp_path, f"n{i}", rng.normal(size=(2, 9, 10, 12)), rng.choice([0, 3, 7], size=(9, 10, 12)))
        for i in range(5)
    ]


@pytest.fixture
def numbered(tmp_path: Path) -> CaseShard:
    """A case whose voxels hold their own number, image and (modulo 256) label."""
    image = np.arange(8 * 9 * 10).reshape(1, 8, 9, 10)
    return write_case(tmp_path, "numbered", image, image[0] % 256)


def equal(one: list[dict], other: list[dict]) -> bool:
    return len(one) == len(other) and all(torch.equal(a[key], b[key]) for a, b in zip(one, other) for key in a)


def two_channels(patch: tuple[int, ...] = (6, 6, 8)) -> BatchSpec:
    return BatchSpec(patch=patch, channels=2, cases_per_batch=2)


def test_same_seed_rank_and_epoch_give_the_same_batches(noisy) -> None:
    place = {"rank": 1, "world_size": 2, "epoch": 3}
    first, second = (batches_of(noisy, two_channels(), Odds(foreground=0.4), **place) for _ in range(2))
    assert equal(first, second)


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 4}, {"rank": 0}])
def test_another_seed_rank_or_epoch_gives_other_batches(noisy, change) -> None:
    place = {"seed": 1, "rank": 1, "world_size": 2, "epoch": 3}
    # One case: the order is the same, so what differs is the patches.
    first, second = (batches_of(noisy[:1], two_channels(), Odds(foreground=0.4), **p) for p in (place, place | change))
    assert not equal(first, second)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_case_once_per_epoch_across_ranks(tmp_path, world_size) -> None:
    shards = constant_cases(tmp_path, 6)
    seen = [
        value
        for rank in range(world_size)
        for batch in batches_of(shards, spec_3d(cases_per_batch=4), rank=rank, world_size=world_size)
        for value in batch["image"][:, 0, 0, 0, 0].tolist()
    ]
    assert sorted(seen) == list(range(6))


def test_last_batch_is_partial(tmp_path) -> None:
    shards = constant_cases(tmp_path, 5)
    assert [len(batch["image"]) for batch in batches_of(shards, spec_3d())] == [2, 2, 1]


def test_patch_equals_the_part_of_the_volume(numbered) -> None:
    volume = np.load(numbered.image)[0]
    for epoch in range(5):
        [batch] = batches_of([numbered], spec_3d(patch=(4, 6, 5)), epoch=epoch)
        patch = batch["image"][0, 0].numpy()
        d, h, w = np.unravel_index(int(patch[0, 0, 0]), volume.shape)
        assert np.array_equal(patch, volume[d : d + 4, h : h + 6, w : w + 5])
        assert batch["image"].dtype == torch.float32 and batch["label"].dtype == torch.uint8
        assert torch.equal(batch["label"], (batch["image"] % 256).byte())


def test_label_follows_image_through_flips_and_zoom(tmp_path) -> None:
    ball = (np.indices((12, 12, 12)) - 5.5).__pow__(2).sum(0) < 12
    shards = [write_case(tmp_path, "ball", 10.0 * ball[None], ball)]
    differing = [
        ((batch["image"] > 5) != (batch["label"] > 0)).float().mean().item()
        for epoch in range(15)
        for batch in batches_of(shards, spec_3d(1, (8, 8, 8)), SPATIAL, epoch=epoch)
    ]
    # Cubic and nearest interpolation cut a border voxel differently now and then; a shifted label would be off by 10 %.
    assert np.mean(differing) < 0.01


def test_augmented_labels_hold_no_new_value(noisy) -> None:
    values = {
        value
        for epoch in range(5)
        for batch in batches_of(noisy, two_channels(), Odds(foreground=0.4, zoom=0.8), epoch=epoch)
        for value in batch["label"].unique().tolist()
    }
    assert values == {0, 3, 7}


@pytest.mark.parametrize("zoom", [0.0, 1.0])
def test_foreground_patches_hold_the_only_foreground_voxel(tmp_path, zoom) -> None:
    label = np.zeros((12, 12, 12))
    label[1, 6, 11] = 1
    shards = [write_case(tmp_path, f"one{i}", label[None], label) for i in range(12)]
    odds = Odds(foreground=1.0, **NO_AUGMENTATION | {"zoom": zoom, "flip": 0.5})
    [batch] = batches_of(shards, spec_3d(12), odds)
    assert torch.all(batch["label"].amax(dim=(1, 2, 3, 4)) == 1)


def test_uniform_patches_often_miss_the_only_foreground_voxel(tmp_path) -> None:
    label = np.zeros((12, 12, 12))
    label[1, 6, 11] = 1
    shards = [write_case(tmp_path, f"one{i}", label[None], label) for i in range(12)]
    [batch] = batches_of(shards, spec_3d(12))
    assert batch["label"].amax(dim=(1, 2, 3, 4)).sum() < 6


def test_volume_smaller_than_the_patch_is_padded_with_zeros(tmp_path) -> None:
    shards = [write_case(tmp_path, "small", np.ones((1, 2, 8, 4)))]
    [batch] = batches_of(shards, spec_3d())
    assert batch["image"][0, 0, :, 0, 0].tolist() == batch["label"][0, 0, :, 0, 0].tolist() == [0, 1, 1, 0]


def test_thin_patches_take_every_augmentation(tmp_path) -> None:
    rng = np.random.default_rng(0)
    shards = [write_case(tmp_path, f"thin{i}", rng.normal(size=(2, 2, 9, 9))) for i in range(2)]
    always = Odds(foreground=0.5, zoom=1, flip=1, noise=1, blur=1, brightness=1, contrast=1)
    [batch] = batches_of(shards, two_channels((2, 8, 8)), always)
    assert batch["image"].shape == (2, 2, 2, 8, 8) and batch["image"].isfinite().all()


def test_slices_of_one_volume_lie_side_by_side(tmp_path) -> None:
    spec = BatchSpec(patch=(4, 6), channels=1, cases_per_batch=2, patches_per_case=3)
    shards = constant_cases(tmp_path, 5, (3, 8, 8))
    batches = batches_of(shards, spec)
    assert [tuple(batch["image"].shape) for batch in batches] == [(6, 1, 4, 6), (6, 1, 4, 6), (3, 1, 4, 6)]
    values = torch.cat([batch["image"][:, 0, 0, 0] for batch in batches]).reshape(5, 3)
    assert torch.all(values == values[:, :1])
    assert sorted(values[:, 0].tolist()) == [0, 1, 2, 3, 4]


def test_slices_come_from_the_whole_volume_and_are_augmented_in_plane(tmp_path) -> None:
    label = np.broadcast_to(np.arange(5)[:, None, None], (5, 8, 8))
    shards = [write_case(tmp_path, "ramp", label[None], label)]
    spec = BatchSpec(patch=(6, 6), channels=1, cases_per_batch=1, patches_per_case=64)
    [batch] = batches_of(shards, spec, Odds(foreground=0.0, **NO_AUGMENTATION | {"zoom": 0.5, "flip": 0.5}))
    assert batch["label"].shape == (64, 1, 6, 6)
    assert batch["label"].unique().tolist() == [0, 1, 2, 3, 4]
    assert torch.allclose(batch["image"], batch["label"].float(), atol=1e-5)


def test_two_dimensional_batches_take_every_augmentation(noisy) -> None:
    spec = BatchSpec(patch=(8, 8), channels=2, cases_per_batch=2, patches_per_case=8)
    always = Odds(foreground=0.5, zoom=1, flip=1, noise=1, blur=1, brightness=1, contrast=1)
    batch = batches_of(noisy, spec, always)[0]
    assert batch["image"].shape == (16, 2, 8, 8) and batch["label"].shape == (16, 1, 8, 8)
    assert batch["image"].isfinite().all()


def test_benchmark_repeats_the_epoch_to_full_batches(tmp_path) -> None:
    batches = batches_of(constant_cases(tmp_path, 3), spec_3d(), benchmark_batches=5)
    assert [len(batch["image"]) for batch in batches] == [2] * 5


def test_batches_stay_as_they_were_when_later_ones_are_read(tmp_path) -> None:
    loader = TrainLoader(
        constant_cases(tmp_path, 8), spec=spec_3d(1), odds=PLAIN, place=lambda: Place(seed=1), num_threads=1
    )
    kept, copies = [], []
    for batch in loader:
        kept.append(batch["image"])
        copies.append(batch["image"].clone())
    assert all(torch.equal(one, other) for one, other in zip(kept, copies))


def test_whole_volumes_come_with_their_names(tmp_path) -> None:
    rng = np.random.default_rng(0)
    shards = [
        write_case(tmp_path, f"case {n} é", rng.normal(size=(2, 3 + n, 4, 5)), np.full((3 + n, 4, 5), n))
        for n in range(3)
    ]
    items = list(VolumeLoader(shards, place=lambda: Place(seed=1), num_threads=1))
    assert [item["case"] for item in items] == [shard.case for shard in shards]
    for item, shard in zip(items, shards):
        assert np.array_equal(item["image"].numpy(), np.load(shard.image)[None])
        assert np.array_equal(item["label"].numpy(), np.load(shard.label)[None])
        assert item["label"].dtype == torch.uint8


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_volumes_are_shared_out_without_repeats(tmp_path, world_size) -> None:
    shards = constant_cases(tmp_path, 3)
    loaders = [
        VolumeLoader(shards, place=lambda rank=rank: Place(seed=1, rank=rank, world_size=world_size), num_threads=1)
        for rank in range(world_size)
    ]
    assert {len(loader) for loader in loaders} == {-(-3 // world_size)}
    assert sorted(item["case"] for loader in loaders for item in loader) == ["case0", "case1", "case2"]


def test_volumes_without_labels_have_no_label(tmp_path) -> None:
    write_case(tmp_path, "a", np.ones((1, 4, 4, 4)))
    shard = CaseShard(case="a", image=tmp_path / "a_x.npy", label=None, foreground=None, shape=PATCH)
    [item] = VolumeLoader([shard], place=lambda: Place(seed=1), num_threads=1)
    assert set(item) == {"image", "case"}


@pytest.mark.parametrize("patch, shape", [((4, 4, 4), (2, 1, 4, 4, 4)), ((4, 4), (2, 1, 4, 4))])
def test_centre_patches_are_the_middles_over_and_over(numbered, patch, shape) -> None:
    loader = CentrePatchLoader(
        [numbered], spec=spec_3d(patch=patch), place=lambda: Place(seed=1), num_threads=1, count=3
    )
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    volume = np.load(numbered.image)[0]
    middle = volume[2:6, 2:6, 3:7] if len(patch) == 3 else volume[3, 2:6, 3:7]
    for batch in batches:
        assert tuple(batch["image"].shape) == shape
        assert all(np.array_equal(patch[0], middle) for patch in batch["image"].numpy())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("patch, per_case", [((6, 6, 8), 1), ((8, 8), 4)])
def test_gpu_batches_equal_cpu_batches(noisy, patch, per_case) -> None:
    spec = BatchSpec(patch=patch, channels=2, cases_per_batch=2, patches_per_case=per_case)
    # Noise is left out: the generators of the two devices differ.
    odds = Odds(foreground=0.5, zoom=0.5, flip=0.5, noise=0, blur=0.5, brightness=0.5, contrast=0.5)
    for cpu, gpu in zip(batches_of(noisy, spec, odds), batches_of(noisy, spec, odds, device_id=0)):
        assert gpu["image"].is_cuda and gpu["label"].is_cuda
        assert torch.equal(cpu["label"], gpu["label"].cpu())
        torch.testing.assert_close(gpu["image"].cpu(), cpu["image"], atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_noise_replays(noisy) -> None:
    odds = Odds(foreground=0.5, noise=1.0)
    first, second = (batches_of(noisy, two_channels(), odds, device_id=0) for _ in range(2))
    assert equal(first, second)
