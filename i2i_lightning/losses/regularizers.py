"""Penalties on a discriminator's gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
