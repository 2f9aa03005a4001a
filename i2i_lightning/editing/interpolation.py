"""Ways from one latent to another."""

from __future__ import annotations

import torch
from torch import Tensor


def slerp(start: Tensor, end: Tensor, t: float | Tensor) -> Tensor:
    """Return the points at ``t`` of the great arcs from ``start`` to ``end``.

    ``sin((1 - t) theta) / sin(theta) start + sin(t theta) / sin(theta) end`` with theta, the angle between
    the two (Shoemake 1985; White 2016, arXiv 1609.04468). The points in between are as long as normal vectors
    are, which those of a straight line are not. t = 0 and t = 1 give the ends themselves.

    Args:
        start: ``(N, ...)``; all but the first dimension together are one vector.
        end: The same shape.
        t: One number, or ``(N,)``, in [0, 1].
    """
    t = as_column(t, start, torch.float64)
    first, last = start.flatten(1), end.flatten(1)
    cosine = torch.cosine_similarity(first.double(), last.double(), dim=1)
    theta = cosine.clamp(-1, 1).acos().reshape(-1, *[1] * (start.dim() - 1))
    sine = theta.sin()
    # Along one line there is no arc, or no single one.
    straight = sine < 1e-6
    safe = torch.where(straight, torch.ones_like(sine), sine)
    from_start = torch.where(straight, 1 - t, ((1 - t) * theta).sin() / safe)
    from_end = torch.where(straight, t, (t * theta).sin() / safe)
    return from_start.to(start.dtype) * start + from_end.to(start.dtype) * end


def lerp(start: Tensor, end: Tensor, t: float | Tensor) -> Tensor:
    """Return the points at ``t`` of the lines from ``start (N, ...)`` to ``end``; see :func:`slerp`."""
    return torch.lerp(start, end, as_column(t, start, start.dtype))


def as_column(t: float | Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``t`` in a shape that multiplies ``like (N, ...)`` item by item."""
    column = torch.as_tensor(t, dtype=dtype, device=like.device)
    return column.reshape(-1, *[1] * (like.dim() - 1))
