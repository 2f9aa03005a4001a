"""Moving one thing from a face to another: its expression, or its style (Abdal et al. 2019, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from i2i_lightning.editing.local import Effort, check_image, embed_latent
from i2i_lightning.editing.mixing import mix
from i2i_lightning.methods.inversion import Embedding, InversionLoss, Targets
from i2i_lightning.networks.style import StyleGenerator
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


def embed_difference(
    generator: StyleGenerator,
    w_plus: Tensor,
    neutral: Tensor,
    expressive: Tensor,
    loss: InversionLoss,
    effort: Effort | None = None,
    rows: Sequence[int] | None = None,
    anchor: float = 10.0,
    seed: int = 0,
    label: Tensor | None = None,
) -> Embedding:
    """Search for w3, which differs from w2 by what an expressive photo has and a neutral one has not.

    Two photos that are embedded one by one differ by their expression and by what each embedding misses,
    which spreads over the whole face. So the image that w3 is searched for is ``G(w2)`` plus the difference
    of the photos; an anchor keeps it near w2. (This search is ours; Abdal et al. 2019 embed both photos.)

    Args:
        generator: What draws.
        w_plus: w2, the neutral photo's latent, (1, L, D).
        neutral: The photo, (1, C, S, S).
        expressive: Another of the same person, alike but for the expression.
        loss: Objective and weights; its prior gives way to the anchor.
        effort: How long to search for the latent.
        rows: Rows that may move; None: all.
        anchor: Weight of the distance from w2, in deviations of w; 10 goes with pixels that weigh 100.
        seed: Of random numbers.
        label: (1, K) for a conditional generator.

    Returns:
        What was found: its w_plus, (1, L, D), is w3.

    Raises:
        UserError: If something does not fit the generator.
    """
    effort = effort or Effort()
    neutral = check_image(neutral, generator, "neutral")
    expressive = check_image(expressive, generator, "expressive")
    with torch.no_grad():
        wanted = generator.synthesis(w_plus) + (expressive - neutral)
    targets = Targets(wanted, ["expression"], label)
    held = replace(loss, lambda_prior=0.0, lambda_anchor=anchor)
    return embed_latent(generator, targets, held, effort, seed, rows, first=w_plus)


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
