"""Distances between an image and the one that it should be, as means over all elements."""

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
