from __future__ import annotations

import numpy as np
import pytest

from data_loading.sampling import BatchSpec, Place, centre_start, num_batches, rank_cases, stream_seed


def cases_of(num_cases: int, per_batch: int, world_size: int, *, seed: int = 1, epoch: int = 0) -> list[np.ndarray]:
    places = [Place(seed=seed, rank=rank, world_size=world_size, epoch=epoch) for rank in range(world_size)]
    return [rank_cases(num_cases, per_batch, place) for place in places]


def test_stream_seed_differs_by_seed_epoch_and_rank() -> None:
    seeds = {stream_seed(seed, epoch, rank) for seed in (0, 1, 2) for epoch in range(4) for rank in (None, 0, 1, 2)}
    assert len(seeds) == 3 * 4 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_stream_seed_never_changes() -> None:
    # A checkpoint of an older version is resumed with the same batches.
    assert stream_seed(1, 0, 0) == 3325833263181678374


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_cases", [1, 2, 5, 6, 12, 13])
@pytest.mark.parametrize("per_batch", [1, 2, 4])
def test_epoch_holds_every_case_and_equally_many_batches(num_cases: int, per_batch: int, world_size: int) -> None:
    shares = cases_of(num_cases, per_batch, world_size)
    counts = np.bincount(np.concatenate(shares), minlength=num_cases)
    assert counts.min() >= 1
    assert {-(-len(share) // per_batch) for share in shares} == {num_batches(num_cases, world_size, per_batch)}
    assert counts.sum() - num_cases <= world_size - 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_no_case_repeats_where_ranks_divide(world_size: int) -> None:
    assert sorted(np.concatenate(cases_of(12, 5, world_size))) == list(range(12))


def test_no_case_repeats_where_a_partial_batch_will_do() -> None:
    assert [len(share) for share in cases_of(7, 2, 2)] == [4, 3]


def test_one_case_repeats_where_a_rank_would_miss_a_batch() -> None:
    assert [len(share) for share in cases_of(5, 2, 2)] == [3, 3]


def test_order_changes_with_epoch_and_seed() -> None:
    orders = [tuple(cases_of(30, 2, 1, seed=seed, epoch=epoch)[0]) for seed in (1, 2) for epoch in (0, 1)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_cases", [1, 5, 12])
def test_epochs_of_a_set_length_share_out_the_cases_evenly(num_cases: int, world_size: int) -> None:
    counts = np.zeros(num_cases, int)
    for epoch in range(7):
        places = [Place(seed=1, rank=rank, world_size=world_size, epoch=epoch) for rank in range(world_size)]
        shares = [rank_cases(num_cases, 2, place, 4) for place in places]
        assert {len(share) for share in shares} == {8}
        counts += np.bincount(np.concatenate(shares), minlength=num_cases)
        assert np.ptp(counts) <= 1


def test_epochs_of_a_set_length_go_on_where_the_last_one_ended() -> None:
    drawn = np.concatenate([rank_cases(6, 2, Place(seed=1, epoch=epoch), 1) for epoch in range(6)])
    first, second = drawn[:6], drawn[6:]
    assert sorted(first) == sorted(second) == list(range(6)) and list(first) != list(second)


def test_centre_start_lies_in_the_middle() -> None:
    assert centre_start((8, 5, 4), (4, 4, 4)).tolist() == [2, 0, 0]


def test_two_dimensional_patch_is_a_box_of_one_slice() -> None:
    assert BatchSpec(patch=(6, 8), channels=1, cases_per_batch=2, patches_per_case=3).box == (1, 6, 8)
