"""Moving one thing from a face to another: its expression, or its style (Abdal et al. 2019, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from i2i_lightning.editing.mixing import mix
from i2i_lightning.types import UserError


def expression_difference(
    neutral: Tensor, expressive: Tensor, threshold: float = 1.0, normalise: bool = False
) -> Tensor:
    """Return what turns ``neutral`` into ``expressive``: ``w3 - w2``, of the rows that matter.

    Rows of the difference whose norm is below a threshold carry noise of the embedding, and are dropped.

    Args:
        neutral: w2 of (L, D) or (N, L, D).
        expressive: w3, the same person.
        threshold: Least L2 norm of a row that is kept.
        normalise: Scale what is left to the norm 1, so that strengths compare between pairs.

    Raises:
        UserError: If no row is left.
    """
    difference = expressive - neutral
    lengths = torch.linalg.vector_norm(difference, dim=-1, keepdim=True)
    kept = torch.where(lengths >= threshold, difference, torch.zeros_like(difference))
    norms = torch.linalg.vector_norm(kept.flatten(-2), dim=-1)[..., None, None]
    if bool((norms == 0).any()):
        raise UserError(
            f"threshold={threshold:g}: no row of the difference is that long (the longest is "
            f"{float(lengths.amax()):.3g}); give less"
        )
    return kept / norms if normalise else kept


def expression_transfer(
    w_plus: Tensor,
    neutral: Tensor,
    expressive: Tensor,
    strength: float | Tensor = 1.0,
    threshold: float = 1.0,
    normalise: bool = False,
) -> Tensor:
    """Return ``w1 + lambda (w3 - w2)``: the face ``w_plus`` with the expression that w3 has and w2 has not.

    Args:
        w_plus: w1, (L, D): anybody's face, or one of another domain of the same generator.
        neutral: w2, (L, D).
        expressive: w3, (L, D).
        strength: lambda, one number, or (N,) for a strip.
        threshold: See :func:`expression_difference`.
        normalise: The same.

    Returns:
        (L, D), or (N, L, D) for N strengths.
    """
    difference = expression_difference(neutral, expressive, threshold, normalise)
    strengths = torch.as_tensor(strength, dtype=w_plus.dtype, device=w_plus.device)
    return w_plus + strengths.reshape(*strengths.shape, 1, 1) * difference


def style_transfer(content: Tensor, style: Tensor, content_rows: int) -> Tensor:
    """Return the first ``content_rows`` rows of ``content`` above the rest of ``style``.

    Image2StyleGAN takes 9 of 18 rows.

    Args:
        content: (N, L, D).
        style: (N, L, D).
        content_rows: Rows of the content, 0 to L.

    Raises:
        UserError: If there are not so many rows.
    """
    rows = content.shape[-2]
    if not 0 <= content_rows <= rows:
        raise UserError(f"content_rows={content_rows}: this generator has {rows} rows; give 0 to {rows}")
    return mix(content, style, range(content_rows, rows))


def morph(start: Tensor, end: Tensor, frames: int) -> Tensor:
    """Return ``frames`` latents from ``start`` to ``end``, both included: ``lambda w1 + (1 - lambda) w2``.

    Args:
        start: (L, D).
        end: (L, D).
        frames: At least 2.
    """
    if frames < 2:
        raise UserError(f"frames={frames}: a morph has at least 2, its ends")
    steps = torch.linspace(0, 1, frames, dtype=start.dtype, device=start.device)[:, None, None]
    return torch.lerp(start[None], end[None], steps)


def corners(latents: Tensor, side: int) -> Tensor:
    """Return the bilinear blends of four latents, one in each corner of a ``side`` x ``side`` grid.

    Args:
        latents: (4, L, D): top left, top right, bottom left, bottom right.
        side: Pictures per row and column, at least 2.

    Returns:
        (side * side, L, D), row by row.
    """
    if len(latents) != 4:
        raise UserError(f"corners: {len(latents)} latents given; a grid has 4 corners")
    left, right = morph(latents[0], latents[2], side), morph(latents[1], latents[3], side)
    return torch.cat([morph(first, last, side) for first, last in zip(left, right, strict=True)])
