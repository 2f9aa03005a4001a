"""Edits of latents: morphs, grids of four, expressions, styles, directions."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from i2i_lightning.checkpoints.directions import load_directions, save_direction
from i2i_lightning.checkpoints.latents import Latent, check_belongs
from i2i_lightning.data.checks import check_choice
from i2i_lightning.editing.directions import Direction, factorisation, found, principal_components, without
from i2i_lightning.editing.local import attribute_transfer
from i2i_lightning.editing.mixing import mix, rows_of
from i2i_lightning.editing.ranges import as_written
from i2i_lightning.editing.transfer import (
    corners,
    embed_difference,
    expression_transfer,
    morph,
    style_transfer,
)
from i2i_lightning.sampling.edits.inputs import box_of, latent_files, numbers_of, read_latents
from i2i_lightning.sampling.edits.studio import Cell, Studio, blended
from i2i_lightning.sampling.sampler import Sampler
from i2i_lightning.types import UserError

FINDS = ("components", "factorisation", "labels", "faces")


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
            for index, w_plus in enumerate(morph(first.w_plus, last.w_plus, self.pictures)):
                t = index / (self.pictures - 1)
                words = {0: first.name, self.pictures - 1: last.name}.get(index, f"{t:.0%}")
                latent = blended([first, last], [1 - t, t], w_plus, studio)
                cells.append(Cell(latent, words, f"morph{number}_{index:03d}"))
            rows.append(cells)
        studio.write_sheet("morph", rows)
        places = studio.way(len(latents) - 1)
        studio.write_video("morph", (_on_way(latents, t, studio) for t in places), len(places))


def _on_way(latents: Sequence[Latent], t: float, studio: Studio) -> Latent:
    """Return the point at ``t``, 0 to 1, of the way that leads through ``latents``."""
    place = t * (len(latents) - 1)
    index = min(int(place), len(latents) - 2)
    share = place - index
    first, last = latents[index : index + 2]
    w_plus = torch.lerp(first.w_plus, last.w_plus, share)
    return blended([first, last], [1 - share, share], w_plus, studio)


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

    @property
    def takes(self) -> int:
        """Latents that it takes at least."""
        return 3 if self.neutral is None and self.expressive is None else 1

    def run(self, studio: Studio) -> None:
        """Write ``expression.png``: neutral, expressive, and the face at every strength."""
        strengths = numbers_of(self.strengths, "operation.strengths")
        if self.takes == 3:
            latents = studio.take(3, 3, "the face, a neutral face, and the same with an expression")
        else:
            latents = self._search(studio)
        face, neutral, expressive = latents

        def moved(values: Sequence[float]) -> Tensor:
            return expression_transfer(
                face.w_plus,
                neutral.w_plus,
                expressive.w_plus,
                torch.tensor(values),
                self.threshold,
                self.normalise,
            )

        if self.box is not None:
            box = box_of(self.box, "operation.box")
            self._write_in_box(studio, (neutral, expressive, face), strengths, moved(strengths), box)
            return
        cells = [Cell(neutral, f"w2: {neutral.name}"), Cell(expressive, f"w3: {expressive.name}")]
        for index, (strength, w_plus) in enumerate(zip(strengths, moved(strengths), strict=True)):
            words = f"{strength:g}"
            latent = studio.edited(face, w_plus, f"{face.name} {words}", strength=strength)
            cells.append(Cell(latent, words, f"expression_{index:03d}"))
        studio.write_sheet("expression", [cells])
        _write_strengths(studio, "expression", face, strengths, lambda value: moved([value])[0])

    def _search(self, studio: Studio) -> list[Latent]:
        """Return the face's latent, w2, and w3 of two photos."""
        given = studio.take(1, 2, "the face, and the neutral photo's where it is there")
        neutral, expressive = (
            studio.reader.picture(f"operation.{key}", getattr(self, key)) for key in ("neutral", "expressive")
        )
        loss = studio.loss()
        if len(given) == 2:
            w2 = given[1].w_plus[None].to(studio.generator.w_avg)
        else:
            w2 = studio.embedded(neutral, loss)
        w3 = embed_difference(
            studio.generator,
            w2,
            neutral.image,
            expressive.image,
            loss,
            studio.effort,
            studio.rows(self.rows),
            self.anchor,
            studio.seed,
            studio.label,
        )
        plain = replace(given[0], noise=None, tuned=None)
        return [
            given[0],
            studio.edited(plain, w2[0].cpu(), neutral.name),
            studio.edited(plain, w3[0].cpu(), expressive.name),
        ]

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
        studio.notes.append(
            f"layer {layer}; pictures that a box was moved in are no latents', and have no files"
        )


def _write_strengths(studio: Studio, name: str, face: Latent, strengths: Sequence[float], moved: Any) -> None:
    """Write an animation from the least strength to the largest."""
    low, high = min(strengths), max(strengths)
    if low == high:
        return
    places = studio.way(1)
    values = [low + t * (high - low) for t in places]
    latents = (studio.edited(face, moved(value), face.name, strength=value) for value in values)
    studio.write_video(name, latents, len(places))


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


@dataclass(frozen=True)
class AlongDirection:
    """Along a direction of W that changes one attribute: from a file, or found here.

    Args:
        file: Direction file: of this project, a published tensor (``.pt``, ``.npy``), or principal components
            (``.pt``, ``.npz``).
        of: Generator that a published direction belongs to, where its file does not say.
        find: How to find one instead: ``components`` (principal components of w), ``factorisation`` (closed
            form), ``labels`` (of latents), ``faces`` (what is read off toy faces).
        component: Number of the component, from 0, of a file or method that has several.
        labels: CSV file with the columns ``name`` and ``value``, for ``find=labels``.
        labelled: Latent files, or a folder of them, that those names mean; None takes ``latents``.
        attribute: What is read off toy faces, as ``smile`` or ``is_glasses``; or the name of the direction.
        samples: Latents that components and faces are taken from.
        rows: Rows of w_plus that it moves: coarse, middle, fine, or 0-3; None for its own.
        strengths: Steps along it, in its usual size.
        orthogonal_to: Direction files whose attributes are to stay.
    """

    file: str | None = None
    of: str | None = None
    find: str | None = None
    component: int = 0
    labels: str | None = None
    labelled: Any = None
    attribute: str | None = None
    samples: int = 2000
    rows: Any = None
    strengths: Any = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    orthogonal_to: Any = None
    takes = 1
    pastes = True

    def __post_init__(self) -> None:
        if self.find is not None:
            check_choice("operation.find", self.find, FINDS)
        if self.file is not None and self.find is not None:
            raise UserError(f"operation.find={self.find}: operation.file gives a direction; leave one out")
        if self.component < 0 or self.samples < 10:
            raise UserError(
                f"operation: component={self.component}, samples={self.samples}: give at least 0, and 10"
            )

    def run(self, studio: Studio) -> None:
        """Write ``direction.png``, a row for each latent, and the direction itself."""
        latents = studio.take(1, None, "what is moved")
        strengths = numbers_of(self.strengths, "operation.strengths")
        direction = self.direction(studio)
        rows = []
        for number, latent in enumerate(latents):
            cells = []
            for index, strength in enumerate(strengths):
                w_plus = direction.apply(latent.w_plus, strength)
                name = f"{latent.name}, {direction.name} {strength:+g}"
                moved = studio.edited(latent, w_plus, name, direction=direction.name, strength=strength)
                cells.append(
                    Cell(moved, f"{strength:+g}" if strength else "0", f"direction{number}_{index:03d}")
                )
            rows.append(cells)
        studio.write_sheet("direction", rows)
        path = studio.folder / f"{''.join(c if c.isalnum() else '_' for c in direction.name)}.safetensors"
        save_direction(path, vars(direction))
        studio.written.append(f"{path.name}: {direction.source}")
        _write_strengths(
            studio,
            "direction",
            latents[0],
            strengths,
            lambda value: direction.apply(latents[0].w_plus, value),
        )

    def direction(self, studio: Studio) -> Direction:
        """Return the direction, checked against the generator."""
        direction = self._read(self.file, studio) if self.file is not None else self._found(studio)
        if self.rows is not None:
            rows = rows_of(self.rows, studio.generator.row_names, "operation.rows")
            direction = _changed(direction, rows=tuple(rows))
        if self.orthogonal_to is not None:
            given = [self.orthogonal_to] if isinstance(self.orthogonal_to, str) else list(self.orthogonal_to)
            others = [self._read(file, studio, several=False) for file in given]
            if any(len(each.vector) > 1 for each in (direction, *others)):
                raise UserError("operation.orthogonal_to: takes directions that are the same for all rows")
            try:
                left = without(
                    direction.vector[0], [other.vector[0].to(direction.vector) for other in others]
                )
            except UserError as error:
                raise UserError(
                    f"operation.orthogonal_to={as_written(self.orthogonal_to)}: of {direction.name}, {error}"
                ) from None
            names = ", ".join(other.name for other in others)
            direction = _changed(direction, vector=left[None], source=f"{direction.source}; without {names}")
        direction.check(studio.generator, studio.fingerprint)
        return direction

    def _read(self, file: str, studio: Studio, several: bool = True) -> Direction:
        found_there = load_directions(Path(file).expanduser())
        number = self.component if several else 0
        if number >= len(found_there):
            raise UserError(f"operation.component={number}: {file} holds {len(found_there)}, counted from 0")
        direction = Direction(**found_there[number])
        if direction.w_avg is None and direction.fingerprint is None:
            direction = self._vouched(direction, file, studio)
        direction.check(studio.generator, studio.fingerprint)
        return direction

    def _vouched(self, direction: Direction, file: str, studio: Studio) -> Direction:
        """Return a direction whose file is silent, bound to the generator that its user names."""
        if self.of is None:
            raise UserError(
                f"operation.file={file}: does not say which generator it belongs to, and means nothing in "
                f"another; if it is this one's, say operation.of={studio.source}"
            )
        other = studio.generator
        if self.of != studio.source:
            assert studio.load_generator is not None
            other = studio.load_generator(self.of)
        return _changed(
            direction,
            fingerprint=other.fingerprint(),
            w_avg=other.w_avg.detach().cpu().clone(),
            source=f"{direction.source}, of {self.of} by its user's word",
        )

    def _found(self, studio: Studio) -> Direction:
        generator, number = studio.generator, self.component
        find = self.find or ("labels" if self.labels is not None else "components")
        if find == "labels":
            return self._of_labels(studio)
        if find == "faces":
            return self._of_faces(studio)
        if find == "factorisation":
            rows = None if self.rows is None else rows_of(self.rows, generator.row_names, "operation.rows")
            directions = factorisation(generator, rows, number + 1)
        else:
            if generator.label_dim:
                raise UserError("operation.find=components: the generator has classes; take factorisation")
            directions = principal_components(generator, number + 1, self.samples)
        if number >= len(directions):
            raise UserError(f"operation.component={number}: there are {len(directions)}, counted from 0")
        return directions[number]

    def _of_labels(self, studio: Studio) -> Direction:
        if self.labels is None:
            raise UserError("operation.labels: missing; give a CSV file with the columns name and value")
        latents = studio.latents if self.labelled is None else read_latents(latent_files(self.labelled))
        for latent in latents:
            check_belongs(latent, studio.generator, studio.fingerprint)
        values = _labels(Path(self.labels).expanduser())
        chosen = [latent for latent in latents if latent.name in values]
        missing = [name for name in values if name not in {latent.name for latent in latents}]
        if missing:
            studio.notes.append(f"{len(missing)} of {len(values)} labels are of latents that are not given")
        if len(chosen) < 2:
            raise UserError(
                f"operation.labels={self.labels}: {len(chosen)} of its names are those of latents given; a "
                "direction takes many"
            )
        w = torch.stack([latent.w_plus.mean(0) for latent in chosen])
        labels = torch.tensor([values[latent.name] for latent in chosen])
        if bool((labels == labels[0]).all()):
            raise UserError(
                f"operation.labels={self.labels}: all {len(chosen)} latents have {float(labels[0]):g}; give "
                "some that differ"
            )
        binary = bool(((labels == 0) | (labels == 1) | (labels == -1)).all())
        name = self.attribute or Path(self.labels).stem
        source = f"{len(chosen)} latents labelled by {Path(self.labels).name}"
        return found(studio.generator, name, w.to(studio.generator.w_avg), labels.to(w), source, binary)

    def _of_faces(self, studio: Studio) -> Direction:
        generator = studio.generator
        if studio.read_faces is None or generator.channels != 3 or generator.label_dim:
            raise UserError("operation.find=faces: reads RGB toy faces of a generator without classes")
        sampler, name = Sampler(generator, generator.w_avg.device), str(self.attribute)
        latents, values = [], []
        for start in range(0, self.samples, sampler.batch_size):
            points = sampler.points(range(start, min(start + sampler.batch_size, self.samples)))
            readings = studio.read_faces(sampler.images(points))
            if name not in readings:
                raise UserError(f"operation.attribute={self.attribute}: give one of {', '.join(readings)}")
            latents.append(points.w_plus[:, 0])
            values.append(readings[name])
        source = f"{name} as the judge reads it off {self.samples} samples"
        w = torch.cat(latents)
        return found(generator, name, w, torch.cat(values).to(w), source, name.startswith("is_"))


def _changed(direction: Direction, **fields: Any) -> Direction:
    """Return ``direction`` with other fields."""
    return Direction(**{**vars(direction), **fields})


def _labels(path: Path) -> dict[str, float]:
    """Return the value of each name in a CSV file with a header.

    Raises:
        UserError: If it is missing, not such a file, or one of its values is no finite number.
    """
    if not path.is_file():
        raise UserError(f"operation.labels={path}: no such file")
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin UTF-8 with a byte-order mark
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if not {"name", "value"} <= set(reader.fieldnames or ()):
            raise UserError(f"operation.labels={path}: its first line must name the columns name and value")
        values: dict[str, float] = {}
        for row in reader:
            values[str(row["name"])] = _number(
                row["value"], f"operation.labels={path}, line {reader.line_num}"
            )
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read ({error})"
        raise UserError(f"operation.labels={path}: {what}; save it as CSV in UTF-8") from None
    return values


def _number(text: str | None, where: str) -> float:
    """Return the finite number, in float32, that ``text`` is; ``where`` is it found, for the message."""
    try:
        number = float(text or "")
    except ValueError:
        raise UserError(f"{where}: {text!r} is no number") from None
    if not abs(number) <= torch.finfo(torch.float32).max:
        raise UserError(f"{where}: {text!r} is no finite number")
    return number
