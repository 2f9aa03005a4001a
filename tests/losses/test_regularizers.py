"""The gradient penalty against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from i2i_lightning.losses.regularizers import gradient_penalty


def images(count: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    shape = (count, 2, 4, 5)
    return torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)


def test_slope_of_a_linear_critic_is_its_weight() -> None:
    real, fake = images()
    weight = torch.randn(2, 4, 5, dtype=torch.float64)
    penalty = gradient_penalty(lambda x: (x * weight).flatten(1).sum(1), real, fake)
    assert penalty.item() == pytest.approx((weight.norm().item() - 1) ** 2, rel=1e-12)
    penalty = gradient_penalty(lambda x: (x * weight).flatten(1).sum(1), real, fake, target=0.25)
    assert penalty.item() == pytest.approx((weight.norm().item() - 0.25) ** 2, rel=1e-12)


def test_one_alpha_weighs_each_image() -> None:
    """For D(x) = |x|^2 / 2 the slope at x is x itself."""
    real, fake = images()
    alpha = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    penalty = gradient_penalty(lambda x: x.square().flatten(1).sum(1) / 2, real, fake, alpha=alpha)
    expected = [
        ((a * r + (1 - a) * f).norm().item() - 1) ** 2
        for a, r, f in zip(alpha.tolist(), real, fake, strict=True)
    ]
    assert penalty.item() == pytest.approx(sum(expected) / 3, rel=1e-12)


def test_random_alphas_stay_between_the_two_images() -> None:
    real, fake = torch.ones(64, 1, 1, 1), torch.zeros(64, 1, 1, 1)
    seen: list[Tensor] = []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x.sum((1, 2, 3))

    gradient_penalty(critic, real, fake)
    mixed = seen[0].flatten()
    assert ((mixed >= 0) & (mixed <= 1)).all()
    assert mixed.unique().numel() > 50


def test_logits_of_a_patch_critic_are_summed() -> None:
    real, fake = images()
    penalty = gradient_penalty(lambda x: x.sum(1, keepdim=True), real, fake)
    assert penalty.item() == pytest.approx(((2 * 4 * 5) ** 0.5 - 1) ** 2, rel=1e-12)


def test_parameters_get_the_derivative_of_the_penalty() -> None:
    """d/dw (|w| - 1)^2 = 2 (|w| - 1) w / |w|; and the images get none."""
    real, fake = images()
    real.requires_grad_()
    fake.requires_grad_()
    weight = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    gradient_penalty(lambda x: (x * weight).flatten(1).sum(1), real, fake).backward()
    norm = weight.detach().norm()
    torch.testing.assert_close(weight.grad, 2 * (norm - 1) * weight.detach() / norm, rtol=1e-10, atol=1e-12)
    assert real.grad is None
    assert fake.grad is None


def test_vanishing_slope_costs_one_and_stays_finite() -> None:
    real, fake = images()
    weight = torch.zeros(2, 4, 5, dtype=torch.float64, requires_grad=True)
    penalty = gradient_penalty(lambda x: (x * weight).flatten(1).sum(1), real, fake)
    penalty.backward()
    assert penalty.item() == 1.0
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_half_precision_and_autocast_are_lifted_to_float32() -> None:
    real, fake = (x.to(torch.bfloat16) for x in images())
    critic = torch.nn.Conv2d(2, 1, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        penalty = gradient_penalty(critic, real, fake, alpha=torch.rand(3))
    assert penalty.dtype == torch.float32
    assert penalty.requires_grad


def test_shapes_must_match() -> None:
    real, fake = images()
    with pytest.raises(ValueError, match="real is"):
        gradient_penalty(lambda x: x, real, fake[:1])
    with pytest.raises(ValueError, match=r"one weight per image, \(3,\)"):
        gradient_penalty(lambda x: x, real, fake, alpha=torch.rand(3, 1, 1, 1))
