"""Adversarial objectives against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch

from i2i_lightning.losses.adversarial import GAN_MODES, discriminator_loss, generator_loss, real_threshold
from i2i_lightning.types import UserError

REAL = torch.tensor([[-2.0, 0.5], [3.0, 40.0]], dtype=torch.float64)
FAKE = torch.tensor([[1.0, -0.25], [-3.0, 0.0]], dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def flat(x: torch.Tensor) -> list[float]:
    return [float(v) for v in x.flatten()]


def test_vanilla_is_binary_cross_entropy() -> None:
    real, fake = flat(REAL), flat(FAKE)
    expected = 0.5 * (
        mean([-math.log(sigmoid(r)) for r in real]) + mean([-math.log(1 - sigmoid(f)) for f in fake])
    )
    assert discriminator_loss(REAL, FAKE, "vanilla").item() == pytest.approx(expected, rel=1e-12)
    expected = mean([-math.log(sigmoid(f)) for f in fake])
    assert generator_loss(FAKE, "vanilla").item() == pytest.approx(expected, rel=1e-12)


def test_vanilla_of_an_undecided_discriminator_is_log_two() -> None:
    zeros = torch.zeros(2, 1, 30, 30, dtype=torch.float64)
    assert discriminator_loss(zeros, zeros).item() == pytest.approx(math.log(2), rel=1e-14)
    assert generator_loss(zeros).item() == pytest.approx(math.log(2), rel=1e-14)


def test_lsgan_is_half_the_squared_errors() -> None:
    expected = 0.5 * (mean([(r - 1) ** 2 for r in flat(REAL)]) + mean([f**2 for f in flat(FAKE)]))
    assert discriminator_loss(REAL, FAKE, "lsgan").item() == pytest.approx(expected, rel=1e-12)
    assert generator_loss(FAKE, "lsgan").item() == pytest.approx(
        mean([(f - 1) ** 2 for f in flat(FAKE)]), rel=1e-12
    )


def test_hinge_and_wasserstein_are_not_halved() -> None:
    expected = mean([max(0.0, 1 - r) for r in flat(REAL)]) + mean([max(0.0, 1 + f) for f in flat(FAKE)])
    assert discriminator_loss(REAL, FAKE, "hinge").item() == pytest.approx(expected, rel=1e-12)
    expected = mean(flat(FAKE)) - mean(flat(REAL))
    assert discriminator_loss(REAL, FAKE, "wgangp").item() == pytest.approx(expected, rel=1e-12)
    assert generator_loss(FAKE, "hinge").item() == pytest.approx(-mean(flat(FAKE)), rel=1e-12)
    assert generator_loss(FAKE, "wgangp").item() == pytest.approx(-mean(flat(FAKE)), rel=1e-12)


@pytest.mark.parametrize("mode", GAN_MODES)
def test_losses_push_the_logits_the_right_way(mode: str) -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    discriminator_loss(real, fake, mode).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all()
    assert (fake.grad >= 0).all()
    fake.grad = None
    generator_loss(fake, mode).backward()
    assert (fake.grad < 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", GAN_MODES)
def test_half_precision_logits_are_judged_in_float32(mode: str, dtype: torch.dtype) -> None:
    real, fake = torch.randn(2, 1, 30, 30).to(dtype), torch.randn(2, 1, 30, 30).to(dtype)
    loss = discriminator_loss(real, fake, mode)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        discriminator_loss(real.double(), fake.double(), mode).item(), rel=1e-5
    )
    assert generator_loss(fake, mode).dtype == torch.float32


@pytest.mark.parametrize("mode", GAN_MODES)
def test_logits_of_any_size_stay_finite(mode: str) -> None:
    huge = torch.tensor([-1e4, 1e4], requires_grad=True)
    (discriminator_loss(huge, huge, mode) + generator_loss(huge, mode)).backward()
    assert huge.grad is not None
    assert huge.grad.isfinite().all()


def test_unknown_mode_lists_the_known_ones() -> None:
    for call in (lambda: discriminator_loss(REAL, FAKE, "wgan"), lambda: generator_loss(FAKE, "wgan")):
        with pytest.raises(UserError, match="gan_mode=wgan: choose one of vanilla, lsgan, hinge, wgangp"):
            call()
    with pytest.raises(UserError, match="gan_mode=wgan"):
        real_threshold("wgan")


def test_threshold_lies_between_the_labels() -> None:
    assert [real_threshold(mode) for mode in ("vanilla", "lsgan", "hinge", "wgangp")] == [0.0, 0.5, 0.0, 0.0]
