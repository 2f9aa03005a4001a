"""Directions of W along which one attribute changes: found, imported, kept with what they belong to.

A direction means nothing in another generator's W, and nothing in the picture tells so at once. Each is
therefore kept with the fingerprint and the mean latent of its generator, and compared before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.types import UserError

SAME_SPACE = 0.99
"""Cosine of two mean latents from which two generators are taken to share W, as a distilled one does."""
NOTHING_LEFT = 1e-3
"""Share of a direction's length below which what remains of it is rounding, and no direction."""


@dataclass(frozen=True)
class Direction:
    """A unit direction.

    Args:
        name: What changes along it.
        vector: (1, D) for all rows alike, or (L, D).
        rows: Rows of w_plus that it moves; None for all.
        scale: A step of usual size, in the units of W: the deviation of latents along it where that is known.
        fingerprint: Of the generator it was found in; None where that is not known.
        w_avg: Mean latent of that generator, (D,); None where that is not known.
        source: How it was found.
    """

    name: str
    vector: Tensor
    rows: tuple[int, ...] | None = None
    scale: float = 1.0
    fingerprint: str | None = None
    w_avg: Tensor | None = None
    source: str = ""

    def check(self, generator: StyleGenerator, fingerprint: str | None = None) -> None:
        """Raise ``UserError`` where this direction is known, or bound, to be of another W.

        Args:
            generator: Whose W it is to be of.
            fingerprint: The generator's, where it is at hand: it takes all weights to compute.
        """
        if self.vector.shape[-1] != generator.w_dim or len(self.vector) not in (1, generator.num_ws):
            raise UserError(
                f"direction {self.name}: shape {tuple(self.vector.shape)}; this generator takes "
                f"(1, {generator.w_dim}) or ({generator.num_ws}, {generator.w_dim})"
            )
        wrong = [row for row in self.rows or () if not 0 <= row < generator.num_ws]
        if wrong:
            raise UserError(
                f"direction {self.name}: row {wrong[0]}; this generator has rows 0 to {generator.num_ws - 1}"
            )
        if self.fingerprint is not None:
            fingerprint = generator.fingerprint() if fingerprint is None else fingerprint
            if self.fingerprint == fingerprint:
                return
        if self.w_avg is not None:
            cosine = float(F.cosine_similarity(self.w_avg.to(generator.w_avg), generator.w_avg, dim=0))
            if cosine >= SAME_SPACE:
                return
            raise UserError(
                f"direction {self.name}: belongs to another generator (the mean latents' cosine is "
                f"{cosine:.2f}, {SAME_SPACE} or more in one space)"
            )
        if self.fingerprint is not None:
            raise UserError(
                f"direction {self.name}: belongs to another generator (fingerprint {self.fingerprint[:12]})"
            )

    def apply(self, w_plus: Tensor, strength: float | Tensor) -> Tensor:
        """Return ``w_plus + strength * scale * direction`` on the direction's rows.

        Args:
            w_plus: (L, D).
            strength: One number, or (N,) for a strip.

        Returns:
            (L, D), or (N, L, D).
        """
        step = (self.vector * self.scale).to(w_plus).expand_as(w_plus)
        if self.rows is not None:
            chosen = torch.zeros(len(w_plus), 1, dtype=w_plus.dtype, device=w_plus.device)
            chosen[list(self.rows)] = 1
            step = step * chosen
        strengths = torch.as_tensor(strength, dtype=w_plus.dtype, device=w_plus.device)
        return w_plus + strengths.reshape(*strengths.shape, 1, 1) * step


def boundary(latents: Tensor, labels: Tensor, penalty: float = 1e-2) -> tuple[Tensor, float]:
    """Return the unit normal of the hyperplane between two classes of latents, and how well it parts them.

    InterFaceGAN (Shen et al. 2020) takes a linear support vector machine; this is logistic
    regression with an L2 penalty, which needs no other library and gives nearly the same plane.

    Args:
        latents: (N, D).
        labels: (N,), bool, or scores, positive for one class.
        penalty: Weight of ``||n||^2 / 2`` beside the mean of the losses, on standardised latents.

    Returns:
        The normal, (D,), pointing to the positive class; and the share of latents on their side.

    Raises:
        UserError: If one class is empty, or all latents are one.
    """
    wanted = (labels > 0).to(torch.float64)
    if len(latents) != len(wanted) or not 0 < float(wanted.sum()) < len(wanted):
        raise UserError(
            f"labels: {int(wanted.sum())} of {len(wanted)} latents are positive; a boundary parts two classes"
        )
    _check_vary(latents)
    with torch.enable_grad():
        x = latents.detach().to(torch.float64)
        mean, spread = x.mean(0), x.std(0).clamp_min(1e-8)
        x = (x - mean) / spread
        weight, bias = torch.zeros(x.shape[1], dtype=x.dtype), torch.zeros((), dtype=x.dtype)
        weight, bias = weight.to(x.device).requires_grad_(), bias.to(x.device).requires_grad_()
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(x @ weight + bias, wanted)
            loss = loss + penalty / 2 * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    right = float((((x @ weight + bias) > 0) == (wanted > 0)).double().mean())
    normal = weight.detach() / spread
    return (normal / normal.norm()).to(latents.dtype), right


def regression(latents: Tensor, values: Tensor, penalty: float = 1e-2) -> Tensor:
    """Return the unit direction along which ``values`` grow most, by ridge regression.

    For attributes that have a size, such as a pose, where a boundary would throw that away.

    Args:
        latents: (N, D).
        values: (N,).
        penalty: Of ridge regression, relative to the latents' mean variance.

    Returns:
        (D,).

    Raises:
        UserError: If all values are equal, or all latents are.
    """
    if float(values.max()) == float(values.min()):
        raise UserError(f"values: all {len(values)} are {float(values[0]):g}; give some that differ")
    _check_vary(latents)
    x, y = latents.detach().to(torch.float64), values.detach().to(torch.float64)
    x, y = x - x.mean(0), y - y.mean()
    covariance = x.mT @ x / len(x)
    ridge = penalty * covariance.diagonal().mean() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    slope: Tensor = torch.linalg.solve(covariance + ridge, x.mT @ y / len(x))
    unit: Tensor = slope / torch.linalg.vector_norm(slope)
    return unit.to(latents.dtype)


def _check_vary(latents: Tensor) -> None:
    """Raise ``UserError`` where all of ``latents (N, D)`` are one: labels say nothing about them then."""
    if torch.equal(latents, latents[:1].expand_as(latents)):
        raise UserError(f"latents: all {len(latents)} that are labelled are the same; give some that differ")


def without(direction: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Return ``direction (D,)`` made orthogonal to ``others``, so that they do not change with it.

    Shen et al. 2020 call this conditional manipulation.

    Raises:
        UserError: If all of it is made of them, up to :data:`NOTHING_LEFT` of its length.
    """
    if not len(others):
        return direction
    whole = direction.to(torch.float64)
    units = F.normalize(torch.stack(list(others), 1).to(torch.float64), dim=0)
    # Not QR: of others that say the same twice, it makes a second direction out of rounding.
    basis, sizes, _ = torch.linalg.svd(units, full_matrices=False)
    basis = basis[:, sizes > NOTHING_LEFT * sizes[0]]
    left: Tensor = whole - basis @ (basis.mT @ whole)
    share = float(torch.linalg.vector_norm(left) / torch.linalg.vector_norm(whole))
    if not share >= NOTHING_LEFT:
        raise UserError(
            f"{share:.1g} of the direction's length is left without them ({NOTHING_LEFT:g} is the least): it "
            "is what is to stay; name others"
        )
    unit: Tensor = left / torch.linalg.vector_norm(left)
    return unit.to(direction.dtype)


@torch.no_grad()
def principal_components(
    generator: StyleGenerator, count: int = 20, samples: int = 10_000, seed: int = 0
) -> list[Direction]:
    """Return the directions in which w varies most (GANSpace, Härkönen et al. 2020).

    Args:
        generator: Unconditional.
        count: Directions, most important first.
        samples: Latents to take them from.
        seed: Of those.
    """
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, generator.z_dim, generator=rng).to(generator.w_avg)
    w = torch.cat([generator.mapping.to_w(part) for part in torch.split(z, 4096)]).double()
    values, vectors = torch.linalg.eigh(torch.cov(w.mT))
    fingerprint = generator.fingerprint()
    return [
        _of(
            generator,
            fingerprint,
            f"pca_{index}",
            _pointing(vectors[:, -1 - index]),
            f"principal component {index} of {samples} latents",
            scale=float(values[-1 - index].clamp_min(0).sqrt()),
        )
        for index in range(min(count, generator.w_dim))
    ]


@torch.no_grad()
def factorisation(
    generator: StyleGenerator, rows: Sequence[int] | None = None, count: int = 20
) -> list[Direction]:
    """Return the directions that move the styles of ``rows`` most, in closed form (SeFa, Shen and Zhou 2021).

    The eigenvectors of ``A^T A`` with A the stacked matrices by which these rows enter their layers. A
    direction is found from, and moves, the very same rows; the published code shifts one against the other.

    Args:
        generator: A back-end whose layers hold their style matrix.
        rows: Rows of w_plus; None for all.
        count: Directions, strongest first.

    Raises:
        UserError: If the generator's layers have no such matrices.
    """
    chosen = list(range(generator.num_ws)) if rows is None else list(rows)
    matrices = [matrix.double() for row in chosen for matrix in style_matrices(generator, row)]
    stacked = torch.cat([F.normalize(matrix, dim=1) for matrix in matrices])
    values, vectors = torch.linalg.eigh(stacked.mT @ stacked)
    where = "all rows" if rows is None else f"rows {chosen[0]} to {chosen[-1]}"
    fingerprint = generator.fingerprint()
    return [
        _of(
            generator,
            fingerprint,
            f"sefa_{index}",
            _pointing(vectors[:, -1 - index]),
            f"closed-form factorisation of {where}, eigenvalue {float(values[-1 - index]):.4g}",
            rows=None if rows is None else tuple(chosen),
        )
        for index in range(min(count, generator.w_dim))
    ]


def style_matrices(generator: StyleGenerator, row: int) -> list[Tensor]:
    """Return the matrices (C, D) by which a row of w_plus becomes the styles of its layer.

    Raises:
        UserError: If the layer that the row drives has none.
    """
    module: Any = generator.synthesis
    name = generator.row_names[row]
    for part in name.split("."):
        module = getattr(module, part, None)
    for key in ("affine", "style"):
        layer = getattr(module, key, None)
        if isinstance(layer, nn.Module):
            weight = layer.weight
            assert isinstance(weight, Tensor)
            return [weight.detach()]
    raise UserError(f"{generator.architecture}: row {row} ({name}) has no style matrix to factorise")


def _of(
    generator: StyleGenerator,
    fingerprint: str,
    name: str,
    vector: Tensor,
    source: str,
    rows: tuple[int, ...] | None = None,
    scale: float = 1.0,
) -> Direction:
    """Return a direction of ``generator``."""
    return Direction(
        name,
        vector[None].to(generator.w_avg),
        rows,
        scale,
        fingerprint,
        generator.w_avg.detach().clone(),
        source,
    )


def _pointing(vector: Tensor) -> Tensor:
    """Return ``vector`` or its negative, its largest number positive: eigenvectors have no sign."""
    return vector * vector[vector.abs().argmax()].sign()


def found(
    generator: StyleGenerator, name: str, latents: Tensor, values: Tensor, source: str, binary: bool
) -> Direction:
    """Return the direction of an attribute of labelled latents, scaled to their deviation along it.

    Args:
        generator: Whose latents these are.
        name: The attribute.
        latents: w, (N, D).
        values: Labels or measurements, (N,).
        source: Where the labels are from.
        binary: Whether to part two classes (:func:`boundary`) or to follow a size (:func:`regression`).
    """
    if binary:
        vector, share = boundary(latents, values)
        source = f"{source}; boundary with {share:.1%} on their side"
    else:
        vector = regression(latents, values)
    scale = float((latents - latents.mean(0)).matmul(vector).std())
    return _of(generator, generator.fingerprint(), name, vector, source, scale=scale)
