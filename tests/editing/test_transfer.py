"""Morphs, expressions and styles against their equations."""

from __future__ import annotations

import pytest
import torch

from i2i_lightning.editing.local import Effort
from i2i_lightning.editing.transfer import (
    corners,
    embed_difference,
    expression_difference,
    expression_transfer,
    morph,
    style_transfer,
)
from i2i_lightning.methods.inversion import InversionLoss, Stage, Targets, embed
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.types import UserError


@pytest.fixture
def latents() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 6, 5, dtype=torch.float64)


def test_a_difference_of_photos_moves_what_they_differ_in() -> None:
    torch.manual_seed(0)
    generator = StyleGAN2Generator(16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=128, channel_max=8)
    generator = generator.eval().requires_grad_(False)
    w2 = generator.mapping(torch.randn(1, 8))
    neutral = torch.rand(1, 3, 16, 16) * 2 - 1  # nothing that this generator could draw
    expressive = neutral.clone()
    expressive[..., 9:12, 5:11] += 0.4
    pixels, effort = InversionLoss(None), Effort(latent_steps=60, latent_rate=0.02)

    def share(w3: torch.Tensor) -> float:
        """Return how much the mouth changes, of all that changes."""
        change = (generator.synthesis(w3) - generator.synthesis(w2)).square().sum(1)
        return float(change[..., 9:12, 5:11].sum() / change.sum())

    w3 = embed_difference(generator, w2, neutral, expressive, pixels, effort, anchor=0.0).w_plus
    alone = embed(
        generator, Targets(expressive, ["a"]), {"a": Stage(["w_plus"], 60, 0.02)}, pixels, latent=w2
    )
    assert share(w3) > 2 * share(alone.w_plus)
    same = embed_difference(generator, w2, neutral, neutral, pixels, effort).w_plus
    torch.testing.assert_close(same, w2)
    held = embed_difference(generator, w2, neutral, expressive, pixels, effort, rows=[1], anchor=0.01).w_plus
    assert torch.equal(held[:, [0, *range(2, generator.num_ws)]], w2[:, [0, *range(2, generator.num_ws)]])
    assert not torch.equal(held, w2)
    with pytest.raises(UserError, match=r"^expressive: "):
        embed_difference(generator, w2, neutral, expressive[..., :8], pixels)


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
