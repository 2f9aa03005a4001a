"""The pool follows the paper's rule: the first N as they are, then one half exchanged, evenly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from i2i_lightning.methods.image_pool import ImagePool
from i2i_lightning.types import UserError


def numbered(first: int, count: int) -> Tensor:
    """Return images that hold their number in every pixel."""
    return torch.arange(first, first + count, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def test_the_first_are_returned_as_they_are() -> None:
    pool = ImagePool(5)
    for first in (0, 2):
        assert torch.equal(pool(numbered(first, 2)), numbered(first, 2))
    shown = pool(numbered(4, 2))
    assert shown[0].mean() == 4
    assert len(pool.images) == 5


def test_one_half_is_exchanged_evenly() -> None:
    size, count = 50, 6050
    pool = ImagePool(size, seed=1)
    shown = torch.cat([pool(numbered(number, 1)) for number in range(count)])[:, 0, 0, 0]
    ages = torch.arange(size, count) - shown[size:]
    assert (ages >= 0).all()
    old = ages > 0
    # 6000 fair coins: 5 standard deviations are 0.032.
    assert abs(old.double().mean() - 0.5) < 0.032
    # An image waits for its exchange: each later one takes it with probability 1/2 * 1/50, so 100 on average.
    assert 90 < ages[old].double().mean() < 110
    # Nothing is shown twice from the pool, and nothing is lost: shown late or still there.
    from_pool = shown[size:][old]
    assert len(from_pool.unique()) == len(from_pool)
    kept = {int(image[0, 0, 0]) for image in pool.images}
    assert kept.isdisjoint(set(from_pool.int().tolist()))
    draws = [pool.draw(number) for number in range(count)]
    places = np.bincount([place for swaps, place in draws if swaps], minlength=size)
    assert abs(places - places.mean()).max() < 5 * places.mean() ** 0.5


def test_batches_are_gone_through_image_by_image() -> None:
    one, four = ImagePool(3, seed=2), ImagePool(3, seed=2)
    singly = torch.cat([one(numbered(number, 1)) for number in range(24)])
    together = torch.cat([four(numbered(number, 4)) for number in range(0, 24, 4)])
    assert torch.equal(singly, together)


def test_no_pool() -> None:
    fakes = numbered(0, 2).clone().requires_grad_()
    shown = ImagePool(0)(fakes)
    assert torch.equal(shown, fakes)
    assert not shown.requires_grad


def test_what_is_kept_is_detached_and_on_its_own() -> None:
    fakes = numbered(0, 4).clone().requires_grad_()
    pool = ImagePool(2)
    pool(fakes * 1)
    assert not any(image.requires_grad for image in pool.images)
    assert all(image.untyped_storage().nbytes() == image.nbytes for image in pool.images)


def test_draws_differ_by_seed_stream_and_rank_alone() -> None:
    def draws(seed: int = 0, stream: int = 0, rank: int = 0) -> list[tuple[bool, int]]:
        pool = ImagePool(50, seed, stream)
        pool.rank = rank
        return [pool.draw(number) for number in range(50)]

    state = torch.get_rng_state()
    assert draws() == draws()
    assert torch.equal(state, torch.get_rng_state())
    variants = [draws(), draws(seed=1), draws(stream=1), draws(rank=1)]
    assert all(left != right for i, left in enumerate(variants) for right in variants[:i])


def test_a_pool_goes_on_where_it_was() -> None:
    whole, stopped = ImagePool(4, seed=3), ImagePool(4, seed=3)
    for pool in (whole, stopped):
        pool(numbered(0, 7))
    resumed = ImagePool(4, seed=3)
    resumed.load_state_dict(stopped.state_dict())
    for number in range(7, 40):
        assert torch.equal(whole(numbered(number, 1)), resumed(numbered(number, 1)))
    assert resumed.seen == whole.seen == 40


def test_images_of_several_sizes() -> None:
    pool = ImagePool(2, seed=0)
    for number in range(20):
        assert pool(torch.full((1, 3, 4 + number % 3, 5), float(number))).shape[0] == 1


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.pool_size=-2"):
        ImagePool(-2)
