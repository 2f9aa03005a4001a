"""Penalties on gradients against closed forms and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from i2i_lightning.losses.regularizers import (
    gradient_penalty,
    path_length_penalty,
    path_lengths,
    r1_penalty,
)


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


STEP = 1e-5


def differences(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Return the gradient of ``function(x).item()`` by central differences, one element after the other."""
    slope = torch.zeros_like(at)
    with torch.no_grad():
        for index in range(at.numel()):
            ends = []
            for sign in (1, -1):
                moved = at.clone()
                moved.view(-1)[index] += sign * STEP
                ends.append(function(moved).item())
            slope.view(-1)[index] = (ends[0] - ends[1]) / (2 * STEP)
    return slope


def check_parameters(module: nn.Module, penalty: Callable[[], Tensor]) -> None:
    """Compare the penalty's derivative in every parameter with central differences."""
    module.zero_grad()
    penalty().backward()  # type: ignore[no-untyped-call]
    for name, parameter in module.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        values = parameter.detach().clone()

        def moved(value: Tensor, parameter: nn.Parameter = parameter) -> Tensor:
            parameter.data.copy_(value)
            return penalty().detach()

        expected = differences(moved, values)
        parameter.data.copy_(values)
        torch.testing.assert_close(
            found, expected, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )


def small_discriminator() -> nn.Sequential:
    torch.manual_seed(1)
    layers = [
        nn.Conv2d(2, 3, 3),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(3 * 2 * 3, 4),
        nn.Tanh(),
        nn.Linear(4, 1),
    ]
    return nn.Sequential(*layers).double()


def test_r1_is_the_squared_slope_by_finite_differences() -> None:
    real, _ = images()
    discriminator = small_discriminator()
    slopes = [differences(discriminator, image[None]) for image in real]
    expected = sum(slope.square().sum().item() for slope in slopes) / 3
    assert expected > 1e-4
    assert r1_penalty(discriminator, real).item() == pytest.approx(expected, rel=1e-8)


def test_r1_teaches_by_finite_differences() -> None:
    real, _ = images(2)
    discriminator = small_discriminator()
    check_parameters(discriminator, lambda: r1_penalty(discriminator, real))


def test_r1_leaves_the_images_alone_and_runs_in_float32() -> None:
    real, _ = images()
    real.requires_grad_()
    weight = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    r1_penalty(lambda x: (x.square() * weight).flatten(1).sum(1), real).backward()
    assert real.grad is None
    assert weight.grad is not None
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        penalty = r1_penalty(nn.Conv2d(2, 1, 3), real.detach().to(torch.bfloat16))
    assert penalty.dtype == torch.float32
    assert penalty.requires_grad


class SmallSynthesis(nn.Module):
    """Two layers, each with a style of its own, twice differentiable everywhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.constant = nn.Parameter(torch.randn(1, 3, 4, 5))
        self.styles = nn.ModuleList(nn.Linear(4, 3) for _ in range(2))
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)])
        self.double()

    def forward(self, w_plus: Tensor) -> Tensor:
        x = self.constant
        for row, (style, layer) in enumerate(zip(self.styles, self.layers, strict=True)):
            x = torch.tanh(layer(x * style(w_plus[:, row])[:, :, None, None]))
        return x


def latents() -> tuple[Tensor, Tensor]:
    """Return two w_plus and directions in image space."""
    torch.manual_seed(3)
    return torch.randn(2, 2, 4, dtype=torch.float64), torch.randn(2, 2, 4, 5, dtype=torch.float64)


def test_path_lengths_by_finite_differences() -> None:
    """The whole Jacobian by central differences, multiplied by y, and the authors' mean over rows."""
    synthesis = SmallSynthesis()
    w_plus, noise = latents()
    expected = []
    with torch.no_grad():
        for w, y in zip(w_plus, noise, strict=True):
            jacobian = torch.zeros(y.numel(), w.numel(), dtype=torch.float64)
            for index in range(w.numel()):
                step = torch.zeros_like(w)
                step.view(-1)[index] = STEP
                change = synthesis((w + step)[None]) - synthesis((w - step)[None])
                jacobian[:, index] = change.flatten() / (2 * STEP)
            product = (jacobian.T @ y.flatten() / (4 * 5) ** 0.5).view_as(w)
            expected.append(product.square().sum(1).mean().sqrt())
    lengths = path_lengths(synthesis, w_plus, noise)
    assert lengths.min() > 1e-3
    torch.testing.assert_close(lengths, torch.stack(expected), rtol=1e-8, atol=0)


def test_path_length_teaches_by_finite_differences() -> None:
    """With the target held where the first call has put it: a carries no gradient."""
    synthesis = SmallSynthesis()
    w_plus, noise = latents()
    mean = torch.tensor(0.3, dtype=torch.float64)
    _, held = path_length_penalty(synthesis, w_plus, mean, noise=noise)
    check_parameters(synthesis, lambda: path_length_penalty(synthesis, w_plus, held, 0.0, noise)[0])
    first = [p.grad.clone() if p.grad is not None else None for p in synthesis.parameters()]
    synthesis.zero_grad()
    path_length_penalty(synthesis, w_plus, mean, noise=noise)[0].backward()  # type: ignore[no-untyped-call]
    for parameter, expected in zip(synthesis.parameters(), first, strict=True):
        torch.testing.assert_close(parameter.grad, expected)


def test_path_length_of_a_linear_generator() -> None:
    """For G(w) = A w the length is |A^T y| / sqrt(HW), whatever w; a follows it by the decay."""
    torch.manual_seed(0)
    matrix = torch.randn(6, 3, dtype=torch.float64)
    noise = torch.randn(5, 1, 2, 3, dtype=torch.float64)
    w_plus = torch.randn(5, 1, 3, dtype=torch.float64)
    lengths = (noise.flatten(1) @ matrix).norm(dim=1) / 6**0.5

    def synthesis(w_plus: Tensor) -> Tensor:
        return (w_plus[:, 0] @ matrix.T).view(-1, 1, 2, 3)

    penalty, mean = path_length_penalty(
        synthesis, w_plus, torch.tensor(2.0, dtype=torch.float64), 0.25, noise
    )
    expected = 2.0 * 0.75 + lengths.mean().item() * 0.25
    assert mean.item() == pytest.approx(expected, rel=1e-12)
    assert not mean.requires_grad
    assert penalty.item() == pytest.approx((lengths - expected).square().mean().item(), rel=1e-12)


def test_path_length_reaches_the_mapping_and_survives_a_flat_generator() -> None:
    synthesis = SmallSynthesis().float()
    weight = torch.randn(4, 4, requires_grad=True)
    w_plus = (torch.randn(2, 1, 4) @ weight).repeat(1, 2, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        penalty, mean = path_length_penalty(synthesis, w_plus, torch.zeros([]))
    assert penalty.dtype == mean.dtype == torch.float32
    penalty.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0

    scale = torch.zeros([], requires_grad=True)
    penalty, mean = path_length_penalty(lambda w: synthesis(w) * scale, w_plus.detach(), torch.tensor(2.0))
    penalty.backward()  # type: ignore[no-untyped-call]
    assert mean.item() == pytest.approx(1.98)
    assert scale.grad is not None
    assert scale.grad.isfinite()


def test_directions_are_drawn_from_a_normal_distribution() -> None:
    """For one-pixel images G(w) = w the length is |y|, whose mean square is 1."""
    torch.manual_seed(0)
    lengths = path_lengths(lambda w: w[:, 0, :, None, None], torch.zeros(20000, 1, 1))
    assert lengths.square().mean().item() == pytest.approx(1.0, abs=0.04)
    assert lengths.mean().item() == pytest.approx((2 / torch.pi) ** 0.5, abs=0.02)
