"""Distances between an image and the one that it should be, as means over all elements."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def l1_loss(fake: Tensor, real: Tensor) -> Tensor:
    """Return ``E|fake - real|`` of two images ``(N, C, H, W)``, a scalar, in float32 at least."""
    return F.l1_loss(_at_least_float32(fake), _at_least_float32(real))


def l2_loss(fake: Tensor, real: Tensor) -> Tensor:
    """Return ``E[(fake - real)^2]`` of two images ``(N, C, H, W)``, a scalar, in float32 at least."""
    return F.mse_loss(_at_least_float32(fake), _at_least_float32(real))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
