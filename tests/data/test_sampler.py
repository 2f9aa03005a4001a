"""The order and the augmentation are pure functions of seed, epoch and index."""

from __future__ import annotations

import numpy as np
import pytest

from i2i_lightning.data.sampler import EpochSampler, epoch_and_index, item_rng


def test_order_is_a_permutation_that_changes_with_epoch_and_seed() -> None:
    sampler = EpochSampler(100, shuffle=True, seed=3)
    first = list(sampler)
    assert [epoch for epoch, _ in first] == [0] * 100
    assert sorted(index for _, index in first) == list(range(100))
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert [index for _, index in second] != [index for _, index in first]
    assert {epoch for epoch, _ in second} == {1}
    assert list(EpochSampler(100, shuffle=True, seed=4)) != first


def test_without_shuffling_the_order_is_the_files() -> None:
    sampler = EpochSampler(5, shuffle=False)
    sampler.set_epoch(7)
    assert list(sampler) == [(0, index) for index in range(5)]


@pytest.mark.parametrize(("size", "ranks"), [(8, 2), (7, 2), (7, 3), (2, 5)])
def test_ranks_share_the_epoch(size: int, ranks: int) -> None:
    shares = [list(EpochSampler(size, True, 0, ranks, rank)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    assert {index for share in shares for _, index in share} == set(range(size))
    assert sum(map(len, shares)) - size < ranks


@pytest.mark.parametrize(("size", "block", "ranks"), [(7, 2, 2), (7, 3, 2), (5, 2, 4), (1, 4, 3), (8, 1, 3)])
def test_batches_are_dealt_out_whole(size: int, block: int, ranks: int) -> None:
    samplers = [EpochSampler(size, False, 0, ranks, rank, block) for rank in range(ranks)]
    alone = list(range(size))
    batches = [alone[start : start + block] for start in range(0, size, block)]
    shares = []
    for sampler in samplers:
        share = [index for _, index in sampler]
        assert len(share) == len(sampler)
        shares.append([share[start : start + block] for start in range(0, len(share), block)])
    assert len({len(share) for share in shares}) == 1, "every rank has as many batches"
    dealt = [batch for turn in zip(*shares, strict=True) for batch in turn]
    assert dealt[: len(batches)] == batches, "together they are those of a single process"
    places = [place for sampler in samplers for place in sampler.places().tolist()]
    assert sorted(place for place in places if place >= 0) == alone, "each item counts once"
    for sampler in samplers:
        pairs = zip(sampler.places(), sampler, strict=True)
        assert all(place == index for place, (_, index) in pairs if place >= 0)


def test_skip_moves_one_epoch_and_keeps_the_length() -> None:
    sampler = EpochSampler(10, shuffle=True, seed=1)
    whole = {epoch: [index for _, index in _epoch(sampler, epoch)] for epoch in (2, 3)}
    sampler.set_epoch(0)
    sampler.skip(2, 4)
    # No set_epoch here: Lightning makes the first iterator before it tells the epoch.
    assert list(sampler) == [(2, index) for index in whole[2][4:]]
    assert len(sampler) == 10
    assert [index for _, index in _epoch(sampler, 3)] == whole[3]


def _epoch(sampler: EpochSampler, epoch: int) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_item_rng_depends_on_all_three_and_on_nothing_else() -> None:
    draws = {
        (seed, epoch, index): tuple(item_rng(seed, epoch, index).random(3))
        for seed in (0, 1)
        for epoch in (0, 1)
        for index in (0, 1)
    }
    assert len(set(draws.values())) == 8
    np.random.seed(0)
    assert tuple(item_rng(1, 0, 1).random(3)) == draws[1, 0, 1]


def test_item_rng_is_uniform_over_neighbouring_items() -> None:
    draws = np.array([item_rng(0, epoch, index).random() for epoch in range(20) for index in range(100)])
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    # 2000 draws: 200 a bin, standard deviation 13.4.
    assert np.abs(counts - 200).max() < 5 * 13.4


def test_bare_indices_belong_to_epoch_zero() -> None:
    assert epoch_and_index(4) == (0, 4)
    assert epoch_and_index((3, 4)) == (3, 4)
