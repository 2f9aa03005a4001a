"""Penalties on the gradients of a discriminator or a generator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from i2i_lightning.losses.reconstruction import at_least_float32


def gradient_penalty(
    discriminator: Callable[[Tensor], Tensor],
    real: Tensor,
    fake: Tensor,
    target: float = 1.0,
    alpha: Tensor | None = None,
) -> Tensor:
    """Return how far the discriminator's slope is from ``target`` between real and generated images.

    Gulrajani et al. 2017, equation 3: ``E[(||grad_x sum D(x)||_2 - target)^2]`` at
    ``x = alpha * real + (1 - alpha) * fake``, one alpha per image, the norm over all of an image's elements.
    The logits of a patch discriminator are summed before the gradient is taken. The caller weighs the result,
    by 10 in the paper.

    A norm has no derivative at 0; where the gradient vanishes altogether the subgradient 0 is used, so that
    the penalty never turns into NaN. (The reference adds 1e-16 to each element instead; the two differ by
    less than rounding.)

    Everything runs outside autocast and in float32 at least: second derivatives do not survive half
    precision. Batch norm makes an image's slope depend on its neighbours, so take another norm with this
    penalty.

    Args:
        discriminator: Maps images to logits, twice differentiable. A conditional one is passed as
            ``lambda y: discriminator(torch.cat([x, y], 1))``, and its slope is then taken in y alone.
        real: Real images ``(N, C, H, W)``.
        fake: Generated images ``(N, C, H, W)``; no gradient flows into them.
        target: The slope aimed at.
        alpha: Weights of the real images, ``(N,)`` in [0, 1]; by default uniform random ones.

    Returns:
        A scalar to add to the discriminator's loss, differentiable in the discriminator's parameters.

    Raises:
        ValueError: If the shapes of ``real``, ``fake`` and ``alpha`` do not match.
    """
    if real.shape != fake.shape:
        raise ValueError(
            f"real is {tuple(real.shape)} but fake is {tuple(fake.shape)}: the penalty mixes them"
        )
    half = real.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half else real.dtype
    with torch.autocast(real.device.type, enabled=False), torch.enable_grad():
        real, fake = real.detach().to(dtype), fake.detach().to(dtype)
        if alpha is None:
            alpha = torch.rand(len(real), device=real.device, dtype=dtype)
        elif alpha.shape != (len(real),):
            raise ValueError(f"alpha is {tuple(alpha.shape)}: give one weight per image, ({len(real)},)")
        weight = alpha.to(dtype).view(-1, *[1] * (real.dim() - 1))
        mixed = (weight * real + (1 - weight) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(discriminator(mixed).sum(), mixed, create_graph=True)
        norm: Tensor = torch.linalg.vector_norm(slope.flatten(1), dim=1)
        return (norm - target).square().mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """Return the squared slope of the discriminator at real images.

    Mescheder et al. 2018 (arXiv 1801.04406), equation 9: ``E[||grad_x D(x)||^2]`` over real images, the norm
    over all of an image's elements. The caller weighs the result, by ``gamma / 2`` in the paper. Several
    logits of one image are summed before the gradient is taken.

    Everything runs outside autocast and in float32 at least: second derivatives do not survive half
    precision.

    Args:
        discriminator: Maps images to logits, twice differentiable. A conditional one is passed as
            ``lambda x: discriminator(x, label)``.
        real: Real images ``(N, C, H, W)``; no gradient flows into them.

    Returns:
        A scalar, differentiable in the discriminator's parameters.
    """
    with torch.autocast(real.device.type, enabled=False), torch.enable_grad():
        real = at_least_float32(real.detach()).requires_grad_()
        (slope,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
        return slope.square().flatten(1).sum(1).mean()


def path_length_penalty(
    synthesis: Callable[[Tensor], Tensor],
    w_plus: Tensor,
    mean: Tensor,
    decay: float = 0.01,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return how far the lengths of :func:`path_lengths` are from their running mean, and the new mean.

    Karras et al. 2020 (arXiv 1912.04958), equation 4: ``E[(||J_w^T y||_2 - a)^2]``, where ``a`` is the
    exponential moving average of the lengths. The batch at hand enters ``a`` before the comparison; as the
    target that it is, ``a`` carries no gradient. The caller weighs the result, by 2 in the paper's
    implementation, and keeps the mean, which starts at 0.

    Args:
        synthesis: Maps w_plus to images, twice differentiable.
        w_plus: ``(N, num_ws, w_dim)``. Where they come with a graph, the mapping network learns as well.
        mean: The running mean a, a scalar.
        decay: Share of the batch's mean in the new one.
        noise: As for :func:`path_lengths`.

    Returns:
        The penalty, a scalar, differentiable in the generator's parameters; and the new mean, without a
        graph.
    """
    lengths = path_lengths(synthesis, w_plus, noise)
    new = mean.detach().lerp(lengths.detach().mean().to(mean.dtype), decay)
    with torch.enable_grad():
        return (lengths - new).square().mean(), new


def path_lengths(
    synthesis: Callable[[Tensor], Tensor], w_plus: Tensor, noise: Tensor | None = None
) -> Tensor:
    """Return how far a step in w moves each image, in a random direction of image space.

    Karras et al. 2020, section 3.2: ``||J_w^T y||_2`` with J the Jacobian of the synthesis and y Gaussian.
    ``J_w^T y`` is the gradient of ``<G(w), y>``. Two choices are the authors' implementation's, not the
    text's: y is divided by ``sqrt(H * W)``, so that lengths hardly depend on the size, and with a style per
    layer the length is the root of the mean, over rows, of squared norms. Where the slope vanishes altogether
    the subgradient 0 is used.

    Runs outside autocast and in float32 at least.

    Args:
        synthesis: Maps w_plus to images ``(N, C, H, W)``.
        w_plus: ``(N, num_ws, w_dim)``.
        noise: What to take for y, before the division, of the images' shape; by default a draw from N(0, 1).

    Returns:
        ``(N,)``.
    """
    with torch.autocast(w_plus.device.type, enabled=False), torch.enable_grad():
        w_plus = at_least_float32(w_plus)
        if not w_plus.requires_grad:
            w_plus = w_plus.detach().requires_grad_()
        images = synthesis(w_plus)
        height, width = images.shape[-2:]
        direction = (torch.randn_like(images) if noise is None else noise) / (height * width) ** 0.5
        (slope,) = torch.autograd.grad((images * direction).sum(), w_plus, create_graph=True)
        lengths: Tensor = torch.linalg.vector_norm(slope.flatten(1), dim=1) / slope.shape[1] ** 0.5
        return lengths
