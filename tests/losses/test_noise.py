"""The noise regulariser against loops over pixels, and its independence of batch mates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from i2i_lightning.losses.noise import noise_regularizer, normalise_noise_

SIDES = (4, 8, 8, 16, 16, 32, 32)  # two maps a size but for the first, as StyleGAN2 has them


def maps(number: int = 1, sides: tuple[int, ...] = SIDES) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(number, 1, side, side, dtype=torch.float64, generator=generator) + 0.3 for side in sides
    ]


def written_out(noise: list[Tensor]) -> float:
    """Appendix D of one image, a loop over every pixel of every level."""
    total = 0.0
    for map_ in noise:
        level = [[float(value) for value in row] for row in map_[0, 0]]
        while True:
            side = len(level)
            across = sum(level[y][x] * level[y][x - 1] for y in range(side) for x in range(side)) / side**2
            down = sum(level[y][x] * level[y - 1][x] for y in range(side) for x in range(side)) / side**2
            total += across**2 + down**2
            if side <= 8:
                break
            level = [
                [
                    (level[y][x] + level[y + 1][x] + level[y][x + 1] + level[y + 1][x + 1]) / 4
                    for x in range(0, side, 2)
                ]
                for y in range(0, side, 2)
            ]
    return total


def test_against_the_written_out_sum() -> None:
    noise = maps()
    assert noise_regularizer(noise).item() == pytest.approx(written_out(noise), rel=1e-12)


def test_the_order_of_the_maps_does_not_matter() -> None:
    noise = maps()
    torch.testing.assert_close(noise_regularizer(noise[::-1]), noise_regularizer(noise))


def test_oblong_and_odd_maps() -> None:
    """Halved while both sides are more than 8; an odd last row is dropped."""
    torch.manual_seed(0)
    map_ = torch.randn(1, 1, 18, 40, dtype=torch.float64)
    levels = [map_, torch.nn.functional.avg_pool2d(map_, 2)]  # 9 x 20
    levels.append(torch.nn.functional.avg_pool2d(levels[1], 2))  # 4 x 10
    expected = sum((level * level.roll(1, axis)).mean() ** 2 for level in levels for axis in (2, 3))
    torch.testing.assert_close(noise_regularizer([map_])[0], expected)


def test_gradients_by_finite_differences() -> None:
    noise = [map_.requires_grad_() for map_ in maps(2, (4, 8, 16))]
    assert torch.autograd.gradcheck(lambda *noise: noise_regularizer(noise), noise)


def test_a_batch_is_its_images_one_by_one() -> None:
    noise = maps(8)
    together = noise_regularizer(noise)
    assert together.shape == (8,)
    alone = torch.cat([noise_regularizer([map_[number, None] for map_ in noise]) for number in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)
    noise = [map_.requires_grad_() for map_ in noise]
    noise_regularizer(noise)[2].backward()  # type: ignore[no-untyped-call]
    for map_ in noise:
        assert map_.grad is not None
        assert map_.grad[2].any()
        assert not map_.grad[[0, 1, 3, 4, 5, 6, 7]].any()


def test_it_finds_a_picture_in_the_noise() -> None:
    white = [map_ - map_.mean() for map_ in maps(1, (32,))]
    ramp = torch.linspace(-1.7, 1.7, 32, dtype=torch.float64).expand(1, 1, 32, 32)
    assert noise_regularizer([ramp]).item() > 100 * noise_regularizer(white).item()


def test_half_precision_is_summed_in_float32() -> None:
    noise = [map_.to(torch.bfloat16) for map_ in maps()]
    assert noise_regularizer(noise).dtype == torch.float32


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="noise maps"):
        noise_regularizer([])
    with pytest.raises(ValueError, match="one number of images"):
        noise_regularizer([torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 8, 8)])


def test_normalised_maps_have_mean_0_and_root_mean_square_1_each() -> None:
    noise = maps(3)
    noise[2][1] *= 50
    alone = [map_[1, None].clone() for map_ in noise]
    noise[0].requires_grad_()
    addresses = [map_.data_ptr() for map_ in noise]
    normalise_noise_(noise)
    normalise_noise_(alone)
    assert [map_.data_ptr() for map_ in noise] == addresses
    for map_, single in zip(noise, alone, strict=True):
        torch.testing.assert_close(map_.mean((1, 2, 3)), torch.zeros(3, dtype=torch.float64))
        torch.testing.assert_close(map_.square().mean((1, 2, 3)), torch.ones(3, dtype=torch.float64))
        torch.testing.assert_close(map_[1, None], single)


def test_an_empty_map_is_not_turned_into_nan() -> None:
    noise = [torch.full((1, 1, 4, 4), 2.0)]
    normalise_noise_(noise)
    assert not noise[0].any()
