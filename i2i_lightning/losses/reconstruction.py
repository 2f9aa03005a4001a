"""Distances between an image and the one that it should be."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def l1_loss(fake: Tensor, real: Tensor) -> Tensor:
    """Return ``E|fake - real|`` of two images ``(N, C, H, W)``, a scalar, in float32 at least."""
    return F.l1_loss(at_least_float32(fake), at_least_float32(real))


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x``, in float32 if it came in half precision: losses are summed in full precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def masked_mse(fake: Tensor, real: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return ``1/N ||M * (fake - real)||^2`` of each image, with N the number of an image's scalars.

    The pixel terms of Abdal et al. 2019 (arXiv 1904.03189, equation 1), and with a mask those of Abdal et al.
    2020 (arXiv 1911.11544, equation 2). N counts all scalars, not those that the mask lets through, as there:
    a small mask makes a small term. The mask is inside the norm, so a weight of 1/2 counts a quarter.

    Args:
        fake: Images ``(N, C, H, W)``.
        real: What they should be, of the same shape, or one image ``(1, C, H, W)`` for all.
        mask: In [0, 1], ``(N or 1, 1 or C, H, W)``; None for everywhere.

    Returns:
        ``(N,)``, in float32 at least; no image's depends on another.

    Raises:
        ValueError: If the shapes do not match.
    """
    if fake.shape[1:] != real.shape[1:] or len(real) not in (1, len(fake)):
        raise ValueError(f"images of shape {tuple(fake.shape)} and {tuple(real.shape)} cannot be compared")
    difference = at_least_float32(fake) - at_least_float32(real)
    if mask is not None:
        if mask.shape[2:] != fake.shape[2:]:
            raise ValueError(f"mask of shape {tuple(mask.shape)} for images of {tuple(fake.shape)}")
        difference = difference * mask
    return difference.square().flatten(1).mean(1)
