"""Directions: found where they were hidden, applied to the rows that they are of, refused elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from i2i_lightning.editing.directions import (
    Direction,
    boundary,
    factorisation,
    found,
    principal_components,
    regression,
    style_matrices,
    without,
)
from i2i_lightning.networks.stylegan2.generator import StyleGAN2Generator
from i2i_lightning.types import UserError


@pytest.fixture
def generator() -> StyleGAN2Generator:
    torch.manual_seed(0)
    made = StyleGAN2Generator(16, 3, 8, 8, mapping_layers=2, channel_base=64, channel_max=8)
    made.mapping.w_avg.normal_()
    return made


def hidden(count: int = 4000) -> tuple[Tensor, Tensor]:
    """Latents of uneven spread, and the unit direction that decides about their labels."""
    torch.manual_seed(1)
    latents = torch.randn(count, 8) * torch.linspace(0.5, 3, 8) + 1
    direction = torch.randn(8)
    return latents, direction / direction.norm()


def test_boundary_and_regression_find_the_hidden_direction() -> None:
    latents, direction = hidden()
    score = (latents - 1) @ direction
    normal, right = boundary(latents, score > 0, penalty=1e-4)
    assert float(normal @ direction) > 0.99
    assert right > 0.97
    assert float(regression(latents, score + 0.3 * torch.randn(len(score)), 1e-4) @ direction) > 0.99
    assert float(boundary(latents, score < 0, penalty=1e-4)[0] @ direction) < -0.99
    with pytest.raises(UserError, match="0 of 4000 latents are positive"):
        boundary(latents, torch.zeros(4000))
    with pytest.raises(UserError, match=r"values: all 4000 are 0\.3; give some that differ"):
        regression(latents, torch.full((4000,), 0.3))


def test_without_is_orthogonal_and_a_unit() -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(3, 8)
    left = without(a, [b, c])
    assert abs(float(left @ b)) < 1e-5
    assert abs(float(left @ c)) < 1e-5
    assert float(left.norm()) == pytest.approx(1, abs=1e-6)
    assert without(a, []) is a
    # Others that say the same twice take nothing else away.
    torch.testing.assert_close(without(a, [b, b + 1e-6 * c]), without(a, [b]), atol=1e-4, rtol=0)


def test_a_direction_of_which_nothing_is_left_is_refused() -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(3, 8)
    for same in ([a], [-2 * a, b], [a + 1e-4 * b], [a + b, b]):
        with pytest.raises(UserError, match="of the direction's length is left without them"):
            without(a, same)
    left = without(a, [a + 0.1 * c])
    assert abs(float(left @ (a + 0.1 * c))) < 1e-4


def test_principal_components_are_those_of_w(generator: StyleGAN2Generator) -> None:
    components = principal_components(generator, 8, 3000)
    torch.manual_seed(5)
    w = generator.mapping.to_w(torch.randn(3000, 8)).detach()
    spread = [float(((w - w.mean(0)) @ each.vector[0]).std()) for each in components]
    assert spread == sorted(spread, reverse=True)
    assert [each.scale for each in components] == pytest.approx(spread, rel=0.1)
    basis = torch.cat([each.vector for each in components])
    torch.testing.assert_close(basis @ basis.T, torch.eye(8), atol=1e-5, rtol=0)


def test_factorisation_moves_the_rows_it_is_of(generator: StyleGAN2Generator) -> None:
    direction = factorisation(generator, rows=[2, 3], count=1)[0]
    assert direction.rows == (2, 3)
    layers = generator.synthesis
    matrices = [layers.b8.conv1.affine.weight, layers.b16.conv0.affine.weight]
    assert [name for index, name in enumerate(generator.row_names) if index in (2, 3)] == [
        "b8.conv1",
        "b16.conv0",
    ]
    for row, matrix in zip((2, 3), matrices, strict=True):
        assert torch.equal(style_matrices(generator, row)[0], matrix)
    stacked = torch.cat([torch.nn.functional.normalize(matrix.detach(), dim=1) for matrix in matrices])
    strongest = float((stacked @ direction.vector[0]).norm())
    for vector in torch.randn(50, 8, generator=torch.Generator().manual_seed(0)):
        assert strongest >= float((stacked @ (vector / vector.norm())).norm()) - 1e-5
    moved = direction.apply(torch.zeros(6, 8), 2.0)
    assert moved.abs().sum(1).gt(0).tolist() == [False, False, True, True, False, False]


def test_apply_gives_a_strip(generator: StyleGAN2Generator) -> None:
    direction = Direction("x", torch.eye(8)[:1], scale=0.5)
    strip = direction.apply(torch.zeros(6, 8), torch.tensor([-2.0, 0.0, 2.0]))
    assert strip.shape == (3, 6, 8)
    assert strip[:, :, 0].tolist() == [[-1.0] * 6, [0.0] * 6, [1.0] * 6]
    assert not strip[:, :, 1:].any()


def test_another_generators_direction_is_refused(generator: StyleGAN2Generator) -> None:
    latents, hidden_direction = hidden(500)
    direction = found(generator, "tilt", latents, latents @ hidden_direction, "a test", binary=False)
    direction.check(generator)
    assert direction.scale == pytest.approx(float((latents @ direction.vector[0]).std()), rel=1e-4)

    tuned = StyleGAN2Generator(16, 3, 8, 8, mapping_layers=2, channel_base=64, channel_max=8)
    tuned.load_state_dict(generator.state_dict())
    torch.nn.init.normal_(tuned.synthesis.b4.const)
    direction.check(tuned)  # another synthesis on the same W

    tuned.mapping.w_avg.neg_()
    with pytest.raises(
        UserError, match=r"tilt: belongs to another generator \(the mean latents' cosine is -1"
    ):
        direction.check(tuned)
    with pytest.raises(UserError, match=r"another generator .fingerprint"):
        replace(direction, w_avg=None).check(tuned)
    with pytest.raises(UserError, match=r"shape \(3, 8\)"):
        replace(direction, vector=torch.zeros(3, 8)).check(generator)
    with pytest.raises(UserError, match="row 6; this generator has rows 0 to 5"):
        replace(direction, rows=(6,)).check(generator)
