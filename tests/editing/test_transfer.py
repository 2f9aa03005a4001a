"""Morphs, expressions and styles against their equations."""

from __future__ import annotations

import pytest
import torch

from i2i_lightning.editing.transfer import (
    corners,
    expression_difference,
    expression_transfer,
    morph,
    style_transfer,
)
from i2i_lightning.types import UserError


@pytest.fixture
def latents() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 6, 5, dtype=torch.float64)


def test_morph_is_a_straight_line_with_its_ends(latents: torch.Tensor) -> None:
    frames = morph(latents[0], latents[1], 5)
    assert torch.equal(frames[0], latents[0])
    torch.testing.assert_close(frames[4], latents[1])
    torch.testing.assert_close(frames[1], 0.75 * latents[0] + 0.25 * latents[1])
    with pytest.raises(UserError, match="frames=1"):
        morph(latents[0], latents[1], 1)


def test_corners_are_the_latents_and_the_middle_their_mean(latents: torch.Tensor) -> None:
    grid = corners(latents, 3)
    for place, latent in zip((0, 2, 6, 8), latents, strict=True):
        torch.testing.assert_close(grid[place], latent)
    torch.testing.assert_close(grid[4], latents.mean(0))
    torch.testing.assert_close(grid[1], (latents[0] + latents[1]) / 2)  # rows run from left to right
    with pytest.raises(UserError, match="4 corners"):
        corners(latents[:3], 3)


def test_expression_is_the_difference_of_rows_that_are_long_enough(latents: torch.Tensor) -> None:
    w1, w2, w3 = latents[:3]
    lengths = (w3 - w2).norm(dim=1)
    threshold = float(lengths.median())
    moved = expression_transfer(w1, w2, w3, 0.5, threshold)
    for row in range(6):
        wanted = w1[row] + (0.5 * (w3 - w2)[row] if lengths[row] >= threshold else 0)
        torch.testing.assert_close(moved[row], wanted)
    strip = expression_transfer(w1, w2, w3, torch.tensor([0.0, 0.5, 1.0]), threshold)
    assert torch.equal(strip[0], w1)
    torch.testing.assert_close(strip[1], moved)
    unit = expression_difference(w2, w3, threshold, normalise=True)
    assert float(unit.norm()) == pytest.approx(1)
    torch.testing.assert_close(expression_transfer(w2, w2, w3, 1.0, 0.0), w3)
    with pytest.raises(UserError, match="threshold=99: no row"):
        expression_difference(w2, w3, 99)


def test_style_takes_the_rows_from_the_given_one_on(latents: torch.Tensor) -> None:
    mixed = style_transfer(latents[:1], latents[1:2], 2)
    assert torch.equal(mixed[:, :2], latents[:1, :2])
    assert torch.equal(mixed[:, 2:], latents[1:2, 2:])
    assert torch.equal(style_transfer(latents[:1], latents[1:2], 6), latents[:1])
    with pytest.raises(UserError, match=r"content_rows=7.*0 to 6"):
        style_transfer(latents[:1], latents[1:2], 7)
