"""Along a direction of W: read from a file, or found in the generator, in labels, or by the judge."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from i2i_lightning.checkpoints.directions import load_directions, save_direction
from i2i_lightning.checkpoints.latents import Latent, check_belongs
from i2i_lightning.data.checks import check_choice
from i2i_lightning.editing.directions import Direction, factorisation, found, principal_components, without
from i2i_lightning.editing.ranges import as_written
from i2i_lightning.sampling.edits.inputs import latent_files, numbers_of, read_latents
from i2i_lightning.sampling.edits.studio import Cell, Studio
from i2i_lightning.sampling.sampler import Sampler
from i2i_lightning.types import UserError

FINDS = ("components", "factorisation", "labels", "faces")
NEEDS = {
    "component": ("file", "components", "factorisation"),
    "labels": ("labels",),
    "labelled": ("labels",),
    "samples": ("components", "faces"),
}
"""Options that speak of some ways to a direction alone, and these."""


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
        attribute: What is read off toy faces, as ``smile`` or ``is_glasses``; elsewhere, a name for the
            direction.
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
        defaults = {each.name: each.default for each in fields(self)}
        for key, ways in NEEDS.items():
            if getattr(self, key) != defaults[key] and self.way not in ways:
                shown = as_written(getattr(self, key))
                needed = (f"operation.{way}" if way == "file" else f"operation.find={way}" for way in ways)
                raise UserError(f"operation.{key}={shown}: needs {' or '.join(needed)}")
        if self.of is not None and self.file is None and self.orthogonal_to is None:
            raise UserError(f"operation.of={self.of}: needs operation.file or operation.orthogonal_to")

    @property
    def way(self) -> str:
        """Where the direction comes from: ``file``, or one of :data:`FINDS`."""
        if self.file is not None:
            return "file"
        return self.find or ("components" if self.labels is None else "labels")

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

        def at(strength: float) -> Latent:
            w_plus = direction.apply(latents[0].w_plus, strength)
            return studio.edited(latents[0], w_plus, latents[0].name, strength=strength)

        studio.write_moving("direction", rows, at, min(strengths), max(strengths))
        path = studio.folder / f"{''.join(c if c.isalnum() else '_' for c in direction.name)}.safetensors"
        save_direction(path, vars(direction))
        studio.written.append(f"{path.name}: {direction.source}")

    def direction(self, studio: Studio) -> Direction:
        """Return the direction, checked against the generator."""
        direction = self._read(self.file, studio) if self.file is not None else self._found(studio)
        if self.attribute:
            direction = _changed(direction, name=self.attribute)
        rows = studio.rows(self.rows)
        if rows is not None:
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
        if self.way == "labels":
            return self._of_labels(studio)
        if self.way == "faces":
            return self._of_faces(studio)
        if self.way == "factorisation":
            directions = factorisation(generator, studio.rows(self.rows), number + 1)
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
            studio.note(f"{len(missing)} of {len(values)} labels are of latents that are not given")
        if len(chosen) < len(latents):
            left = len(latents) - len(chosen)
            studio.note(f"{left} of {len(latents)} latents have no label, and are left out of the search")
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
        name = Path(self.labels).stem
        source = f"{len(chosen)} latents labelled by {Path(self.labels).name}"
        return found(studio.generator, name, w.to(studio.generator.w_avg), labels.to(w), source, binary)

    def _of_faces(self, studio: Studio) -> Direction:
        generator = studio.generator
        if studio.read_faces is None or generator.channels != 3 or generator.label_dim:
            raise UserError("operation.find=faces: reads RGB toy faces of a generator without classes")
        if not studio.draws_toy_faces:
            studio.note("the judge reads toy faces; this generator is not known to draw them")
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
        UserError: If it is missing, not such a file, has two values for a name, or one that is no finite
            number.
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
            name, where = str(row["name"]), f"operation.labels={path}, line {reader.line_num}"
            value = _number(row["value"], where)
            if values.setdefault(name, value) != value:
                raise UserError(
                    f"{where}: {name!r} has {value:g} here and {values[name]:g} above; leave one value"
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
