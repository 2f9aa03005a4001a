"""Edits inside a mask, by embedding what is wanted where it is wanted (Abdal et al. 2020, arXiv 1911.11544).

Image2StyleGAN++ builds every edit from a few blocks, which share one objective (equation 2) and differ in
their masks: embedding in rows of W+, embedding in the noise maps, transferring a style, replacing
activations. First the latent finds something that the generator can draw; then the noise, with the latent at
rest, adds what a latent cannot hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from i2i_lightning.methods.inversion import Embedding, InversionLoss, Stage, Start, Targets, embed
from i2i_lightning.networks.style import StyleGenerator
from i2i_lightning.types import UserError

GIVEN = Start("given")
"""Of searches that begin with a latent which is there: what their settings say."""


@dataclass(frozen=True)
class Effort:
    """How long and how fast an edit searches.

    The rates go with losses weighted 1 or more, not 1e-5 as in the paper, under which Adam's epsilon decides.

    Args:
        latent_steps: Steps on the latent.
        latent_rate: Adam's rate there.
        noise_steps: Steps on the noise maps; 0 leaves them alone.
        noise_rate: Adam's rate there; None has one for each map by how much it does to the image; see
            :func:`~i2i_lightning.methods.inversion.leaves.noise_rates`.
        blur_px: Deviation of the Gaussian that softens masks and boxes; None is a thirty-second of the side.
    """

    latent_steps: int = 300
    latent_rate: float = 0.03
    noise_steps: int = 200
    noise_rate: float | None = None
    blur_px: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("latent_steps", 1), ("noise_steps", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: give at least {least}")
        for name in ("latent_rate", "noise_rate"):
            rate = getattr(self, name)
            if rate is not None and rate <= 0:
                raise UserError(f"{name}={rate}: give a positive rate")
        if self.blur_px is not None and self.blur_px < 0:
            raise UserError(f"blur_px={self.blur_px}: give 0 or more")

    def sigma_px(self, side_px: int) -> float:
        """Return the deviation of the Gaussian that softens masks of this side."""
        return side_px / 32 if self.blur_px is None else self.blur_px


@dataclass
class Edited:
    """What an edit made.

    Args:
        w_plus: (1, L, D).
        noise: Maps, each (1, 1, h, w); None where they are the generator's own.
        image: The result, (1, C, S, S).
        steps: Masks, inputs and renders on the way, by what they are, (1, C or 1, S, S) each.
        notes: What was not done as asked, and why.
        settings: Of the searches on the way, by what was searched for, as plain containers.
    """

    w_plus: Tensor
    noise: list[Tensor] | None
    image: Tensor
    steps: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def crossover(
    generator: StyleGenerator,
    inside: Tensor,
    around: Tensor,
    mask: Tensor,
    loss: InversionLoss,
    effort: Effort | None = None,
    seed: int = 0,
    label: Tensor | None = None,
) -> Edited:
    """Join ``inside``, where the mask is, with ``around``, where it is not.

    The paper's sum of two masked embeddings, of x in M and of y in 1 - M, is taken as one of
    ``M x + (1 - M) y``: pixel terms are the same, features differ where the soft mask is neither 0 nor 1.

    Args:
        generator: What draws.
        inside: x, (1, C, S, S) in [-1, 1].
        around: y, of the same shape.
        mask: M, (1, 1, S, S) in [0, 1].
        loss: Objective and weights.
        effort: How long to search.
        seed: Of random numbers.
        label: (1, K) for a conditional generator.

    Raises:
        UserError: If images or mask do not fit the generator, or the mask is empty.
    """
    effort = effort or Effort()
    inside, around = check_image(inside, generator, "inside"), check_image(around, generator, "around")
    soft = soften(check_mask(mask, generator), effort)
    joined = soft * inside + (1 - soft) * around
    latent = embed_latent(generator, Targets(joined, ["crossover"], label), loss, effort, seed)
    final = _embed_noise(
        generator, Targets(inside, ["crossover"], label, mask=soft, outside=around), latent, effort, seed
    )
    steps = {"inside": inside, "around": around, "mask": soft, "joined": joined, "latent": latent.image}
    return _edited(latent, final, steps)


def inpaint(
    generator: StyleGenerator,
    image: Tensor,
    hole: Tensor,
    loss: InversionLoss,
    effort: Effort | None = None,
    rows: Sequence[int] | None = None,
    seed: int = 0,
    label: Tensor | None = None,
) -> Edited:
    """Fill a hole with what the generator draws there when it draws the rest as it is.

    Only some rows move, so that the latent cannot bend to the visible part alone: rows 1 to 9, 17 and 18 of
    18 in the paper. The noise then restores the visible part, and keeps the filling.

    Args:
        generator: What draws.
        image: (1, C, S, S); what it shows in the hole does not matter.
        hole: (1, 1, S, S), 1 where it is.
        loss: Objective and weights.
        effort: How long to search.
        rows: Rows that may move; None is the coarser half and the last two.
        seed: Of random numbers.
        label: (1, K) for a conditional generator.

    Raises:
        UserError: If image or mask do not fit the generator; if the hole is empty, or everything.
    """
    effort = effort or Effort()
    hole = check_mask(hole, generator, "hole")
    if bool((hole >= 1).all()):
        raise UserError("hole: covers the whole image; leave something to go by")
    count = generator.num_ws
    rows = sorted({*range(count // 2), count - 2, count - 1}) if rows is None else rows
    seen = 1 - hole
    image = check_image(image, generator, seen=seen)
    targets = Targets(image, ["inpaint"], label, mask=seen, holes=True)
    latent = embed_latent(generator, targets, loss, effort, seed, rows)
    # The paper softens this mask, and so draws the border of the filling towards what stood in the hole.
    final = _embed_noise(
        generator,
        Targets(image, ["inpaint"], label, mask=seen, outside=latent.image),
        latent,
        effort,
        seed,
    )
    return _edited(latent, final, {"image": image, "hole": hole, "latent": latent.image})


def local_edit(
    generator: StyleGenerator,
    photo: Tensor,
    scribbled: Tensor,
    mask: Tensor,
    w_plus: Tensor,
    loss: InversionLoss,
    effort: Effort | None = None,
    rows: Sequence[int] | None = None,
    anchor: float = 1.0,
    seed: int = 0,
    label: Tensor | None = None,
    noise: Sequence[Tensor] | None = None,
) -> Edited:
    """Turn scribbles into what the generator would draw there.

    The coarse rows follow the scribbled picture while an anchor holds them near the photo's latent; the noise
    then brings the photo back everywhere else.

    Args:
        generator: What draws.
        photo: (1, C, S, S).
        scribbled: The photo with scribbles on it.
        mask: (1, 1, S, S), 1 where they are.
        w_plus: The photo's latent, (1, L, D).
        loss: Objective and weights; its prior gives way to the anchor.
        effort: How long to search.
        rows: Rows that may move; None is the coarser half.
        anchor: Weight of the distance from the photo's latent, in deviations of w; 1 goes with pixels that
            weigh 100, and 0.1 holds firmly where they weigh 1.
        seed: Of random numbers.
        label: (1, K) for a conditional generator.
        noise: The photo's noise maps, (1, 1, h, w) each; None for the generator's own.

    Raises:
        UserError: If something does not fit the generator, or the mask is empty.
    """
    effort = effort or Effort()
    photo, scribbled = check_image(photo, generator, "photo"), check_image(scribbled, generator, "scribbled")
    mask = check_mask(mask, generator)
    rows = list(range(max(1, generator.num_ws // 2))) if rows is None else rows
    latent = embed_latent(
        generator,
        Targets(scribbled, ["local_edit"], label, anchor=w_plus),
        replace(loss, lambda_prior=0.0, lambda_anchor=anchor),
        effort,
        seed,
        rows,
        first=w_plus,
        noise=noise,
    )
    soft = soften(mask, effort)
    final = _embed_noise(
        generator,
        Targets(photo, ["local_edit"], label, mask=1 - soft, outside=latent.image),
        latent,
        effort,
        seed,
    )
    return _edited(
        latent, final, {"photo": photo, "scribbled": scribbled, "mask": soft, "latent": latent.image}
    )


def local_style_transfer(
    generator: StyleGenerator,
    content: Tensor,
    style: Tensor,
    mask: Tensor,
    loss: InversionLoss,
    effort: Effort | None = None,
    weight: float = 1.0,
    seed: int = 0,
    label: Tensor | None = None,
) -> Edited:
    """Give ``content`` the style of another picture where the mask is, and keep the rest.

    Args:
        generator: What draws.
        content: x, (1, C, S, S).
        style: y, (1, C, S, S): its style, as Gram matrices of conv3_3 under the same mask, is wanted.
        mask: (1, 1, S, S), 1 where the style is to change. (The paper's M is where the content stays.)
        loss: Objective and weights; its perceptual network must give conv3_3.
        effort: How long to search.
        weight: Weight of the style term.
        seed: Of random numbers.
        label: (1, K) for a conditional generator.

    Raises:
        UserError: If something does not fit the generator, the mask is empty or covers all.
    """
    effort = effort or Effort()
    if loss.perceptual is None:
        raise UserError("loss.perceptual=null: style is compared in a network's features; give one")
    if weight <= 0:
        raise UserError(f"weight={weight:g}: give a positive weight of the style")
    content, style = check_image(content, generator, "content"), check_image(style, generator, "style")
    mask = check_mask(mask, generator)
    if bool((mask >= 1).all()):
        raise UserError("mask: covers the whole image; leave something that keeps its style")
    soft = soften(mask, effort)
    keep = 1 - soft
    targets = Targets(content, ["style"], label, mask=keep, style=style, style_mask=soft)
    latent = embed_latent(generator, targets, replace(loss, lambda_style=weight), effort, seed)
    final = _embed_noise(
        generator, Targets(content, ["style"], label, mask=keep, outside=latent.image), latent, effort, seed
    )
    return _edited(latent, final, {"content": content, "style": style, "mask": soft, "latent": latent.image})


def attribute_transfer(
    generator: StyleGenerator,
    w_plus: Tensor,
    donor: Tensor,
    box: tuple[int, int, int, int],
    layer: str,
    noise: Sequence[Tensor] | None = None,
    donor_noise: Sequence[Tensor] | None = None,
    blur_px: float | None = None,
    to: tuple[int, int] | None = None,
) -> Edited:
    """Copy a part of a face by its activations: a box of a layer's tensor, softly, and go on drawing.

    Args:
        generator: What draws.
        w_plus: The face that receives, (1, L, D).
        donor: The face that gives, (1, L, D).
        box: Left, top, right, bottom in pixels of the image.
        layer: One of ``generator.layer_names``; those at 32 or 64 px suit parts of a face.
        noise: Noise maps of the face that receives; None for the generator's own.
        donor_noise: Those of the face that gives.
        blur_px: Deviation of the Gaussian that softens the box, in pixels of the image; None is a
            thirty-second of the side.
        to: Left and top of where the box goes, in pixels of the image; None for the same place. The layer's
            tensor moves by exactly as much, by parts of its cells too.

    Raises:
        UserError: If there is no such layer, or the box is empty or leaves the image.
    """
    size = generator.size_px
    left, top, right, bottom = box
    to_left, to_top = to or (left, top)
    if not (0 <= left < right <= size and 0 <= top < bottom <= size):
        raise UserError(f"box={list(box)}: left, top, right, bottom within 0 to {size}, and not empty")
    if not (0 <= to_left <= size - (right - left) and 0 <= to_top <= size - (bottom - top)):
        raise UserError(f"to={[to_left, to_top]}: the box would leave the image of {size} px")
    mask = torch.zeros(1, 1, size, size, device=w_plus.device, dtype=w_plus.dtype)
    mask[:, :, to_top : to_top + bottom - top, to_left : to_left + right - left] = 1
    soft = soften(mask, Effort(blur_px=blur_px))
    with torch.no_grad():
        given = generator.activations(donor, [layer], "const" if donor_noise is None else donor_noise)[layer]
        scale = given.shape[-1] / size
        moved = _shifted(_shifted(given, -2, (to_top - top) * scale), -1, (to_left - left) * scale)

        def paste(activation: Tensor) -> Tensor:
            here = F.interpolate(soft, activation.shape[-2:], mode="area").to(activation.dtype)
            return here * moved + (1 - here) * activation

        source = "const" if noise is None else noise
        image = generator.synthesis(w_plus, source, {layer: paste})
        before = generator.synthesis(w_plus, source)
        giving = generator.synthesis(donor, "const" if donor_noise is None else donor_noise)
    steps = {"face": before, "donor": giving, "mask": soft}
    return Edited(w_plus, None if noise is None else list(noise), image, steps)


# -------------------- blocks


def check_mask(mask: Tensor, generator: StyleGenerator, name: str = "mask") -> Tensor:
    """Return ``mask`` where the generator lies, in its precision.

    Raises:
        UserError: If it has another size than the generator's images, values outside [0, 1], or is empty.
    """
    size = generator.size_px
    if mask.dim() != 4 or mask.shape[1] != 1 or tuple(mask.shape[-2:]) != (size, size):
        raise UserError(
            f"{name}: {tuple(mask.shape)}; this generator's images take a mask of (1, 1, {size}, {size})"
        )
    if not bool(mask.isfinite().all()) or float(mask.min()) < 0 or float(mask.max()) > 1:
        raise UserError(f"{name}: has values outside of 0 to 1")
    if float(mask.max()) == 0:
        raise UserError(f"{name}: is empty; nothing would be edited")
    return mask.to(generator.w_avg)


def check_image(
    image: Tensor, generator: StyleGenerator, name: str = "image", seen: Tensor | None = None
) -> Tensor:
    """Return ``image`` where the generator lies, in its precision, grey where nothing of it is ``seen``.

    Raises:
        UserError: If it is not one image of the generator's size and channels, or holds NaN or infinity.
    """
    size, channels = generator.size_px, generator.channels
    if tuple(image.shape) != (1, channels, size, size):
        raise UserError(
            f"{name}: {tuple(image.shape)}; this generator draws images of (1, {channels}, {size}, {size})"
        )
    if seen is not None:
        # No product: what is not seen may be NaN, and what is half seen is wanted as it is.
        image = torch.where(seen > 0, image.to(seen), torch.zeros_like(seen))
    if not bool(image.isfinite().all()):
        raise UserError(f"{name}: holds NaN or infinity")
    return image.to(generator.w_avg)


def soften(mask: Tensor, effort: Effort) -> Tensor:
    """Return ``mask (1, 1, S, S)`` under a Gaussian of ``effort.blur_px``, its borders continued."""
    sigma = effort.sigma_px(mask.shape[-1])
    if sigma == 0:
        return mask
    reach = min(max(1, round(3 * sigma)), mask.shape[-1] - 1)
    place = torch.arange(-reach, reach + 1, device=mask.device, dtype=mask.dtype)
    taps = torch.exp(-(place**2) / (2 * sigma**2))
    taps = taps / taps.sum()
    wide = F.pad(mask, (reach,) * 4, mode="replicate")
    wide = F.conv2d(wide, taps.view(1, 1, 1, -1))
    return F.conv2d(wide, taps.view(1, 1, -1, 1)).clamp(0, 1)


def _shifted(values: Tensor, dim: int, by: float) -> Tensor:
    """Return ``values`` moved by so many cells along ``dim``, what comes in a copy of the border.

    By a part of a cell, neighbours are blended as that part says.
    """
    whole = math.floor(by)
    last = values.shape[dim] - 1
    places = torch.arange(last + 1, device=values.device) - whole
    moved = values.index_select(dim, places.clamp(0, last))
    if by == whole:
        return moved
    return torch.lerp(moved, values.index_select(dim, (places - 1).clamp(0, last)), by - whole)


def embed_latent(
    generator: StyleGenerator,
    targets: Targets,
    loss: InversionLoss,
    effort: Effort,
    seed: int,
    rows: Sequence[int] | None = None,
    first: Tensor | None = None,
    noise: Sequence[Tensor] | None = None,
) -> Embedding:
    """W_l: embed in W+, or in some of its rows, from a first latent and over noise where they are given."""
    stage = Stage(["w_plus"], effort.latent_steps, effort.latent_rate, ramp_down=0.5, rows=rows)
    start = None if first is None else GIVEN
    return embed(generator, targets, {"latent": stage}, loss, start, seed, first, noise)


def _embed_noise(
    generator: StyleGenerator, targets: Targets, latent: Embedding, effort: Effort, seed: int
) -> Embedding:
    """Mk_n: with the latent at rest, bring the noise to x where the mask is and to y elsewhere."""
    if effort.noise_steps == 0 or not generator.noise_shapes:
        return latent
    stages = {
        "noise": Stage(["noise"], effort.noise_steps, noise_rate=effort.noise_rate or "auto", ramp_down=0.5)
    }
    pixels = InversionLoss(None)
    return embed(generator, targets, stages, pixels, GIVEN, seed, latent.w_plus, latent.noise)


def _edited(latent: Embedding, final: Embedding, steps: dict[str, Tensor]) -> Edited:
    """Return the result; what was to be said of either search is kept, and what it was asked for."""
    notes = list(dict.fromkeys([*latent.notes, *final.notes]))
    settings = {"latent": latent.settings} | ({} if final is latent else {"noise": final.settings})
    return Edited(final.w_plus, final.noise, final.image, steps, notes, settings)
