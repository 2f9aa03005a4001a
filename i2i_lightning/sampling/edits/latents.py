"""Edits of latents: morphs, grids of four, expressions, styles."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from i2i_lightning.checkpoints.latents import Latent
from i2i_lightning.editing.interpolation import lerp
from i2i_lightning.editing.local import attribute_transfer
from i2i_lightning.editing.mixing import mix
from i2i_lightning.editing.ranges import as_written
from i2i_lightning.editing.transfer import corners, embed_difference, expression_transfer, style_transfer
from i2i_lightning.sampling.edits.inputs import box_of, numbers_of
from i2i_lightning.sampling.edits.studio import Cell, Studio, blended
from i2i_lightning.types import UserError


@dataclass(frozen=True)
class Morph:
    """On straight lines of W+ from each latent to the next (Abdal et al. 2019, section 5).

    Args:
        pictures: Pictures of a strip, both ends among them.
    """

    pictures: int = 8
    takes = 2
    pastes = True

    def __post_init__(self) -> None:
        if self.pictures < 2:
            raise UserError(f"operation.pictures={self.pictures}: a strip has at least 2, its ends")

    def run(self, studio: Studio) -> None:
        """Write ``morph.png``, a row for each pair, its pictures and latents, and an animation."""
        latents = studio.take(2, None, "the ends of the way, and what lies on it")
        rows = []
        for number, (first, last) in enumerate(itertools.pairwise(latents)):
            cells = []
            for index in range(self.pictures):
                t = index / (self.pictures - 1)
                words = {0: first.name, self.pictures - 1: last.name}.get(index, f"{t:.0%}")
                latent = between(first, last, t, studio)
                cells.append(Cell(latent, words, f"morph{number}_{index:03d}"))
            rows.append(cells)

        def at(place: float) -> Latent:
            index = min(int(place), len(latents) - 2)
            return between(latents[index], latents[index + 1], place - index, studio)

        stretches = len(latents) - 1
        studio.write_moving("morph", rows, at, 0, stretches, stretches)


def between(first: Latent, last: Latent, t: float, studio: Studio) -> Latent:
    """Return the point at ``t``, 0 to 1, of the straight line between two latents."""
    w_plus = lerp(first.w_plus[None], last.w_plus[None], t)[0]
    return blended([first, last], [1 - t, t], w_plus, studio)


@dataclass(frozen=True)
class Corners:
    """Bilinear blends of four latents.

    Args:
        side: Pictures per row and column.
    """

    side: int = 5
    takes = 4
    pastes = True

    def __post_init__(self) -> None:
        if self.side < 2:
            raise UserError(f"operation.side={self.side}: give at least 2, so that there are four corners")

    def run(self, studio: Studio) -> None:
        """Write ``corners.png``, and all pictures and latents."""
        latents = studio.take(4, 4, "upper left, upper right, lower left, lower right")
        grid = corners(torch.stack([latent.w_plus for latent in latents]), self.side)
        rows = []
        for row in range(self.side):
            cells = []
            for column in range(self.side):
                x, y = column / (self.side - 1), row / (self.side - 1)
                weights = [(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y]
                latent = blended(latents, weights, grid[row * self.side + column], studio)
                words = latent.name if max(weights) == 1 else ""
                cells.append(Cell(latent, words, f"corners_{row}_{column}"))
            rows.append(cells)
        studio.write_sheet("corners", rows)


@dataclass(frozen=True)
class ExpressionTransfer:
    """w1 + lambda (w3 - w2): the face w1 with the expression that w3 has and w2, the same person, has not.

    Args:
        strengths: lambdas of the strip.
        threshold: Rows of w3 - w2 of a smaller L2 norm are dropped.
        normalise: Scale the rest to the norm 1, so that strengths compare between pairs.
        box: left, top, right, bottom in pixels, as of the mouth: activations inside of it alone follow the
            moved latent (Abdal et al. 2020); None moves the whole face.
        layer: Layer of these activations; None takes the last convolution at 32 px, or at half of the side of
            small images.
        neutral: Image file. With ``expressive``, w3 is searched for by what the two differ in, see
            :func:`~i2i_lightning.editing.transfer.embed_difference`; the latents are then that of the face
            and, if it is there, w2, which else is embedded first.
        expressive: Image file of the same person.
        rows: Rows of w_plus that may move in this search; None: all.
        anchor: Weight of the distance from w2 there.
    """

    strengths: Any = (0.0, 0.5, 1.0, 1.5)
    threshold: float = 1.0
    normalise: bool = False
    box: Any = None
    layer: str | None = None
    neutral: str | None = None
    expressive: str | None = None
    rows: Any = None
    anchor: float = 10.0
    pastes = True

    def __post_init__(self) -> None:
        if self.box is None and self.layer is not None:
            raise UserError(f"operation.layer={self.layer}: needs operation.box")
        defaults = {each.name: each.default for each in fields(self)}
        for key in ("rows", "anchor"):
            if not self.reads_pictures and getattr(self, key) != defaults[key]:
                shown = as_written(getattr(self, key))
                raise UserError(f"operation.{key}={shown}: needs operation.neutral and operation.expressive")

    @property
    def reads_pictures(self) -> bool:
        """Whether photos are given."""
        return self.neutral is not None or self.expressive is not None

    @property
    def takes(self) -> int:
        """Latents that it takes at least."""
        return 1 if self.reads_pictures else 3

    def run(self, studio: Studio) -> None:
        """Write ``expression.png``: neutral, expressive, and the face at every strength."""
        strengths = numbers_of(self.strengths, "operation.strengths")
        box = None if self.box is None else box_of(self.box, "operation.box")
        searches: dict[str, Any] = {}
        if self.reads_pictures:
            latents, searches = self._search(studio)
        else:
            latents = studio.take(3, 3, "the face, a neutral face, and the same with an expression")
        face, neutral, expressive = latents
        settings = {
            "neutral": neutral.name,
            "expressive": expressive.name,
            "threshold": self.threshold,
            "normalise": self.normalise,
            **searches,
        }

        def moved(values: Sequence[float]) -> Tensor:
            return expression_transfer(
                face.w_plus,
                neutral.w_plus,
                expressive.w_plus,
                torch.tensor(values),
                self.threshold,
                self.normalise,
            )

        if box is not None:
            self._write_in_box(studio, (neutral, expressive, face), strengths, moved(strengths), box)
            return
        cells = [Cell(neutral, f"w2: {neutral.name}"), Cell(expressive, f"w3: {expressive.name}")]
        for index, (strength, w_plus) in enumerate(zip(strengths, moved(strengths), strict=True)):
            words = f"{strength:g}"
            latent = studio.edited(face, w_plus, f"{face.name} {words}", strength=strength, **settings)
            cells.append(Cell(latent, words, f"expression_{index:03d}"))

        def at(strength: float) -> Latent:
            return studio.edited(face, moved([strength])[0], face.name, strength=strength)

        studio.write_moving("expression", [cells], at, min(strengths), max(strengths))

    def _search(self, studio: Studio) -> tuple[list[Latent], dict[str, Any]]:
        """Return the face's latent, w2, and w3 of two photos; and how they were searched for."""
        given = studio.take(1, 2, "the face, and the neutral photo's where it is there")
        if len(given) == 2 and given[1].tuned is not None:
            raise UserError(
                f"latents: {given[1].name}: expression_transfer searches from the neutral photo's latent "
                "without tuned weights; take one without tuning"
            )
        neutral, expressive = (
            studio.reader.picture(f"operation.{key}", getattr(self, key)) for key in ("neutral", "expressive")
        )
        rows = studio.rows(self.rows)
        loss, found = studio.loss(), {}
        if len(given) == 2:
            w2 = given[1].w_plus[None].to(studio.generator.w_avg)
        else:
            found["w2"] = studio.embedded(neutral, loss)
            w2 = found["w2"].w_plus
        found["w3"] = embed_difference(
            studio.generator,
            w2,
            neutral.image,
            expressive.image,
            loss,
            studio.effort,
            rows,
            self.anchor,
            studio.seed,
            studio.label,
        )
        studio.note(*(note for each in found.values() for note in each.notes))
        plain = replace(given[0], noise=None, tuned=None)
        latents = [
            given[0],
            studio.edited(plain, w2[0].cpu(), neutral.name),
            studio.edited(plain, found["w3"].w_plus[0].cpu(), expressive.name),
        ]
        searches = {name: each.settings for name, each in found.items()}
        return latents, {"effort": vars(studio.effort), "searches": searches, "notes": list(studio.notes)}

    def _write_in_box(
        self,
        studio: Studio,
        latents: tuple[Latent, Latent, Latent],
        strengths: Sequence[float],
        moved: Tensor,
        box: tuple[int, int, int, int],
    ) -> None:
        """Write the strip where a box alone follows the moved latents; its pictures are no latents'."""
        neutral, expressive, face = latents
        if face.tuned is not None:
            raise UserError("operation.box: mixes faces of one generator; take a latent without tuning")
        place = studio.generator.w_avg
        layer = self.layer or studio.middle_layer()
        noise = face.maps(place)
        w1 = face.w_plus[None].to(place)
        shown = [
            ("w2: " + neutral.name, studio.draw(neutral)),
            ("w3: " + expressive.name, studio.draw(expressive)),
        ]
        for index, (strength, w_plus) in enumerate(zip(strengths, moved, strict=True)):
            donor = w_plus[None].to(place)
            made = attribute_transfer(
                studio.generator, w1, donor, box, layer, noise, noise, studio.effort.blur_px
            )
            shown.append((f"{strength:g}", made.image))
            studio.write_image(f"images/expression_{index:03d}", made.image)
            studio.write_pasted(f"expression_{index:03d}", made.image)
            if index == 0:
                studio.write_image("steps/0_mask", 2 * made.steps["mask"] - 1)
        studio.write_pictures("expression", shown)
        studio.written += [f"images/, {len(moved)} PNG files", "steps/, 1 PNG file"]
        studio.tell_pasted(len(moved))
        studio.note(f"layer {layer}; pictures that a box was moved in are no latents', and have no files")


@dataclass(frozen=True)
class StyleTransfer:
    """The first rows of one latent, its content, above the rest of another, its style.

    Args:
        content_rows: Rows of the content; None takes half of them, as 9 of 18 in the paper.
        rows: The style's rows, where no cut parts shape and colour: ``coarse``, ``middle``, ``fine`` or
            ``1,3-7``; None takes all after the content's.
    """

    content_rows: int | None = None
    rows: Any = None
    takes = 2
    pastes = True

    def run(self, studio: Studio) -> None:
        """Write ``style.png``: contents at the left, styles at the top, and every mixture."""
        latents = studio.take(2, None, "each lends its content, and its style to all others")
        if self.rows is not None and self.content_rows is not None:
            raise UserError("operation.content_rows, operation.rows: both given; give one")
        cut = studio.generator.num_ws // 2 if self.content_rows is None else self.content_rows
        rows = studio.rows(self.rows)
        sheet: list[list[Cell | None]] = [
            [None, *(Cell(latent, f"style: {latent.name}") for latent in latents)]
        ]
        for number, content in enumerate(latents):
            cells: list[Cell | None] = [Cell(content, content.name)]
            for index, style in enumerate(latents):
                pair = content.w_plus[None], style.w_plus[None]
                mixed = style_transfer(*pair, cut) if rows is None else mix(*pair, rows)
                name = f"{content.name} in the style of {style.name}"
                how = {"content_rows": cut} if rows is None else {"rows": rows}
                latent = studio.edited(content, mixed[0], name, style=style.name, **how)
                cells.append(Cell(latent, "", f"style_{number}_{index}"))
            sheet.append(cells)
        studio.write_sheet("style", sheet, margin=True)
