"""Edits of parts of pictures, by masks or boxes (Abdal et al. 2020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from i2i_lightning.checkpoints.latents import SUFFIX, Latent, save_latent
from i2i_lightning.data.alignment import paste
from i2i_lightning.editing.local import (
    Edited,
    attribute_transfer,
    crossover,
    inpaint,
    local_edit,
    local_style_transfer,
    soften,
)
from i2i_lightning.sampling.edits.inputs import Picture, box_of, corner_of
from i2i_lightning.sampling.edits.studio import Studio
from i2i_lightning.types import UserError

EMBEDS = "it searches for those of its pictures"
"""Why an edit takes no latents."""


@dataclass(frozen=True)
class Crossover:
    """Two pictures joined along a mask.

    Args:
        inside: Image file that is shown where the mask is white.
        around: Image file that is shown where it is black.
        mask: Image file of the size of ``around``.
    """

    inside: str | None = None
    around: str | None = None
    mask: str | None = None
    takes = 0
    reads_pictures = True

    def run(self, studio: Studio) -> None:
        """Write the result and the steps to it."""
        studio.take(0, 0, EMBEDS)
        read = studio.reader
        inside, around = (
            read.picture(f"operation.{key}", getattr(self, key)) for key in ("inside", "around")
        )
        mask = read.mask("operation.mask", self.mask, around)
        made = crossover(
            studio.generator,
            inside.image,
            around.image,
            mask,
            studio.loss(),
            studio.effort,
            studio.seed,
            studio.label,
        )
        _write(studio, made, around, made.steps["mask"], "crossover")


@dataclass(frozen=True)
class Inpaint:
    """A hole filled with what fits the rest.

    Args:
        image: Image file.
        hole: Image file of its size, white where the hole is.
        rows: Rows of w_plus that may move: coarse, middle, fine, or 0-3; None is the coarser half and the
            last two.
    """

    image: str | None = None
    hole: str | None = None
    rows: Any = None
    takes = 0
    reads_pictures = True

    def run(self, studio: Studio) -> None:
        """Write the result and the steps to it."""
        studio.take(0, 0, EMBEDS)
        picture = studio.reader.picture("operation.image", self.image)
        hole = studio.reader.mask("operation.hole", self.hole, picture)
        made = inpaint(
            studio.generator,
            picture.image,
            hole,
            studio.loss(),
            studio.effort,
            studio.rows(self.rows),
            studio.seed,
            studio.label,
        )
        _write(studio, made, picture, made.steps["hole"], "inpaint")


@dataclass(frozen=True)
class LocalEdit:
    """Scribbles on a picture, turned into what the generator would draw there.

    A latent of the picture, and its noise, may be given as ``latents=``; else it is embedded first.

    Args:
        photo: Image file.
        scribbled: The same with scribbles on it.
        mask: Image file of its size, white around the scribbles; None is where the two differ.
        rows: Rows of w_plus that may move; None is the coarser half.
        anchor: Weight of the distance from the photo's latent.
    """

    photo: str | None = None
    scribbled: str | None = None
    mask: str | None = None
    rows: Any = None
    anchor: float = 1.0
    takes = 0
    reads_pictures = True

    def run(self, studio: Studio) -> None:
        """Write the result and the steps to it."""
        read = studio.reader
        photo = read.picture("operation.photo", self.photo)
        scribbled = read.picture("operation.scribbled", self.scribbled, like=photo)
        if self.mask is None:
            mask = read.scribbles(photo, scribbled, studio.effort.sigma_px(studio.generator.size_px))
        else:
            mask = read.mask("operation.mask", self.mask, photo)
        rows = studio.rows(self.rows)
        loss, noise, searches = studio.loss(), None, {}
        if studio.latents:
            latent = studio.take(1, 1, "that of the photo")[0]
            if latent.tuned is not None:
                raise UserError("latents: local_edit draws without tuned weights; take one without tuning")
            place = studio.generator.w_avg
            w_plus, noise = latent.w_plus[None].to(place), latent.maps(place)
        else:
            found = studio.embedded(photo, loss)
            w_plus, searches = found.w_plus, {"photo": found.settings}
            studio.note(*found.notes)
        made = local_edit(
            studio.generator,
            photo.image,
            scribbled.image,
            mask,
            w_plus,
            loss,
            studio.effort,
            rows,
            self.anchor,
            studio.seed,
            studio.label,
            noise,
        )
        made.settings = searches | made.settings
        _write(studio, made, photo, made.steps["mask"], "local_edit")


@dataclass(frozen=True)
class LocalStyleTransfer:
    """The style of another picture, in a mask.

    Args:
        content: Image file.
        style: Image file whose style, under the same mask, is wanted.
        mask: Image file of the content's size, white where the style is to change.
        weight: Weight of the style.
    """

    content: str | None = None
    style: str | None = None
    mask: str | None = None
    weight: float = 1.0
    takes = 0
    reads_pictures = True

    def run(self, studio: Studio) -> None:
        """Write the result and the steps to it."""
        studio.take(0, 0, EMBEDS)
        read = studio.reader
        content, style = (
            read.picture(f"operation.{key}", getattr(self, key)) for key in ("content", "style")
        )
        mask = read.mask("operation.mask", self.mask, content)
        made = local_style_transfer(
            studio.generator,
            content.image,
            style.image,
            mask,
            studio.loss(),
            studio.effort,
            self.weight,
            studio.seed,
            studio.label,
        )
        _write(studio, made, content, made.steps["mask"], "local_style_transfer")


@dataclass(frozen=True)
class AttributeTransfer:
    """A part of one face in another, by its activations in a layer.

    Args:
        box: left, top, right, bottom in pixels of the generator's images.
        layer: Layer of the generator; None takes the last convolution at 32 px, or at half of smaller images.
        to: left, top of where the box goes; None for the same place.
    """

    box: Any = None
    layer: str | None = None
    to: Any = None
    takes = 2

    def run(self, studio: Studio) -> None:
        """Write the result and the steps to it."""
        face, donor = studio.take(2, 2, "the face that receives, and the one that gives")
        if face.tuned is not None or donor.tuned is not None:
            raise UserError("latents: a part goes between faces of one generator; take them without tuning")
        box = box_of(self.box, "operation.box")
        to = None if self.to is None else corner_of(self.to, "operation.to")
        place = studio.generator.w_avg
        layer = self.layer or studio.middle_layer()
        made = attribute_transfer(
            studio.generator,
            face.w_plus[None].to(place),
            donor.w_plus[None].to(place),
            box,
            layer,
            face.maps(place),
            donor.maps(place),
            studio.effort.blur_px,
            to,
        )
        studio.note(f"layer {layer}; the result is no latent's picture, and has no latent file")
        picture = Picture(made.steps["face"].cpu(), (studio.generator.size_px,) * 2, face.name)
        _write(studio, made, picture, made.steps["mask"], "attribute_transfer", latent=False)


def _write(
    studio: Studio, made: Edited, kept: Picture, changes: Tensor, name: str, latent: bool = True
) -> None:
    """Write the result of an edit in a mask.

    Args:
        studio: Where.
        made: The result.
        kept: The picture that is to stay outside of the mask.
        changes: Where it is not, (1, 1, S, S).
        name: The edit.
        latent: Whether the result is a latent's picture.
    """
    studio.note(*made.notes)
    for number, (what, image) in enumerate(made.steps.items()):
        studio.write_image(f"steps/{number}_{what}", image * 2 - 1 if what in ("mask", "hole") else image)
    studio.written.append(f"steps/, {len(made.steps)} PNG files")
    shown = [
        (what, image * 2 - 1 if what in ("mask", "hole") else image) for what, image in made.steps.items()
    ]
    studio.write_pictures("strip", [*shown, ("result", made.image)])
    studio.write_image("result", made.image)
    studio.written.append("result.png")
    if latent:
        noise = None if made.noise is None else [map_.cpu() for map_ in made.noise]
        label = None if studio.label is None else studio.label[0].cpu()
        file = Latent(
            made.w_plus[0].cpu(),
            studio.fingerprint,
            f"{name} of {kept.name}",
            noise,
            label,
            generator=studio.source,
            settings={
                "operation": name,
                "effort": vars(studio.effort),
                "searches": made.settings,
                "notes": list(studio.notes),
            },
        )
        save_latent(studio.folder / f"result{SUFFIX}", file)
        studio.written.append(f"result{SUFFIX}")
    outside = (changes.cpu() == 0).float()
    if bool(outside.any()):
        error = (made.image.cpu().clamp(-1, 1) - kept.image).square() * outside
        mse = float(error.sum() / (outside.sum() * error.shape[1]))
        studio.figures["rms_outside"] = math.sqrt(mse)
        studio.figures["psnr_outside"] = 10 * math.log10(4 / max(mse, 1e-12))
    if kept.whole is not None and kept.quad is not None:
        soft = torch.maximum(changes.cpu(), soften(changes.cpu(), studio.effort))
        studio.write_image("pasted", paste(kept.whole, made.image.float().cpu(), kept.quad, soft))
        studio.written.append(f"pasted.png, {kept.size[1]} x {kept.size[0]} px")
